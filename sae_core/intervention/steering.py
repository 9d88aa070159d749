"""Steer along latents' directions to a stated effect, and along random directions to the same one.

Letters in shapes: F latents, R control directions, Q rows (a latent at a target), D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_core.hashing import hash64, seed_for
from sae_core.hookpoints import Hookpoint
from sae_core.intervention.directions import (
    Coder,
    ContextTokens,
    ControlDirections,
    deal_directions,
    draw_control_directions,
    kinds_dealt,
)
from sae_core.intervention.divergence import Unembedding
from sae_core.intervention.evidence import POOL, SteeringEvidence
from sae_core.intervention.firing import FiringFinder, FiringSpan, coder_hookpoints
from sae_core.intervention.measure import Reference, measure, reference
from sae_core.intervention.promised import Rankings, jackknife_error
from sae_core.intervention.resume import CleanContext, Rows, UpperLayers
from sae_core.intervention.strength import find_strengths
from sae_core.intervention.windows import InterventionWindow
from sae_core.lens import LensReader, known_tokens, top_tokens
from sae_core.subject import SubjectModel


@dataclass(frozen=True)
class SteeringSettings:
    """How steering is run."""

    targets: tuple[float, ...] = (0.1, 0.33, 1.0)
    """KL(clean || steered) to reach on the explain side's prompts, nats."""
    tolerance: float = 0.1
    """Largest relative distance from the target that counts as met."""
    control_directions: int = 4
    """R, half of them isotropic, half typical; every latent has its own, out of the pool that ablation has too."""
    control_pool: int = POOL
    """Directions of the pool; at least twice those of a latent are drawn."""
    threshold: float = 0.0
    """A latent fires where its activation is above this by magnitude."""
    max_positions: int | None = 16
    """Most positions steered and measured from the first firing token on; None: to the window's end."""
    top_tokens: int = 10
    """Tokens listed as raised and as lowered."""
    lens_tokens: int = 10
    """Logit-lens tokens that should rise."""
    recall_at: int = 50
    """Tokens that rise most, among which promised ones are looked for."""
    other_lists: int = 16
    """Other latents' promised tokens that each latent's are compared with."""
    max_evaluations: int = 14
    """Evaluations of a strength before the target counts as unreachable."""
    largest_push: float = 100.0
    """Largest displacement tried, in mean lengths of the hookpoint's activations."""
    max_tokens: int = 1024
    """Packed tokens of one batch."""
    contexts_per_pass: int = 8
    """Contexts of one clean pass."""
    contexts_held: int = 128
    """Contexts whose keys and values are kept while the strengths of a group of latents are found; of a crosscoder also
    the clean activations of its places, so that many places want fewer contexts."""


@dataclass(frozen=True)
class _Prompts:
    """Windows of some latents with the clean passes they need."""

    spans: list[FiringSpan]
    references: list[Reference]


