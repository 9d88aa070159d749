"""The plan of a run: calls, tokens and dollars of each component that asks a language model (``--dry-run``).

Latents that are dead, rare or failed ask less. What hangs on answers (what a screen flags, what is asked again) is planned as it is
expected, and at most. Repairs of bad answers and retries are not planned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autointerp.evidence import SteeringRequest
from autointerp.explanation import Explanation
from autointerp.judging.null_labels import null_labels
from autointerp.llm.pricing import check_price
from autointerp.llm.protocol import Usage
from autointerp.planning.planned import PlannedCalls, PlanSizes
from autointerp.planning.sizes import plan_sizes
from autointerp.scorers.comparing import can_compare, comparing_scorer
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
    beside: bool = False
    """Whether it is asked about some latents alone: controls, and what checks the estimate."""

    @property
    def calls_per_latent(self) -> float:
        """Calls for one latent."""
        return self.planned.calls * self.texts

    @property
    def prompt_per_latent(self) -> float:
        """Prompt tokens for one latent."""
        return self.calls_per_latent * self.planned.prompt_tokens + self.planned.joined_tokens * self.texts

    @property
    def answer_per_latent(self) -> float:
        """Answer tokens for one latent."""
        return self.calls_per_latent * self.planned.answer_tokens + self.planned.joined_answer_tokens * self.texts

    @property
    def at_most(self) -> PlanLine:
        """The same where all answers are such that most is asked."""
        return replace(self, planned=self.planned.most or self.planned)

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
            input_tokens=round(self.prompt_per_latent * latents),
            cached_tokens=round(found),
            output_tokens=round(self.answer_per_latent * latents + calls * thoughts),
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
        """What each latent takes; what is asked about some alone is left out."""
        return _total((line.calls_per_latent, line, 1) for line in self.lines if not line.beside)

    @property
    def at_most(self) -> RunPlan:
        """The same where all answers are such that most is asked."""
        return replace(self, lines=tuple(line.at_most for line in self.lines))

    @property
    def endpoints(self) -> list[str]:
        """Names of the endpoints that are asked, in the order of the lines."""
        return list(dict.fromkeys(line.endpoint for line in self.lines))

    @property
    def over_budget(self) -> list[str]:
        """A sentence for each budget that does not suffice for the plan."""
        total, most = self.total(), self.at_most.total()
        if total is None or most is None:
            return []
        said = []
        tokens, most_tokens = (all_.usage.input_tokens + all_.usage.output_tokens for all_ in (total, most))
        if self.budget_tokens is not None and most_tokens > self.budget_tokens:
            said.append(
                f"the plan takes about {tokens:,} tokens{_up_to(tokens, most_tokens, '{:,}')} and budget.tokens is "
                f"{self.budget_tokens:,}: the run {_would(tokens > self.budget_tokens)} pause on the way; raise it, or label fewer latents"
            )
        cost, most_cost = total.usage.cost_usd, most.usage.cost_usd
        if self.budget_usd is not None and cost is not None and most_cost is not None and most_cost > self.budget_usd:
            said.append(
                f"the plan costs about ${cost:,.2f}{_up_to(cost, most_cost, '${:,.2f}')} and budget.usd is {self.budget_usd:,.2f}: "
                f"the run {_would(cost > self.budget_usd)} pause on the way; raise it, or label fewer latents"
            )
        return said


def _up_to(expected: float, most: float, form: str) -> str:
    return f", at most {form.format(most)}," if most > expected else ""


def _would(surely: bool) -> str:
    return "would" if surely else "might"


_SHUFFLED, _RANDOM, _AGAIN, _NULL = ", shuffled", ", directions", ", again", ", null labels"


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
    steering = next((n for scorer in scorers for n in scorer.needs() if isinstance(n, SteeringRequest)), None)
    if steering is not None:
        sizes = replace(sizes, steering_targets=len(steering.targets))
    inputs = [explainer for explainer in explainers if explainer.side == "input"]
    real = None if selected is None else sum(selected)
    directions = config.controls.random_directions * len(config.coders)
    lines: list[PlanLine] = []

    def line(
        what: str, planned: Iterable[PlannedCalls], texts: int, latents: int | None, *, beside: bool = False
    ) -> None:
        for calls in planned if texts and latents != 0 else ():
            endpoint = _endpoint(endpoints, calls.endpoint)
            lines.append(PlanLine(what, endpoint.name, calls, texts, latents, endpoint, beside))

    def score(scorer: Scorer, what: str, latents: int | None, *, beside: bool = False) -> None:
        texts = _texts(scorer, explainers)
        if scorer.sample is not None:
            most = scorer.sample if steering is None else min(scorer.sample, steering.latents)
            latents, beside = _sampled(most, selected), True
        line(scorer.kind + what, scorer.planned(sizes), texts, latents, beside=beside)
        line(scorer.kind + what + _AGAIN, scorer.planned_again(sizes), texts, latents, beside=beside)

    for explainer in explainers:
        line(explainer.kind, explainer.planned(sizes), 1, real)
    for scorer in scorers:
        score(scorer, "", real)
    judge = comparing_scorer(explainers, scorers, config.labels.choose, config.labels.by)
    if judge is not None:
        line(f"{judge.kind}, to choose", judge.planned(sizes), _texts(judge, inputs), real)
    estimated = config.estimated_scorer()
    if estimated is not None and (texts := _texts(estimated, inputs)):
        from autointerp.planning.natural_rate import estimate_calls  # loads scipy

        labels = None if selected is None else [texts * count for count in selected]
        audited = None if labels is None else sum(min(config.precision.audit_latents, count) for count in labels)
        for calls in estimate_calls(estimated, config.precision, labels, sizes):
            if calls.audit:
                line(calls.what, [calls.planned], 1, audited, beside=True)
            else:
                line(calls.what, [calls.planned], texts, real)
    null = None if selected is None else sum(config.controls.null_size(count) for count in selected)
    for scorer in scorers:
        if config.controls.null_latents and can_compare(scorer):
            line(scorer.kind + _NULL, scorer.planned(sizes), len(null_labels(0)), null, beside=True)
            # "everything" fits every silent window, and all of these are asked again
            again = [calls.most or calls for calls in scorer.planned_again(sizes)]
            line(scorer.kind + _NULL + _AGAIN, again, 1, null, beside=True)
    shuffled = None
    if selected is not None:
        shuffled = sum(_shuffled(config.controls.shuffled_latents, count) for count in selected)
    for scorer in scorers:
        # written texts are the label's, whichever latent it is given to
        if scorer.judges_explanation and not scorer.writes_texts and not scorer.COMPARES_LABELS:
            score(scorer, _SHUFFLED, shuffled, beside=True)
    for explainer in explainers:
        line(explainer.kind + _RANDOM, explainer.planned(sizes), 1, directions, beside=True)
    for scorer in scorers:
        if scorer.sample is None:  # random directions are steered beside every latent, and not as latents
            score(scorer, _RANDOM, directions, beside=True)
    for name in dict.fromkeys(line.endpoint for line in lines):
        check_price(endpoints[name], config.budget)
    return RunPlan(tuple(lines), real, sizes, config.budget.tokens, config.budget.usd)


def _selected(config: RunConfig, num_latents: Sequence[int] | int | None) -> list[int] | None:
    """Latents of each coder that are labelled, None where that is not known."""
    if num_latents is not None:
        each = [num_latents] * len(config.coders) if isinstance(num_latents, int) else list(num_latents)
        return [
            len(config.select_latents(count, name)) for count, name in zip(each, config.source_names(), strict=True)
        ]
    if isinstance(config.latents, dict):
        return [len(config.latents.get(name, ())) for name in config.source_names()]
    if isinstance(config.latents, tuple):
        return [len(config.latents)] * len(config.coders)
    match = re.fullmatch(r"(\d*):(\d+)", config.latents)
    return None if match is None else [int(match[2]) - int(match[1] or 0)] * len(config.coders)


def labels_of_sources(config: RunConfig, num_latents: Sequence[int] | int | None = None) -> list[int] | None:
    """Labels of each coder whose precision is estimated, 0 where none is; None where the number of latents is not known."""
    estimated, selected = config.estimated_scorer(), _selected(config, num_latents)
    if estimated is None or selected is None:
        return None if selected is None else [0] * len(selected)
    texts = _texts(estimated, [explainer for explainer in config.build_explainers() if explainer.side == "input"])
    return [texts * count for count in selected]


def _shuffled(wanted: int, latents: int) -> int:
    """Latents that are scored under another one's label."""
    return min(latents, max(wanted, 2)) if latents > 1 else 0


def _sampled(most: int, selected: Sequence[int] | None) -> int:
    """Latents of all coders that a scorer with a sample looks at; of one coder where the number of latents is not known."""
    return most if selected is None else sum(min(most, count) for count in selected)


def _texts(scorer: Scorer, explainers: Sequence[Explainer]) -> int:
    """Labels of a latent that a scorer judges; 1 for one that judges the latent itself."""
    if not scorer.judges_explanation:
        return 1
    texts = (
        Explanation(latent=0, explainer=explainer.kind, side=explainer.side, text="text") for explainer in explainers
    )
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
