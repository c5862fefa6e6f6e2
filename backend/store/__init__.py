"""Where everything is kept. Only this package and Alembic know the tables."""
