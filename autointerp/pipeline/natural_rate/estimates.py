"""The estimates of a source's labels as rows of the store: one posterior over all of them (METHODS 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from autointerp.failure import Failure, FailureKind
from autointerp.judging.further_figures import JudgedWindows, further_figures
from autointerp.judging.tally import NO_VERDICTS, LabelTally, Tally, counts_of, pool_counts, unscreened
from autointerp.patterns.token_rule import counted_rule
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.control_kinds import SHUFFLED, VERDICTS
from autointerp.pipeline.latent_evidence import evidence_of
from autointerp.pipeline.natural_rate.labels import AUDIT, estimated_judge, estimated_labels, fit_of, last_round
from autointerp.pipeline.natural_rate.resolution import judge_resolution
from autointerp.score import Score, ScoreValue, defined
from autointerp.statistics.natural_rate import JudgeResolution, NaturalRates, PrecisionBasis, estimate_natural_rates
from autointerp.statistics.natural_rate.figures import Estimate as Interval
from autointerp.store.models import Artefact, Base, EstimateRow, ScreenRow
from sae_core.hashing import seed_for

_ENOUGH_LABELS = 5_000
"""Of a run's labels, at random, from which an edited one may borrow: with more the fit is hardly better, and a person waits."""


def estimate_rows(context: RunContext, source: str, stage: str) -> list[Base]:
    """Precision, recall and F1 of every judged label of a source, or why there is none, and what is true of the fit as a whole."""
    run_id = context.run_id
    rows: list[Base] = []
    judged: list[tuple[int, str]] = []
    tallies: list[LabelTally] = []
    windows, half = JudgedWindows(), context.config.extraction.window_length / 2
    for latent, explainer, found, items in _tallies(context, source):
        if isinstance(found, Failure):
            rows.append(_row(run_id, source, stage, latent, explainer, {}, found))
        else:
            judged.append((latent, explainer))
            tallies.append(found)
            windows.add(items, half)
    if not tallies:
        return rows
    counts, seed = counts_of(tallies), seed_for(context.config.seed, "estimate", source)
    rates = estimate_natural_rates(counts, seed, judge=_null_labels(context))
    largest = np.abs(context.exemplars(source).statistics.max_activation).max(axis=0)
    further = further_figures(windows, counts, rates, largest[[latent for latent, _ in judged]], judged, seed)
    rules: dict[int, dict[str, float | int | None]] = {}
    for number, (latent, explainer) in enumerate(judged):
        if latent not in rules:
            rules[latent] = counted_rule(evidence_of(context, source, latent))
        values = _values(rates, tallies[number], number) | further[number] | rules[latent]
        rows.append(_row(run_id, source, stage, latent, explainer, values, None))
    told = Artefact(run_id=run_id, kind=f"{stage}/{source}", version=1, value=_of_the_fit(rates, tallies))
    return [*rows, *_of_shuffled(context, source, stage), told]


def _of_shuffled(context: RunContext, source: str, stage: str) -> list[Base]:
    """Labels of other latents, a population of their own: the floor beside the estimates."""
    judge = estimated_judge(context)
    assert judge is not None
    judged: list[tuple[int, str]] = []
    tallies: list[LabelTally] = []
    for row in context.store.controls(context.run_id, source, SHUFFLED):
        scorer, _, explainer = row.component.partition("/")
        if scorer == judge.kind and row.failure_kind is None and VERDICTS in row.values:
            tally = _counted(row.values[VERDICTS], ())
            if not isinstance(tally, Failure):
                judged.append((row.latent, f"{SHUFFLED}/{explainer}"))
                tallies.append(tally)
    if not tallies:
        return []
    rates = estimate_natural_rates(
        counts_of(tallies), seed_for(context.config.seed, "estimate", source, SHUFFLED), audit=False
    )
    return [
        _row(context.run_id, source, stage, latent, explainer, _values(rates, tallies[number], number), None)
        for number, (latent, explainer) in enumerate(judged)
    ]


def estimate_of_edit(context: RunContext, source: str, score: Score) -> EstimateRow | None:
    """The row of a text that a person wrote after the run's estimates were made, from its verdicts and those of the run's labels.

    ``score``: the estimated judge's. None where the run has no estimates.
    """
    last = last_round(context, source)
    if last is None or score.explainer is None:
        return None
    found = score.failure or _counted(score.verdicts, ())
    if isinstance(found, Failure):
        return _row(context.run_id, source, last, score.latent, score.explainer, {}, found)
    others = [plain_tally(items) for _, _, tally, items in _tallies(context, source) if isinstance(tally, LabelTally)]
    seed = seed_for(context.config.seed, "estimate", source, score.latent, score.explainer)
    chosen = np.random.default_rng(seed).permutation(len(others))[:_ENOUGH_LABELS]
    tallies = [*(others[index] for index in sorted(chosen.tolist())), found]
    trusted = bool((fit_of(context, source) or {}).get("borrows"))
    rates = estimate_natural_rates(counts_of(tallies), seed, judge=_null_labels(context), audit=False, trusted=trusted)
    values = _values(rates, found, len(tallies) - 1)
    values |= counted_rule(evidence_of(context, source, score.latent))
    return _row(context.run_id, source, last, score.latent, score.explainer, values, None)


def _null_labels(context: RunContext) -> JudgeResolution | None:
    resolution = judge_resolution(context)
    return None if resolution is None else resolution.of_null_labels


def _row(
    run_id: str,
    source: str,
    stage: str,
    latent: int,
    explainer: str,
    values: dict[str, ScoreValue],
    failure: Failure | None,
) -> EstimateRow:
    return EstimateRow(
        run_id=run_id,
        source=source,
        latent=latent,
        stage=stage,
        explainer=explainer,
        values=defined(values),
        failure_kind=None if failure is None else failure.kind.value,
        failure_message=None if failure is None else failure.message,
    )


