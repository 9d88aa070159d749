"""The words beside judged precision: what was judged, what was borrowed, for whom the 95% holds."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from autointerp.report.precision import judged_precision_sentence, precision_block, precision_notes

RECORD: dict[str, Any] = {
    "by": "detection",
    "sources": {
        "a": {"audit_covered": 58, "audit_total": 60, "audit_needed": 54, "prior_num_yes": 120, "failures": {}},
        "b": {"audit_covered": 50, "audit_total": 60, "audit_needed": 54, "failures": {"too_few_windows": 3}},
        "c": {"audit_needed": 0, "failures": {"truncated": 1}},
    },
    "false_yes": {
        "null_labels": {"judged": 400, "yes": 2, "rate": 0.005, "low": 0.0006, "high": 0.0179},
        "shuffled_labels": {"judged": 4000, "yes": 31, "rate": 0.00775, "low": 0.005, "high": 0.011},
    },
    "agreement": {"asked_again": 900, "agreed": 891, "share": 0.99},
}


def labelled(**columns: Any) -> pd.DataFrame:
    rows = {
        "precision_method": ["judged"] * 4 + ["counted"],
        "precision_basis": ["own", "borrowed", "borrowed", "unresolved", "counted"],
        "natural_rate": [0.2, 0.002, 0.004, 0.0001, None],
        "best_precision": [0.98, 0.3, 0.5, 0.02, None],
        "precision_low": [0.8, 0.2, 0.1, 0.0, 0.5],
        "precision_high": [0.9, 0.6, 0.7, 1.0, 0.6],
    }
    return pd.DataFrame(rows | columns)


def said(block: dict[str, Any] | None) -> str:
    return " ".join(note.plain for note in precision_notes(block))


def test_the_block_counts_bases_and_rates_of_judged_labels_alone() -> None:
    block = precision_block(labelled(), RECORD)
    assert block is not None
    assert block["num_labels"] == 4
    assert block["bases"] == {"own": 1, "borrowed": 2, "unresolved": 1}
    by_rate = {row["rate_low"]: row for row in block["by_rate"]}
    assert set(by_rate) == {0.1, 0.001, 0.0001}
    assert by_rate[0.001]["num_labels"] == 2
    assert by_rate[0.001]["median_width"] == pytest.approx(0.5)
    assert by_rate[0.001]["median_best_precision"] == pytest.approx(0.4)
    assert precision_block(labelled(), None) is None
    assert precision_notes(None) == []


def test_the_notes_say_for_whom_the_intervals_hold_and_how_they_were_checked() -> None:
    text = said(precision_block(labelled(), RECORD))
    for words in (
        "4 labels are estimates for labels as the judge reads them",
        "25% by their own windows",
        "50% on average over labels like them",
        "25% by their own few windows alone",
        "No precision for 4 labels: too_few_windows 3, truncated 1.",
        "where the latent is silent a yes counts if it is said twice",
        "of 120 random labels with further windows judged, 108 answered as the other verdicts foretold",
        "a sound fit gives 108 or more",
        "too few in b (50 of 60)",
        "yes, twice, to 2 of 400 windows (95% interval 0.06% to 1.8%)",
        # 1e-3 / (1e-3 + .999 e) at the bounds of e
        "a precision of .05 to .63",
        "under other latents' labels to 31 of 4,000",
        "99% of 900 answers as before",
    ):
        assert words in text, (words, text)


def test_an_audit_that_failed_or_was_not_made_is_said() -> None:
    failed = RECORD | {"sources": {"b": RECORD["sources"]["b"]}}
    notes = precision_notes(precision_block(labelled(), failed))
    [audit] = [note for note in notes if note.plain.startswith("Audit")]
    assert any("red" in str(span.style) for span in audit.spans)
    none = RECORD | {"sources": {"c": RECORD["sources"]["c"]}}
    assert "no windows were left to check the estimate by" in said(precision_block(labelled(), none))
    unmeasured = RECORD | {"false_yes": {"null_labels": None, "shuffled_labels": None}}
    assert "The judge" in said(precision_block(labelled(), unmeasured))  # it was asked again
    silent = unmeasured | {"agreement": {"asked_again": 0, "agreed": 0, "share": None}}
    assert "The judge" not in said(precision_block(labelled(), silent))


@pytest.mark.parametrize(
    ("basis", "words"),
    [
        ("own", "the 95% intervals rest on these windows"),
        (
            "borrowed",
            "over 2,000 labels together; from its own windows alone precision is only known to lie in [1%, 98%]",
        ),
        ("judge_limited", "a perfect label of so rare a latent would show .17"),
        ("unresolved", "cannot be borrowed from (too few false yeses in all, or a failed audit)"),
    ],
)
def test_each_basis_has_its_sentence(basis: str, words: str) -> None:
    row = pd.Series(
        {
            "judge_model": "some-model",
            "num_firing_judged": 20,
            "num_silent_judged": 27,
            "num_screened": 470,
            "precision_basis": basis,
            "prior_num_latents": 2000,
            "precision_own_low": 0.01,
            "precision_own_high": 0.98,
            "best_precision": 0.17,
        }
    )
    sentence = judged_precision_sentence(row)
    assert sentence.startswith(
        "as some-model reads the label: 20 firing and 27 other held-out windows judged (a yes where the latent is silent counts if it is "
        "said twice), 470 more through a screen; "
    )
    assert words in sentence
