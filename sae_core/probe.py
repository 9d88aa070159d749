"""The probe stage: what of an exemplar's context a latent needs in order to fire (METHODS 2; Foote et al. 2023, "Neuron to Graph").

For the strongest token of each exemplar: the shortest suffix of its context that keeps a share of the activation when
run alone, each token's importance in it, and whether it must stand at the start of the sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sae_core.attachment import AttachedCoder
from sae_core.exemplar_store import ExemplarStore
from sae_core.hashing import seed_for
from sae_core.records import Exemplar, Origin, Side, SuffixProbe
from sae_core.subject import SubjectModel


@dataclass(frozen=True)
class ProbeSettings:
    """How to probe."""

    exemplars: int = 10
    """Exemplars of a latent, half of them the strongest and half drawn uniformly."""
    keep: float = 0.5
    """A suffix keeps the latent firing if its activation is at least this share of the full context's."""
    longest: int = 32
    """Longest suffix tried, in tokens."""
    masks: int = 2
    """Random tokens of the corpus put in a token's place to measure its importance; their mean counts."""
    measured: int = 8
    """Tokens of a suffix, counted from its end, whose importance is measured; those before them count as 0.
    Few suffixes are longer, and theirs would be most of the stage's work."""
    batch_tokens: int = 8_192
    """Tokens of one forward pass."""
    seed: int = 0
    """Seed of the mask tokens."""


@dataclass(frozen=True)
class _Peak:
    latent: int
    tokens: NDArray[np.int32]
    """Context up to the peak, BOS left out; the last one is the peak token."""
    reaches_start: bool
    """Whether ``tokens`` begins where the context begins."""
    activation: float


def probe_suffixes(
    subject: SubjectModel,
    attached: AttachedCoder,
    store: ExemplarStore,
    latents: Sequence[int],
    settings: ProbeSettings,
    progress: Callable[[int], None] = lambda done: None,
) -> list[SuffixProbe]:
    """Probe the explain side's exemplars of ``latents``; ``progress`` gets the exemplars whose suffix is settled.

    The result of one exemplar does not depend on the others but for float rounding between batch shapes.
    """
    peaks = [peak for latent in latents for peak in _peaks(store, latent, settings, subject.bos_id)]
    runner = _Runner(subject, attached, settings)
    lengths, found = _shortest(runner, peaks, settings, progress)
    suffixes = [peak.tokens[-n:] for peak, n in zip(peaks, lengths, strict=True)]
    kept = runner.activations(suffixes, [p.latent for p in peaks])
    importances = _importances(runner, peaks, suffixes, found, kept, store, settings)
    starts = _starts_sequence(runner, peaks, suffixes, store, settings)
    return [
        SuffixProbe(
            latent=peak.latent,
            token_ids=suffixes[i].astype(np.int32),
            importances=importances[i],
            peak_activation=peak.activation,
            suffix_activation=float(kept[i]),
            starts_sequence=bool(starts[i]),
            found=bool(found[i]),
        )
        for i, peak in enumerate(peaks)
    ]