def _tallies(context: RunContext, source: str) -> Iterator[tuple[int, str, LabelTally | Failure, dict[str, Any]]]:
    """What was judged of each label of a source, or why nothing was; and the scorer's verdicts."""
    judge = estimated_judge(context)
    assert judge is not None, "where nothing is estimated no chunk is planned"
    store, run_id, size = context.store, context.run_id, context.config.chunk_latents
    latents = context.latents(source)
    for start in range(0, len(latents), size):
        part = latents[start : start + size]
        verdicts = {
            (r.latent, r.explainer): r.items for r in store.verdicts(run_id, source, part) if r.scorer == judge.kind
        }
        scores = {(s.latent, s.explainer): s for s in store.scores(run_id, source, part) if s.scorer == judge.kind}
        rounds: dict[tuple[int, str], list[ScreenRow]] = {}
        for row in store.screens(run_id, source, part):
            rounds.setdefault((row.latent, row.explainer), []).append(row)
        for text in estimated_labels(context, source, part):
            key = (text.latent, text.explainer)
            items = verdicts.get(key)
            yield *key, _tally(scores.get(key), items, rounds.get(key, ())), items or {}


def plain_tally(items: Mapping[str, Any]) -> LabelTally:
    """A label by the scorer's uniform windows alone, whatever a screen said of them: like one that was judged without a screen."""
    return LabelTally(float(items["rate"]), pool_counts(items), (Tally.of(unscreened(items)),), plain=True)


def _tally(score: Score | None, items: dict[str, Any] | None, rounds: Sequence[ScreenRow]) -> LabelTally | Failure:
    if score is None:
        return Failure(
            kind=FailureKind.POISONED, message="its chunk ended the process again and again and was left out."
        )
    if score.failure is not None:
        return score.failure
    return _counted(items, rounds)


def _counted(items: dict[str, Any] | None, rounds: Sequence[ScreenRow]) -> LabelTally | Failure:
    rate = None if items is None else items.get("rate")
    if items is None or rate is None or not 0 < rate < 1 or not sum(pool_counts(items)):
        return Failure(
            kind=FailureKind.TOO_FEW_WINDOWS,
            message=f"fires in a share of {rate} of the windows that may be judged; precision needs firing and silent ones",
        )
    answered = [row for row in rounds if row.failure_kind is None]
    # what the audit's own screen was shown may have been shown before: it says which windows to judge, and is not counted
    counted = [row for row in answered if row.stage != AUDIT]
    further = [(row.stage, Tally.of(row.items["verdicts"])) for row in answered if "verdicts" in row.items]
    return LabelTally(
        rate=float(rate),
        pool=pool_counts(items),
        tallies=(Tally.of(items), *(tally for stage, tally in further if stage != AUDIT)),
        audit=next((tally for stage, tally in further if stage == AUDIT), NO_VERDICTS),
        screened=sum(row.items["screened"] for row in counted),
        flagged=sum(row.items["flagged"] for row in counted),
        plain=all(row.stage != "screen_1" for row in answered),
    )


def _values(rates: NaturalRates, tally: LabelTally, number: int) -> dict[str, ScoreValue]:
    basis: PrecisionBasis = rates.precision_basis[number]
    values: dict[str, ScoreValue] = {}
    for name, interval in (
        ("precision", rates.precision),
        ("recall", rates.recall),
        ("f1", rates.f1),
        ("near_precision", rates.near_precision),
        ("bulk_rate", rates.bulk_rate),
    ):
        values |= _interval(name, interval, number)
    judged = [*tally.tallies, tally.audit]
    if basis is PrecisionBasis.UNRESOLVED:  # the interval is known, and no point of it is likelier than another
        values["precision"] = values["f1"] = None
    return values | {
        "precision_method": "judged",
        "precision_basis": basis.value,
        "precision_own_low": float(rates.precision_own_low[number]),
        "precision_own_high": float(rates.precision_own_high[number]),
        "best_precision": float(rates.best_precision[number]),
        "natural_rate": tally.rate,
        "prior_num_latents": rates.prior_num_latents,
        "prior_num_yes": int(rates.prior_num_yes),
        "num_firing_judged": sum(t.firing_judged for t in judged),
        "num_silent_judged": sum(sum(t.judged) + t.verified for t in judged),
        "num_bulk_judged": sum(t.judged[3] + t.verified for t in judged),
        "num_bulk_yes": sum(t.yes[3] + t.confirmed for t in judged),
        "num_undecided": sum(t.num_undecided for t in judged),
        "num_screened": tally.screened,
        "num_flagged": tally.flagged,
    }


def _interval(name: str, interval: Interval, number: int) -> dict[str, ScoreValue]:
    return {
        name: float(interval.median[number]),
        f"{name}_low": float(interval.low[number]),
        f"{name}_high": float(interval.high[number]),
    }


def _of_the_fit(rates: NaturalRates, tallies: Sequence[LabelTally]) -> dict[str, Any]:
    """What is true of a source's labels together."""
    bases, counts = np.unique([basis.value for basis in rates.precision_basis], return_counts=True)
    return {
        "prior_num_latents": rates.prior_num_latents,
        "prior_num_yes": rates.prior_num_yes,
        "audit_covered": rates.audit_covered,
        "audit_total": rates.audit_total,
        "audit_position": None if not rates.audit_total else rates.audit_position,
        "audit_windows": sum(tally.audit.judged[3] for tally in tallies),
        "borrows": rates.borrows,
        "bases": {str(basis): int(count) for basis, count in zip(bases, counts, strict=True)},
    }
