"""Ablate latents and see what the subject predicts then, beside pushes of the same size in random directions.

Letters in shapes: J jobs (a window of a latent), N packed tokens, R control directions, D width, L latents asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae_core.hookpoints import Hookpoint, block_list_name
from sae_core.intervention.directions import (
    Coder,
    ContextTokens,
    ControlDirections,
    deal_directions,
    draw_control_directions,
    kinds_dealt,
)
from sae_core.intervention.divergence import Unembedding
from sae_core.intervention.evidence import POOL, AblationEvidence
from sae_core.intervention.firing import FiringFinder, FiringSpan, coder_hookpoints
from sae_core.intervention.measure import Reference, measure, reference
from sae_core.intervention.paths import Paths
from sae_core.intervention.resume import Rows, UpperLayers
from sae_core.intervention.windows import InterventionWindow
from sae_core.subject import SubjectModel


@dataclass(frozen=True)
class AblationSettings:
    """How ablation is run."""

    control_directions: int = 4
    """R, half of them isotropic, half typical; every latent has its own, out of a pool."""
    control_pool: int = POOL
    """Directions of the pool; at least twice those of a latent are drawn."""
    threshold: float = 0.0
    """A latent fires where its activation is above this by magnitude."""
    top_tokens: int = 10
    """Tokens listed as raised and as lowered."""
    max_positions: int | None = None
    """Most positions edited and measured from the first firing token on; None: to the window's end."""
    max_tokens: int = 4096
    """Packed tokens of one batch: memory is about this times the width of the MLP times 4 bytes."""
    contexts_per_pass: int = 16
    """Contexts of one clean pass."""
    noise_every: int = 16
    """In every so-manieth pass of contexts (the first included) each batch gets one unedited row a context."""


class _Sums:
    """What is added up over batches."""

    def __init__(
        self, num_rows: int, num_latents: int, num_directions: int, num_parts: int, width: int, device: torch.device
    ) -> None:
        shape = (num_rows, 1 + num_directions)
        self.kl_firing = np.zeros(shape)
        self.kl_rest = np.zeros(shape)
        self.delta_ce = np.zeros(shape)
        self.count_firing = np.zeros(num_rows, dtype=np.int32)
        self.count_rest = np.zeros(num_rows, dtype=np.int32)
        self.count_ce = np.zeros(num_rows, dtype=np.int32)
        self.push = np.zeros(num_rows)
        self.difference = torch.zeros(num_latents, width, dtype=torch.float64, device=device)
        self.parts = torch.zeros(num_latents, num_parts, dtype=torch.float64, device=device)
        self.whole = torch.zeros(num_latents, dtype=torch.float64, device=device)
        self.noise_floor = 0.0
        self.num_noise_tokens = 0


