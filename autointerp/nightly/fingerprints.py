"""What decides a label's score, as short sha256s: where one differs from a score's, the score is out of date."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from autointerp.config import RunConfig, canonical_json
from autointerp.prompting.prompt import load_prompt
from autointerp.scorers.base import Scorer

_DIGITS = 16


@dataclass(frozen=True, slots=True)
class ScorerPrints:
    """Of one scorer."""

    prompt: str
    """Instructions that it sends."""
    judge: str
    """Endpoints that it asks: model and what else decides answers, not address or price."""
    settings: str
    """Its own settings, and of the estimate that goes by its verdicts."""


def short_hash(value: Any) -> str:
    """16 hex digits of the sha256 of a JSON value."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


def scorer_prints(config: RunConfig) -> dict[str, ScorerPrints]:
    """By kind of scorer."""
    endpoints = {endpoint.name: endpoint for endpoint in config.build_endpoints()}
    first = next(iter(endpoints), "")
    found = {}
    estimated = config.estimated_scorer()
    for scorer in config.build_scorers():
        needs = scorer.llm_needs()
        asked = sorted({need.endpoint or first for need in needs})
        # the name under which an endpoint stands in the file decides nothing
        judges = [{k: v for k, v in endpoints[name].identity().items() if k != "name"} for name in asked]
        prompts = {name: load_prompt(name).hash for need in needs for name in need.prompts}
        found[scorer.kind] = ScorerPrints(
            short_hash(prompts),
            short_hash(judges),
            short_hash([_settings(scorer), _estimate(config, scorer, estimated)]),
        )
    return found


def _settings(scorer: Scorer) -> dict[str, Any]:
    return {name: value for name, value in scorer.model_dump(mode="json").items() if name != "endpoint"}


def _estimate(config: RunConfig, scorer: Scorer, estimated: Scorer | None) -> dict[str, Any] | None:
    if estimated is None or estimated.kind != scorer.kind:
        return None
    return config.precision.model_dump(mode="json")
