"""Jobs, plans and the catalogue, as pages and their JSON twins show them."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Literal

from autointerp.components import known_components, parse_component
from autointerp.planning.plan import PlanTotal, RunPlan
from autointerp.server.access import Principal
from autointerp.server.catalogue import Catalogue, Entry
from autointerp.server.errors import shown_error
from autointerp.server.jobs.rows import OPEN
from autointerp.server.jobs.service import Jobs, Planned
from autointerp.server.views.base import View
from autointerp.shown_url import without_password
from autointerp.store.models import JobRow
from sae_core.errors import AutointerpError, ConfigError


class JobView(View):
    """Something that the server was asked to have done."""

    job_id: str
    kind: Literal["run", "export"]
    name: str
    state: Literal["queued", "running", "paused", "cancelled", "done", "failed"]
    run_id: str | None
    """The run that it makes or exports; None until it has been checked and has begun."""
    error_kind: str | None
    error: str | None
    """Why it failed or is paused: one sentence."""
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    before: int
    """Jobs of its kind that come first, where it is queued."""

    @property
    def is_open(self) -> bool:
        """Whether something will still happen of itself."""
        return self.state in OPEN


class JobList(View):
    """Jobs, the latest first."""

    jobs: tuple[JobView, ...]


class JobLine(View):
    """A run in the list that is none yet: it waits, is being checked, or was refused."""

    job_id: str
    name: str
    state: str
    error: str | None
    created_at: datetime


class SteeredView(View):
    """A run after a word to it."""

    run_id: str
    state: str
    """Of the run; a pause takes effect within seconds."""
    job: JobView | None
    """What goes on with it, where this server does."""
    chunks: int | None
    """Chunks that are tried again, where that is known already."""


class PlanLineView(View):
    """What one component asks."""

    what: str
    endpoint: str
    calls_per_latent: float
    prompt_tokens_per_latent: float
    answer_tokens_per_latent: float
    latents: int | None
    calls: float | None
    tokens: int | None
    usd: float | None


class PlanSumView(View):
    """All of it."""

    calls: float
    tokens: int
    usd: float | None
    """None where the price of an endpoint is not known."""


class PlanView(View):
    """What a run would ask of language models, before anything is spent."""

    name: str
    num_latents: int
    """That are labelled, of all sources."""
    num_tokens: int
    """Of the corpus."""
    explainers: tuple[str, ...]
    scorers: tuple[str, ...]
    lines: tuple[PlanLineView, ...]
    """Empty for a run that asks no language model."""
    expected: PlanSumView | None
    at_most: PlanSumView | None
    over_budget: tuple[str, ...]
    """A sentence for each budget that does not suffice."""


class StartedView(View):
    """What came of a request for a run: the job, or its plan where only that was asked for."""

    job: JobView | None
    plan: PlanView | None


class DryRunView(View):
    """A plan, and the form's fields, by which the run is started."""

    plan: PlanView
    fields: tuple[tuple[str, str], ...]


class EntryView(View):
    """Something that can be asked for by its name."""

    name: str
    what: str
    built_in: bool


class ComponentView(View):
    """A kind of explainer or scorer."""

    kind: str
    what: str
    asks: bool
    """Whether it asks a language model."""


class CatalogueView(View):
    """All that a run can be asked for."""

    sources: tuple[EntryView, ...]
    corpora: tuple[EntryView, ...]
    endpoints: tuple[EntryView, ...]
    explainers: tuple[ComponentView, ...]
    scorers: tuple[ComponentView, ...]


class NewRunView(View):
    """The form for a run."""

    catalogue: CatalogueView
    given: dict[str, str | tuple[str, ...]]
    """What stands in the fields."""
    key: str
    """Of this form: sent twice it is one run."""
    error: str | None


