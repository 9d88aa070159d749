"""What people say of labels: accept, reject or edit, with who and when; edits are scored on windows that nobody has been shown.

What is done about a review, which reads the run, is in ``reviewing``.
"""

from __future__ import annotations

from autointerp.review.effective import EffectiveLabel, effective, effective_labels
from autointerp.review.recording import Action, Review, record_review, reviews
from autointerp.review.seen import SeenWindows, seen_windows

__all__ = [
    "Action",
    "EffectiveLabel",
    "Review",
    "SeenWindows",
    "effective",
    "effective_labels",
    "record_review",
    "reviews",
    "seen_windows",
]
