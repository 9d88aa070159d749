"""Which latents get a label, what stands in its place, and what a row without one still says."""

from __future__ import annotations

import pytest

from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.pipeline.label_figures import score_values
from autointerp.pipeline.stages.label import label_row
from autointerp.score import Score

FOUND = Explanation(latent=1, explainer="pattern", text="def")
LOST = Explanation(
    latent=1, explainer="pattern", failure=Failure(kind=FailureKind.NO_PATTERN, message="nothing was found")
)


@pytest.mark.parametrize(
    ("candidates", "windows", "poisoned", "expected"),
    [
        ([FOUND], (3, 100), False, ("labelled", None, "def")),
        ([FOUND], (0, 100), False, ("rare", "too_few_windows", None)),
        ([FOUND], (0, 0), False, ("rare", "too_few_windows", None)),
        ([LOST], (3, 100), False, ("failed", "no_pattern", None)),
        ([], (3, 100), True, ("failed", "poisoned", None)),
        ([], (3, 100), False, ("failed", "no_explanation", None)),
    ],
)
def test_a_latent_has_a_label_or_a_reason(
    candidates: list[Explanation],
    windows: tuple[int, int],
    poisoned: bool,
    expected: tuple[str, str | None, str | None],
) -> None:
    row = label_row("r", "s", 1, candidates, ["pattern"], windows, poisoned=poisoned)
    assert (row.status, row.failure_kind, row.text) == expected
    if expected[0] == "rare":
        assert f"fires in 0 of {windows[1]} windows of the score side" in str(row.failure_message)


OTHER = Explanation(latent=1, explainer="contrastive", text="return")


@pytest.mark.parametrize(
    ("choices", "text", "decided_by"),
    [
        ({"pattern": 0.6, "contrastive": 0.9}, "return", "score on the choose side"),
        ({"pattern": 0.9, "contrastive": 0.6}, "def", "score on the choose side"),
        ({"pattern": 0.7, "contrastive": 0.7}, "def", "score on the choose side"),  # the order of the file, on ties
        ({"contrastive": 0.1}, "return", "score on the choose side"),  # a text without a figure comes last
        ({}, "def", "configuration order"),
    ],
)
def test_the_text_that_scores_best_is_chosen(choices: dict[str, float], text: str, decided_by: str) -> None:
    for candidates in ([FOUND, OTHER], [OTHER, FOUND]):
        order = ["pattern", "contrastive"]
        row = label_row("r", "s", 1, candidates, order, (3, 100), choices=choices, poisoned=False)
        assert (row.text, row.decided_by) == (text, decided_by)


def test_a_row_without_a_label_has_no_judges_figures() -> None:
    failed = Failure(kind=FailureKind.TRUNCATED, message="no window was judged")
    scores = [
        Score(latent=1, scorer="detection", explainer="a", values={"detection_score": 0.9, "detection_judged": 40}),
        Score(latent=1, scorer="fuzz", explainer="a", values={"fuzz_failed": 40}, failure=failed),
    ]
    assert score_values(scores, None, "a") == {}
    assert score_values(scores, "a")["detection_score"] == 0.9


def test_a_row_without_a_label_keeps_what_is_not_about_a_text() -> None:
    scores = [
        Score(latent=1, scorer="intervention", values={"causal_effect": 0.5}),
        Score(
            latent=1,
            scorer="pattern",
            explainer="pattern",
            values={"precision": 0.1, "f1_low": 0.1, "num_judged": 9, "token_rule_f1": 0.3, "token_precision": 0.2},
        ),
    ]
    assert score_values(scores, None, "pattern") == {"causal_effect": 0.5, "num_judged": 9, "token_rule_f1": 0.3}
    assert score_values(scores, "pattern", "pattern")["precision"] == 0.1
    assert score_values(scores, None) == {"causal_effect": 0.5}
