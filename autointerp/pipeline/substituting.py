"""Which windows a label is put in its latent's place in, and what it predicts there.

Letters in shapes: T tokens of a window, M predictions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.patterns.index import PoolIndex, pool_index
from autointerp.pipeline.context import RunContext
from autointerp.predictions.base import Predictor, TokenPredictor, WindowPredictor
from autointerp.predictions.finding import predictor_of
from autointerp.sampling.firing import fires_in
from autointerp.sampling.natural import firing_rate
from autointerp.sampling.scorable import kept_exemplars, kept_windows
from autointerp.sampling.silent import SilentStrata
from autointerp.sampling.window import Stratum
from sae_core.hashing import hash64, seed_for
from sae_core.intervention.windows import InterventionWindow
from sae_core.records import Exemplar, LatentStatistics, Origin, Side, WindowPool
from sae_core.token_corpus import TokenCorpus

Floats = NDArray[np.float32]
Placed = tuple[InterventionWindow, Floats]
"""A window and the activation [T] that is predicted at each of its tokens."""
_AT_A_TIME = 500
"""Labels that are read from the store at a time."""


@dataclass(frozen=True)
class PlacedLabel:
    """One label in the windows of one latent."""

    share_silent: float
    """Share of the windows that may be scored in which the latent is silent and the label predicts an activation."""
    spread: float
    """Relative variance of that share over the share of firing windows, as far as it is counted on finitely many."""
    share_of_one: float
    """What one window adds to that share where it is known from a sample of the side; 0 where all windows were counted."""
    firing: list[Placed]
    """In windows in which the latent fires, a uniform sample of these."""
    silent: list[Placed]
    """In a uniform sample of the silent windows in which it predicts an activation."""


def chosen_labels(context: RunContext, source: str, latents: Sequence[int]) -> dict[int, tuple[Explanation, Predictor]]:
    """The chosen labels of some latents that predict activations, with their predictions."""
    store, run_id = context.store, context.run_id
    chosen = {
        row.latent: row.explainer
        for row in store.labels(run_id, source, latents)
        if row.text is not None and row.explainer is not None
    }
    kept: dict[tuple[int, str], dict[str, Mapping[str, object]]] = {}
    for verdict in store.verdicts(run_id, source, latents):
        kept.setdefault((verdict.latent, verdict.explainer), {})[verdict.scorer] = verdict.items
    found: dict[int, tuple[Explanation, Predictor]] = {}
    for explanation in store.explanations(run_id, source, latents):
        if chosen.get(explanation.latent) != explanation.explainer or explanation.side != "input":
            continue
        predictor = predictor_of(explanation, kept.get((explanation.latent, explanation.explainer), {}))
        if predictor is not None:
            found[explanation.latent] = explanation, predictor
    return found


def labelled(context: RunContext, source: str) -> list[int]:
    """The latents of a source with a label, ascending."""
    return [row.latent for row in context.store.labels(context.run_id, source) if row.text is not None]


def sampled_latents(context: RunContext, source: str, count: int) -> list[int]:
    """A random sample of the labelled latents whose label predicts activations, in random order."""
    rng = np.random.default_rng(seed_for(context.config.seed, "substituted latents", source))
    order = rng.permutation(labelled(context, source)).astype(int).tolist()
    found: list[int] = []
    size = max(1, min(count, _AT_A_TIME))  # where every label predicts, no more of them is read than is needed
    for start in range(0, len(order), size):
        if len(found) >= count:
            break
        part = order[start : start + size]
        known = chosen_labels(context, source, part)
        found += [latent for latent in part if latent in known]
    return found[:count]


def token_predictors(context: RunContext, source: str, latents: Sequence[int]) -> Iterable[tuple[int, TokenPredictor]]:
    """Labels that predict an activation for every token, a part of them in memory at a time, in the order of ``latents``."""
    for start in range(0, len(latents), _AT_A_TIME):
        part = latents[start : start + _AT_A_TIME]
        known = chosen_labels(context, source, part)
        for latent in part:
            predictor = known[latent][1] if latent in known else None
            if isinstance(predictor, TokenPredictor):
                yield latent, predictor


def typical_activation(statistics: LatentStatistics, latent: int) -> float:
    """Mean activation where the latent fires on the explain side (on all sides where it does not fire there), 0 if it never fires."""
    for sides in ([int(Side.EXPLAIN)], list(range(len(statistics.num_tokens)))):
        count = int(statistics.fire_count[sides, latent].sum())
        if count:
            return float(statistics.sum_activation[sides, latent].sum()) / count
    return 0.0


def scale_to(statistics: LatentStatistics, latent: int, donor: int) -> float:
    """What another latent's predictions are multiplied by so that they are of this latent's size; 1 where that is not known."""
    own, other = typical_activation(statistics, latent), typical_activation(statistics, donor)
    return own / other if own and other else 1.0


class LatentWindows:
    """The score side's windows of one latent, in which labels are placed."""

    def __init__(self, evidence: LatentEvidence, count: int, seed: int) -> None:
        self._evidence = evidence
        self._count = count
        self._seed = seed
        self._pool = evidence.store.pool(Side.SCORE)
        self._kept = kept_windows(evidence, Side.SCORE)
        self._fires = fires_in(self._pool, evidence.latent)
        firing, silent = np.flatnonzero(self._kept & self._fires), np.flatnonzero(self._kept & ~self._fires)
        skipped = 1 - float(self._kept.mean()) if len(self._kept) else 0.0
        strata = SilentStrata(Side.SCORE, {Stratum.BULK: silent}, len(firing), skipped)
        self.share_firing = firing_rate(evidence, strata)
        """pi, among the windows that may be scored."""
        self._firing_rows: NDArray[np.intp] | None = firing
        self._exemplars: list[Exemplar] = []
        if len(firing) < count and not self._pool.is_census:
            stored = kept_exemplars(
                evidence, Side.SCORE, evidence.store.exemplars(evidence.latent, Side.SCORE, Origin.SAMPLED)
            )
            if len(stored) > len(firing):  # whichever uniform sample is the larger one
                self._firing_rows, self._exemplars = None, stored

    def placed(self, predictor: TokenPredictor, scale: float = 1.0) -> PlacedLabel:
        """A label that predicts for every token, its predictions times ``scale``, in firing and in silent windows."""
        index = pool_index(self._pool)
        cells, values = _on_cells(predictor, index, scale)
        rows = cells // self._pool.tokens.shape[1]
        predicted = np.zeros(len(self._pool.tokens), dtype=np.bool_)
        predicted[rows] = True
        silent = np.flatnonzero(self._kept & ~self._fires & predicted)
        num_kept = int(self._kept.sum())
        firing_windows = self._evidence.num_windows_firing(Side.SCORE)
        spread = (1 / len(silent) if len(silent) else 0.0) + (1 / firing_windows if firing_windows else 0.0)
        if self._firing_rows is not None:
            firing = self._of_rows(self._firing_rows, rows, cells, values)
        else:
            firing = self._of_exemplars(predictor, scale)
        share = len(silent) / num_kept if num_kept else 0.0
        of_one = 0.0 if self._pool.is_census or not num_kept else 1 / num_kept
        return PlacedLabel(share, spread, of_one, firing, self._of_rows(silent, rows, cells, values))

    def _of_rows(
        self, chosen: NDArray[np.intp], rows: NDArray[np.int64], cells: NDArray[np.int64], values: Floats
    ) -> list[Placed]:
        pool, first = self._pool, self._pool.context_tokens
        width = pool.tokens.shape[1]
        windows = [
            InterventionWindow(
                int(pool.context[row]),
                int(pool.position[row]),
                int((pool.tokens[row, first:] >= 0).sum()),
                int(pool.document[row]),
            )
            for row in chosen.tolist()
        ]
        placed = []
        for number in _spread(windows, self._count, self._seed):
            activation = np.zeros(windows[number].length, dtype=np.float32)
            part = slice(*np.searchsorted(rows, [chosen[number], chosen[number] + 1]))
            activation[cells[part] - int(chosen[number]) * width - first] = values[part]
            placed.append((windows[number], activation))
        return placed

    def _of_exemplars(self, predictor: TokenPredictor, scale: float) -> list[Placed]:
        windows = [InterventionWindow(e.context, e.position, len(e.token_ids), e.document) for e in self._exemplars]
        picked = _spread(windows, self._count, self._seed)
        pool = exemplar_pool([self._exemplars[n] for n in picked], self._pool, self._evidence.store.pieces.special)
        cells, values = _on_cells(predictor, PoolIndex(pool), scale)
        row, column = np.divmod(cells, pool.tokens.shape[1])
        placed = []
        for place, number in enumerate(picked):
            activation = np.zeros(windows[number].length, dtype=np.float32)
            mine = row == place
            activation[column[mine] - pool.context_tokens] = values[mine]
            placed.append((windows[number], activation))
        return placed


