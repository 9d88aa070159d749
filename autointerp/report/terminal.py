"""The end of a run on the terminal: ten seconds of figures, then the best and the worst labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from autointerp.report.causal import causal_notes
from autointerp.report.figures import (
    UNDEFINED,
    interval_text,
    known,
    numbers,
    percent_text,
    share_text,
    signed_text,
    size_text,
)
from autointerp.report.highlight import ExemplarReader, exemplar_line, held_out_exemplars, needs_marks, plain_line
from autointerp.report.judges import judge_notes, judges_table
from autointerp.report.precision import counted, precision_notes
from autointerp.report.self_test import self_test_note
from autointerp.report.spend_line import spend_line

_GOOD, _BAD, _QUIET = "bold green", "bold red", "dim"


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """The panel of figures."""
    title = Text.assemble("autointerp", (" · run ", _QUIET), plain_line(str(summary["run"].get("run_id", UNDEFINED))))
    parts: list[RenderableType] = [_what(summary), _status_line(summary["latents"])]
    if summary.get("counted", True):
        parts += [Text(), _score_table(summary)]
    if summary.get("judged"):
        parts += [Text(), judges_table(summary["judged"])]
    parts += [Text(), *_findings(summary)]
    if summary["files"]:
        names = ", ".join(plain_line(str(path)) for path in summary["files"].values())
        parts += [Text(), Text.assemble(("Files ", "bold"), names)]
    console.print(Panel(Group(*parts), title=title, title_align="left", padding=(1, 2), width=min(console.width, 110)))


def print_best_and_worst(
    table: pd.DataFrame,
    readers: Mapping[str, ExemplarReader],
    console: Console,
    count: int = 5,
    exemplars: int = 2,
) -> None:
    """The labels with the best lower bound of F1 and those with the worst F1, each with held-out exemplars.

    ``readers`` are the exemplar stores by source. Of latents with the same label text the first one is shown.
    """
    metric = _ranking_column(table)
    labelled = table[table["status"] == "labelled"].assign(
        _value=lambda rows: np.nan_to_num(numbers(rows, metric)),
        _low=lambda rows: np.nan_to_num(numbers(rows, f"{metric}_low" if f"{metric}_low" in rows else metric)),
        _seen=lambda rows: np.nan_to_num(numbers(rows, "num_windows_firing")),
    )
    if labelled.empty:
        return
    best = labelled.sort_values(["_low", "_seen", "latent"], ascending=[False, False, True], kind="stable")
    worst = labelled.sort_values(["_value", "_seen", "latent"], ascending=[True, False, True], kind="stable")
    several = labelled["source"].nunique() > 1
    shown_best = best.drop_duplicates("label").head(count)
    rest = worst[~worst.index.isin(shown_best.index)].drop_duplicates("label").head(count)
    name = "F1" if metric == "f1" else f"{metric.removesuffix('_score')} score"
    headings = (("Best labels", f"highest lower bound of {name}", shown_best), ("Worst labels", f"lowest {name}", rest))
    if metric != "f1":
        headings = (("Best labels", f"highest {name}", shown_best), ("Worst labels", f"lowest {name}", rest))
    for heading, rule, rows in headings:
        if rows.empty:
            continue
        console.print()
        console.print(
            Text.assemble(
                (heading, "bold"), (f"  {rule}; exemplars from documents that no explainer saw, if any", _QUIET)
            )
        )
        for _, row in rows.iterrows():
            console.print(_entry(row, metric, readers.get(str(row["source"])), console, exemplars, several))


def exemplar_lines(
    row: pd.Series[Any], reader: ExemplarReader, console: Console, limit: int, indent: int
) -> list[RenderableType]:
    """Held-out exemplars of one latent, highlighted on one scale, each on a line of its own."""
    found = held_out_exemplars(reader, int(row["latent"]), limit)
    scale = max((abs(exemplar.max_activation) for exemplar in found), default=0.0)
    width = max(min(console.width, 110) - indent, 10)
    marks = needs_marks(console)
    return [
        Padding(exemplar_line(exemplar, reader.pieces, width, marks, scale), (0, 0, 0, indent)) for exemplar in found
    ]


def _ranking_column(table: pd.DataFrame) -> str:
    """F1 where it was counted, else the first judge's score."""
    judges = [str(name) for name in table.columns if str(name).endswith("_score") and table[name].notna().any()]
    counted = "f1" in table.columns and table["f1"].notna().any()
    return "f1" if counted or not judges else judges[0]


def _entry(
    row: pd.Series[Any], metric: str, reader: ExemplarReader | None, console: Console, exemplars: int, several: bool
) -> RenderableType:
    between = interval_text(known(row.get(f"{metric}_low")), known(row.get(f"{metric}_high")))
    figures = (
        f"{'F1' if metric == 'f1' else metric.removesuffix('_score')} {share_text(known(row.get(metric)))} {between}"
    )
    where = f"{row['source']}/{row['latent']}" if several else str(row["latent"])
    head = Text.assemble(("  " + plain_line(where).rjust(6), "cyan"), "  ", (figures.ljust(19), "bold"), " ")
    head.append(plain_line(str(row.get("label") or "")), style="bold")
    head.no_wrap, head.overflow = True, "ellipsis"
    lines = exemplar_lines(row, reader, console, exemplars, indent=10) if reader is not None else []
    return Group(head, *lines)


