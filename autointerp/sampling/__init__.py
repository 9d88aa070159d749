"""Which windows are shown to a language model: firing ones in proportion, silent ones by stratum."""

from __future__ import annotations

from autointerp.sampling.firing import fires_in, firing_rows, sample_firing
from autointerp.sampling.silent import (
    SILENT_STRATA,
    SilentStrata,
    allocate,
    most_fired_token,
    sample_silent,
    silent_strata,
    uniform_counts,
)
from autointerp.sampling.window import ShownWindow, Stratum, of_exemplar, of_pool

__all__ = [
    "SILENT_STRATA",
    "ShownWindow",
    "SilentStrata",
    "Stratum",
    "allocate",
    "fires_in",
    "firing_rows",
    "most_fired_token",
    "of_exemplar",
    "of_pool",
    "sample_firing",
    "sample_silent",
    "silent_strata",
    "uniform_counts",
]
