"""Alembic's entry: it runs inside the transaction that `migrating.py` holds."""

from alembic import context

from excise.server.store.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    transactional_ddl=True,  # SQLite can, since we begin its transactions ourselves (`opening.py`)
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
