"""Windows with marked tokens in pairs: right marks on one window, the same positions marked on another where they are wrong.

Where negatives are marked by another rule than positives, positions alone give them away (METHODS 3). Here both of a
pair have the very same positions, so whatever is said from positions alone is right on exactly one of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autointerp.judging.questions import Question
from autointerp.sampling.window import ShownWindow


class MarkedPair(NamedTuple):
    """Two windows with marks at the same positions."""

    right: Question
    """The latent fires at the marks."""
    wrong: Question
    """It fires at none of them."""


def right_marks(window: ShownWindow, most: int) -> frozenset[int]:
    """Indices of the window's firing tokens, the ``most`` strongest where there are more."""
    strength = np.abs(window.activations)
    order = np.argsort(-strength, kind="stable")[:most]
    return frozenset(int(i) for i in order if strength[i] > 0)


def mark_pairs(
    positives: Sequence[ShownWindow],
    firing: Sequence[ShownWindow],
    silent: Sequence[ShownWindow],
    share_on_firing: float,
    most_marks: int,
    rng: np.random.Generator,
) -> list[MarkedPair]:
    """Each of ``positives`` beside a window on which its marks are wrong; those that no window fits are left out.

    ``share_on_firing`` of the wrong ones stand on windows of other documents in which the latent fires elsewhere (from
    ``firing``, then from the positives), the others on ``silent`` ones, earlier ones first. Where one kind has no window
    that fits, the other kind is taken. No window is marked wrongly twice.
    """
    fresh = [*firing, *positives]
    used: set[tuple[int, int]] = set()
    on_firing = rng.permutation(np.arange(len(positives)) < round(share_on_firing * len(positives)))
    pairs = []
    for window, wants_firing in zip(positives, on_firing, strict=True):
        marks = right_marks(window, most_marks)
        kinds = (fresh, silent) if wants_firing else (silent, fresh)
        other = next((found for kind in kinds if (found := _fitting(window, marks, kind, used)) is not None), None)
        if other is not None:
            used.add(other.place)
            pairs.append(MarkedPair(Question(window, True, marks), Question(other, False, marks)))
    return pairs


def _fitting(
    window: ShownWindow, marks: frozenset[int], candidates: Sequence[ShownWindow], used: set[tuple[int, int]]
) -> ShownWindow | None:
    """The first window that can carry the marks wrongly: one of the same length, else any that is long enough."""
    longer: ShownWindow | None = None
    last = max(marks)
    places = sorted(marks)
    for other in candidates:
        if other.place in used or len(other.token_ids) <= last or other.activations[places].any():
            continue
        if other.fires and other.document == window.document:
            continue
        if len(other.token_ids) == len(window.token_ids):
            return other
        longer = longer or other
    return longer
