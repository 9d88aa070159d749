"""The plan of a run: calls, tokens and dollars of each component that asks a language model (``--dry-run``).

Every count is an upper one: latents that are dead, rare or failed ask less. Repairs of bad answers and retries are not planned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autointerp.explanation import Explanation
from autointerp.llm.pricing import check_price
from autointerp.llm.protocol import Usage
from autointerp.planning.planned import PlannedCalls, PlanSizes
from autointerp.planning.sizes import plan_sizes
from autointerp.scorers.comparing import comparing_scorer
from sae_core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from autointerp.config import RunConfig
    from autointerp.explainers.base import Explainer
    from autointerp.llm.endpoints.base import Endpoint
    from autointerp.scorers.base import Scorer


@dataclass(frozen=True, slots=True)
class PlanLine:
    """Calls of one component for one end."""

    what: str
    """Component and end, for a person: ``detection``, ``detection, shuffled labels``."""
    endpoint: str
    """Name of the endpoint."""
    planned: PlannedCalls
    """One sort of its calls, for one text."""
    texts: int
    """Labels of a latent that it asks about, 1 for what is asked about the latent itself."""
    latents: int | None
    """Latents that it asks about at most, None where that is not known."""
    price: Endpoint
    """What knows the price."""

    @property
    def calls_per_latent(self) -> float:
        """Calls for one latent."""
        return self.planned.calls * self.texts

    @property
    def calls(self) -> float | None:
        """Calls in all."""
        return None if self.latents is None else self.calls_per_latent * self.latents

    def usage(self, latents: int, *, cached: bool = False) -> Usage:
        """What the calls for so many latents take; with ``cached`` the static parts are found in a prefix cache."""
        calls = self.calls_per_latent * latents
        # of plain texts that are only scored nothing is answered, so nothing is thought
        thoughts = self.price.thinking_tokens if self.planned.answer_tokens else 0
        # the first call of all finds nothing there
        found = max(0.0, calls - 1) * self.planned.static_tokens if cached else 0.0
        return Usage(
            input_tokens=round(calls * self.planned.prompt_tokens),
            cached_tokens=round(found),
            output_tokens=round(calls * (self.planned.answer_tokens + thoughts)),
        )

    def cost(self, latents: int, *, cached: bool = False) -> float | None:
        """US dollars for so many latents, None where the price is not known."""
        return self.price.cost(self.usage(latents, cached=cached))


@dataclass(frozen=True, slots=True)
class PlanTotal:
    """A sum over lines."""

    calls: float
    """Calls."""
    usage: Usage
    """Tokens, and dollars where all prices are known."""
    cached_cost_usd: float | None
    """Dollars where prefix caches hold every static part."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run will ask, line by line."""

    lines: tuple[PlanLine, ...]
    """Explainers, then scorers, then what stands beside them."""
    latents: int | None
    """Latents of all coders that are labelled, None where that is not known."""
    sizes: PlanSizes
    """What the lengths were worked out from."""
    budget_tokens: int | None
    """The configured budget."""
    budget_usd: float | None
    """The configured budget."""

    def total(self, lines: Iterable[PlanLine] | None = None) -> PlanTotal | None:
        """The sum of some lines, of all by default; None where the number of latents is not known."""
        chosen = list(self.lines if lines is None else lines)
        counts = [line.latents for line in chosen]
        if any(count is None for count in counts):
            return None
        known = [(line, count) for line, count in zip(chosen, counts, strict=True) if count is not None]
        return _total((line.calls_per_latent * count, line, count) for line, count in known)

    def per_latent(self) -> PlanTotal:
        """What one latent takes, controls left out."""
        return _total((line.calls_per_latent, line, 1) for line in self.lines if not line.what.endswith(_BESIDE))

    @property
    def endpoints(self) -> list[str]:
        """Names of the endpoints that are asked, in the order of the lines."""
        return list(dict.fromkeys(line.endpoint for line in self.lines))

    @property
    def over_budget(self) -> list[str]:
        """A sentence for each budget that does not suffice for the plan."""
        total = self.total()
        if total is None:
            return []
        said = []
        tokens = total.usage.input_tokens + total.usage.output_tokens
        if self.budget_tokens is not None and tokens > self.budget_tokens:
            said.append(
                f"the plan takes about {tokens:,} tokens and budget.tokens is {self.budget_tokens:,}: the run would pause on "
                "the way; raise it, or label fewer latents"
            )
        cost = total.usage.cost_usd
        if self.budget_usd is not None and cost is not None and cost > self.budget_usd:
            said.append(
                f"the plan costs about ${cost:,.2f} and budget.usd is {self.budget_usd:,.2f}: the run would pause on the way; "
                "raise it, or label fewer latents"
            )
        return said


