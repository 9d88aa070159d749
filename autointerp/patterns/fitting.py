"""Finds the patterns of one latent: counts and probes propose, likelihood keeps, held-out windows choose.

A variable-order suffix tree in the manner of prediction suffix trees (Ron, Singer & Tishby 1996, "The power of
amnesia"): a longer pattern is kept only where it separates firing from silent occurrences that the shorter ones mix.
Templates are taken from the least to the most specific; each candidate is compared with what the patterns kept so far
predict at its occurrences, so that exceptions ("``self``, but not after ``(``") come out by themselves. Shares are
shrunk towards that prediction. The explain side alone proposes and counts; how much context is used and from which
share on a pattern fires is chosen by window F1 on the choose side, together with the explain side's windows each
predicted without its own document.

Letters in shapes: N counting positions, W windows, K candidates or kept patterns, G grams, H thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autointerp.patterns.index import Ints, PoolIndex, Template
from autointerp.patterns.matching import TABLES, match_literals
from autointerp.patterns.probes import probed_patterns
from autointerp.patterns.trie import Pattern, PatternTrie, priority, symbols_of
from sae_core.records import SuffixProbe

Floats = NDArray[np.float64]

_THRESHOLDS: Final[Floats] = np.concatenate([np.linspace(0.05, 0.4, 15), np.linspace(0.45, 0.8, 8)])
_LEAST_SHARE = 0.05
"""Grams that fire less often than this are no candidates: below every threshold, and there are very many."""
_LEAST_WILDCARD_SHARE = 0.3
"""The same where the firing token is a wildcard: such a pattern speaks about tokens of all kinds."""
_DENSE_PAIRS = 4_000_000
"""Pattern and document pairs that are counted without sorting them first."""
_MANY_POSITIONS = 1000
"""From so many firing positions on, context is always used."""
_FEW_POSITIONS = 10
"""A latent with fewer firing positions than this may have patterns that were seen once."""


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How patterns are found."""

    min_support: int = 2
    """Firing occurrences that a gram needs to be a candidate."""
    gain_nats: float = 2.0
    """Log-likelihood, in nats, that a candidate must add over the shorter patterns."""
    prior_count: float = 1.0
    """Occurrences that the shorter patterns' prediction counts for in a pattern's share."""
    least_importance: float = 0.1
    """Importance below which a token of a probed suffix becomes a wildcard."""
    most_literals: int = 4
    """Most literal tokens of a probed suffix that stay."""
    max_patterns: int = 800
    """Most patterns that are kept; those that decide most windows stay."""


@dataclass
class _Fit:
    """Patterns that were kept, from the least to the most specific; a later match overrides an earlier one."""

    groups: list[tuple[Template, Ints]] = field(default_factory=list)
    """Template and literals [K_t, len(template)]."""
    matches: list[tuple[NDArray[np.int32], Ints]] = field(default_factory=list)
    """Positions of the explain side that match, and the row of the literals each."""
    prior_share: list[Floats] = field(default_factory=list)
    """[K_t] what shorter patterns predict at the matches."""
    prior_activation: list[Floats] = field(default_factory=list)
    pseudo: list[Floats] = field(default_factory=list)
    """[K_t] firing occurrences that the probes add."""
    share: Floats = field(default_factory=lambda: np.zeros(0))
    """[K] shrunk share of firing among the matches that no longer pattern claims."""
    activation: Floats = field(default_factory=lambda: np.zeros(0))
    """[K] shrunk mean activation there."""
    support: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    hits: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    left_out: Floats = field(default_factory=lambda: np.zeros(0))
    """[W] largest share in each explain window, from the other documents' counts."""


class _Counts:
    """One latent on the explain side."""

    def __init__(self, index: PoolIndex, latent: int) -> None:
        self.index = index
        self.ordinals, values = index.firing(latent)
        self.values = values.astype(np.float64)
        self.base = max(len(self.ordinals) / max(index.num_positions, 1), 1e-6)
        self.fires = np.zeros(index.num_positions)
        self.fires[self.ordinals] = 1.0
        self.activation = np.zeros(index.num_positions)
        self.activation[self.ordinals] = self.values


def fit_patterns(
    explain: PoolIndex,
    choose: PoolIndex,
    latent: int,
    probes: Sequence[SuffixProbe] = (),
    settings: FitSettings | None = None,
) -> PatternTrie:
    """Patterns of one latent; empty only where it fires nowhere in the explain side's pool and has no probe.

    ``explain`` proposes and counts, ``choose`` picks the use of context and the threshold.
    """
    settings = settings or FitSettings()
    counts = _Counts(explain, latent)
    all_templates = sorted(TABLES, key=priority)
    best: tuple[float, float, _Fit] | None = None
    truth_explain, truth_choose = explain.windows_firing(latent), choose.windows_firing(latent)
    # With many firing positions context is never overfit, and a second fit would cost time for nothing.
    ways: list[list[Template]] = [all_templates]
    if len(counts.ordinals) < _MANY_POSITIONS:
        ways.append([(0,)])
    for templates in ways:
        fit = _grow(counts, probes if len(templates) > 1 else (), templates, settings)
        if not len(fit.share):
            continue
        tally = _tally(_window_shares(choose, fit), truth_choose) + _tally(fit.left_out, truth_explain)
        f1 = _f1(tally)
        # Of thresholds that do equally well the one nearest .4, where F1 is flat for most latents.
        at = int(np.argmax(f1 - 1e-6 * np.abs(_THRESHOLDS - 0.4)))
        threshold = min(float(_THRESHOLDS[at]), float(fit.share.max()))
        # Single tokens alone must do clearly better: small differences are the choose side's noise.
        if best is None or f1[at] > best[0] + 0.005:
            best = float(f1[at]), threshold, fit
    if best is None:
        return PatternTrie(())
    _, threshold, fit = best
    return _prune(explain, fit, threshold, settings.max_patterns)


