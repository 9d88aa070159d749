"""What a run will ask of language models, worked out before it asks."""

from __future__ import annotations
