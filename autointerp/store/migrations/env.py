"""Runs migrations on the connection that the caller holds, inside its transaction."""

from __future__ import annotations

from alembic import context

from autointerp.store.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite rolls back table changes too, as long as the driver does not commit behind our back (store/dialects.py)
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
