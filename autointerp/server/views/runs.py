"""The runs there are, and one of them: how far it is, what it costs, what came of it."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from sqlalchemy import select

from autointerp.report.run_status import NANO, RunStatus, read_status
from autointerp.server.pages import place_text
from autointerp.server.progress import Pace
from autointerp.server.shelf import ServedRun
from autointerp.server.views.base import View
from autointerp.server.views.jobs import JobLine
from autointerp.server.visibility import SeenShelf
from autointerp.shown_url import without_password
from autointerp.store.models import LabelRow
from sae_core.records import Source

_LATEST = 12
ENDED = ("done", "failed", "cancelled")


class RunLine(View):
    """A run in the list."""

    run_id: str
    name: str
    state: str
    created_at: datetime


class RunList(View):
    """All runs, the latest first."""

    runs: tuple[RunLine, ...]
    jobs: tuple[JobLine, ...]
    """Those that were asked for and are none yet: they wait, are being checked, or were refused."""
    can_start: bool
    """Whether whoever looks may start one."""


class SourceView(View):
    """One coder on one subject."""

    name: str
    subject: str
    subject_revision: str
    hookpoint: str
    coder: str
    coder_fingerprint: str
    num_latents: int
    control: bool


class StageView(View):
    """One stage; units are its own: tokens, latents, ..."""

    name: str
    done: int
    total: int
    running: int
    poisoned: int
    """Chunks that failed, or ended their process too often."""
    units_done: int
    units: int
    units_per_s: float | None
    """Over the last minute; None where nothing has come since the first look."""
    left_s: float | None
    """Seconds that the rest takes at that rate."""


class SpendView(View):
    """What a run has spent of what it may."""

    tokens: int
    usd: float
    reserved_tokens: int
    """Of calls under way."""
    budget_tokens: int | None
    budget_usd: float | None
    asks: bool
    """Whether the run asks language models at all."""


class LabelLine(View):
    """A label that was made lately."""

    source: str
    latent: int
    status: str
    label: str | None
    at: datetime


class ProgressView(View):
    """How far a run is, now."""

    run_id: str
    name: str
    state: str
    note: str | None
    """Why it is paused, failed or cancelled."""
    created_at: str
    ended: bool
    stages: tuple[StageView, ...]
    spend: SpendView
    workers: int
    """Processes that work for this store."""
    failures: dict[str, int]
    """Latents without a label, by the failure's kind; dead and rare ones by their status."""
    events: dict[str, int]
    """What went wrong and was mended, by kind."""
    errors: tuple[str, ...]
    latest: tuple[LabelLine, ...]


class MedianView(View):
    """One figure over all labelled latents of the run."""

    name: str
    median: float | None
    quartile_low: float | None
    quartile_high: float | None
    num_defined: int
    floors: dict[str, float | None]
    """The same of the controls."""


class RunView(View):
    """A run and what came of it."""

    progress: ProgressView
    sources: tuple[SourceView, ...]
    controls: tuple[SourceView, ...]
    statuses: dict[str, int]
    """Latents by status; empty before the run is done."""
    num_tokens: int | None
    """Of the corpus."""
    num_documents: int | None
    medians: tuple[MedianView, ...]
    judged: dict[str, Any]
    """What judges said over all latents, by scorer: see docs of summary.json."""
    causal: dict[str, Any]
    timings: dict[str, float]
    has_dictionary: bool
    config: dict[str, Any]
    """The run's settings; keys of endpoints are names of variables, never values."""


def run_list(shelf: SeenShelf, *, jobs: tuple[JobLine, ...], can_start: bool) -> RunList:
    """All runs."""
    return RunList(
        runs=tuple(
            RunLine(run_id=head.id, name=head.name, state=head.state, created_at=head.created_at)
            for head in shelf.heads()
        ),
        jobs=jobs,
        can_start=can_start,
    )


def progress_view(run: ServedRun, pace: Pace) -> ProgressView:
    """One look at a run."""
    status = read_status(run.store, run.run_id, by_purpose=False)
    rates = pace.rates(run.run_id, {stage.name: stage.units_done for stage in status.stages})
    return ProgressView(
        run_id=run.run_id,
        name=status.name,
        state=status.state,
        note=without_password(status.note) if status.note else None,
        created_at=status.begun,
        ended=status.state in ENDED,
        stages=tuple(_stage(stage, rates.get(stage.name)) for stage in status.stages),
        spend=_spend(status, asks=bool(run.context.config.endpoints)),
        workers=len(status.workers),
        failures=_failures(run, status.state),
        events=status.events,
        errors=tuple(without_password(error) for error in status.errors),
        latest=_latest(run),
    )