def run_ablation(
    subject: SubjectModel,
    coder: Coder,
    context_tokens: ContextTokens,
    num_contexts: int,
    windows: Mapping[int, Sequence[InterventionWindow]],
    *,
    settings: AblationSettings | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> AblationEvidence:
    """Ablate every latent of ``windows`` on its windows, and push along the control directions at the same tokens.

    ``h' = h - z_f d_f`` at the latent's firing tokens of the window, with z from a clean pass, all at once; measured
    at every token from the first firing one to the window's end against the clean pass. Work goes context by context:
    rows of all latents that meet in a context share its clean pass and prefix, so that the more latents a call holds,
    the less a latent costs. What comes out for a latent depends on the other latents of the call by float32 rounding
    only; the same call gives the same bits.

    Args:
        subject: the model.
        coder: reads at ``hookpoints_in``, acts at ``hookpoints_out``.
        context_tokens: the corpus, a context at a time.
        num_contexts: how many contexts it has (typical directions are drawn from all of them).
        windows: latent -> its windows, see :func:`sae_core.intervention.windows.choose_windows`.
        settings: how to run.
        seed: of the run; the pool of control directions depends on it and not on the latents.
        progress: called with the number of windows done so far.

    Raises:
        CoderError: the coder does not fit the subject.
        NonFiniteError: an edited pass gave NaN or infinite values.
    """
    settings = settings or AblationSettings()
    read, write = coder_hookpoints(subject, coder)
    size = max(settings.control_pool, 2 * settings.control_directions)
    pool = draw_control_directions(subject, write, context_tokens, num_contexts, size, seed)
    run = _Ablation(subject, coder, read, write, pool, settings, windows, seed)
    by_context: dict[int, list[int]] = {}
    for row, window in enumerate(run.window):
        by_context.setdefault(window.context, []).append(row)
    ordinals = sorted(by_context)
    done = 0
    for number, begin in enumerate(range(0, len(ordinals), settings.contexts_per_pass)):
        part = ordinals[begin : begin + settings.contexts_per_pass]
        run.contexts(
            [np.asarray(context_tokens(o)) for o in part],
            [by_context[o] for o in part],
            measure_noise=number % settings.noise_every == 0,
        )
        done += sum(len(by_context[o]) for o in part)
        if progress is not None:
            progress(done)
    return run.evidence()


class _Ablation:
    """One call of :func:`run_ablation`."""

    def __init__(
        self,
        subject: SubjectModel,
        coder: Coder,
        read: Sequence[Hookpoint],
        write: Sequence[Hookpoint],
        pool: ControlDirections,
        settings: AblationSettings,
        windows: Mapping[int, Sequence[InterventionWindow]],
        seed: int,
    ) -> None:
        self.subject = subject
        self.read = read
        self.pool = pool
        self.settings = settings
        self.seed = seed
        self.latents = np.array(sorted(windows), dtype=np.int32)
        self.dealt = deal_directions(self.latents, pool.kinds, settings.control_directions, seed)
        self.latent = np.array(
            [i for i, latent in enumerate(self.latents.tolist()) for _ in windows[latent]], dtype=np.int64
        )
        self.window = [window for latent in self.latents.tolist() for window in windows[latent]]
        self.upper = UpperLayers(subject, write, from_clean=tuple(read) == tuple(write))
        self.unembedding = Unembedding(subject)
        self.paths = Paths(subject, self.upper, self.unembedding)
        index = torch.from_numpy(self.latents.astype(np.int64)).to(coder.directions.device)
        self.directions = coder.directions.index_select(0, index).to(subject.device).float()
        self.norms = self.directions.norm(dim=-1).cpu().numpy()
        self.finder = FiringFinder(
            subject,
            coder,
            read,
            self.latents,
            threshold=settings.threshold,
            max_positions=settings.max_positions,
        )
        self.sums = _Sums(
            len(self.window),
            len(self.latents),
            settings.control_directions,
            len(self.paths.names),
            self.unembedding.weight.shape[1],
            subject.device,
        )

    def contexts(self, tokens: list[NDArray[np.integer[Any]]], rows: list[list[int]], measure_noise: bool) -> None:
        """All windows of a few contexts."""
        needed = [max(self.window[r].position + self.window[r].length for r in mine) for mine in rows]
        watched = (*self.read, *self.paths.places)
        clean = self.upper.clean([ids[:stop] for ids, stop in zip(tokens, needed, strict=True)], watched)
        spans: list[FiringSpan] = []
        references: list[Reference] = []
        for number, (ids, mine) in enumerate(zip(tokens, rows, strict=True)):
            listed = [(row, int(self.latent[row]), self.window[row]) for row in mine]
            found = self.finder.spans(number, ids, clean[number], listed)
            references.append(reference(self.unembedding, clean[number], ids, [(s.start, s.stop) for s in found]))
            # Rows of like start and length meet in a batch: short prefixes stay short, little is padded.
            spans += sorted(found, key=lambda s: (s.start, s.stop, s.row))
        per_row = 1 + self.settings.control_directions
        batch: list[FiringSpan] = []
        size = 0
        for span in spans:
            length = per_row * (span.stop - span.start)
            if batch and size + length > self.settings.max_tokens:
                self._batch(batch, references, measure_noise)
                batch, size = [], 0
            batch.append(span)
            size += length
        if batch:
            self._batch(batch, references, measure_noise)

    def _batch(self, jobs: list[FiringSpan], references: list[Reference], measure_noise: bool) -> None:
        device = self.subject.device
        directions = 1 + self.settings.control_directions
        start = np.repeat([job.start for job in jobs], directions)
        stop = np.repeat([job.stop for job in jobs], directions)
        owner = np.repeat([job.context for job in jobs], directions)
        job_of_row = np.repeat(np.arange(len(jobs)), directions)
        direction_of_row = np.tile(np.arange(directions), len(jobs))
        if measure_noise:  # an unedited row a context, as long as its longest row
            for number in sorted({job.context for job in jobs}):
                longest = max((j for j in jobs if j.context == number), key=lambda j: j.stop - j.start)
                at = int(np.searchsorted(owner, number, side="right"))
                start, stop = np.insert(start, at, longest.start), np.insert(stop, at, longest.stop)
                owner, job_of_row = np.insert(owner, at, number), np.insert(job_of_row, at, -1)
                direction_of_row = np.insert(direction_of_row, at, 0)
        present, context = np.unique(owner, return_inverse=True)
        rows = Rows(start, stop, context)
        row = rows.row
        job, direction = job_of_row[row], direction_of_row[row]
        edited = job >= 0
        activations = np.concatenate([j.activations for j in jobs])
        offset = np.cumsum([0] + [j.stop - j.start for j in jobs])
        z = np.where(edited, activations[np.where(edited, offset[job] + rows.position - start[row], 0)], 0.0)
        firing = z != 0
        latent_of_job = np.array([j.latent for j in jobs])
        # Row 0 of a job moves along its latent's direction, row r along its control r, stretched to the same length.
        moved = np.flatnonzero(firing)
        length = np.where(direction == 0, 1.0, self.norms[latent_of_job[job]])
        control = self.dealt[latent_of_job][job, np.maximum(direction - 1, 0)]
        source = np.where(direction == 0, job, len(jobs) + control)
        table = torch.cat([self.directions[torch.from_numpy(latent_of_job).to(device)], self.pool.vectors])
        coefficient = torch.from_numpy((-z[moved] * length[moved]).astype(np.float32)).to(device)
        delta = torch.zeros(len(row), table.shape[1], device=device)
        delta[torch.from_numpy(moved).to(device)] = (
            coefficient[:, None] * table[torch.from_numpy(source[moved]).to(device)]
        )
        own = np.flatnonzero(firing & (direction == 0))
        own_tokens = torch.from_numpy(own).to(device)
        theirs = torch.from_numpy(latent_of_job[job[own]]).to(device)
        here = [references[number] for number in present]
        states: dict[Hookpoint, torch.Tensor] = {}
        with self.paths.watched(own_tokens, states):
            measured = measure(self.upper, self.unembedding, here, rows, delta)

        sums = self.sums
        if measure_noise:
            sums.noise_floor = max(sums.noise_floor, float(measured.kl[~edited].max()))
            sums.num_noise_tokens += int((~edited).sum())
        cell = job * directions + direction
        silent = edited & ~firing

        def summed(values: NDArray[np.float64], where: NDArray[np.bool_]) -> NDArray[np.float64]:
            totals = np.bincount(cell[where], weights=values[where], minlength=len(jobs) * directions)
            return np.asarray(totals, dtype=np.float64).reshape(-1, directions)

        out = np.array([j.row for j in jobs])
        sums.kl_firing[out] = summed(measured.kl, firing)
        sums.kl_rest[out] = summed(measured.kl, silent)
        sums.delta_ce[out] = summed(measured.delta_ce, firing)
        ones = np.ones(len(row))
        sums.count_firing[out] = summed(ones, firing)[:, 0]
        sums.count_rest[out] = summed(ones, silent)[:, 0]
        sums.count_ce[out] = summed(ones, firing & measured.has_next)[:, 0]
        displaced = np.abs(z) * self.norms[latent_of_job[job]]
        sums.push[out] = summed(displaced, firing)[:, 0]
        sums.difference.index_add_(0, theirs, measured.difference[own_tokens].double())
        if states and len(own):
            position, moved_by = rows.position[own], delta[own_tokens]
            parts, whole = self.paths.parts(here, rows.context[row[own]], position, states, moved_by)
            sums.parts.index_add_(0, theirs, parts)
            sums.whole.index_add_(0, theirs, whole)

    def evidence(self) -> AblationEvidence:
        """Sums to means; rows of one latent together."""
        sums, settings = self.sums, self.settings
        kept = np.flatnonzero(sums.count_firing)
        num_latents = len(self.latents)
        firing = sums.count_firing[kept][:, None]
        rest = np.maximum(sums.count_rest[kept], 1)[:, None]
        with_next = np.maximum(sums.count_ce[kept], 1)[:, None]
        kl_firing, kl_rest = sums.kl_firing[kept] / firing, sums.kl_rest[kept] / rest
        delta_ce = sums.delta_ce[kept] / with_next
        num_windows = np.bincount(self.latent[kept], minlength=num_latents)
        asked = np.bincount(self.latent, minlength=num_latents)
        tokens_fired = np.bincount(self.latent[kept], weights=sums.count_firing[kept], minlength=num_latents)
        count = min(settings.top_tokens, self.unembedding.weight.shape[0])
        tokens = {name: np.full((num_latents, count), -1, dtype=np.int32) for name in ("raised", "lowered")}
        logits = {name: np.zeros((num_latents, count), dtype=np.float32) for name in ("raised", "lowered")}
        with_rows = np.flatnonzero(num_windows)
        for begin in range(0, len(with_rows), 256):
            part = with_rows[begin : begin + 256]
            place = torch.from_numpy(part).to(self.subject.device)
            fired = torch.from_numpy(tokens_fired[part]).to(self.subject.device)
            change = self.unembedding.delta_logits(sums.difference[place] / fired[:, None])
            for name, largest in (("raised", True), ("lowered", False)):
                top = change.topk(count, dim=-1, largest=largest)
                tokens[name][part] = top.indices.cpu().numpy()
                logits[name][part] = top.values.cpu().numpy()
        whole = sums.whole.cpu().numpy()
        share = np.where(whole > 0, 1.0, np.nan)[:, None] * sums.parts.cpu().numpy()
        share /= np.where(whole > 0, whole, 1.0)[:, None]
        return AblationEvidence(
            latent=self.latents[self.latent[kept]],
            document=np.array([self.window[r].document for r in kept], dtype=np.int32),
            context=np.array([self.window[r].context for r in kept], dtype=np.int32),
            position=np.array([self.window[r].position for r in kept], dtype=np.int32),
            num_firing_tokens=sums.count_firing[kept],
            push_norm=sums.push[kept] / sums.count_firing[kept],
            kl_firing=kl_firing[:, 0],
            kl_rest=kl_rest[:, 0],
            count_rest=sums.count_rest[kept],
            delta_ce=delta_ce[:, 0],
            count_ce=sums.count_ce[kept],
            control_kl_firing=kl_firing[:, 1:],
            control_kl_rest=kl_rest[:, 1:],
            control_delta_ce=delta_ce[:, 1:],
            control_kind=np.array(kinds_dealt(settings.control_directions), dtype=np.uint8),
            latents=self.latents,
            control_direction=self.dealt,
            num_windows=num_windows.astype(np.int32),
            num_windows_silent=(asked - num_windows).astype(np.int32),
            tokens_raised=tokens["raised"],
            logits_raised=logits["raised"],
            tokens_lowered=tokens["lowered"],
            logits_lowered=logits["lowered"],
            path_share=share.astype(np.float32),
            path_block=np.array(self.paths.names, dtype=np.int32),
            block_list=block_list_name(self.subject.base),
            noise_floor=sums.noise_floor,
            num_noise_tokens=sums.num_noise_tokens,
            control_seed=self.seed,
        )
