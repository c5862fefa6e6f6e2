"""The history of the tables: one line of Alembic revisions that runs on SQLite and on Postgres."""