_SHUFFLED, _RANDOM = ", shuffled", ", directions"
_BESIDE = (_SHUFFLED, _RANDOM)


def plan_run(
    config: RunConfig, *, num_latents: Sequence[int] | int | None = None, sizes: PlanSizes | None = None
) -> RunPlan:
    """The plan of a configuration; nothing is asked or loaded.

    ``num_latents``: latents of each coder, or of every one; without it they are known only where the configuration lists
    them. ``sizes``: measured ones, else a rule of thumb. Errors: ConfigError for a dollar budget with an unknown price.
    """
    sizes = sizes or plan_sizes(config)
    selected = _selected(config, num_latents)
    endpoints = {endpoint.name: endpoint for endpoint in config.build_endpoints()}
    explainers, scorers = config.build_explainers(), config.build_scorers()
    inputs = [explainer for explainer in explainers if explainer.side == "input"]
    real = None if selected is None else sum(selected)
    directions = config.controls.random_directions * len(config.coders)
    lines: list[PlanLine] = []

    def add(component: Explainer | Scorer, what: str, texts: int, latents: int | None) -> None:
        if not texts or latents == 0:
            return
        for planned in component.planned(sizes):
            endpoint = _endpoint(endpoints, planned.endpoint)
            lines.append(PlanLine(what, endpoint.name, planned, texts, latents, endpoint))

    for explainer in explainers:
        add(explainer, explainer.kind, 1, real)
    for scorer in scorers:
        add(scorer, scorer.kind, _texts(scorer, inputs), real)
    judge = comparing_scorer(explainers, scorers, config.labels.choose, config.labels.by)
    if judge is not None:
        add(judge, f"{judge.kind}, to choose", _texts(judge, inputs), real)
    shuffled = None
    if selected is not None:
        shuffled = sum(_shuffled(config.controls.shuffled_latents, count) for count in selected)
    for scorer in scorers:
        if scorer.judges_explanation:
            add(scorer, scorer.kind + _SHUFFLED, _texts(scorer, inputs), shuffled)
    for explainer in explainers:
        add(explainer, explainer.kind + _RANDOM, 1, directions)
    for scorer in scorers:
        add(scorer, scorer.kind + _RANDOM, _texts(scorer, inputs), directions)
    for name in dict.fromkeys(line.endpoint for line in lines):
        check_price(endpoints[name], config.budget)
    return RunPlan(tuple(lines), real, sizes, config.budget.tokens, config.budget.usd)


def _selected(config: RunConfig, num_latents: Sequence[int] | int | None) -> list[int] | None:
    """Latents of each coder that are labelled, None where that is not known."""
    if num_latents is not None:
        each = [num_latents] * len(config.coders) if isinstance(num_latents, int) else list(num_latents)
        return [len(config.select_latents(count)) for count in each]
    if isinstance(config.latents, tuple):
        return [len(config.latents)] * len(config.coders)
    match = re.fullmatch(r"(\d*):(\d+)", config.latents)
    return None if match is None else [int(match[2]) - int(match[1] or 0)] * len(config.coders)


def _shuffled(wanted: int, latents: int) -> int:
    """Latents that are scored under another one's label."""
    return min(latents, max(wanted, 2)) if latents > 1 else 0


def _texts(scorer: Scorer, explainers: Sequence[Explainer]) -> int:
    """Labels of a latent that a scorer judges; 1 for one that judges the latent itself."""
    if not scorer.judges_explanation:
        return 1
    texts = (Explanation(latent=0, explainer=explainer.kind, side="input", text="text") for explainer in explainers)
    return sum(scorer.can_judge(text) for text in texts)


def _endpoint(endpoints: dict[str, Endpoint], name: str) -> Endpoint:
    if not endpoints:
        raise ConfigError("no language model is configured: add an [[endpoints]] table with a kind and a model.")
    if name and name not in endpoints:
        raise ConfigError(f"there is no endpoint {name!r}: {did_you_mean(name, endpoints)}")
    return endpoints[name] if name else next(iter(endpoints.values()))


def _total(parts: Iterable[tuple[float, PlanLine, int]]) -> PlanTotal:
    calls, usage, cached = 0.0, Usage(cost_usd=0.0), Usage(cost_usd=0.0)
    for number, line, latents in parts:
        calls += number
        usage = usage + line.usage(latents).model_copy(update={"cost_usd": line.cost(latents)})
        with_cache = line.cost(latents, cached=True)
        cached = cached + line.usage(latents, cached=True).model_copy(update={"cost_usd": with_cache})
    whole = usage.model_copy(update={"cached_tokens": cached.cached_tokens})
    return PlanTotal(calls, whole, cached.cost_usd)
