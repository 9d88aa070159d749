"""Columns that say how a latent's causal effect stands among those of others; made from all scores of a source. Torch-free."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from autointerp.pipeline.context import RunContext
from autointerp.score import ScoreValue
from autointerp.statistics.multiplicity import benjamini_yekutieli
from autointerp.statistics.random_push import ControlDirectionMeans, random_push_chance, random_push_range
from sae_core.intervention.evidence import POOL, ControlKind

_SCORER = "intervention"
_KINDS = tuple(kind.name.lower() for kind in ControlKind)

CAUSAL_COLUMNS = ("causal_random_low", "causal_random_high", "causal_z", "causal_q")
"""The columns that are made here."""


@dataclass(frozen=True)
class CausalColumns:
    """Values of all latents of a source that have a causal effect; some ten numbers a latent are held to make them."""

    latents: NDArray[np.int64]
    """Ascending."""
    values: Mapping[str, NDArray[np.float64]]
    """By column, NaN where it is not defined."""

    def of(self, latent: int) -> dict[str, ScoreValue]:
        """The columns of one latent that are defined."""
        place = int(np.searchsorted(self.latents, latent))
        if place == len(self.latents) or self.latents[place] != latent:
            return {}
        return {name: float(column[place]) for name, column in self.values.items() if np.isfinite(column[place])}


def causal_columns(context: RunContext, source: str) -> CausalColumns:
    """What the effects of a source's latents are worth: the range of a random push, and q-values (METHODS 5).

    Both are about one more random push at the latent's own tokens, isotropic or typical, of its own size.
    """
    latents, own = _read(context, source)
    kinds = range(len(_KINDS))
    controls = ControlDirectionMeans(
        centre=np.stack([own["causal_effect"] - own[f"causal_effect_{name}"] for name in _KINDS], axis=1),
        variance=np.stack([own[f"causal_spread_{name}"] ** 2 for name in _KINDS], axis=1),
        count=np.stack([_dealt(own["causal_num_controls"], kind) for kind in kinds], axis=1),
    )
    low, high = random_push_range(controls, own["causal_push_norm"], most_freedom=POOL // 2 - 1)
    chance = random_push_chance(controls, own["causal_push_norm"], own["causal_effect"], most_freedom=POOL // 2 - 1)
    # a chance of 0 would be no finite score; it is far below what t tails can tell
    score = -ndtri(np.maximum(chance, np.finfo(np.float64).tiny))
    values = {
        "causal_random_low": low,
        "causal_random_high": high,
        "causal_z": score,
        "causal_q": benjamini_yekutieli(chance),
    }
    return CausalColumns(latents, values)


_READ = (
    "causal_effect",
    *(f"causal_effect_{name}" for name in _KINDS),
    *(f"causal_spread_{name}" for name in _KINDS),
    "causal_num_controls",
    "causal_push_norm",
)


def _read(context: RunContext, source: str) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """Latents with an effect, ascending, and what their scores say; NaN for what they do not."""
    rows = array("d")  # eight bytes a number: as objects they would take four times as much
    for latent, values in context.store.values_of_scorer(context.run_id, source, _SCORER):
        if values.get("causal_effect") is not None:
            rows.extend((latent, *(_number(values.get(name)) for name in _READ)))
    table = np.array(rows, dtype=np.float64).reshape(-1, 1 + len(_READ))
    return table[:, 0].astype(np.int64), {name: table[:, 1 + i] for i, name in enumerate(_READ)}


def _number(value: ScoreValue) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _dealt(count_L: NDArray[np.float64], kind: int) -> NDArray[np.int64]:
    """[L] how many of a latent's directions are of a kind: of an odd number one more is isotropic."""
    count = np.nan_to_num(count_L).astype(np.int64)
    return count // 2 if kind == ControlKind.TYPICAL else count - count // 2
