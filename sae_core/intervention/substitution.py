"""Replace latents' activations by predicted ones and see how far the subject's predictions move (causal scrubbing of labels).

Letters in shapes: R rows, T tokens of a window or context, N packed tokens, F latents, D width, V ways, M predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_core.attachment import side_by_side
from sae_core.errors import InputError
from sae_core.hookpoints import Hookpoint
from sae_core.intervention.directions import Coder, ContextTokens
from sae_core.intervention.divergence import Unembedding
from sae_core.intervention.firing import coder_hookpoints
from sae_core.intervention.measure import Measured, Reference, clean_predictions, measure, reference
from sae_core.intervention.resume import CleanContext, Rows, UpperLayers
from sae_core.intervention.windows import InterventionWindow
from sae_core.subject import SubjectModel

_LATENTS_AT_ONCE = 16_384
"""Latents whose directions are added up at a time."""


@dataclass(frozen=True)
class SubstitutionSettings:
    """How substitution is run."""

    max_tokens: int = 4096
    """Packed tokens of one batch: memory is about this times the width of the MLP times 4 bytes."""
    contexts_per_pass: int = 16
    """Contexts of one clean pass."""
    cells_per_slice: int = 2**23
    """Tokens times latents that are held at once where all latents are replaced: memory is about 12 times this times 4 bytes."""


@dataclass(frozen=True, eq=False)
class SubstitutionRow:
    """One window of one latent, and what stands in for the latent's activations there."""

    latent: int
    """Ordinal in the coder."""
    window: InterventionWindow
    predicted: NDArray[np.float32]
    """[T] activation at each of the window's tokens; zeros ablate the latent. What is said of special tokens is ignored."""


class SubstitutionResult(NamedTuple):
    """What each row does; sums run over the window's tokens."""

    kl: NDArray[np.float64]
    """[R] sum of KL(clean || edited), nats; exactly 0 where the prediction is the truth."""
    delta_ce: NDArray[np.float64]
    """[R] sum of the change of the true next token's cross-entropy, nats."""
    num_firing: NDArray[np.int32]
    """[R] tokens of the window on which the latent fires in this clean pass."""


class _Edit(NamedTuple):
    """One span of a context with a displacement at each token."""

    context: int
    """Index among the clean contexts of the pass."""
    start: int
    stop: int
    slot: int
    """Where its sums go."""
    coefficient: NDArray[np.float32]
    """[T] multiples of the direction."""
    latent: int
    """Index among the latents."""


def run_substitution(
    subject: SubjectModel,
    coder: Coder,
    context_tokens: ContextTokens,
    rows: Sequence[SubstitutionRow],
    *,
    settings: SubstitutionSettings | None = None,
    progress: Callable[[int], None] | None = None,
) -> SubstitutionResult:
    """``h' = h + (zhat - z) d`` at the tokens of each row's window, with z from a clean pass, one latent at a time.

    Measured from the first token that is edited to the window's end; before it nothing changes, so the sums are those of
    the whole window. The coder's error stays. Rows that make the same edit are run once and get the same numbers: a
    prediction of nothing costs exactly what ablation does. Rows that meet in a context share its clean pass and prefix.

    Args:
        subject: the model.
        coder: reads at ``hookpoints_in``, acts at ``hookpoints_out``.
        context_tokens: the corpus, a context at a time.
        rows: in any order.
        settings: how to run.
        progress: called with the number of rows done so far.

    Raises:
        CoderError: the coder does not fit the subject.
        InputError: a prediction is of another length than its window, or not finite.
        NonFiniteError: an edited pass gave NaN or infinite values.
    """
    settings = settings or SubstitutionSettings()
    for row in rows:
        _check(row.predicted, (row.window.length,))
    run = _Substitution(subject, coder, settings, np.unique([row.latent for row in rows]).astype(np.int64), len(rows))
    by_context: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        by_context.setdefault(row.window.context, []).append(number)
    ordinals = sorted(by_context)
    done = 0
    for begin in range(0, len(ordinals), settings.contexts_per_pass):
        part = ordinals[begin : begin + settings.contexts_per_pass]
        run.contexts(
            [np.asarray(context_tokens(o)) for o in part], [[(n, rows[n]) for n in by_context[o]] for o in part]
        )
        done += sum(len(by_context[o]) for o in part)
        if progress is not None:
            progress(done)
    return SubstitutionResult(run.kl, run.delta_ce, run.num_firing)