def _grow(counts: _Counts, probes: Sequence[SuffixProbe], templates: Sequence[Template], settings: FitSettings) -> _Fit:
    """Keeps, template after template, the candidates that add enough likelihood over those kept so far."""
    index = counts.index
    min_support = settings.min_support if len(counts.ordinals) >= _FEW_POSITIONS else 1
    share = np.full(index.num_positions, counts.base)
    activation = np.full(index.num_positions, counts.values.sum() / max(index.num_positions, 1))
    owner = np.full(index.num_positions, -1, dtype=np.int32)
    probed = probed_patterns(probes, settings.least_importance, settings.most_literals, index.start_literal)
    fit = _Fit()
    num_kept = 0
    for template in sorted({*templates, *probed}, key=priority):
        literals = np.zeros((0, len(template)), dtype=np.int64)
        if template in templates:
            literals = index.literals(template, _candidates(counts, template, owner, min_support))
        pseudo = np.zeros(len(literals))
        if template in probed:
            literals, pseudo = _join(literals, probed[template].literals())
        if not len(literals):
            continue
        ordinals, which = match_literals(index, template, literals)
        size = len(literals)
        n = np.bincount(which, minlength=size).astype(np.float64)
        hits = np.bincount(which, weights=counts.fires[ordinals], minlength=size)
        before = np.bincount(which, weights=share[ordinals], minlength=size) / np.maximum(n, 1)
        before[n == 0] = counts.base
        if template == (0,):
            keep = (hits + pseudo) >= _LEAST_SHARE * (n + pseudo)
        else:
            keep = _gain(hits + pseudo, n + pseudo, before) > settings.gain_nats
        kept = np.flatnonzero(keep)
        if not len(kept):
            continue
        # From here on only the kept ones: most candidates of the longer templates add nothing.
        chosen = keep[which]
        ordinals, which = ordinals[chosen], (np.cumsum(keep) - 1)[which[chosen]]
        n, hits, before, pseudo = n[kept], hits[kept], before[kept], pseudo[kept]
        after = (hits + pseudo + settings.prior_count * before) / (n + pseudo + settings.prior_count)
        total = np.bincount(which, weights=counts.activation[ordinals], minlength=len(kept))
        before_total = np.bincount(which, weights=activation[ordinals], minlength=len(kept))
        before_activation = before_total / np.maximum(n, 1)
        after_activation = (total + settings.prior_count * before_activation) / (n + settings.prior_count)
        share[ordinals], activation[ordinals], owner[ordinals] = after[which], after_activation[which], num_kept + which
        fit.groups.append((template, literals[kept]))
        fit.matches.append((ordinals, which))
        fit.prior_share.append(before)
        fit.prior_activation.append(before_activation)
        fit.pseudo.append(pseudo)
        num_kept += len(kept)
    if num_kept:
        _settle(counts, fit, owner, num_kept, settings.prior_count)
    return fit


def _candidates(counts: _Counts, template: Template, owner: NDArray[np.int32], min_support: int) -> Ints:
    """Grams of a template that fire often enough, or all of whose occurrences a kept pattern claims (exceptions)."""
    table = counts.index.table(template)
    hits = np.bincount(table.gram[counts.ordinals], minlength=len(table.count))
    least = _LEAST_SHARE if template[0] == 0 else _LEAST_WILDCARD_SHARE
    enough = (hits >= min_support) & (hits >= least * table.count)
    if template != (0,):
        claimed = np.bincount(table.gram[np.flatnonzero(owner >= 0)], minlength=len(table.count))
        enough |= (claimed == table.count) & (claimed > min_support)
    return np.flatnonzero(enough)


def _join(literals: Ints, probed: Ints) -> tuple[Ints, Floats]:
    """Both sets of candidates without repeats, and 1 for each that a probe saw: firing there was tried, not counted."""
    joined, inverse = np.unique(np.concatenate([literals, probed]), axis=0, return_inverse=True)
    pseudo = np.zeros(len(joined))
    pseudo[inverse.reshape(-1)[len(literals) :]] = 1.0
    return joined, pseudo


