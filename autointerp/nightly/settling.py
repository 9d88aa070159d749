"""Settles a night whose run has ended: its scores become the newest ones, and it is said what changed. Once, whoever does it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from autointerp.nightly.book import (
    change_night,
    keep_scores,
    last_compared,
    newest_scores,
    night_report,
    settled_reports,
)
from autointerp.nightly.choosing import label_print
from autointerp.nightly.drift import TESTED, Counted, Rescored, change_json, changes, variance_of
from autointerp.nightly.schedule import Schedule
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.control_kinds import VERDICTS
from autointerp.pipeline.faults import fault_point
from autointerp.pipeline.owner import is_dead
from autointerp.pipeline.starting import open_run
from autointerp.score import Score
from autointerp.store import LabelStore
from autointerp.store.calls import settle_abandoned
from autointerp.store.ledger import spend
from autointerp.store.models import LatestScore, NightRow
from sae_core.records import Source

_BLOCK = 4_096
"""Latents of a night that are read at once."""
_SHOWN = 1_000
"""Labels of each kind that a report names; it always says how many there are."""
_PRINTS = ("coder", "corpus", "prompt", "judge", "settings", "label")


class _Below:
    """Labels of one bar that are below it: how many, and those that a report names."""

    def __init__(self) -> None:
        self.count, self.fell = 0, 0
        self._named: list[dict[str, Any]] = []

    def add(self, entry: dict[str, Any]) -> None:
        """One of them."""
        self.count += 1
        self.fell += entry["fell"]
        self._named.append(entry)
        if len(self._named) > 4 * _SHOWN:
            self._named = self.named()

    def named(self) -> list[dict[str, Any]]:
        """Those that fell tonight first, the lowest of them before the others."""
        return sorted(self._named, key=lambda one: (not one["fell"], one["now"]))[:_SHOWN]


@dataclass
class _Gathered:
    """What is seen on the way through a night's scores; nothing in it grows by more than some numbers a label."""

    values: dict[str, dict[str, tuple[float, float | None]]] = field(default_factory=dict)
    """Of the anchors: by key and anchor value, variance and print of the label."""
    labels: dict[str, str] = field(default_factory=dict)
    rescored: Rescored = field(default_factory=Rescored)
    below: dict[str, _Below] = field(default_factory=dict)
    judges: set[str] = field(default_factory=set)
    scored: int = 0
    failed: dict[str, int] = field(default_factory=dict)


def settle_night(store: LabelStore, schedule: Schedule, night: NightRow, now: datetime) -> dict[str, Any] | None:
    """Fold the night's scores in and report on them; the report, None where another process was quicker.

    The report compares with what was there before, so it is kept before the first score is: a process that dies between leaves it to
    the next one, which goes on with the scores. Those are kept page by page, each as often as need be.
    """
    assert night.run_id is not None, "only nights with a run are settled"
    context = open_run(store, night.run_id)
    # its report says what it spent, and batches that it did not wait for are billed all the same
    settle_abandoned(store, night.run_id, is_dead, calls_too=True)
    _keep_report(store, schedule, night, context)
    fault_point("night", "compared")
    with store.reading() as connection:
        report = night_report(connection, night)
    for rows in _pages(context, schedule, night, now):
        with store.writing() as connection:
            keep_scores(connection, rows)
        fault_point("night", "kept")
    with store.writing() as connection:
        if not change_night(connection, night, ["running"], state="settled", settled_at=now):
            return None
    fault_point("night", "settled")
    return report


def _keep_report(store: LabelStore, schedule: Schedule, night: NightRow, context: RunContext) -> None:
    """Compare the night's scores with those before them, unless that has been done."""
    with store.reading() as connection:
        if night_report(connection, night):
            return
    run = store.run(context.run_id)
    gathered = _gather(context, schedule, night)
    controls = _controls(context)
    report = _report(store, schedule, night, gathered, controls)
    total = spend(store, run.id)
    report |= {
        "state": run.state,
        "note": run.state_note,
        "spent": {"calls": total.calls, "tokens": total.input_tokens + total.output_tokens, "usd": total.cost_usd},
    }
    kept = night.anchors | {"values": gathered.values, "labels": gathered.labels, "controls": controls}
    kept["judges"] = sorted(gathered.judges)
    counts = night.counts | {"scored": gathered.scored, "failed": gathered.failed, "snapshot": None}
    with store.writing() as connection:
        # the first one stands: it alone has surely seen no score of tonight in an earlier one's place
        if not night_report(connection, night, lock=True):
            change_night(connection, night, ["running"], counts=counts, anchors=kept, report=report)


