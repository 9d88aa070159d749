"""Scoring every night: which labels are due, within what, what became of the scores, and whether the judge drifts. Torch-free."""

from __future__ import annotations

from autointerp.nightly.schedule import Schedule, load_schedule
from autointerp.nightly.ticking import NightEvent, tick

__all__ = ["NightEvent", "Schedule", "load_schedule", "tick"]