def run_steering(
    subject: SubjectModel,
    coder: Coder,
    context_tokens: ContextTokens,
    num_contexts: int,
    fit_windows: Mapping[int, Sequence[InterventionWindow]],
    score_windows: Mapping[int, Sequence[InterventionWindow]],
    *,
    promised: Mapping[int, NDArray[np.integer[Any]]] | None = None,
    settings: SteeringSettings | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> SteeringEvidence:
    """Find alpha for ``h' = h + alpha d`` on explain-side prompts, then apply it on score-side prompts.

    A prompt is a firing window in its context; positions from its first firing token on, ``max_positions`` of them at
    most, are steered and measured. The KL of a prompt is the mean over these positions, that of a latent the mean over
    its prompts. Control directions get the latent's length and are fitted on the same prompts to the same target, each
    for itself. A push so large that the subject overflows counts as too far while alpha is looked for.

    Args:
        subject: the model.
        coder: reads at ``hookpoints_in``, acts at ``hookpoints_out``.
        context_tokens: the corpus, a context at a time.
        num_contexts: how many contexts it has.
        fit_windows: latent -> windows of the explain side.
        score_windows: latent -> windows of the score side; the same latents.
        promised: latent -> tokens that it is said to raise, -1 for none (:mod:`sae_core.token_change` finds such lists); those of
            other latents, steered here or not, are the control.
        settings: how to run.
        seed: of the run; a latent's control directions are those of its ablation, where both have equally many.
        progress: called with the number of latents done so far (fitted; scoring them comes last).

    Raises:
        CoderError: the coder does not fit the subject.
        NonFiniteError: a clean pass gave NaN or infinite values, or an edited one on the score side's prompts.
    """
    settings = settings or SteeringSettings()
    read, write = coder_hookpoints(subject, coder)
    size = max(settings.control_pool, 2 * settings.control_directions)
    pool = draw_control_directions(subject, write, context_tokens, num_contexts, size, seed)
    run = _Steering(
        subject, coder, read, write, pool, settings, sorted(fit_windows), context_tokens, promised or {}, seed
    )
    return run.evidence(fit_windows, score_windows, progress)


class _Steering:
    """One call of :func:`run_steering`."""

    def __init__(
        self,
        subject: SubjectModel,
        coder: Coder,
        read: Sequence[Hookpoint],
        write: Sequence[Hookpoint],
        pool: ControlDirections,
        settings: SteeringSettings,
        latents: list[int],
        context_tokens: ContextTokens,
        promised: Mapping[int, NDArray[np.integer[Any]]],
        seed: int,
    ) -> None:
        self.subject = subject
        self.read = read
        self.settings = settings
        self.seed = seed
        self.activation_norm = pool.activation_norm
        self.latents = np.array(latents, dtype=np.int32)
        self.context_tokens = context_tokens
        self.upper = UpperLayers(subject, write, from_clean=tuple(read) == tuple(write))
        self.unembedding = Unembedding(subject)
        self.finder = FiringFinder(
            subject,
            coder,
            read,
            self.latents,
            threshold=settings.threshold,
            max_positions=settings.max_positions,
        )
        index = torch.from_numpy(self.latents.astype(np.int64)).to(coder.directions.device)
        own = coder.directions.index_select(0, index).to(subject.device).float()
        self.norms: NDArray[np.float64] = own.norm(dim=-1).double().cpu().numpy()
        unit = own / own.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        dealt = torch.from_numpy(deal_directions(self.latents, pool.kinds, settings.control_directions, seed)).long()
        self.units_FRD = torch.cat([unit[:, None], pool.vectors[dealt.to(subject.device)]], dim=1)
        """[F, 1 + R, D] directions of length 1, the latent's own first."""
        self.directions = 1 + settings.control_directions
        self.promised = {latent: np.asarray(tokens, dtype=np.int64) for latent, tokens in promised.items()}
        self.known_V = known_tokens(subject)
        self.lens = LensReader(subject, write, settings.lens_tokens)

    def evidence(
        self,
        fit_windows: Mapping[int, Sequence[InterventionWindow]],
        score_windows: Mapping[int, Sequence[InterventionWindow]],
        progress: Callable[[int], None] | None,
    ) -> SteeringEvidence:
        """Fit group by group, then score all latents in one sweep over the corpus for each target."""
        settings = self.settings
        num_latents, num_targets = len(self.latents), len(settings.targets)
        shape = (num_targets, num_latents, self.directions)
        push, value = np.full(shape, np.nan), np.full(shape, np.nan)
        met = np.zeros(shape, dtype=bool)
        prompts_fit = np.zeros(num_latents, dtype=np.int32)
        for group in self._groups(fit_windows):
            prompts = self._prompts({f: fit_windows[int(self.latents[f])] for f in group})
            prompts_fit[group] = np.bincount([s.latent for s in prompts.spans], minlength=num_latents)[group]
            able = np.array([f for f in group if prompts_fit[f] and self.norms[f] > 0], dtype=np.int64)
            start = np.full((len(able), self.directions), 0.5 * self.activation_norm)
            for t, target in enumerate(settings.targets):
                if len(able) == 0:
                    break
                found = self._fit(prompts, able, start, target)
                push[t, able], value[t, able], met[t, able] = found
                if t + 1 < num_targets:  # KL goes with the square of a small push
                    further = np.sqrt(settings.targets[t + 1] / target)
                    start = np.where(np.isnan(found[0]), start, found[0] * further)
            if progress is not None:
                progress(int(group[-1]) + 1)
        parts = [
            self._rows(t, target, push[t], value[t], met[t], prompts_fit, score_windows)
            for t, target in enumerate(settings.targets)
        ]
        return SteeringEvidence.concatenate(parts)

    def _groups(self, windows: Mapping[int, Sequence[InterventionWindow]]) -> Iterator[list[int]]:
        """Latents whose contexts can be held together."""
        group: list[int] = []
        held: set[int] = set()
        for f, latent in enumerate(self.latents.tolist()):
            more = {w.context for w in windows[latent]}
            if group and len(held | more) > self.settings.contexts_held:
                yield group
                group, held = [], set()
            group.append(f)
            held |= more
        if group:
            yield group

    def _prompts(self, windows: Mapping[int, Sequence[InterventionWindow]]) -> _Prompts:
        """Clean passes of all contexts of ``windows`` (by index of the latent), and where the latents fire."""
        by_context: dict[int, list[tuple[int, int, InterventionWindow]]] = {}
        row = 0
        for f, mine in windows.items():
            for window in mine:
                by_context.setdefault(window.context, []).append((row, f, window))
                row += 1
        spans: list[FiringSpan] = []
        references: list[Reference] = []
        ordinals = sorted(by_context)
        for begin in range(0, len(ordinals), self.settings.contexts_per_pass):
            part = ordinals[begin : begin + self.settings.contexts_per_pass]
            tokens = [np.asarray(self.context_tokens(o)) for o in part]
            stops = [max(w.position + w.length for _, _, w in by_context[o]) for o in part]
            clean = self.upper.clean([ids[:stop] for ids, stop in zip(tokens, stops, strict=True)], self.read)
            for ids, o, context in zip(tokens, part, clean, strict=True):
                found = self.finder.spans(len(references), ids, context, by_context[o])
                spans += sorted(found, key=lambda s: (s.start, s.stop, s.row))
                slim = _without_captures(context, self.upper.kept)
                references.append(reference(self.unembedding, slim, ids, [(s.start, s.stop) for s in found]))
        return _Prompts(spans, references)

    def _fit(
        self, prompts: _Prompts, able: NDArray[np.int64], start: NDArray[np.float64], target: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Displacements [f, 1 + R] (lengths) that meet the target, the KL there, and whether it was met."""
        shape = (len(self.latents), self.directions)

        def evaluate(push: NDArray[np.float64], asked: NDArray[np.bool_]) -> NDArray[np.float64]:
            full = np.full(shape, np.nan)
            full[able] = np.where(asked, push, np.nan).reshape(len(able), -1)
            total, count = np.zeros(shape), np.zeros(shape)
            for span, direction, kl, _ in self._steer(prompts, full, overflow_is_far=True):
                total[span.latent, direction] += kl
                count[span.latent, direction] += 1
            mean: NDArray[np.float64] = (total / np.maximum(count, 1))[able].ravel()
            return mean

        found = find_strengths(
            evaluate,
            start.ravel(),
            target,
            tolerance=self.settings.tolerance,
            largest=self.settings.largest_push * self.activation_norm,
            max_evaluations=self.settings.max_evaluations,
        )
        shaped = (len(able), self.directions)
        return found.strength.reshape(shaped), found.value.reshape(shaped), found.met.reshape(shaped)

    def _steer(
        self, prompts: _Prompts, push: NDArray[np.float64], *, overflow_is_far: bool = False
    ) -> Iterator[tuple[FiringSpan, NDArray[np.int64], NDArray[np.float64], Tensor]]:
        """For each prompt: the directions with a ``push`` [F, 1 + R] that is not NaN, their mean KL, and the mean
        change [directions, D] of the final hidden state; ``overflow_is_far`` as in :func:`measure`."""
        batch: list[tuple[FiringSpan, NDArray[np.int64]]] = []
        size = 0
        for span in prompts.spans:
            directions = np.flatnonzero(~np.isnan(push[span.latent]))
            length = len(directions) * (span.stop - span.start)
            if length == 0:
                continue
            if batch and size + length > self.settings.max_tokens:
                yield from self._batch(batch, prompts, push, overflow_is_far)
                batch, size = [], 0
            batch.append((span, directions))
            size += length
        if batch:
            yield from self._batch(batch, prompts, push, overflow_is_far)

    def _batch(
        self,
        batch: list[tuple[FiringSpan, NDArray[np.int64]]],
        prompts: _Prompts,
        push: NDArray[np.float64],
        overflow_is_far: bool,
    ) -> Iterator[tuple[FiringSpan, NDArray[np.int64], NDArray[np.float64], Tensor]]:
        device = self.subject.device
        rows_of = np.array([len(directions) for _, directions in batch])
        start = np.repeat([span.start for span, _ in batch], rows_of)
        stop = np.repeat([span.stop for span, _ in batch], rows_of)
        latent = np.repeat([span.latent for span, _ in batch], rows_of)
        direction = np.concatenate([directions for _, directions in batch])
        present, context = np.unique(np.repeat([span.context for span, _ in batch], rows_of), return_inverse=True)
        rows = Rows(start, stop, context)
        size = torch.from_numpy(push[latent, direction].astype(np.float32)).to(device)
        moves = self.units_FRD[torch.from_numpy(latent).to(device), torch.from_numpy(direction).to(device)]
        row = torch.from_numpy(rows.row).to(device)
        delta = (moves * size[:, None]).index_select(0, row)
        references = [prompts.references[n] for n in present]
        measured = measure(self.upper, self.unembedding, references, rows, delta, overflow_is_far=overflow_is_far)
        kl = np.bincount(rows.row, weights=measured.kl, minlength=len(start)) / rows.lengths
        change = torch.zeros(len(start), measured.difference.shape[1], device=device)
        change.index_add_(0, row, measured.difference)
        change /= torch.from_numpy(rows.lengths).to(device)[:, None]
        at = 0
        for span, directions in batch:
            part = slice(at, at + len(directions))
            yield span, directions, kl[part], change[part]
            at += len(directions)

    def _rows(
        self,
        t: int,
        target: float,
        push: NDArray[np.float64],
        value: NDArray[np.float64],
        met: NDArray[np.bool_],
        prompts_fit: NDArray[np.int32],
        score_windows: Mapping[int, Sequence[InterventionWindow]],
    ) -> SteeringEvidence:
        """Evidence of one target: the score side at the strengths found."""
        num_latents = len(self.latents)
        shape = (num_latents, self.directions)
        kls: list[list[list[float]]] = [[[] for _ in range(self.directions)] for _ in range(num_latents)]
        change = torch.zeros(*shape, self.unembedding.weight.shape[1], device=self.subject.device)
        own: list[list[Tensor]] = [[] for _ in range(num_latents)]
        prompts_score = np.zeros(num_latents, dtype=np.int32)
        by_context: dict[int, dict[int, list[InterventionWindow]]] = {}
        for f, latent in enumerate(self.latents.tolist()):
            for window in score_windows.get(latent, ()):
                by_context.setdefault(window.context, {}).setdefault(f, []).append(window)
        ordinals = sorted(by_context)
        for begin in range(0, len(ordinals), self.settings.contexts_per_pass):
            merged: dict[int, list[InterventionWindow]] = {}
            for o in ordinals[begin : begin + self.settings.contexts_per_pass]:
                for f, windows in by_context[o].items():
                    merged.setdefault(f, []).extend(windows)
            prompts = self._prompts(merged)
            for span in prompts.spans:
                prompts_score[span.latent] += 1
            for span, directions, kl, moved in self._steer(prompts, push):
                change[span.latent, torch.from_numpy(directions).to(change.device)] += moved
                if directions[0] == 0:
                    own[span.latent].append(moved[0])
                for direction, one in zip(directions.tolist(), kl.tolist(), strict=True):
                    kls[span.latent][direction].append(one)
        mean, median, largest = (np.full(shape, np.nan) for _ in range(3))
        for f in range(num_latents):
            for r in range(self.directions):
                mine = np.array(kls[f][r])
                if len(mine):
                    mean[f, r], median[f, r] = mine.mean(), np.median(mine)
                    largest[f, r] = mine.max() / mine.sum() if mine.sum() > 0 else np.nan
        risen = _Risen.nothing(shape, self.settings)
        for f in np.flatnonzero(~np.isnan(mean).all(axis=1)).tolist():
            self._rise(risen, f, change[f], own[f], ~np.isnan(mean[f]))
        lengths = np.where(self.norms > 0, self.norms, np.nan)
        alpha = push / lengths[:, None]
        return SteeringEvidence(
            latent=self.latents,
            target=np.full(num_latents, target),
            unreachable=(~met[:, 0]).astype(np.uint8),
            num_prompts_fit=prompts_fit,
            num_prompts_score=prompts_score,
            alpha=alpha[:, 0],
            direction_norm=self.norms,
            kl_fit=value[:, 0],
            kl_score_mean=mean[:, 0],
            kl_score_median=median[:, 0],
            kl_score_largest_share=largest[:, 0],
            control_unreachable=(~met[:, 1:]).astype(np.uint8),
            control_alpha=alpha[:, 1:],
            control_kl_fit=value[:, 1:],
            control_kl_score=mean[:, 1:],
            tokens_raised=risen.tokens[0],
            tokens_lowered=risen.tokens[1],
            lens_auroc=risen.lens[0, :, 0],
            lens_auroc_se=risen.error[0],
            lens_recall=risen.lens[1, :, 0],
            control_lens_auroc=risen.lens[0, :, 1:],
            control_lens_recall=risen.lens[1, :, 1:],
            output_auroc=risen.output[0, :, 0],
            output_auroc_se=risen.error[1],
            output_recall=risen.output[1, :, 0],
            control_output_auroc=risen.output[0, :, 1:],
            control_output_recall=risen.output[1, :, 1:],
            control_kind=np.array(kinds_dealt(self.settings.control_directions), dtype=np.uint8),
            tolerance=self.settings.tolerance,
            recall_at=self.settings.recall_at,
            control_seed=self.seed,
        )

    def _rise(
        self,
        risen: _Risen,
        f: int,
        change_XD: Tensor,
        own: Sequence[Tensor],
        known: NDArray[np.bool_],
    ) -> None:
        """Enter a latent's row of ``risen``.

        Args:
            risen: of all latents.
            f: the latent's index.
            change_XD: [1 + R, D] sum over the prompts of the final hidden state's change, by direction.
            own: the terms of the first one, the latent's.
            known: [1 + R] directions with a strength.
        """
        settings, device = self.settings, change_XD.device
        rankings = Rankings(self.unembedding.delta_logits(change_XD), self.known_V)
        lens_XK = torch.from_numpy(self.lens.tokens(self.units_FRD[f])[0].ids.astype(np.int64)).to(device)
        risen.lens[0, f] = np.where(known, rankings.auroc(lens_XK), np.nan)
        risen.lens[1, f] = np.where(known, rankings.recall(lens_XK, settings.recall_at), np.nan)
        if not known[0]:
            return
        delta_1V = self.unembedding.delta_logits(change_XD[:1])
        for end, tokens in enumerate(top_tokens(delta_1V, self.known_V, risen.tokens.shape[-1])):
            risen.tokens[end, f] = tokens.ids[0]
        # A jackknife: the sum over the prompts without one of them has the same order as their mean.
        without = Rankings(self.unembedding.delta_logits(change_XD[0] - torch.stack(list(own))), self.known_V)
        lists = [lens_XK[0]]
        latent = int(self.latents[f])
        if latent in self.promised:
            others = np.array(sorted(set(self.promised) - {latent}), dtype=np.int64)
            order = np.argsort(
                hash64(others, seed_for(self.seed, "other latents' promised tokens", latent)), kind="stable"
            )
            compared = [latent, *others[order[: settings.other_lists]].tolist()]
            promised = _side_by_side([self.promised[one] for one in compared]).to(device)
            lists.append(promised[0])
            same = Rankings(delta_1V.expand(len(promised), -1), self.known_V)
            risen.output[0, f, : len(promised)] = same.auroc(promised)
            risen.output[1, f, : len(promised)] = same.recall(promised, settings.recall_at)
        for number, tokens_K in enumerate(lists):
            risen.error[number, f] = jackknife_error(without.auroc(tokens_K.expand(len(own), -1)))


class _Risen(NamedTuple):
    """What rose and fell, and whether that was promised."""

    tokens: NDArray[np.int32]
    """[2, F, K] raised and lowered."""
    lens: NDArray[np.float64]
    """[2, F, 1 + R] AUROC and recall of the directions' lens tokens."""
    output: NDArray[np.float64]
    """[2, F, 1 + C] AUROC and recall of the latent's own list and of others'."""
    error: NDArray[np.float64]
    """[2, F] standard errors of the AUROC of the latent's lens tokens and of its list."""

    @classmethod
    def nothing(cls, shape: tuple[int, int], settings: SteeringSettings) -> _Risen:
        """Where nothing is known yet, of [F, 1 + R] directions."""
        return cls(
            np.full((2, shape[0], settings.top_tokens), -1, dtype=np.int32),
            np.full((2, *shape), np.nan),
            np.full((2, shape[0], 1 + settings.other_lists), np.nan),
            np.full((2, shape[0]), np.nan),
        )


def _side_by_side(lists: Sequence[NDArray[np.int64]]) -> Tensor:
    """[lists, K] as long as the longest, -1 behind the others."""
    joined = np.full((len(lists), max(map(len, lists))), -1, dtype=np.int64)
    for row, tokens in zip(joined, lists, strict=True):
        row[: len(tokens)] = tokens
    return torch.from_numpy(joined)


def _without_captures(clean: CleanContext, kept: frozenset[Hookpoint]) -> CleanContext:
    """The same without the activations that only finding the spans needs, but for those of ``kept``."""
    captured = {hookpoint: value for hookpoint, value in clean.captured.items() if hookpoint in kept}
    return CleanContext(clean.tokens, clean.entering, clean.keys, clean.values, clean.final, captured)
