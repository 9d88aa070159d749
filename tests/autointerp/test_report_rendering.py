"""What a person sees: terminal, one latent, the picture."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from autointerp.export import export_dictionary
from autointerp.report.highlight import exemplar_line
from autointerp.report.overview import _drawn_judge, draw_overview
from autointerp.report.show import print_latent, quotable_sentence
from autointerp.report.summary import build_summary
from autointerp.report.terminal import print_best_and_worst, print_summary
from sae_core.records import Side
from tests.autointerp.report_world import WORDS, Pieces, Store, exemplar, tables

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def _console(width: int = 110, colour: bool = False) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, force_terminal=colour, color_system="truecolor" if colour else None), out


def _printed(width: int = 110, num_latents: int = 400) -> str:
    table, controls = tables(num_latents)
    timings = {"extract": 41.0, "score": 5.0}
    files = {"dictionary": "demo/dictionary"}
    summary = build_summary(table, controls, {"run_id": "r1"}, timings, files, np.random.default_rng(0), 200)
    console, out = _console(width)
    print_summary(summary, console)
    print_best_and_worst(table, {"demo": Store()}, console)
    return out.getvalue()


def test_the_summary_says_what_a_person_asks_first() -> None:
    text = " ".join(_printed().replace("│", " ").split())
    for said in (
        "360 of 400 latents labelled",
        "14 dead (never fired)",
        "13 failed (unparseable 13)",
        "token rule",
        "another latent's label",
        "random directions' labels (64)",
        "better",
        "as a random push of its size",
        "demo/dictionary",
    ):
        assert said in text, said


@pytest.mark.parametrize("width", [60, 80, 110, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(cell_len(line) for line in _printed(width, 90).splitlines()) <= width


def test_labels_and_tokens_are_shown_and_not_obeyed() -> None:
    text = _printed(num_latents=60)
    assert "[red]é\\x1b" in text
    assert "[bold]" in text
    assert "\\x1b[31m" in text
    assert not _CONTROL.search(text)


def test_best_labels_come_by_lower_bound_and_worst_by_f1() -> None:
    table, _ = tables(200)
    labelled = table[table.status == "labelled"]
    console, out = _console()
    print_best_and_worst(table, {}, console, count=3)
    best, worst = out.getvalue().split("Worst labels")
    shown = [int(number) for part in (best, worst) for number in re.findall(r"^ +(\d+)  F1", part, re.MULTILINE)]
    assert shown[:3] == labelled.nlargest(3, "f1_low").latent.tolist()
    assert shown[3:] == labelled.nsmallest(3, "f1").latent.tolist()


def _judged(**changes: Any) -> str:
    """The end of a run with one judge; ``changes`` are shares by arm, and models."""
    table, controls = tables(20)
    table["detection_score"] = np.nan if changes.get("labels") == 1 else 0.9
    arms = {arm: changes.get(arm, 0.0) for arm in ("labels", "shuffled", "random_direction")}
    judgings = pd.DataFrame(
        [
            {
                "source": "demo", "arm": arm, "scorer": "detection", "latent": 1, "failure": None, "models": changes.get("models", ["m"]),
                "judged": round(1000 * (1 - share)), "failed": round(1000 * share), "asked_model": "m",
                "failures": {"truncated": round(1000 * share)} if share else {},
            }
            for arm, share in arms.items()
        ]
    )  # fmt: skip
    summary = build_summary(table, controls, {}, {}, {}, np.random.default_rng(0), 100, judgings=judgings)
    console, out = _console()
    print_summary(summary, console)
    return " ".join(out.getvalue().replace("│", " ").split())


def test_a_judge_that_does_not_answer_is_said_at_the_end() -> None:
    text = _judged(labels=1.0, shuffled=0.5)
    assert "detection – – – 0 of 19 100% · 50% · 0%" in text
    assert (
        "Warning: detection has no answer to part of its questions, and they are in no figure: "
        "100% on labels (truncated 1,000 of 1,000), 50% on shuffled labels (truncated 500 of 1,000)."
    ) in text
    assert "Warning" in _judged(random_direction=0.04)
    few = _judged(labels=0.02)
    assert "Warning" not in few
    assert "2% · 0% · 0%" in few
    assert "19 of 19 0%" in _judged()


def test_another_model_than_the_one_asked_is_said() -> None:
    assert "Judge:" not in _judged()
    assert "Judge: m was asked, a and b\\x1b answered." in _judged(models=["a", "b\x1b"])


def test_what_no_judge_has_judged_is_not_called_wrong() -> None:
    row = pd.Series(
        {
            "source": "demo", "latent": 7, "status": "labelled", "label": "self after (", "precision": None,
            "precision_method": None, "detection_score": None, "detection_failure": "truncated",
            "detection_failure_message": "no window was judged: 2 of 2 calls failed.", "steering_failure": "unreachable",
            "fuzz_score": None, "fuzz_failure": None,
        }
    )  # fmt: skip
    assert quotable_sentence(row) == (
        "Latent 7 of demo is labelled “self after (”: nothing has measured how far this holds; "
        "detection has no figure: no window was judged: 2 of 2 calls failed."
    )
    exported = row.drop("detection_failure_message")  # a dictionary has the kind alone
    assert quotable_sentence(exported).endswith("detection has no figure: truncated.")
    half = quotable_sentence(pd.concat([row.drop("fuzz_score"), pd.Series({"fuzz_score": 0.9, "num_judged": 40})]))
    assert "on 40 held-out windows: fuzz .90" in half
    assert "detection has no figure" in half
    console, out = _console()
    print_latent(row, None, console)
    assert "not judged: truncated" in out.getvalue()
    assert "precision" not in out.getvalue()


def test_the_picture_shows_a_judge_that_has_figures(tmp_path: Path) -> None:
    table, controls = tables(40)
    uncounted = table.assign(precision_method=None, detection_score=np.nan, fuzz_score=0.8)
    for frame in (uncounted, uncounted.assign(fuzz_score=np.nan)):
        summary = build_summary(frame, controls, {}, {}, {}, np.random.default_rng(0), 100)
        judge = _drawn_judge(summary["judged"])
        assert judge == ("fuzz" if frame.fuzz_score.notna().any() else "detection")
        draw_overview(frame, summary, tmp_path / "overview.png", controls)


def test_nothing_labelled_prints_no_empty_lists() -> None:
    table, _ = tables(30)
    console, out = _console()
    print_best_and_worst(table[table.status != "labelled"], {"demo": Store()}, console)
    assert out.getvalue() == ""


def test_firing_tokens_are_marked_by_strength() -> None:
    shown = exemplar(0, Side.SCORE, [1, 2, 3, 4, 5], [0, 0, 4.0, 1.0, 0])
    plain = exemplar_line(shown, Pieces(), 80, marks=True)
    assert plain.plain == "<s>returndef␣««self»»«(»⏎"
    coloured = exemplar_line(shown, Pieces(), 80, marks=False)
    assert coloured.plain == "<s>returndef␣self(⏎"
    styles = {coloured.plain[span.start : span.end]: str(span.style) for span in coloured.spans}
    assert "#f57c00" in styles["self"]
    assert "#ffd873" in styles["("]
    assert styles["<s>"] == styles["return"] == "dim"
    assert "def" not in styles
    weaker = exemplar_line(shown, Pieces(), 80, marks=True, scale=16.0)
    assert "«self»" in weaker.plain
    assert "««" not in weaker.plain


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, len(WORDS) - 1), st.sampled_from([0.0, 0.0, 0.3, 2.0])), min_size=1, max_size=32),
    st.integers(10, 60),
    st.booleans(),
)
def test_a_line_fits_and_holds_the_peak(tokens: list[tuple[int, float]], width: int, marks: bool) -> None:
    ids, activations = [token for token, _ in tokens], [value for _, value in tokens]
    shown = exemplar(0, Side.SCORE, ids, activations)
    line = exemplar_line(shown, Pieces(), width, marks).plain
    assert cell_len(line) <= width
    assert not re.search(r"[\x00-\x1f\x7f]", line)
    peak = {"\n": "⏎", " ": "␣", "\x1b[31m": "\\x1b[31m"}.get(WORDS[ids[shown.peak]], WORDS[ids[shown.peak]])
    if len(peak) + 6 <= width:
        assert peak in line


def test_colour_is_used_where_there_is_some() -> None:
    table, _ = tables(30)
    console, out = _console(colour=True)
    print_latent(table.iloc[2], Store(), console)
    assert "\x1b[1;30;48;2;245;124;0mself" in out.getvalue()
    assert "«" not in out.getvalue()


def test_one_latent_is_quotable() -> None:
    row = pd.Series(
        {
            "source": "demo", "latent": 7, "status": "labelled", "label": "self after (", "fire_rate": 0.0031,
            "num_tokens": 500_000, "precision": 0.9, "precision_low": 0.85, "precision_high": 0.94,
            "precision_method": "counted", "recall": 0.5, "recall_low": 0.4, "recall_high": 0.6,
            "causal_effect": np.log(2.0), "causal_effect_low": 0.0, "causal_effect_high": np.log(4.0),
        }
    )  # fmt: skip
    assert quotable_sentence(row) == (
        "Latent 7 of demo is labelled “self after (” (it fires on 0.31% of 500k tokens): where it holds the latent "
        "fires 90% [85%, 94%] of the time, and it holds in 50% [40%, 60%] of the windows where the latent fires "
        "(counted on held-out documents, 95% intervals); ablating it changes the output 2.0 times [1.0, 4.0 times] "
        "as much as the mean random push of its size."
    )
    nowhere = quotable_sentence(row.drop(["causal_effect"]).replace({0.9: np.nan}))
    assert "holds nowhere" in nowhere


@pytest.mark.parametrize(
    ("latent", "says"), [(0, "never fired"), (10, "10 are needed"), (20, "status failed: unparseable")]
)
def test_a_latent_without_a_label_says_why(latent: int, says: str) -> None:
    table, _ = tables(30)
    console, out = _console()
    print_latent(table.iloc[latent], None, console)
    assert says in " ".join(out.getvalue().split())
    assert "nan" not in out.getvalue()


def test_exemplars_come_from_held_out_documents_first() -> None:
    table, _ = tables(30)
    for latent in (2, 3):
        console, out = _console()
        print_latent(table.iloc[latent], Store(), console, exemplars=2)
        assert out.getvalue().count("««self»»") == 2


@pytest.mark.parametrize("num_latents", [0, 1, 11, 600])
def test_the_picture_is_drawn_whatever_there_is(tmp_path: Path, num_latents: int) -> None:
    table, controls = tables(max(num_latents, 1))
    table = table.iloc[:num_latents]
    summary = build_summary(table, controls, {}, {}, {}, np.random.default_rng(0), 100)
    path = tmp_path / "overview.tmp"
    draw_overview(table, summary, path, controls if num_latents > 1 else pd.DataFrame())
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(header[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (1800, 630)


def test_reports_read_the_dictionary_from_disk(tmp_path: Path) -> None:
    made, controls = tables(50)
    rows = [
        {str(key): value for key, value in row.items() if value is not None and value == value}
        | {"top_promoted_tokens": [" self", "[bold]"]}
        for row in made.to_dict("records")
    ]
    export_dictionary(iter([rows]), tmp_path / "dictionary", {})
    table = pd.read_parquet(tmp_path / "dictionary")
    first, second = (
        build_summary(given, controls, {}, {}, {}, np.random.default_rng(0), 100) for given in (made, table)
    )
    assert first == second
    console, out = _console()
    print_latent(table.iloc[2], Store(), console)
    assert "raises  ' self'  '[bold]'" in out.getvalue()
    print_best_and_worst(table, {"demo": Store()}, console)
    draw_overview(table, second, tmp_path / "overview.png", controls)


def test_reports_load_no_torch_and_pictures_touch_no_global_state() -> None:
    program = (
        "import sys, autointerp.report, autointerp.export\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import autointerp.report.overview\n"
        "assert not {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).resolve().parents[2])
