"""What judges are asked about windows, their verdicts, and the figures that follow from these."""

from __future__ import annotations

from autointerp.judging.batching import Asked, ask_all, deal
from autointerp.judging.outcome import accuracy_score, missing_label, too_few, two_sided_score
from autointerp.judging.questions import Question, judge_questions
from autointerp.judging.verdicts import Verdict, Verdicts, auroc

__all__ = [
    "Asked",
    "Question",
    "Verdict",
    "Verdicts",
    "accuracy_score",
    "ask_all",
    "auroc",
    "deal",
    "judge_questions",
    "missing_label",
    "too_few",
    "two_sided_score",
]
