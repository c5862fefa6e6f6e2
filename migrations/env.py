"""Run by Alembic with the connection of `backend.store.migrate`, inside its transaction."""

from alembic import context

from backend.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,  # SQLite can, when transactions begin where we say
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
