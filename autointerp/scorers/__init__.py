"""Scorers: every module here that holds a concrete :class:`Scorer` adds its kind."""

from __future__ import annotations

from autointerp.scorers.base import Scorer

__all__ = ["Scorer"]
