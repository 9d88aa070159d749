"""Puts labels in their latents' place: evidence for the substitution scorer, and for all of a coder's labels at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autointerp.evidence import SubstitutionRequest
from autointerp.patterns.index import PoolIndex
from autointerp.patterns.overlap import overlap_mask
from autointerp.pipeline.atomic_files import sync
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.latent_evidence import evidence_of
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage
from autointerp.pipeline.substituting import (
    LatentWindows,
    PlacedLabel,
    chosen_labels,
    context_pool,
    dealt_anew,
    judged_windows,
    labelled,
    sampled_latents,
    scale_to,
    token_predictors,
    typical_activation,
)
from autointerp.predictions.base import TokenPredictor, WindowPredictor
from sae_core.hashing import seed_for
from sae_core.records import LatentStatistics, Side, WindowPool

if TYPE_CHECKING:
    from sae_core.intervention.substitution import JointContext, SubstitutionResult, SubstitutionRow
    from sae_core.intervention.substitution_evidence import SubstitutionEvidence

ONE_BY_ONE, AT_ONCE = "substitution", "joint_substitution"
"""Kinds of evidence files."""
_JOINT = "joint"
"""In the payload of the chunk in which all of a source's labels are replaced at once."""


class Substitute(Stage):
    """Chosen labels to the KLs of their predictions in their latents' place."""

    name = "substitute"
    queue = "gpu"
    unit = "latents"
    after_all = ("label",)
    leaves = (ONE_BY_ONE, AT_ONCE)
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        request = context.request(SubstitutionRequest)
        chunks: list[ChunkSpec] = []
        if request is None:
            return chunks
        for source in context.sources:
            if source.control:
                continue
            chosen = sampled_latents(context, source.name, request.latents) if request.latents else []
            pairs = sorted(zip(chosen, donors_of(context, source.name, chosen), strict=True))
            size = context.config.chunk_latents
            parts = [pairs[start : start + size] for start in range(0, len(pairs), size)]
            for ordinal, part in enumerate(parts):
                payload = {"latents": [latent for latent, _ in part], "donors": [donor for _, donor in part]}
                chunks.append(ChunkSpec(ordinal, source.name, payload, len(part)))
            if request.contexts and labelled(context, source.name):
                chunks.append(ChunkSpec(len(parts), source.name, {_JOINT: True}))
        return chunks

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        request = context.request(SubstitutionRequest)
        assert request is not None, "where nothing is asked no chunk is planned"
        if spec.payload.get(_JOINT):
            _all_at_once(context, spec.source, request)
        else:
            _one_by_one(context, spec, request, progress)
        return ChunkResult()


def donors_of(context: RunContext, source: str, latents: Sequence[int]) -> list[int]:
    """For each of some latents another one, whose label is put in its place as the control; -1 where there is none.

    A cycle through those whose labels predict for every token, in the given (random) order.
    """
    able = [latent for latent, _ in token_predictors(context, source, latents)]
    after = dict(zip(able, [*able[1:], *able[:1]], strict=True)) if len(able) > 1 else {}
    return [after.get(latent, -1) for latent in latents]


@dataclass
class _Jobs:
    """Rows to run for a chunk, and where their results go."""

    rows: list[SubstitutionRow] = field(default_factory=list)
    ablated: list[int] = field(default_factory=list)
    """Of each row of evidence the number of the row that ablates its window; -1 for silent ones."""
    own: list[int] = field(default_factory=list)
    """And of the row of its prediction."""
    places: list[tuple[int, int, bool]] = field(default_factory=list)
    """Latent, arm, whether it fires."""

    def add(self, latent: int, arm: int, label: PlacedLabel) -> None:
        from sae_core.intervention.substitution import SubstitutionRow

        for fires, placed in ((True, label.firing), (False, label.silent)):
            for window, activation in placed:
                if fires:  # an arm's ablation is the other one's: equal edits are run once
                    self.rows.append(SubstitutionRow(latent, window, np.zeros_like(activation)))
                self.ablated.append(len(self.rows) - 1 if fires else -1)
                self.rows.append(SubstitutionRow(latent, window, activation))
                self.own.append(len(self.rows) - 1)
                self.places.append((latent, arm, fires))