def _pages(
    context: RunContext, schedule: Schedule, night: NightRow, now: datetime | None
) -> Iterator[list[dict[str, Any]]]:
    """The night's scores as rows of the newest ones, some thousand latents of one source at a time, ascending."""
    prints = night.anchors["prints"]
    for source in context.sources:
        if source.control:
            continue
        latents = context.latents(source.name)
        for start in range(0, len(latents), _BLOCK):
            block = latents[start : start + _BLOCK]
            texts = context.store.texts(context.run_id, source.name, block)
            yield [
                _row(schedule, source, night, score, values, texts[score.latent], prints, now)
                for score, values in _scores(context, source, block)
                if score.scorer in prints["scorers"] and texts.get(score.latent)
            ]


def _gather(context: RunContext, schedule: Schedule, night: NightRow) -> _Gathered:
    gathered = _Gathered()
    anchors = {source: set(latents) for source, latents in night.anchors["anchors"].items()}
    for rows in _pages(context, schedule, night, None):
        if not rows:
            continue
        latents = [row["latent"] for row in rows]
        with context.store.reading() as connection:
            newest = newest_scores(connection, schedule.name, rows[0]["source"], range(min(latents), max(latents) + 1))
            before = {
                (latent, score.scorer): score
                for latent, scores in newest
                for score in scores
                if score.night < night.date
            }
        for row in rows:
            if (kind := row["failure_kind"]) is not None:
                gathered.failed[kind] = gathered.failed.get(kind, 0) + 1
            if isinstance(model := row["values"].get("judge_model"), str):
                gathered.judges.add(f"{row['scorer']}: {model}")
            anchor = row["latent"] in anchors.get(row["source"], ())
            _compare(gathered, schedule, row, before.get((row["latent"], row["scorer"])), anchor)
        gathered.scored += len(set(latents))
    return gathered


def _scores(context: RunContext, source: Source, latents: Sequence[int]) -> Iterator[tuple[Score, dict[str, Any]]]:
    """The scores of some latents with their values by short names; of the estimated judge those of the estimate too."""
    judge = context.config.estimated_scorer()
    estimates = {}
    if judge is not None:
        from autointerp.pipeline.natural_rate.labels import last_estimates

        estimates = last_estimates(context, source.name, latents)
    for score in context.store.scores(context.run_id, source.name, latents):
        values = {
            name.removeprefix(f"{score.scorer}_"): value
            for name, value in score.values.items()
            if isinstance(value, int | float) or name == "judge_model"
        }
        row = estimates.get((score.latent, score.explainer or ""))
        if judge is not None and score.scorer == judge.kind and row is not None and row.failure_kind is None:
            values |= {name: value for name, value in row.values.items() if isinstance(value, int | float)}
        yield score, values


def _row(
    schedule: Schedule,
    source: Source,
    night: NightRow,
    score: Score,
    values: dict[str, Any],
    text: str,
    prints: Mapping[str, Any],
    now: datetime | None,
) -> dict[str, Any]:
    return {
        "schedule": schedule.name,
        "source": source.name,
        "latent": score.latent,
        "scorer": score.scorer,
        "coder": source.coder_fingerprint,
        "corpus": prints["corpus"][:64],
        **prints["scorers"][score.scorer],
        "label": label_print(text),
        "values": values,
        "failure_kind": None if score.failure is None else score.failure.kind.value,
        "run_id": night.run_id,
        "night": night.date,
        "scored_at": now,
    }