def run_view(run: ServedRun, pace: Pace) -> RunView:
    """Everything of a run but its latents."""
    summary = _summary(run)
    sources = [_source(record) for record in run.context.sources]
    labels = summary.get("latents", {})
    corpus = summary.get("run", {}).get("corpus", {})
    return RunView(
        progress=progress_view(run, pace),
        sources=tuple(source for source in sources if not source.control),
        controls=tuple(source for source in sources if source.control),
        statuses={name: labels[name] for name in ("labelled", "dead", "rare", "failed") if name in labels},
        num_tokens=corpus.get("num_tokens"),
        num_documents=corpus.get("num_documents"),
        medians=tuple(_medians(summary)),
        judged=summary.get("judged", {}),
        causal=summary.get("causal", {}),
        timings=run.store.timings(run.run_id),
        has_dictionary=run.dictionary() is not None,
        config=_shown(run.store.run(run.run_id).config),
    )


def _stage(stage: Any, rate: float | None) -> StageView:
    left = (stage.units - stage.units_done) / rate if rate else None
    return StageView(
        name=stage.name,
        done=stage.done,
        total=stage.total,
        running=stage.running,
        poisoned=stage.poisoned,
        units_done=stage.units_done,
        units=stage.units,
        units_per_s=rate,
        left_s=left if left else None,
    )


def _spend(status: RunStatus, *, asks: bool) -> SpendView:
    return SpendView(
        tokens=status.spent_tokens,
        usd=status.spent_nano_usd / NANO,
        reserved_tokens=status.reserved_tokens,
        budget_tokens=status.budget.get("tokens"),
        budget_usd=status.budget.get("usd"),
        asks=asks,
    )


def _failures(run: ServedRun, state: str) -> dict[str, int]:
    """Counted anew every ten seconds while the run goes on: of a million labels that takes a fifth of a second."""
    found: dict[str, int] = run.remembered(
        f"failures {state}", 3600.0 if state in ENDED else 10.0, lambda: _count_failures(run)
    )
    return found


def _count_failures(run: ServedRun) -> dict[str, int]:
    from sqlalchemy import func

    query = (
        select(LabelRow.status, LabelRow.failure_kind, func.count())
        .where(LabelRow.run_id == run.run_id, LabelRow.status != "labelled", LabelRow.source.in_(run.real_sources()))
        .group_by(LabelRow.status, LabelRow.failure_kind)
    )
    with run.store.reading() as connection:
        rows = connection.execute(query).all()
    found: dict[str, int] = {}
    for status, kind, count in rows:
        name = kind if status == "failed" and kind else status
        found[name] = found.get(name, 0) + int(count)
    return found


def _latest(run: ServedRun) -> tuple[LabelLine, ...]:
    query = (
        select(LabelRow.source, LabelRow.latent, LabelRow.status, LabelRow.text, LabelRow.created_at)
        .where(LabelRow.run_id == run.run_id, LabelRow.source.in_(run.real_sources()))
        .order_by(LabelRow.id.desc())
        .limit(_LATEST)
    )
    with run.store.reading() as connection:
        rows = connection.execute(query).all()
    return tuple(
        LabelLine(source=row.source, latent=row.latent, status=row.status, label=row.text, at=row.created_at)
        for row in rows
    )


def _source(record: Source) -> SourceView:
    return SourceView(
        name=record.name,
        subject=place_text(record.subject),
        subject_revision=record.subject_revision,
        hookpoint=record.hookpoint,
        coder=place_text(record.coder),
        coder_fingerprint=record.coder_fingerprint,
        num_latents=record.num_latents,
        control=record.control,
    )


def _shown(value: Any) -> Any:
    """Settings without passwords in their URLs; of folders the last two parts."""
    if isinstance(value, dict):
        return {name: _shown(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_shown(one) for one in value]
    return place_text(value) if isinstance(value, str) else value


def _summary(run: ServedRun) -> dict[str, Any]:
    if not run.folder.summary.is_file():
        return {}
    found: dict[str, Any] = json.loads(run.folder.summary.read_text(encoding="utf-8"))
    return found


def _medians(summary: dict[str, Any]) -> list[MedianView]:
    figures = summary.get("scores", {}).get("labelled", {})
    floors = summary.get("floors", {})
    return [
        MedianView(
            name=name,
            median=value["median"],
            quartile_low=value["quartile_low"],
            quartile_high=value["quartile_high"],
            num_defined=value["num_defined"],
            floors={
                kind: row.get(name) for kind, row in floors.items() if isinstance(row, dict) and kind != "null_nothing"
            },
        )
        for name, value in figures.items()
        if isinstance(value, dict) and value.get("num_defined")
    ]