def _check(predicted: NDArray[np.floating[Any]], shape: tuple[int, ...]) -> None:
    if predicted.shape != shape:
        raise InputError(
            f"predictions of shape {predicted.shape} were given for {shape} tokens; give one for each token."
        )
    if not np.isfinite(predicted).all():
        raise InputError("a predicted activation is NaN or infinite; give a finite one for each token.")


class _Places:
    """A coder on a subject, the run above it, and what of the clean pass is encoded."""

    def __init__(self, subject: SubjectModel, coder: Coder) -> None:
        self.subject, self.coder = subject, coder
        self.read, write = coder_hookpoints(subject, coder)
        self.upper = UpperLayers(subject, write, from_clean=tuple(self.read) == tuple(write))
        self.unembedding = Unembedding(subject)
        self._special = np.array(sorted(subject.special_ids), dtype=np.int64)

    def clean(self, tokens: Sequence[NDArray[np.integer[Any]]]) -> list[CleanContext]:
        return self.upper.clean(tokens, self.read)

    def plain(self, tokens: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """[T] which tokens are no special ones: only there do latents fire, and only there is anything edited."""
        return np.asarray(~np.isin(tokens, self._special))

    @torch.inference_mode()
    def encoded(
        self, clean: CleanContext, at: NDArray[np.int64], plain: NDArray[np.bool_], columns: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """``[T, F]`` activations at some positions, 0 at special tokens, and ``[T]`` what the directions are scaled by."""
        captured: Mapping[Hookpoint, Tensor] = clean.captured
        hidden = side_by_side(self.read, captured)[torch.from_numpy(at).to(self.subject.device)].to(columns.device)
        coded = self.coder.encode(hidden).index_select(1, columns).float()
        coded[torch.from_numpy(~plain[at]).to(columns.device)] = 0
        scale = self.coder.output_scale(hidden)
        return coded, None if scale is None else scale.float()


class _Substitution:
    """One call of :func:`run_substitution`."""

    def __init__(
        self,
        subject: SubjectModel,
        coder: Coder,
        settings: SubstitutionSettings,
        latents: NDArray[np.int64],
        num_rows: int,
    ) -> None:
        self.places = _Places(subject, coder)
        self.settings = settings
        self.latents = latents
        self.columns = torch.from_numpy(latents).to(coder.directions.device)
        self.directions = coder.directions.index_select(0, self.columns).to(subject.device).float()
        self.kl, self.delta_ce = np.zeros(num_rows), np.zeros(num_rows)
        self.num_firing = np.zeros(num_rows, dtype=np.int32)

    def contexts(self, tokens: list[NDArray[np.integer[Any]]], rows: list[list[tuple[int, SubstitutionRow]]]) -> None:
        """All rows of a few contexts."""
        stops = [max(row.window.position + row.window.length for _, row in mine) for mine in rows]
        clean = self.places.clean([ids[:stop] for ids, stop in zip(tokens, stops, strict=True)])
        edits: list[_Edit] = []
        same: list[tuple[int, int]] = []
        references: list[Reference] = []
        for number, (ids, mine) in enumerate(zip(tokens, rows, strict=True)):
            found = self._edits(number, ids, clean[number], mine, same)
            spans = [(edit.start, edit.stop) for edit in found]
            references.append(reference(self.places.unembedding, clean[number], ids, spans))
            # Rows of like start and length meet in a batch: short prefixes stay short, little is padded.
            edits += sorted(found, key=lambda e: (e.start, e.stop, e.slot))
        batch: list[_Edit] = []
        size = 0
        for edit in edits:
            length = edit.stop - edit.start
            if batch and size + length > self.settings.max_tokens:
                self._batch(batch, references)
                batch, size = [], 0
            batch.append(edit)
            size += length
        if batch:
            self._batch(batch, references)
        for slot, first in same:
            self.kl[slot], self.delta_ce[slot] = self.kl[first], self.delta_ce[first]

    def _edits(
        self,
        number: int,
        tokens: NDArray[np.integer[Any]],
        clean: CleanContext,
        rows: list[tuple[int, SubstitutionRow]],
        same: list[tuple[int, int]],
    ) -> list[_Edit]:
        """The different edits of one context; rows that repeat one go to ``same`` with the slot of the first."""
        used = np.zeros(len(clean.tokens), dtype=bool)
        for _, row in rows:
            used[row.window.position : row.window.position + row.window.length] = True
        at, place = np.flatnonzero(used), np.cumsum(used) - 1
        latents, column = np.unique([row.latent for _, row in rows], return_inverse=True)
        index = np.searchsorted(self.latents, latents)
        plain = self.places.plain(tokens)
        coded, scale = self.places.encoded(clean, at, plain, self.columns[torch.from_numpy(index)])
        true = coded.cpu().numpy()
        scales = np.ones(len(at), dtype=np.float32) if scale is None else scale.cpu().numpy()
        seen: dict[tuple[int, int, bytes], int] = {}
        edits = []
        for (slot, row), mine in zip(rows, column.tolist(), strict=True):
            begin = int(place[row.window.position])
            part = slice(begin, begin + row.window.length)
            wanted = np.where(plain[at[part]], row.predicted, 0).astype(np.float32)
            self.num_firing[slot] = np.count_nonzero(true[part, mine])
            coefficient = (wanted - true[part, mine]) * scales[part]
            moved = np.flatnonzero(coefficient)
            if not len(moved):
                continue
            start, stop = row.window.position + int(moved[0]), row.window.position + row.window.length
            key = (row.latent, stop, coefficient[moved[0] :].tobytes())
            if (first := seen.setdefault(key, slot)) != slot:
                same.append((slot, first))
                continue
            edits.append(_Edit(number, start, stop, slot, coefficient[moved[0] :], int(index[mine])))
        return edits

    def _batch(self, edits: list[_Edit], references: list[Reference]) -> None:
        device = self.places.subject.device
        start = np.array([e.start for e in edits], dtype=np.int64)
        stop = np.array([e.stop for e in edits], dtype=np.int64)
        present, context = np.unique([e.context for e in edits], return_inverse=True)
        rows = Rows(start, stop, context)
        coefficient = torch.from_numpy(np.concatenate([e.coefficient for e in edits])).to(device)
        latent = torch.from_numpy(np.array([e.latent for e in edits])[rows.row]).to(device)
        delta = coefficient[:, None] * self.directions[latent]
        measured = measure(self.places.upper, self.places.unembedding, [references[n] for n in present], rows, delta)
        out = np.array([e.slot for e in edits])
        self.kl[out] = np.bincount(rows.row, weights=measured.kl, minlength=len(edits))
        self.delta_ce[out] = np.bincount(rows.row, weights=measured.delta_ce, minlength=len(edits))


@dataclass(frozen=True, eq=False)
class TokenPredictions:
    """Predicted activations of some latents on one context; silence wherever nothing is named."""

    position: NDArray[np.int64]
    """[M] position in the context."""
    latent: NDArray[np.int64]
    """[M] index among the latents that are replaced."""
    activation: NDArray[np.float32]
    """[M]"""


class JointResult(NamedTuple):
    """What replacing all latents at once does to each context; sums run over its scored tokens with a next one."""

    num_tokens: NDArray[np.int32]
    """[C]"""
    clean_ce: NDArray[np.float64]
    """[C] sum of the clean cross-entropy, nats."""
    kl: NDArray[np.float64]
    """[C, V] sum of KL(clean || edited), nats."""
    delta_ce: NDArray[np.float64]
    """[C, V] sum of the change of cross-entropy, nats."""


@dataclass(frozen=True, eq=False)
class JointContext:
    """One context in which all latents are replaced."""

    context: int
    """Ordinal in the corpus."""
    scored: NDArray[np.bool_]
    """[T] tokens that the sums run over; the edit is made everywhere."""
    ways: Sequence[TokenPredictions]
    """V ways of filling the latents in; an empty one ablates them all."""


@torch.inference_mode()
def run_joint_substitution(
    subject: SubjectModel,
    coder: Coder,
    context_tokens: ContextTokens,
    latents: NDArray[np.int64],
    contexts: Sequence[JointContext],
    *,
    means: NDArray[np.float32] | None = None,
    settings: SubstitutionSettings | None = None,
    progress: Callable[[int], None] | None = None,
) -> JointResult:
    """``h' = h + sum_f (zhat_f - z_f) d_f`` over ``latents`` [F, ascending], at every token of each context, once a way.

    ``means`` [F] adds a last way: each latent's mean activation wherever it fires. The coder's error stays.

    Raises:
        CoderError: the coder does not fit the subject.
        InputError: contexts with different numbers of ways, or a prediction that is not finite.
        NonFiniteError: an edited pass gave NaN or infinite values.
    """
    settings = settings or SubstitutionSettings()
    given = {len(context.ways) for context in contexts}
    if len(given) > 1:
        raise InputError(
            f"contexts with {sorted(given)} ways of filling latents in were given; give all the same ways."
        )
    num_ways = (given.pop() if given else 0) + (means is not None)
    run = _Joint(subject, coder, latents, means, settings, len(contexts), num_ways)
    for begin in range(0, len(contexts), settings.contexts_per_pass):
        part = contexts[begin : begin + settings.contexts_per_pass]
        tokens = [np.asarray(context_tokens(one.context)) for one in part]
        run.contexts(begin, tokens, part)
        if progress is not None:
            progress(begin + len(part))
    return JointResult(run.num_tokens, run.clean_ce, run.kl, run.delta_ce)


class _Joint:
    """One call of :func:`run_joint_substitution`."""

    def __init__(
        self,
        subject: SubjectModel,
        coder: Coder,
        latents: NDArray[np.int64],
        means: NDArray[np.float32] | None,
        settings: SubstitutionSettings,
        num_contexts: int,
        num_ways: int,
    ) -> None:
        self.places = _Places(subject, coder)
        self.settings = settings
        self.columns = torch.from_numpy(latents).to(coder.directions.device)
        self.means = None if means is None else torch.from_numpy(means).to(self.columns.device)
        self.num_tokens = np.zeros(num_contexts, dtype=np.int32)
        self.clean_ce = np.zeros(num_contexts)
        self.kl = np.zeros((num_contexts, num_ways))
        self.delta_ce = np.zeros_like(self.kl)

    def contexts(self, first: int, tokens: list[NDArray[np.integer[Any]]], contexts: Sequence[JointContext]) -> None:
        """All ways of a few contexts, whose results begin at row ``first``."""
        clean = self.places.clean(tokens)
        references = [
            reference(self.places.unembedding, one, ids, [(0, len(ids))])
            for one, ids in zip(clean, tokens, strict=True)
        ]
        edits: list[_JointEdit] = []
        size = 0
        for number, (ids, one) in enumerate(zip(tokens, contexts, strict=True)):
            self._count(first + number, references[number], one.scored)
            for edit in self._edits(number, ids, clean[number], one):
                if edits and size + len(edit.delta) > self.settings.max_tokens:
                    self._batch(first, edits, references, contexts)
                    edits, size = [], 0
                edits.append(edit)
                size += len(edit.delta)
        if edits:
            self._batch(first, edits, references, contexts)

    def _count(self, row: int, whole: Reference, scored: NDArray[np.bool_]) -> None:
        """The tokens of one context that are scored, and what the subject itself makes of them."""
        at = np.flatnonzero(scored & (whole.following >= 0))
        self.num_tokens[row] = len(at)
        if len(at):
            device = whole.line.device
            clean = clean_predictions(self.places.unembedding, whole, torch.from_numpy(at).to(device))
            following = torch.from_numpy(whole.following[at]).to(device)
            probability = clean.probabilities[clean.line, following].clamp_min(torch.finfo(torch.float32).tiny)
            self.clean_ce[row] = -float(probability.double().log().sum())

    def _edits(
        self, number: int, tokens: NDArray[np.integer[Any]], clean: CleanContext, one: JointContext
    ) -> list[_JointEdit]:
        """The different edits of one context; ways that make the same one share it.

        A token's push is a sum over latents at that token alone, so the context is worked through a slice of tokens at a time.
        """
        for way in one.ways:
            _check(way.activation, (len(way.position),))
        plain = self.places.plain(tokens)
        num_ways, width = self.kl.shape[1], len(self.places.coder.directions)
        step = max(1, self.settings.cells_per_slice // max(width, 1))
        pushes: list[list[Tensor]] = [[] for _ in range(num_ways)]
        moved: list[list[Tensor]] = [[] for _ in range(num_ways)]
        alike = np.ones((num_ways, num_ways), dtype=bool)
        for begin in range(0, len(tokens), step):
            at = np.arange(begin, min(begin + step, len(tokens)))
            true, scale = self.places.encoded(clean, at, plain, self.columns)
            spoken = torch.from_numpy(plain[at]).to(true.device)[:, None]
            changes = [target - true for target in self._targets(one, at, true, spoken)]
            for which, change in enumerate(changes):
                for other, before in enumerate(changes[:which]):
                    alike[which, other] = alike[which, other] and torch.equal(before, change)
                moved[which].append(change.any(dim=1))
            if not changes:
                continue
            written = self._written(torch.cat(changes)).view(num_ways, len(at), -1)
            for which, push in enumerate(written):
                pushes[which].append(push if scale is None else push * scale[:, None].to(push.device))
        edits: list[_JointEdit] = []
        of: dict[int, _JointEdit] = {}
        for which in range(num_ways):
            twin = next((before for before in range(which) if alike[which, before]), None)
            at_moved = torch.nonzero(torch.cat(moved[which]))
            if not len(at_moved):
                continue  # the prediction is the truth: no edit, no KL
            if twin is not None:
                of[twin].ways.append(which)
                of[which] = of[twin]
                continue
            start = int(at_moved[0, 0])
            of[which] = _JointEdit(number, start, [which], torch.cat(pushes[which])[start:])
            edits.append(of[which])
        return edits

    def _targets(self, one: JointContext, at: NDArray[np.int64], true: Tensor, spoken: Tensor) -> Iterator[Tensor]:
        """``[T, F]`` what each way fills in at a slice of tokens; nothing where a token is not ``spoken`` of (special ones)."""
        for way in one.ways:
            here = np.flatnonzero((way.position >= at[0]) & (way.position <= at[-1]))
            filled = torch.zeros_like(true)
            place = torch.from_numpy(way.position[here] - at[0]), torch.from_numpy(way.latent[here])
            values = torch.from_numpy(way.activation[here].astype(np.float32)).to(true.device)
            filled[place[0].to(true.device), place[1].to(true.device)] = values
            yield filled * spoken
        if self.means is not None:
            yield (true != 0).float() * self.means

    def _written(self, change_TF: Tensor) -> Tensor:
        """[T, D] what changes of activations write together, on the subject's device."""
        directions = self.places.coder.directions
        delta = torch.zeros(len(change_TF), directions.shape[-1], device=directions.device)
        for begin in range(0, len(self.columns), _LATENTS_AT_ONCE):
            part = slice(begin, begin + _LATENTS_AT_ONCE)
            delta += change_TF[:, part] @ directions.index_select(0, self.columns[part]).float()
        return delta.to(self.places.subject.device)

    def _batch(
        self, first: int, edits: list[_JointEdit], references: list[Reference], contexts: Sequence[JointContext]
    ) -> None:
        lengths = np.array([len(edit.delta) for edit in edits], dtype=np.int64)
        start = np.array([edit.start for edit in edits], dtype=np.int64)
        present, context = np.unique([edit.context for edit in edits], return_inverse=True)
        rows = Rows(start, start + lengths, context)
        delta = torch.cat([edit.delta for edit in edits])
        measured: Measured = measure(
            self.places.upper, self.places.unembedding, [references[n] for n in present], rows, delta
        )
        offset = 0
        for edit, length in zip(edits, lengths.tolist(), strict=True):
            part = slice(offset, offset + length)
            kept = contexts[edit.context].scored[edit.start :] & measured.has_next[part]
            row = first + edit.context
            self.kl[row, edit.ways] = measured.kl[part][kept].sum()
            self.delta_ce[row, edit.ways] = measured.delta_ce[part][kept].sum()
            offset += length


class _JointEdit(NamedTuple):
    """What some ways write into one context, from the first token on that they change."""

    context: int
    """Index among the contexts of the pass."""
    start: int
    ways: list[int]
    delta: Tensor
    """[T - start, D]"""