def _compare(
    gathered: _Gathered, schedule: Schedule, row: dict[str, Any], before: LatestScore | None, anchor: bool
) -> None:
    """Note what a score says of its label, beside the one before."""
    values, scorer, place = row["values"], row["scorer"], f"{row['source']}/{row['latent']}"
    unchanged = before is not None and all(getattr(before, name) == row[name] for name in _PRINTS)
    for name in TESTED:
        if not isinstance(value := values.get(name), int | float):
            continue
        found = Counted(float(value), variance_of(values, name))
        if anchor:
            gathered.values.setdefault(f"{scorer}.{name}", {})[place] = (found.value, found.variance)
            gathered.labels[place] = row["label"]
        old = before.values.get(name) if before is not None and unchanged and name == "score" else None
        if before is not None and isinstance(old, int | float):
            earlier = Counted(float(old), variance_of(before.values, name))
            gathered.rescored.add(row["source"], row["latent"], f"{scorer}.{name}", earlier, found)
    for key, bar in schedule.bars.items():
        kind, _, name = key.partition(".")
        if kind != scorer or not isinstance(value := values.get(name), int | float) or value >= bar:
            continue
        old = None if before is None else before.values.get(name)
        fell = isinstance(old, int | float) and old >= bar
        entry = {"source": row["source"], "latent": row["latent"], "now": value, "before": old, "fell": fell}
        gathered.below.setdefault(key, _Below()).add(entry)


def _controls(context: RunContext) -> dict[str, list[float]]:
    """Scores of the run's controls, by kind and scorer."""
    found: dict[str, list[float]] = {}
    for row in context.store.controls(context.run_id):
        scorer = row.component.partition("/")[0]
        value = row.values.get(f"{scorer}_score")
        if row.kind != VERDICTS and isinstance(value, int | float):
            found.setdefault(f"{row.kind} {scorer}.score", []).append(float(value))
    return found


def _report(
    store: LabelStore, schedule: Schedule, night: NightRow, gathered: _Gathered, controls: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    last = last_compared(store, schedule.name, night.date)
    purposes = {} if last is None else _on_purpose(last.anchors["prints"], night.anchors["prints"])
    moved, num_moved = gathered.rescored.moved(schedule.noise.level, _SHOWN)
    report: dict[str, Any] = {
        "schedule": schedule.name,
        "date": night.date,
        "run_id": night.run_id,
        "before": None if last is None else last.date,
        "counts": night.counts | {"scored": gathered.scored, "failed": gathered.failed},
        "changed_on_purpose": purposes,
        "judges": sorted(gathered.judges),
        "judges_before": [] if last is None else last.anchors.get("judges", []),
        "changes": [],
        "drift": False,
        "labels": {
            "tested": len(gathered.rescored),
            "num_moved": num_moved,
            "moved": [one._asdict() for one in moved],
        },
        "bars": {key: _bar(schedule.bars[key], gathered.below.get(key, _Below())) for key in schedule.bars},
    }
    if last is None:
        return report
    fixed = {key for key in gathered.values if not purposes.get(key.partition(".")[0])}
    same = {place for place, label in gathered.labels.items() if last.anchors["labels"].get(place) == label}
    now, before = (
        {
            key: {place: Counted(*pair) for place, pair in values.items() if place in same}
            for key, values in one.items()
            if key in fixed
        }
        for one in (gathered.values, last.anchors["values"])
    )
    pairs = {
        key: (last.anchors["controls"].get(key, []), values)
        for key, values in controls.items()
        if not purposes.get(key.partition(" ")[2].partition(".")[0])
    }
    found = changes(before, now, _history(store, schedule, night, fixed), pairs, schedule.noise)
    report["changes"] = [change_json(change) for change in found]
    report["drift"] = any(change.drifted for change in found)
    return report


def _history(store: LabelStore, schedule: Schedule, night: NightRow, keys: set[str]) -> dict[str, list[float]]:
    """By key the changes of earlier nights in which nothing was changed on purpose, oldest first."""
    found: dict[str, list[float]] = {key: [] for key in keys}
    for report in settled_reports(store, schedule.name, night.date):
        for change in report.get("changes", ()):
            if change["key"] in found:
                found[change["key"]].append(change["difference"])
    return found


def _on_purpose(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[str]]:
    """By scorer what was changed between two nights, so that its change is no drift."""
    common = [name for name in ("corpus", "coders") if before[name] != now[name]]
    found = {}
    for scorer, prints in now["scorers"].items():
        old = before["scorers"].get(scorer)
        if old is None:
            found[scorer] = ["new"]
        elif changed := common + [name for name, value in prints.items() if old[name] != value]:
            found[scorer] = changed
    return found


def _bar(bar: float, below: _Below) -> dict[str, Any]:
    return {"bar": bar, "num_below": below.count, "num_fell": below.fell, "latents": below.named()}
