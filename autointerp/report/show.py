"""One latent on the terminal: its label, how far it can be trusted, where it fires."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autointerp.components import known_components
from autointerp.report.figures import (
    UNDEFINED,
    interval_text,
    known,
    percent_text,
    rate_text,
    ratio_text,
    share_text,
    signed_text,
    size_text,
)
from autointerp.report.highlight import ExemplarReader, plain_line
from autointerp.report.latent_effects import Line, effect_lines
from autointerp.report.precision import judged_precision_sentence
from autointerp.report.terminal import exemplar_lines
from autointerp.scorers.base import Scorer

_FURTHER = ("near_precision", "precision_above_half", "recall_above_half", "recall_weighted", "auprc")
"""Figures that only judged labels have."""
_NAMES = {"f1": "F1", "auprc": "AUPRC", "recall_weighted": "weighted recall"}


def quotable_sentence(row: pd.Series[Any]) -> str:
    """What is known about a latent in one sentence that can stand in a text: label, figures, intervals, provenance."""
    name = f"Latent {int(row['latent'])} of {_text(row, 'source') or 'its source'}"
    rate, tokens = known(row.get("fire_rate")), known(row.get("num_tokens"))
    read = f" of {size_text(tokens)} tokens" if tokens else ""
    status = str(row["status"])
    if status == "dead":
        return f"{name} never fired{' on' + read.removeprefix(' of') if read else ''}."
    fires = f" (it fires on {rate_text(rate)}{read})" if rate is not None else ""
    if status != "labelled":
        why = _text(row, "failure_message") or _text(row, "failure") or "no reason was stored"
        return f"{name}{fires} has no label, status {status}: {why.rstrip('.')}."
    sentence = f"{name} is labelled “{_text(row, 'label')}”{fires}: "
    precision, recall = known(row.get("precision")), known(row.get("recall"))
    judged, written = judged_scores(row), _on_written_texts(row)
    if not _text(row, "precision_method") and judged:
        said = ", ".join(f"{kind} {share_text(value)}{_chance(kind)}" for kind, value in judged.items())
        judge = _text(row, "judge_model") or "a language model"
        failed = known(row.get("num_failed"))
        lost = f", {failed:,.0f} more without an answer" if failed else ""
        sentence += (
            f"as {judge} judges it on {known(row.get('num_judged')) or 0:,.0f} held-out windows{lost}: {said}; "
            "none of this is a precision at the natural rate"
        )
    elif precision is None and not _text(row, "precision_method"):
        sentence += written or "nothing has measured how far this holds"
        written = ""
    elif precision is None and _text(row, "precision_method") == "judged":
        bounds = (known(row.get("precision_low")), known(row.get("precision_high")))
        sentence += (
            f"in which share of the windows where it holds the latent fires is only known to lie in [{percent_text(bounds[0])}, "
            f"{percent_text(bounds[1])}], and it holds in {_measured(row, 'recall')} of the windows where the latent fires "
            f"({judged_precision_sentence(row)})"
        )
    elif precision is None:
        holding = "the label holds nowhere in the held-out text, so its precision is not defined"
        sentence += holding + (f" (recall {share_text(recall)})" if recall is not None else "")
    else:
        sentence += f"where it holds the latent fires {_measured(row, 'precision')} of the time, "
        sentence += f"and it holds in {_measured(row, 'recall')} of the windows where the latent fires"
        method = _text(row, "precision_method")
        if method == "judged":
            sentence += f" ({judged_precision_sentence(row)})"
        elif method:
            sentence += f" ({method} on held-out documents, 95% intervals)"
    sentence += f"; {written}" if written else ""
    for kind, why in judge_failures(row).items():
        sentence += f"; {kind} has no figure: {why}"
    if _text(row, "label_sides") == "unknown":
        sentence += "; the label was made elsewhere, and windows that its writer was shown may be among those scored"
    effect = known(row.get("causal_effect"))
    if effect is not None:
        low, high = known(row.get("causal_effect_low")), known(row.get("causal_effect_high"))
        between = f" [{ratio_text(low).removesuffix(' times')}, {ratio_text(high)}]" if low is not None and high else ""
        sentence += f"; ablating it changes the output {ratio_text(effect)}{between} as much as the mean random push of its size"
    return sentence + "."


def print_latent(row: pd.Series[Any], reader: ExemplarReader | None, console: Console, exemplars: int = 10) -> None:
    """Print one row of the dictionary; ``reader`` is the exemplar store of its source, None where it is not there."""
    label = _text(row, "label")
    head = Text.assemble((f"{_text(row, 'source') or UNDEFINED} / {int(row['latent'])}", "bold cyan"), "  ")
    head.append(label or str(row["status"]), style="bold" if label else "bold red")
    console.print(head)
    console.print(Text(quotable_sentence(row)), width=min(console.width, 110))
    console.print()
    console.print(_figures(row))
    for name, column in (("raises", "top_promoted_tokens"), ("lowers", "top_suppressed_tokens")):
        tokens = row.get(column)
        if tokens is not None and not isinstance(tokens, float) and len(tokens):
            console.print(Text.assemble((f"{name}  ", "dim"), "  ".join(plain_line(repr(str(t))) for t in tokens)))
    if reader is None:
        return
    lines = exemplar_lines(row, reader, console, exemplars, indent=2)
    if lines:
        console.print()
        console.print(
            Text("Strongest exemplars, from documents that no explainer saw where there are any", style="dim")
        )
        for line in lines:
            console.print(line)


def _figures(row: pd.Series[Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(justify="right", style="bold")
    table.add_column()
    table.add_column(style="dim")
    for line in figure_lines(row):
        table.add_row(*line)
    return table


def figure_lines(row: pd.Series[Any]) -> list[Line]:
    """Every figure of a row with its interval and what it is to be compared with; nothing of what was not measured."""
    best = known(row.get("best_precision"))
    notes = {
        "precision": "" if best is None else f"a perfect label could show {share_text(best)} with this judge",
        "f1": f"token rule {share_text(known(row.get('token_rule_f1')))}",
        "near_precision": "among firing windows and silent ones near the label alone",
        "precision_above_half": "if it counts as firing only above half of its maximum",
        "recall_above_half": "of the windows above half of its maximum",
        "recall_weighted": "each window by its activation",
        "auprc": "area under precision and recall, by the judge's probabilities",
    }
    lines = [Line(kind, share_text(score), "", "judged") for kind, score in judged_scores(row).items()]
    matching, near = known(row.get("written_matching")), known(row.get("written_near"))
    if matching and near and (gap := known(row.get("written_score"))) is not None:
        bounds = interval_text(known(row.get("written_score_low")), known(row.get("written_score_high")), signed=True)
        note = f"fires on {share_text(known(row.get('written_precision')))} of {matching:.0f} matching texts less "
        note += f"{share_text(known(row.get('written_near_rate')))} of {near:.0f} near misses; 0 by chance"
        lines.append(Line("on written texts", signed_text(gap), bounds, note))
    lines += [Line(kind, UNDEFINED, "", f"not judged: {_text(row, f'{kind}_failure')}") for kind in judge_failures(row)]
    columns = ("precision", "recall", "f1", *_FURTHER, "correlation")
    judged = judged_scores(row) or judge_failures(row) or matching
    for column in columns if _text(row, "precision_method") or not judged else ():
        value = known(row.get(column))
        if value is None and column in _FURTHER:
            continue
        bounds = interval_text(known(row.get(f"{column}_low")), known(row.get(f"{column}_high")))
        lines.append(
            Line(_NAMES.get(column, column.replace("_", " ")), share_text(value), bounds, notes.get(column, ""))
        )
    lines += effect_lines(row)
    rate = known(row.get("fire_rate"))
    windows, total = known(row.get("num_windows_firing")), known(row.get("num_windows"))
    seen = f"{windows:,.0f} of {total:,.0f} windows" if windows is not None and total is not None else ""
    lines.append(Line("fires on", rate_text(rate), "", seen))
    return lines


def judged_scores(row: pd.Series[Any]) -> dict[str, float]:
    """Headline figures of language models that judged windows, by kind; written texts are none."""
    found = {str(name).removesuffix("_score"): known(row[name]) for name in row.index if str(name).endswith("_score")}
    return {kind: value for kind, value in found.items() if value is not None and kind != "written"}


def _on_written_texts(row: pd.Series[Any]) -> str:
    """What the latent does on texts written from its label, as a part of the sentence; empty where none were run."""
    matching, near = known(row.get("written_matching")), known(row.get("written_near"))
    precision, near_rate = known(row.get("written_precision")), known(row.get("written_near_rate"))
    if not matching or not near or precision is None or near_rate is None:
        return ""
    return (
        f"it fires on {precision * matching:.0f} of {matching:.0f} texts that {_text(row, 'judge_model') or 'a language model'} "
        f"wrote to match the label ({_measured(row, 'written_precision')}) and on {near_rate * near:.0f} of {near:.0f} near "
        f"misses ({_measured(row, 'written_near_rate')}), which is not a precision at the natural rate"
    )


def judge_failures(row: pd.Series[Any]) -> dict[str, str]:
    """Why judges have no figure, by kind: the sentence that was stored, else the failure's name."""
    found: dict[str, str] = {}
    for name in map(str, row.index):
        kind = name.removesuffix("_failure")
        if kind in (name, "steering", "substitution") or not _text(row, name):  # these are no judges
            continue
        found[kind] = (_text(row, f"{name}_message") or _text(row, name)).rstrip(".")
    if found.get("precision") in [why for kind, why in found.items() if kind != "precision"]:
        del found["precision"]  # it was to come from that judge's verdicts
    return found


def _chance(kind: str) -> str:
    """`` (chance .50)`` for a scorer that has one such number."""
    scorer = known_components("scorers").get(kind)
    chance = None if scorer is None or not issubclass(scorer, Scorer) else scorer.CHANCE
    return "" if chance is None else f" (chance {share_text(chance)})"


def _measured(row: pd.Series[Any], column: str) -> str:
    """``71% [66%, 75%]``."""
    low, high = known(row.get(f"{column}_low")), known(row.get(f"{column}_high"))
    between = f" [{percent_text(low)}, {percent_text(high)}]" if low is not None and high is not None else ""
    return f"{percent_text(known(row.get(column)))}{between}"


def _text(row: pd.Series[Any], column: str) -> str:
    value = row.get(column)
    return plain_line(value) if isinstance(value, str) else ""
