"""What the summary says of labels against effect: each judge of texts written under steering, for both sorts of label (METHODS 5)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autointerp.judging.steered_judge import OUTPUT_LABEL, STEERED_KINDS
from autointerp.report.figures import numbers, plain
from autointerp.report.judges import asked_rows

_CHANCE = {"steered_surprisal": 0.0, "steered_choice": 1 / 3}
"""What a label gets that says nothing; the rating has no such number."""
_BEST = 0.975
"""Share of other labels that a label must beat on the same texts."""


def label_effect_block(alive: pd.DataFrame, controls: pd.DataFrame) -> dict[str, Any]:
    """By judge and sort of label (``input``, ``output``): the latents asked about and those with a figure, median of the latter, the share
    of all asked about that do better than chance would, the mean under shuffled labels, and failures by kind; judges that say
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
    values = numbers(asked, f"{name}_score")
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
        "share_above_chance": None if chance is None else plain(np.mean(_above_chance(asked, name, chance))),
        "shuffled_mean": plain(under.mean()) if len(under) else None,
        "num_shuffled": len(under),
        "failures": dict(Counter(str(failure) for failure in failures).most_common()),
    }


def _above_chance(asked: pd.DataFrame, name: str, chance: float) -> NDArray[np.bool_]:
    """Which labels do what a label that says nothing does 2.5 times in 100.

    By rank where other labels were asked about on the same texts: labels differ in how easily they gain at all, so that of any
    label's own interval more lie above 0. Where it is not known, it is not so.
    """
    above = numbers(asked, f"{name}_above")
    if not np.isnan(above).all():
        return np.asarray(np.nan_to_num(above, nan=0.0) >= _BEST, dtype=np.bool_)
    return np.asarray(np.nan_to_num(numbers(asked, f"{name}_low"), nan=-np.inf) > chance, dtype=np.bool_)