def job_view(row: JobRow, queued: list[JobRow] | None = None) -> JobView:
    """One job; ``queued``: all that wait, to say how many come first."""
    first = [other for other in queued or () if other.kind == row.kind and other.created_at < row.created_at]
    return JobView(
        job_id=row.id,
        kind="export" if row.kind == "export" else "run",
        name=row.name,
        state=row.state,  # type: ignore[arg-type]
        run_id=row.run_id,
        error_kind=row.error_kind,
        error=shown_error(AutointerpError(without_password(row.error)))[1] if row.error is not None else None,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        before=len(first) if row.state == "queued" else 0,
    )


def job_list(jobs: Jobs, principal: Principal) -> JobList:
    """All jobs that somebody may see."""
    rows = jobs.jobs(principal)
    queued = [row for row in rows if row.state in OPEN]
    return JobList(jobs=tuple(job_view(row, queued) for row in rows))


def job_lines(jobs: Jobs, principal: Principal) -> tuple[JobLine, ...]:
    """Runs that were asked for and are none yet, for the list of runs; the latest first."""
    return tuple(
        JobLine(job_id=row.id, name=row.name, state=row.state, error=job_view(row).error, created_at=row.created_at)
        for row in jobs.without_run(principal)
    )


def plan_view(planned: Planned, name: str) -> PlanView:
    """A plan as numbers."""
    plan, config = planned.plan, planned.config
    names = zip(config.source_names(), planned.num_latents, strict=True)
    return PlanView(
        name=name,
        num_latents=sum(len(config.select_latents(count, source)) for source, count in names),
        num_tokens=config.extraction.num_tokens,
        explainers=tuple(str(table["kind"]) for table in config.explainers),
        scorers=tuple(str(table["kind"]) for table in config.scorers),
        lines=tuple(_lines(plan)),
        expected=_sum(plan.total()) if plan.lines else None,
        at_most=_sum(plan.at_most.total()) if plan.lines else None,
        over_budget=tuple(f"{sentence[:1].upper()}{sentence[1:]}." for sentence in plan.over_budget),
    )


def catalogue_view(catalogue: Catalogue) -> CatalogueView:
    """All that can be asked for."""
    return CatalogueView(
        sources=_entries(catalogue.entries("source")),
        corpora=_entries(catalogue.entries("corpus")),
        endpoints=_entries(catalogue.entries("endpoint")),
        explainers=_components("explainers"),
        scorers=_components("scorers"),
    )


def _entries(entries: list[Entry]) -> tuple[EntryView, ...]:
    return tuple(
        EntryView(name=entry.name, what=without_password(entry.shown), built_in=entry.built_in) for entry in entries
    )


@cache
def _components(group: Literal["explainers", "scorers"]) -> tuple[ComponentView, ...]:
    """The kinds that need no more than their kind: others read paths."""
    found = []
    for kind, model in sorted(known_components(group).items()):
        try:
            asks = bool(parse_component(group, {"kind": kind}).llm_needs())
        except ConfigError:
            continue
        found.append(ComponentView(kind=kind, what=(model.__doc__ or "").strip().split("\n")[0], asks=asks))
    return tuple(found)


def _lines(plan: RunPlan) -> list[PlanLineView]:
    found = []
    for line in plan.lines:
        total = plan.total([line])
        found.append(
            PlanLineView(
                what=line.what,
                endpoint=line.endpoint,
                calls_per_latent=line.calls_per_latent,
                prompt_tokens_per_latent=line.prompt_per_latent,
                answer_tokens_per_latent=line.answer_per_latent,
                latents=line.latents,
                calls=line.calls,
                tokens=total.usage.input_tokens + total.usage.output_tokens if total is not None else None,
                usd=total.usage.cost_usd if total is not None else None,
            )
        )
    return found


def _sum(total: PlanTotal | None) -> PlanSumView | None:
    if total is None:
        return None
    tokens = total.usage.input_tokens + total.usage.output_tokens
    return PlanSumView(calls=total.calls, tokens=tokens, usd=total.usage.cost_usd)
