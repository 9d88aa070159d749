"""Alembic's environment; run by autointerp.store.opening."""