def _gain(hits: Floats, n: Floats, before: Floats) -> Floats:
    """Log-likelihood ratio in nats of a share of its own against ``before``, each [K]."""
    own = np.clip(hits / np.maximum(n, 1e-12), 1e-9, 1 - 1e-9)
    before = np.clip(before, 1e-6, 1 - 1e-6)
    return np.asarray(hits * np.log(own / before) + (n - hits) * np.log((1 - own) / (1 - before)), dtype=np.float64)


def _settle(counts: _Counts, fit: _Fit, owner: NDArray[np.int32], num_kept: int, prior: float) -> None:
    """Shares and activations of each pattern over the positions that no longer pattern claims, shrunk."""
    index = counts.index
    before, before_activation = np.concatenate(fit.prior_share), np.concatenate(fit.prior_activation)
    pseudo = np.concatenate(fit.pseudo)
    claimed = np.flatnonzero(owner >= 0)
    node = owner[claimed].astype(np.int64)
    fires = counts.fires[claimed]
    n = np.bincount(node, minlength=num_kept).astype(np.float64)
    hits = np.bincount(node, weights=fires, minlength=num_kept)
    total = np.bincount(node, weights=counts.activation[claimed], minlength=num_kept)
    fit.share = (hits + pseudo + prior * before) / (n + pseudo + prior)
    fit.activation = (total + prior * before_activation) / (n + prior)
    fit.support, fit.hits = n.astype(np.int64), hits.astype(np.int64)
    documents = index.num_documents
    pair = node * documents + index.document_of_window[index.window[claimed]]
    if num_kept * documents > _DENSE_PAIRS:
        pair = np.unique(pair, return_inverse=True)[1].reshape(-1)
    n_pair, hits_pair = np.bincount(pair), np.bincount(pair, weights=fires)
    observed = prior * before[node] + pseudo[node]
    without = (hits[node] - hits_pair[pair] + observed) / (n[node] - n_pair[pair] + pseudo[node] + prior)
    share = np.zeros(index.num_positions)
    share[claimed] = without
    fit.left_out = index.max_in_window(share)


def _window_shares(index: PoolIndex, fit: _Fit) -> Floats:
    """[W] largest share that a fit predicts in each window of another pool."""
    share = np.zeros(index.num_positions)
    begin = 0
    for template, literals in fit.groups:
        ordinals, which = match_literals(index, template, literals)
        share[ordinals] = fit.share[begin + which]
        begin += len(literals)
    return index.max_in_window(share)


def _tally(shares: Floats, truth: NDArray[np.bool_]) -> Ints:
    """[H, 3] true positive, predicted and firing windows at each threshold."""
    ascending, firing = np.sort(shares), np.sort(shares[truth])
    predicted = len(ascending) - np.searchsorted(ascending, _THRESHOLDS)
    both = len(firing) - np.searchsorted(firing, _THRESHOLDS)
    return np.stack([both, predicted, np.full(len(_THRESHOLDS), len(firing))], axis=1)


def _f1(tally: Ints) -> Floats:
    """[H] F1 of counts [H, 3]; 0 where nothing is predicted and nothing fires."""
    return np.asarray(2 * tally[:, 0] / np.maximum(tally[:, 1] + tally[:, 2], 1), dtype=np.float64)


def _prune(index: PoolIndex, fit: _Fit, threshold: float, most: int) -> PatternTrie:
    """The patterns that change a decision, or a predicted activation by a third, at some position of the pool."""
    fires = fit.share >= threshold
    decided = np.zeros(index.num_positions, dtype=np.bool_)
    predicted = np.zeros(index.num_positions)
    kept: list[tuple[int, Pattern]] = []
    begin = 0
    for (template, literals), (ordinals, which) in zip(fit.groups, fit.matches, strict=True):
        part = slice(begin, begin + len(literals))
        own_fires, own_activation = fires[part], fit.activation[part]
        differs = decided[ordinals] != own_fires[which]
        other = np.abs(predicted[ordinals] - own_activation[which]) > 0.34 * np.abs(own_activation[which])
        differs |= other & own_fires[which]
        needed = np.bincount(which, weights=differs, minlength=len(literals)) > 0
        # A probed pattern may stand nowhere in a sampled pool; it is all that is known of its context.
        needed |= own_fires & (np.bincount(which, minlength=len(literals)) == 0)
        chosen = needed[which]
        ordinals, which = ordinals[chosen], which[chosen]
        decided[ordinals], predicted[ordinals] = own_fires[which], own_activation[which]
        for row in np.flatnonzero(needed):
            support, hits = int(fit.support[begin + row]), int(fit.hits[begin + row])
            activation = float(f"{own_activation[row]:.4g}") if own_fires[row] else 0.0
            symbols = symbols_of(template, literals[row].tolist())
            pattern = Pattern(symbols, bool(own_fires[row]), activation, support, hits)
            kept.append((hits if own_fires[row] else support - hits, pattern))
        begin += len(literals)
    if len(kept) > most:
        kept = sorted(kept, key=lambda item: -item[0])[:most]
    return PatternTrie(tuple(pattern for _, pattern in kept))