def _one_by_one(context: RunContext, spec: ChunkSpec, request: SubstitutionRequest, progress: Progress) -> None:
    from sae_core.intervention.substitution import run_substitution
    from sae_core.intervention.substitution_evidence import CONTROL, OWN

    source, seed = spec.source, context.config.seed
    latents = [int(latent) for latent in spec.payload["latents"]]
    donor_of = {latent: int(donor) for latent, donor in zip(latents, spec.payload["donors"], strict=True)}
    labels = chosen_labels(context, source, sorted({*latents, *(d for d in donor_of.values() if d >= 0)}))
    statistics = context.exemplars(source).statistics
    shares = np.full((len(latents), 2), np.nan)
    spreads = np.zeros((len(latents), 2))
    firing, of_one = np.zeros(len(latents)), np.zeros(len(latents))
    jobs = _Jobs()
    for number, latent in enumerate(latents):
        evidence = evidence_of(context, source, latent)
        predictor = labels[latent][1]
        arms: dict[int, PlacedLabel] = {}
        if isinstance(predictor, WindowPredictor):
            length = context.extraction_settings.window_length
            special = frozenset(evidence.store.pieces.special)
            firing[number], arms[OWN] = judged_windows(evidence, predictor, context.corpus, length, special)
            arms[CONTROL] = dealt_anew(arms[OWN], firing[number], seed_for(seed, "predictions dealt anew", latent))
        elif isinstance(predictor, TokenPredictor):
            windows = LatentWindows(evidence, request.windows, seed)
            firing[number], arms[OWN] = windows.share_firing, windows.placed(predictor)
            donor = donor_of[latent]
            other = labels[donor][1] if donor >= 0 else None
            if isinstance(other, TokenPredictor):
                arms[CONTROL] = windows.placed(other, scale_to(statistics, latent, donor))
        for arm, label in arms.items():
            shares[number, arm], spreads[number, arm] = label.share_silent, label.spread
            of_one[number] = label.share_of_one  # of the pool, whatever the label
            jobs.add(latent, arm, label)
    per_latent = max(1, len(jobs.rows) // max(1, len(latents)))
    result = run_substitution(
        context.subject,
        context.attached(source).coder,
        context.corpus.context,
        jobs.rows,
        progress=lambda done: progress(min(len(latents), done // per_latent)),  # it counts rows, the bar counts latents
    )
    kinds = sorted({explanation.explainer for explanation, _ in labels.values()})
    explainer = [kinds.index(labels[latent][0].explainer) for latent in latents]
    evidence_table = _evidence(
        latents, jobs, result, shares, spreads, firing, of_one, explainer, list(donor_of.values()), kinds
    )
    path = context.folder.evidence(source, ONE_BY_ONE, spec.ordinal)
    evidence_table.save(path)
    sync(path)


def _evidence(
    latents: Sequence[int],
    jobs: _Jobs,
    result: SubstitutionResult,
    shares: NDArray[np.float64],
    spreads: NDArray[np.float64],
    firing: NDArray[np.float64],
    of_one: NDArray[np.float64],
    explainer: Sequence[int],
    donors: Sequence[int],
    kinds: list[str],
) -> SubstitutionEvidence:
    from sae_core.intervention.substitution_evidence import OWN, SubstitutionEvidence

    own, ablated = np.array(jobs.own, dtype=np.int64), np.array(jobs.ablated, dtype=np.int64)
    latent, arm, fires = (np.array([place[i] for place in jobs.places], dtype=np.int64) for i in range(3))
    # a window that fired when it was extracted and does not now (rounding at a threshold) has nothing to replace
    lost = (fires == 1) & (result.num_firing[own] == 0) if len(own) else np.zeros(0, dtype=np.bool_)
    kept = np.flatnonzero(~lost)
    windows = [jobs.rows[number].window for number in own[kept].tolist()]
    place = np.where(ablated[kept] >= 0, ablated[kept], 0)
    has = ablated[kept] >= 0
    num_lost = [int((lost & (latent == one) & (arm == OWN)).sum()) for one in latents]
    nothing = np.zeros(1)
    kl, change = (given if len(given) else nothing for given in (result.kl, result.delta_ce))
    return SubstitutionEvidence(
        latent=latent[kept].astype(np.int32),
        arm=arm[kept].astype(np.uint8),
        fires=fires[kept].astype(np.uint8),
        document=np.array([window.document for window in windows], dtype=np.int32),
        context=np.array([window.context for window in windows], dtype=np.int32),
        position=np.array([window.position for window in windows], dtype=np.int32),
        kl=result.kl[own[kept]],
        kl_ablated=np.where(has, kl[place], 0.0),
        delta_ce=result.delta_ce[own[kept]],
        delta_ce_ablated=np.where(has, change[place], 0.0),
        latents=np.array(latents, dtype=np.int32),
        explainer=np.array(explainer, dtype=np.int32),
        donor=np.array(donors, dtype=np.int32),
        share_firing=firing,
        share_silent=shares,
        share_spread=spreads,
        share_of_one=of_one,
        num_lost=np.array(num_lost, dtype=np.int32),
        explainers=kinds,
    )


def _all_at_once(context: RunContext, source: str, request: SubstitutionRequest) -> None:
    from sae_core.intervention.substitution import run_joint_substitution
    from sae_core.intervention.substitution_evidence import WAYS, JointSubstitutionEvidence

    store, corpus, seed = context.exemplars(source), context.corpus, context.config.seed
    everyone = labelled(context, source)
    sides = np.flatnonzero(np.asarray(corpus.context_side) == int(Side.SCORE))
    rng = np.random.default_rng(seed_for(seed, "joint substitution", source))
    chosen = np.sort(rng.permutation(sides)[: request.contexts]).astype(int).tolist()
    order = rng.permutation(everyone).astype(int).tolist()
    score_pool = store.pool(Side.SCORE)
    length = score_pool.tokens.shape[1] - score_pool.context_tokens
    pool = context_pool(corpus, chosen, length, score_pool.context_tokens)
    latents, contexts = _joint_contexts(context, source, chosen, order, pool)
    means = np.array([typical_activation(store.statistics, latent) for latent in latents], dtype=np.float32)
    found = run_joint_substitution(
        context.subject, context.attached(source).coder, corpus.context, latents, contexts, means=means
    )
    evidence = JointSubstitutionEvidence(
        context=np.array(chosen, dtype=np.int32),
        document=np.asarray(corpus.context_document)[chosen].astype(np.int32),
        num_tokens=found.num_tokens,
        clean_ce=found.clean_ce,
        kl=found.kl,
        delta_ce=found.delta_ce,
        ways=list(WAYS),
        num_latents=len(latents),
        num_left=len(everyone) - len(latents),
    )
    path = context.folder.evidence(source, AT_ONCE, 0)
    evidence.save(path)
    sync(path)


def _joint_contexts(
    context: RunContext, source: str, chosen: Sequence[int], order: Sequence[int], pool: WindowPool
) -> tuple[NDArray[np.int64], list[JointContext]]:
    """The latents that are replaced, ascending, and in each context what their labels predict, and others' labels."""
    from sae_core.intervention.substitution import JointContext, TokenPredictions

    index, statistics = PoolIndex(pool), context.exemplars(source).statistics
    said: dict[int, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
    for latent, predictor in token_predictors(context, source, order):
        found = predictor.predict(index)
        said[latent] = index.cell[found.ordinal], found.activation
    cycle = list(said)  # in random order: each one's label goes to the one before it
    receiver = dict(zip(cycle, [*cycle[-1:], *cycle[:-1]], strict=True))
    latents = np.array(sorted(said), dtype=np.int64)
    place = {latent: number for number, latent in enumerate(latents.tolist())}
    ways = [_written_down(said, {latent: latent for latent in said}, place, None)]
    ways.append(_written_down(said, receiver, place, statistics))
    nothing = TokenPredictions(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    width = pool.tokens.shape[1]
    scored_cells = pool.counts & overlap_mask(context.exemplars(source).pool(Side.EXPLAIN), pool).kept[:, None]
    contexts = []
    for ordinal in chosen:
        rows = np.flatnonzero(pool.context == ordinal)  # they lie side by side
        scored = np.zeros(len(context.corpus.context(ordinal)), dtype=np.bool_)
        row, column = np.nonzero(scored_cells[rows])
        scored[pool.position[rows[row]] + column - pool.context_tokens] = True
        said_here = []
        for cells, owners, values in ways:
            part = slice(*np.searchsorted(cells, [rows[0] * width, (rows[-1] + 1) * width])) if len(rows) else slice(0)
            position = pool.position[cells[part] // width] + cells[part] % width - pool.context_tokens
            said_here.append(TokenPredictions(position.astype(np.int64), owners[part], values[part]))
        contexts.append(JointContext(ordinal, scored, [said_here[0], nothing, said_here[1]]))
    return latents, contexts


def _written_down(
    said: Mapping[int, tuple[NDArray[np.int64], NDArray[np.float64]]],
    receiver: Mapping[int, int],
    place: Mapping[int, int],
    statistics: LatentStatistics | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """``(cells, latents, activations)`` of all predictions, by cell, each label's given to its ``receiver`` (at its size, by
    ``statistics``)."""
    cells, owners, values = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for latent, (cell, activation) in said.items():
        to = receiver[latent]
        cells.append(cell)
        owners.append(np.full(len(cell), place[to], dtype=np.int64))
        values.append(activation if statistics is None else activation * scale_to(statistics, to, latent))
    every = np.concatenate(cells)
    order = np.argsort(every, kind="stable")
    return every[order], np.concatenate(owners)[order], np.concatenate(values)[order].astype(np.float32)
