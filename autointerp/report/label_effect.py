"""What the summary says of labels against effect: each judge of texts written under steering, for both sorts of label (METHODS 5)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from autointerp.judging.steered_judge import OUTPUT_LABEL, STEERED_KINDS
from autointerp.report.figures import numbers, plain
from autointerp.report.judges import asked_rows

_CHANCE = {"steered_surprisal": 0.0, "steered_choice": 1 / 3}
"""What a label gets that says nothing; the rating has no such number."""


def label_effect_block(alive: pd.DataFrame, controls: pd.DataFrame) -> dict[str, Any]:
    """By judge and sort of label (``input``, ``output``): the latents asked about and those with a figure, median of the latter, the share
    of all asked about whose interval lies above chance, the mean under shuffled labels, and failures by kind; judges that say
    nothing are left out.

    Medians are over latents with a figure, and ``share_above_chance`` over all that were asked about: one that steering cannot reach, or
    whose texts it breaks, shows no effect.
    """
    block: dict[str, Any] = {}
    for kind in STEERED_KINDS:
        sides = {}
        for side, name in (("input", kind), ("output", OUTPUT_LABEL + kind)):
            asked = asked_rows(alive, name)
            if len(asked):
                sides[side] = _side(asked, controls, name, _CHANCE.get(kind))
        if sides:
            block[kind] = sides
    return block


def _side(asked: pd.DataFrame, controls: pd.DataFrame, name: str, chance: float | None) -> dict[str, Any]:
    values, low = numbers(asked, f"{name}_score"), numbers(asked, f"{name}_low")
    known = values[~np.isnan(values)]
    shuffled = controls[controls["kind"] == "shuffled"] if "kind" in controls.columns else controls[:0]
    under = numbers(shuffled, f"{name}_score")
    under = under[~np.isnan(under)]
    failures = asked[f"{name}_failure"].dropna() if f"{name}_failure" in asked.columns else pd.Series(dtype=str)
    return {
        "num_asked": len(asked),
        "num_defined": len(known),
        "median": plain(np.median(known)) if len(known) else None,
        "chance": chance,
        "share_above_chance": None if chance is None else plain(np.mean(np.nan_to_num(low, nan=-np.inf) > chance)),
        "shuffled_mean": plain(under.mean()) if len(under) else None,
        "num_shuffled": len(under),
        "failures": dict(Counter(str(failure) for failure in failures).most_common()),
    }
