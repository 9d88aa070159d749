"""Labels shown to a cheap screen, many at a time, with windows of the score side; what it flags goes to the judge (METHODS 4).

The windows of a group of labels are a uniform sample that its labels share; which of them are a latent's bulk is told apart afterwards.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.judging.batching import deal
from autointerp.judging.confirming import JudgedTwice, judge_twice
from autointerp.judging.questions import Question
from autointerp.judging.screening import Screened, screen_windows
from autointerp.judging.verdicts import Verdicts
from autointerp.llm.asking import LLMs
from autointerp.pipeline.asking import together
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.latent_evidence import evidence_of
from autointerp.pipeline.natural_rate.labels import estimated_judge, estimated_labels
from autointerp.pipeline.stage import ChunkSpec, Progress
from autointerp.prompting.prompt import load_prompt
from autointerp.sampling.scorable import kept_windows
from autointerp.sampling.silent import silent_strata
from autointerp.sampling.window import Stratum, of_pool, rows_of
from autointerp.scorers.detection import DetectionScorer
from autointerp.store.models import ScreenRow
from sae_core.hashing import seed_for
from sae_core.records import Side

_GROUPS_AT_ONCE = 8
_NEAR = (Stratum.NEIGHBOUR, Stratum.TOKEN)
_KEPT_ROWS = 200
"""Rows of shown windows that are kept with a label, at least."""


@dataclass(frozen=True, slots=True, eq=False)
class ToScreen:
    """One label, and the windows of its latent."""

    explanation: Explanation
    evidence: LatentEvidence
    shown: frozenset[int] = frozenset()
    """Rows of the pool that a screen was shown with this label in an earlier round."""
    judged: frozenset[int] = frozenset()
    """Rows of the pool that the judge was asked about."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a round for the scorer."""

    verify: int
    """Flagged windows that it is to ask about."""
    rows: int
    """Shown windows, from which its own are drawn."""


@dataclass(frozen=True, slots=True, eq=False)
class ScreenedLabel:
    """What the screen said of one label's bulk windows."""

    label: ToScreen
    rows: NDArray[np.intp]
    """Rows of the pool that are the latent's bulk and were shown, in random order."""
    flagged: NDArray[np.bool_]
    """[rows] whether the screen says that the label fits."""
    sample: list[Any]
    """What ``shown_rows`` needs to find the rows again."""
    asked: bool
    """Whether a screen was asked; else the windows are no more than a sample."""
    failure: Failure | None
    """Why no window was shown; None where some were."""
    failures: Mapping[FailureKind, int]
    """Calls of the screen without an answer, by the cause."""

    def items(
        self, settings: Kept, verdicts: Verdicts | None = None, lost: Sequence[FailureKind] = ()
    ) -> dict[str, Any]:
        """The JSON of a row of the store; ``lost``: why second answers are missing."""
        failures = Counter(self.failures) + Counter(lost)
        if verdicts is not None:
            failures += Counter(item.failure for item in verdicts.items if item.failure is not None)
        out: dict[str, Any] = {
            "sample": self.sample,
            "screened": len(self.rows) if self.asked else 0,
            "flagged": int(self.flagged.sum()),
            "verify": settings.verify,
        }
        if failures:
            out["failures"] = {kind.value: count for kind, count in sorted(failures.items())}
        if verdicts is None:
            out["shown_rows"] = self.rows[: settings.rows].tolist()
            out["flagged_rows"] = self.rows[self.flagged].tolist()
        else:
            out["verdicts"] = verdicts.to_json()
        return out