def judged_windows(
    evidence: LatentEvidence,
    predictor: WindowPredictor,
    corpus: TokenCorpus,
    window_length: int,
    special: frozenset[int],
) -> tuple[float, PlacedLabel]:
    """``(pi, label)`` of a label whose predictions are known in judged windows only: uniform samples of both kinds.

    Its silent windows stand for all silent ones, so their share is known even where the judge answered for none of them.
    """
    windows = LatentWindows(evidence, 1, 0)
    pi = windows.share_firing
    placed: dict[bool, list[Placed]] = {True: [], False: []}
    for one in predictor.windows:
        tokens = corpus.context(one.context)[one.position : one.position + window_length]
        opens = int(one.position == 0 and len(tokens) > 0 and int(tokens[0]) in special)
        activation = np.zeros(len(tokens), dtype=np.float32)
        activation[opens : opens + len(one.activation)] = one.activation[: len(tokens) - opens]
        window = InterventionWindow(one.context, one.position, len(tokens), int(corpus.context_document[one.context]))
        placed[one.fires].append((window, activation))
    return pi, PlacedLabel(1 - pi, 0.0, (1 - pi) / max(len(placed[False]), 1), placed[True], placed[False])


def dealt_anew(label: PlacedLabel, share_firing: float, seed: int) -> PlacedLabel:
    """The same windows with what is predicted of other ones, drawn as often as such windows come: it says nothing of them."""
    everything = [*label.firing, *label.silent]
    weights = np.concatenate(
        [
            np.full(len(part), whole / max(len(part), 1))
            for part, whole in ((label.firing, share_firing), (label.silent, 1 - share_firing))
        ]
    )
    rng = np.random.default_rng(seed)
    if not weights.sum():
        return label
    drawn = rng.choice(len(everything), size=len(everything), p=weights / weights.sum())
    dealt: list[Placed] = []
    for (window, _), other in zip(everything, drawn, strict=True):
        activation = np.zeros(window.length, dtype=np.float32)
        given = everything[int(other)][1][: window.length]
        activation[: len(given)] = given
        dealt.append((window, activation))
    count = len(label.firing)
    return PlacedLabel(label.share_silent, label.spread, label.share_of_one, dealt[:count], dealt[count:])


