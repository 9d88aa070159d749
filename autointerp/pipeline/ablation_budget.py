"""Which latents are ablated where there is no room for all: a random part, and those with the largest attribution. Torch-free.

What attribution selects is not the dictionary (METHODS 5): whoever sums up effects over it keeps to the rows for which
:func:`stands_for_dictionary` holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from autointerp.evidence import AblationChoice, AblationRequest
from sae_core.hashing import seed_for

if TYPE_CHECKING:
    from autointerp.pipeline.context import RunContext

FEWEST_RANDOM = 32
"""Random latents that are ablated however few a share is, as far as half of the budget goes."""
_OF_THE_SAMPLE = frozenset({AblationChoice.ALL, AblationChoice.RANDOM})


def choose_latents(context: RunContext, source: str) -> Mapping[int, AblationChoice]:
    """Why each selected latent of a source that fires anywhere in the corpus is ablated, or is not; empty where nobody asks.

    Deterministic and the same in every process, once the attribution stages have settled. Where these left nothing (a chunk that was
    given up), the whole budget is random. A control source is small, and what others are compared with: all of it is ablated.
    """
    request = context.request(AblationRequest)
    if request is None:
        return {}
    selected = np.asarray(context.latents(source), dtype=np.int64)
    fires = context.exemplars(source).statistics.fire_count[:, selected].sum(axis=0) > 0
    alive = selected[fires]
    budget = request.latents
    if budget is None or budget >= len(alive) or context.source(source).control:
        return dict.fromkeys(alive.tolist(), AblationChoice.ALL)
    rng = np.random.default_rng(seed_for(context.config.seed, "ablated latents", source))
    order = rng.permutation(alive)
    attribution = context.attribution(source)
    # in a large coder a share is more than the budget, and the screen is to have something to say
    num_random = min(math.ceil(budget / 2), max(FEWEST_RANDOM, math.ceil(request.random_share * len(alive))))
    if attribution is None:
        num_random = budget
    choices = dict.fromkeys(alive.tolist(), AblationChoice.LEFT_OUT)
    choices.update(dict.fromkeys(order[:num_random].tolist(), AblationChoice.RANDOM))
    if attribution is not None:
        rest = np.sort(order[num_random:])
        # what fires nowhere on the score side has no attribution, and could not be ablated there
        rest = rest[attribution.count[rest] > 0]
        largest = rest[np.argsort(-attribution.kl[rest], kind="stable")][: budget - num_random]
        choices.update(dict.fromkeys(largest.tolist(), AblationChoice.SCREEN))
    return choices


def ablated_latents(context: RunContext, source: str, latents: Iterable[int]) -> list[int]:
    """Those of ``latents`` that get real ablations, in their order."""
    choices = context.ablation_choices(source)
    return [latent for latent in latents if choices.get(latent, AblationChoice.LEFT_OUT) != AblationChoice.LEFT_OUT]


def stands_for_dictionary(row: Mapping[str, Any]) -> bool:
    """Whether a row of the dictionary counts in medians and shares of causal figures over it: it was ablated, and not because of what
    was expected of it."""
    return row.get("causal_chosen") in _OF_THE_SAMPLE
