"""Alembic's environment: runs on the connection that ``store.database`` hands over, in its transaction."""

from __future__ import annotations

from alembic import context

from vapor_desktop.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot ALTER much
    transactional_ddl=True,  # store.database begins real transactions, so a failed upgrade leaves nothing
)
with context.begin_transaction():
    context.run_migrations()