def _what(summary: Mapping[str, Any]) -> Text:
    subjects = ", ".join(plain_line(_short_path(name)) for name in summary["subjects"]) or UNDEFINED
    hookpoints = ", ".join(f"{plain_line(k)} at {plain_line(str(v))}" for k, v in summary["hookpoints"].items())
    corpus = summary["corpus"]
    read = f"{size_text(corpus['num_tokens'])} tokens" if corpus["num_tokens"] else "no tokens"
    known_of = summary["run"].get("corpus") or {}
    documents = f"{known_of['num_documents']:,} documents, " if "num_documents" in known_of else ""
    prints = ", ".join(fingerprint[:12] for fingerprint in corpus["fingerprints"]) or UNDEFINED
    return Text(f"{subjects} · {hookpoints or UNDEFINED}\ncorpus {prints}: {documents}{read}", style=_QUIET)


def _short_path(name: str) -> str:
    """A folder by its last two parts; a hub id as it is."""
    return "/".join(Path(name).parts[-2:]) if name.startswith("/") else name


def _status_line(latents: Mapping[str, Any]) -> Text:
    line = Text.assemble((f"{latents['labelled']:,} of {latents['total']:,} latents labelled", "bold"))
    for name, meaning in (("rare", "too few windows"), ("dead", "never fired"), ("failed", "")):
        count = latents[name]
        if count:
            line.append(f" · {count:,} {name}", style=_BAD if name == "failed" else "")
            reasons = ", ".join(f"{plain_line(kind)} {number:,}" for kind, number in latents["failures"].items())
            note = reasons if name == "failed" else meaning
            if note:
                line.append(f" ({note})", style=_QUIET)
    return line


def _score_table(summary: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("median on held-out windows")
    for name in ("precision", "recall", "F1"):
        table.add_column(name, justify="right")
    metrics = ("precision", "recall", "f1")
    for name, key in (("labels, all alive latents", "alive"), ("labels, labelled latents", "labelled")):
        block = summary["scores"][key]
        table.add_row(
            Text(name, style="bold" if key == "alive" else ""),
            *(Text(share_text(block[m]["median"]), style="bold" if key == "alive" else "") for m in metrics),
        )
    for name, key in (
        ("  token rule", "token_rule"),
        ("  another latent's label", "shuffled"),
        ("  a label that always holds", "null_everything"),
        ("  random directions' labels", "random_direction"),
    ):
        block = summary["floors"][key]
        if block["num_latents"]:
            cells = (Text(share_text(block[m]), style=_QUIET) for m in metrics)
            table.add_row(Text(f"{name} ({block['num_latents']:,})", style=_QUIET), *cells)
    return table


def _findings(summary: Mapping[str, Any]) -> list[Text]:
    compared = summary["comparisons"]
    rule = compared["label_minus_token_rule_f1"]
    shuffled = compared["label_minus_shuffled_f1"]
    over = "labelled" if shuffled["only_labelled"] else "alive"
    lines = [
        _difference("Labels against the token rule", rule["alive"], "alive"),
        _difference("", rule["token_rule_below_0.7"], "where the rule is < .70"),
        _difference("Labels against shuffled ones", shuffled["alive"], over),
        _difference("", shuffled["token_rule_below_0.7"], "where the rule is < .70"),
    ]
    found = [line for line in lines if line is not None]
    found += causal_notes(summary)
    labels = summary["labels"]
    if labels["distinct"]:
        line = Text(counted(labels["distinct"], "distinct label"))
        if labels["distinct"] < summary["latents"]["labelled"]:
            share = percent_text(labels["largest_share"])
            line.append(f"; the most common stands for {share} of the labelled: {plain_line(labels['most_common'])}")
            line.truncate(300, overflow="ellipsis")
        line.append(".")
        found.append(line)
    found += judge_notes(summary.get("judged", {}))
    found += precision_notes(summary.get("precision"))
    seen = self_test_note(summary.get("self_test", {}))
    if seen is not None:
        found.append(seen)
    unknown = labels.get("sides", {}).get("unknown", 0)
    if unknown:
        found.append(
            Text(
                f"Of {counted(unknown, 'label')} made elsewhere it is not known which windows their writers were shown: some of them may "
                "be among those scored here.",
                style=_BAD,
            )
        )
    if summary.get("llm"):
        found.append(spend_line(summary["llm"], summary["latents"]["total"]))
    if summary["floors"]["shuffled"].get("balanced_accuracy_alert"):
        mean = share_text(summary["floors"]["shuffled"]["balanced_accuracy_mean"])
        found.append(Text(f"Warning: shuffled labels have a balanced accuracy of {mean}, not about .50.", style=_BAD))
    return found


def _difference(what: str, difference: Mapping[str, Any], over: str) -> Text | None:
    if difference["mean"] is None:
        return None
    low, high = difference["low"], difference["high"]
    if low is None:
        verdict, style = "too few to tell", ""
    elif low > 0:
        verdict, style = "better", _GOOD
    elif high < 0:
        verdict, style = "worse", _BAD
    else:
        verdict, style = "no difference shown", ""
    line = Text(what.ljust(31))
    line.append(f"F1 {signed_text(difference['mean'], 3)} ", style="bold")
    line.append(f"{interval_text(low, high, 3, signed=True)} ")
    line.append(verdict, style=style)
    line.append(f"  {difference['num_pairs']:,} {over}", style=_QUIET)
    return line
