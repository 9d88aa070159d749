"""How long windows are in prompts: by a rule of thumb, or measured where the run's windows are there already."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from autointerp.planning.planned import CHARACTERS_PER_TOKEN, TOKENS_PER_SUBJECT_TOKEN, PlanSizes
from sae_core.records import Side

if TYPE_CHECKING:
    from autointerp.config import RunConfig
    from autointerp.evidence import EvidenceStore

_MEASURED_WINDOWS = 200


def plan_sizes(config: RunConfig) -> PlanSizes:
    """By the length of the configuration's windows."""
    length = config.extraction.window_length
    return PlanSizes(window_length=length, window_tokens=length * TOKENS_PER_SUBJECT_TOKEN)


def measured_sizes(store: EvidenceStore) -> PlanSizes:
    """By the characters of a sample of a source's windows, four a token, as they are quoted."""
    pool = store.pool(Side.EXPLAIN)
    length = pool.tokens.shape[1] - pool.context_tokens
    rows = np.random.default_rng(0).permutation(len(pool.tokens))[:_MEASURED_WINDOWS]
    characters = []
    for row in rows:
        tokens = pool.tokens[row, int(pool.first_token[row]) :]
        text = "".join(store.pieces.pieces(int(token) for token in tokens if token >= 0))
        characters.append(len(json.dumps(text, ensure_ascii=False)) - 2)
    return PlanSizes(window_length=length, window_tokens=float(np.mean(characters)) / CHARACTERS_PER_TOKEN)