def in_groups(labels: Sequence[ToScreen], size: int) -> Iterator[list[ToScreen]]:
    """Labels in their order in as few groups of at most ``size`` as there can be, of like size."""
    count = -(-len(labels) // size)
    for part in np.array_split(np.arange(len(labels)), count) if count else ():
        yield [labels[index] for index in part]


def group_rows(evidence: LatentEvidence, seed: int, sample: Sequence[Any]) -> NDArray[np.intp]:
    """Rows of the score side's pool that a group is shown, in random order: uniform among those that may be judged.

    ``sample``: (stage, chunk, group, windows) and rows that were asked for in vain.
    """
    stage, chunk, group, count, *_ = sample
    rows = np.flatnonzero(kept_windows(replace(evidence, excluded=frozenset()), Side.SCORE))
    name = evidence.store.source.name
    rng = np.random.default_rng(seed_for(seed, "screen", name, stage, int(chunk), int(group)))
    return np.asarray(rng.permutation(rows)[: int(count)], dtype=np.intp)


def shown_rows(evidence: LatentEvidence, seed: int, items: dict[str, Any]) -> frozenset[int]:
    """Rows that a stored round of the screen has shown with a label (and some that are not its latent's bulk)."""
    sample = items["sample"]
    return frozenset(group_rows(evidence, seed, sample).tolist()) - frozenset(sample[4])


async def screen_group(
    context: RunContext,
    labels: Sequence[ToScreen],
    place: tuple[str, int, int],
    count: int,
    judge: DetectionScorer,
    llms: LLMs,
) -> list[ScreenedLabel]:
    """One screen of ``count`` windows for each label of a group; ``place`` is (stage, chunk, group).

    Errors: what stops the run.
    """
    settings = context.config.precision
    first = labels[0].evidence
    pool = first.store.pool(Side.SCORE)
    rows = group_rows(first, context.config.seed, (*place, count))
    new = np.stack([_new_bulk(label, rows) for label in labels])
    wanted = rows[new.any(axis=0)] if settings.screen_windows else rows
    windows = [of_pool(pool, int(row), first.latent, Stratum.BULK) for row in wanted]
    screened: Screened | None = None
    if settings.screen_windows and len(wanted):
        screened = await screen_windows(
            llms.of(judge.endpoint, "screen"),
            load_prompt("screen"),
            [label.explanation.text for label in labels],
            windows,
            first.store.pieces,
            per_call=settings.screen_per_call,
            context_tokens=judge.context_tokens,
        )
    answered = wanted if screened is None else wanted[screened.shown]
    shown = np.isin(rows, answered)
    failures = [] if screened is None else screened.asked.failures
    causes = Counter(failure.kind for failure in failures)
    sample = [*place, count, rows[~shown].tolist()]
    found = []
    for number, label in enumerate(labels):
        own = rows[shown & new[number]]
        flagged = np.zeros(0, dtype=np.intp) if screened is None else wanted[screened.flagged[number]]
        failure = failures[0] if failures and not shown.any() else None
        asked = bool(settings.screen_windows)
        found.append(ScreenedLabel(label, own, np.isin(own, flagged), sample, asked, failure, causes))
    return found


def _new_bulk(label: ToScreen, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
    """[rows] those of the latent's bulk that neither a screen nor the judge has seen with the label."""
    bulk = silent_strata(label.evidence, Side.SCORE).rows[Stratum.BULK]
    return np.asarray(np.isin(rows, bulk) & ~np.isin(rows, list(label.shown | label.judged)), dtype=np.bool_)


ToJudge = Callable[[ScreenedLabel], list[tuple[int, Stratum]]]
"""Rows of the pool that go to the judge, with the stratum that each was drawn from (FLAGGED for those of the bulk that are flagged)."""


def screen_labels(
    context: RunContext,
    spec: ChunkSpec,
    stage: str,
    labels: Sequence[ToScreen],
    count: int,
    progress: Progress,
    to_judge: ToJudge | None = None,
    purpose: str = "",
) -> list[ScreenRow]:
    """The rows of a round of ``count`` windows a label: what the screen says and, with ``to_judge``, what the judge says of some."""
    judge = estimated_judge(context)
    assert judge is not None, "where nothing is estimated no chunk is planned"
    settings = context.config.precision
    kept = Kept(settings.verified, max(_KEPT_ROWS, judge.silent))

    async def judged(found: ScreenedLabel) -> ScreenRow:
        verdicts: Verdicts | None = None
        lost: Sequence[FailureKind] = ()
        if found.failure is None and to_judge is not None:
            verdicts, lost = await judge_rows(
                found.label,
                to_judge(found),
                judge,
                context.llms.llms(spec.source, found.label.evidence.latent),
                purpose,
                seed_for(context.config.seed, stage),
            )
        return _row(context.run_id, spec.source, stage, found, found.items(kept, verdicts, lost))

    async def group(numbered: tuple[int, list[ToScreen]]) -> list[ScreenRow]:
        number, members = numbered
        llms = context.llms.llms(spec.source, None)
        found = await screen_group(context, members, (stage, spec.ordinal, number), count, judge, llms)
        return list(await asyncio.gather(*(judged(label) for label in found)))

    groups = list(enumerate(in_groups(labels, settings.screen_labels)))
    return together(context, groups, group, progress, at_once=_GROUPS_AT_ONCE, units=lambda one: len(one[1]))


def label_chunks(context: RunContext, source: str, labels: Sequence[tuple[int, str]]) -> list[ChunkSpec]:
    """Labels (latent, explainer) in chunks of ``chunk_latents``."""
    size = context.config.chunk_latents
    parts = [labels[start : start + size] for start in range(0, len(labels), size)]
    return [
        ChunkSpec(ordinal, source, {"pairs": [list(label) for label in part]}, len(part))
        for ordinal, part in enumerate(parts)
    ]


def of_labels(context: RunContext, spec: ChunkSpec) -> list[ToScreen]:
    """The labels of a chunk of ``label_chunks``, with the rows that were shown and judged with them before."""
    wanted = {(int(latent), str(explainer)) for latent, explainer in spec.payload["pairs"]}
    latents = sorted({latent for latent, _ in wanted})
    store, run_id, seed = context.store, context.run_id, context.config.seed
    evidence = {latent: evidence_of(context, spec.source, latent) for latent in latents}
    shown: dict[tuple[int, str], set[int]] = {label: set() for label in wanted}
    judged: dict[tuple[int, str], set[int]] = {label: set() for label in wanted}
    asked = [(row.latent, row.explainer, row.items) for row in store.verdicts(run_id, spec.source, latents)]
    for row in store.screens(run_id, spec.source, latents):
        if row.failure_kind is None and (row.latent, row.explainer) in wanted:
            shown[row.latent, row.explainer] |= shown_rows(evidence[row.latent], seed, row.items)
            asked += [(row.latent, row.explainer, row.items["verdicts"])] if "verdicts" in row.items else []
    for latent, explainer, verdicts in asked:
        if (latent, explainer) in wanted:
            judged[latent, explainer] |= rows_of(evidence[latent].store.pool(Side.SCORE), verdicts["windows"])
    return [
        ToScreen(
            text,
            evidence[text.latent],
            frozenset(shown[text.latent, text.explainer]),
            frozenset(judged[text.latent, text.explainer]),
        )
        for text in estimated_labels(context, spec.source, latents)
        if (text.latent, text.explainer) in wanted
    ]


def _row(run_id: str, source: str, stage: str, found: ScreenedLabel, items: dict[str, Any]) -> ScreenRow:
    failure = found.failure
    if failure is None and not len(found.rows) and not items.get("verdicts", {}).get("windows"):
        failure = Failure(
            kind=FailureKind.TOO_FEW_WINDOWS, message="none of the windows shown lies in the bulk of the latent's text"
        )
    return ScreenRow(
        run_id=run_id,
        source=source,
        latent=found.label.explanation.latent,
        stage=stage,
        explainer=found.label.explanation.explainer,
        items=items,
        failure_kind=None if failure is None else failure.kind.value,
        failure_message=None if failure is None else failure.message,
    )


def near_rows(label: ToScreen, count: int, seed: int) -> list[tuple[int, Stratum]]:
    """At most ``count`` rows of the strata near a label that nobody was asked about, of either as many, at random."""
    strata = silent_strata(label.evidence, Side.SCORE)
    latent = label.evidence.latent
    left: dict[Stratum, list[int]] = {}
    for stratum in _NEAR:
        rows = strata.rows[stratum]
        rng = np.random.default_rng(seed_for(seed, "near", latent, stratum.value))
        left[stratum] = rng.permutation(rows[~np.isin(rows, list(label.judged))]).tolist()
    chosen: list[tuple[int, Stratum]] = []
    while len(chosen) < count and any(left.values()):
        chosen += [(rows.pop(), stratum) for stratum, rows in left.items() if rows]
    return chosen[:count]


async def judge_rows(
    label: ToScreen, rows: Sequence[tuple[int, Stratum]], judge: DetectionScorer, llms: LLMs, purpose: str, seed: int
) -> tuple[Verdicts, Sequence[FailureKind]]:
    """The judge's verdicts, yeses said twice, on silent windows, and why second answers are missing.

    ``rows`` of the pool with their strata.
    """
    store, latent = label.evidence.store, label.evidence.latent
    pool = store.pool(Side.SCORE)
    questions = [
        Question(of_pool(pool, row, latent, stratum), truth=False, flagged=stratum is Stratum.FLAGGED)
        for row, stratum in rows
    ]
    if not questions:
        return Verdicts(()), ()
    rng = np.random.default_rng(seed_for(seed, purpose, latent))
    llm = llms.of(judge.endpoint, purpose)
    judged: JudgedTwice = await judge_twice(
        llm,
        load_prompt(judge.kind),
        label.explanation.text,
        deal([[question] for question in questions], judge.per_call, rng),
        store.pieces,
        rng,
        per_call=judge.per_call,
        context_tokens=judge.context_tokens,
        logprobs=judge.wants_logprobs(llm),
    )
    return Verdicts(tuple(judged.verdicts[question] for question in questions)), judged.lost
