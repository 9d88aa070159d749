"""The label store: runs, chunks with leases, explanations, scores, labels. SQLite by default, PostgreSQL by its URL."""

from __future__ import annotations

from autointerp.store.chunks import MAX_ATTEMPTS, ChunkKey, ChunkState, Fenced, Lease, NewChunk
from autointerp.store.opening import open_store
from autointerp.store.store import LabelStore

__all__ = ["MAX_ATTEMPTS", "ChunkKey", "ChunkState", "Fenced", "LabelStore", "Lease", "NewChunk", "open_store"]