def _on_cells(predictor: TokenPredictor, index: PoolIndex, scale: float) -> tuple[NDArray[np.int64], Floats]:
    """Flat cells of the index' pool, ascending, and what is predicted there."""
    found = predictor.predict(index)
    return index.cell[found.ordinal], (found.activation * scale).astype(np.float32)


def _spread(windows: Sequence[InterventionWindow], count: int, seed: int) -> list[int]:
    """At most ``count`` of some windows, one a document as far as there are so many, in a random order of contexts that all
    latents share: they meet in the same contexts, and each one's windows are as much a uniform draw as before."""
    keys = hash64(np.array([w.context for w in windows], dtype=np.int64), seed_for(seed, "substitution contexts"))
    tie = hash64(
        np.array([w.context for w in windows], dtype=np.int64),
        np.array([w.position for w in windows], dtype=np.int64),
        seed_for(seed, "substitution windows"),
    )
    order = np.lexsort((tie, keys)).tolist()
    first: dict[int, int] = {}
    for number in order:
        first.setdefault(windows[number].document, number)
    picked = list(first.values())
    taken = set(picked)
    return (picked + [number for number in order if number not in taken])[:count]


def exemplar_pool(exemplars: Sequence[Exemplar], like: WindowPool, special: frozenset[int]) -> WindowPool:
    """Stored windows as a pool of the same columns as ``like``, without activations."""
    before = like.context_tokens
    tokens = np.full((len(exemplars), like.tokens.shape[1]), -1, dtype=np.int32)
    first = np.full(len(exemplars), before, dtype=np.int32)
    for row, exemplar in enumerate(exemplars):
        tokens[row, before - len(exemplar.context_ids) : before] = exemplar.context_ids
        tokens[row, before : before + len(exemplar.token_ids)] = exemplar.token_ids
        first[row] += int(exemplar.position == 0 and int(exemplar.token_ids[0]) in special)
    return _pool(
        tokens,
        first,
        np.array([e.document for e in exemplars], dtype=np.int32),
        np.array([e.context for e in exemplars], dtype=np.int32),
        np.array([e.position for e in exemplars], dtype=np.int32),
        before,
    )


def context_pool(corpus: TokenCorpus, contexts: Sequence[int], window_length: int, before: int) -> WindowPool:
    """All windows of some contexts as a pool, cut as extraction cuts them, without activations."""
    rows: list[NDArray[np.int32]] = []
    place: list[tuple[int, int, int, int]] = []
    for ordinal in contexts:
        tokens = corpus.context(ordinal)
        padded = np.concatenate(
            [np.full(before, -1, dtype=np.int32), tokens, np.full(window_length, -1, dtype=np.int32)]
        )
        for position in range(0, len(tokens), window_length):
            opens = int(position == 0 and corpus.bos_id is not None)
            if position + opens >= len(tokens):
                continue
            rows.append(padded[position : position + before + window_length])
            place.append((before + opens, int(corpus.context_document[ordinal]), ordinal, position))
    first, document, context, position_W = np.array(place, dtype=np.int32).reshape(-1, 4).T
    tokens_WC = np.stack(rows) if rows else np.zeros((0, before + window_length), dtype=np.int32)
    return _pool(tokens_WC, first, document, context, position_W, before)


def _pool(
    tokens: NDArray[np.int32],
    first: NDArray[np.int32],
    document: NDArray[np.int32],
    context: NDArray[np.int32],
    position: NDArray[np.int32],
    before: int,
) -> WindowPool:
    return WindowPool(
        side=Side.SCORE,
        num_windows_side=len(tokens),
        tokens=tokens,
        first_token=first,
        document=document,
        context=context,
        position=position,
        latent_start=np.zeros(1, dtype=np.int64),
        entry_window=np.zeros(0, dtype=np.int32),
        entry_column=np.zeros(0, dtype=np.uint8),
        entry_value=np.zeros(0, dtype=np.float32),
        context_tokens=before,
    )