def _peaks(store: ExemplarStore, latent: int, settings: ProbeSettings, bos_id: int | None) -> list[_Peak]:
    """Half from the top, the rest from the uniform sample, no window twice."""
    top = store.exemplars(latent, Side.EXPLAIN, Origin.TOP)
    sampled = store.exemplars(latent, Side.EXPLAIN, Origin.SAMPLED)
    chosen: dict[tuple[int, int], Exemplar] = {}
    for exemplar in [*top[: settings.exemplars // 2], *sampled, *top]:
        if len(chosen) < settings.exemplars:
            chosen.setdefault((exemplar.context, exemplar.position), exemplar)
    out: list[_Peak] = []
    for exemplar in chosen.values():
        tokens = np.concatenate([exemplar.context_ids, exemplar.token_ids[: exemplar.peak + 1]])
        begins = exemplar.position - len(exemplar.context_ids)
        if begins == 0 and bos_id is not None:
            tokens = tokens[1:]
        out.append(
            _Peak(
                latent=latent,
                tokens=tokens[-settings.longest :],
                reaches_start=begins == 0 and len(tokens) <= settings.longest,
                activation=exemplar.max_activation,
            )
        )
    return out


class _Runner:
    """Activations of latents at the last token of short sequences run alone."""

    def __init__(self, subject: SubjectModel, attached: AttachedCoder, settings: ProbeSettings) -> None:
        self._subject = subject
        self._attached = attached
        self._batch_tokens = settings.batch_tokens
        self.special = subject.special_ids
        # Without a BOS rule the text's first token is the attention sink, and would be measured as one: a special token
        # takes that place, where the subject has any.
        first = subject.bos_id if subject.bos_id is not None else min(subject.special_ids, default=None)
        self.bos = np.asarray([] if first is None else [first], dtype=np.int32)

    def activations(self, rows: Sequence[NDArray[np.int32]], latents: Sequence[int]) -> NDArray[np.float32]:
        """[len(rows)] activation of each row's latent at its last token, the BOS put in front."""
        out = np.zeros(len(rows), dtype=np.float32)
        lengths = np.asarray([len(row) for row in rows])
        attached = self._attached
        wanted = torch.as_tensor(np.asarray(latents, dtype=np.int64), device=self._subject.device)
        for length in np.unique(lengths):
            members = np.flatnonzero(lengths == length)
            size = max(1, self._batch_tokens // (int(length) + len(self.bos)))
            for start in range(0, len(members), size):
                part = members[start : start + size]
                tokens = np.stack([np.concatenate([self.bos, rows[i]]) for i in part]).astype(np.int64)
                captured = self._subject.capture(torch.from_numpy(tokens).to(self._subject.device), attached.read)
                acts = attached.coder.encode(attached.inputs(captured)[:, -1])
                own = acts.gather(1, wanted[torch.from_numpy(part).to(wanted.device)].unsqueeze(1)).squeeze(1)
                out[part] = own.float().cpu().numpy()
        return out


def _shortest(
    runner: _Runner, peaks: Sequence[_Peak], settings: ProbeSettings, progress: Callable[[int], None]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """``(length [n], found [n])``: doubling until the suffix keeps the share, then bisection below it.

    Bisection takes "longer keeps at least as much" for granted, as every published search does; where that does not
    hold the suffix is a sufficient one, not the shortest.
    """
    longest = np.asarray([len(p.tokens) for p in peaks], dtype=np.int64)
    target = np.asarray([settings.keep * abs(p.activation) for p in peaks])
    low = np.zeros(len(peaks), dtype=np.int64)
    high = np.minimum(1, longest)
    found = np.zeros(len(peaks), dtype=bool)
    open_rows = np.arange(len(peaks))
    while len(open_rows):
        enough = _keeps(runner, peaks, open_rows, high, target)
        found[open_rows[enough]] = True
        missed = open_rows[~enough]
        exhausted = high[missed] >= longest[missed]
        low[missed] = high[missed]
        open_rows = missed[~exhausted]
        high[open_rows] = np.minimum(2 * high[open_rows], longest[open_rows])
        progress(len(peaks) - len(open_rows))
    between = np.flatnonzero(found & (high - low > 1))
    while len(between):
        middle = high.copy()
        middle[between] = (low[between] + high[between]) // 2
        enough = _keeps(runner, peaks, between, middle, target)
        high[between[enough]] = middle[between[enough]]
        low[between[~enough]] = middle[between[~enough]]
        between = between[high[between] - low[between] > 1]
    return high, found


def _keeps(
    runner: _Runner,
    peaks: Sequence[_Peak],
    rows: NDArray[np.int64],
    lengths: NDArray[np.int64],
    target: NDArray[np.float64],
) -> NDArray[np.bool_]:
    acts = runner.activations([peaks[i].tokens[-lengths[i] :] for i in rows], [peaks[i].latent for i in rows])
    kept: NDArray[np.bool_] = np.abs(acts) >= target[rows]
    return kept


def _importances(
    runner: _Runner,
    peaks: Sequence[_Peak],
    suffixes: Sequence[NDArray[np.int32]],
    found: NDArray[np.bool_],
    kept: NDArray[np.float32],
    store: ExemplarStore,
    settings: ProbeSettings,
) -> list[NDArray[np.float32]]:
    """1 - activation with the token replaced / activation of the suffix, for each token of each suffix; 0 for tokens
    too far back to be measured, and for suffixes that do not keep the activation in the first place."""
    corpus = _ordinary_tokens(store, runner.special)
    rows: list[NDArray[np.int32]] = []
    owner: list[tuple[int, int]] = []
    for i, suffix in enumerate(suffixes):
        if not found[i]:
            continue
        generator = np.random.default_rng(seed_for(settings.seed, "masks", peaks[i].latent, *suffix.tolist()))
        for place in range(max(0, len(suffix) - settings.measured), len(suffix)):
            for mask in generator.choice(corpus, settings.masks):
                row = suffix.copy()
                row[place] = mask
                rows.append(row)
                owner.append((i, place))
    acts = runner.activations(rows, [peaks[i].latent for i, _ in owner])
    out = [np.zeros(len(suffix), dtype=np.float32) for suffix in suffixes]
    for (i, place), act in zip(owner, acts, strict=True):
        share = act / kept[i] if kept[i] else 1.0
        out[i][place] += (1.0 - share) / settings.masks
    return out


def _ordinary_tokens(store: ExemplarStore, special: frozenset[int]) -> NDArray[np.int32]:
    """The explain side's tokens as they occur, special ones left out."""
    tokens = store.pool(Side.EXPLAIN).tokens
    ordinary: NDArray[np.int32] = tokens[(tokens >= 0) & ~np.isin(tokens, sorted(special))]
    return ordinary


def _starts_sequence(
    runner: _Runner,
    peaks: Sequence[_Peak],
    suffixes: Sequence[NDArray[np.int32]],
    store: ExemplarStore,
    settings: ProbeSettings,
) -> NDArray[np.bool_]:
    """Whether a suffix that reaches back to the start of its context loses its effect behind other text."""
    out = np.zeros(len(peaks), dtype=bool)
    candidates = [i for i, p in enumerate(peaks) if p.reaches_start and len(suffixes[i]) == len(p.tokens)]
    if not candidates:
        return out
    corpus = _ordinary_tokens(store, runner.special)
    rows = []
    for i in candidates:
        generator = np.random.default_rng(seed_for(settings.seed, "filler", peaks[i].latent, *suffixes[i].tolist()))
        rows.append(np.concatenate([generator.choice(corpus, 8).astype(np.int32), suffixes[i]]))
    acts = runner.activations(rows, [peaks[i].latent for i in candidates])
    for i, act in zip(candidates, acts, strict=True):
        out[i] = abs(act) < settings.keep * abs(peaks[i].activation)
    return out
