"""What stands behind the precision and recall of labels that a language model judged, in sentences that can be quoted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from rich.text import Text

from autointerp.report.figures import UNDEFINED, known, numbers, percent_text, plain, share_text
from autointerp.report.highlight import plain_line

_DECADES = (-5, -4, -3, -2, -1)
"""Lower ends of the decades of firing rates, as exponents of ten; the last one goes up to 1."""
_AUDIT = "audit"
_BASES = {
    "own": "by their own windows",
    "borrowed": "on average over labels like them (borrowed: how rare false yeses are was estimated over all labels together)",
    "judge_limited": "of what this judge can tell: at these latents' rates its own errors would hide a perfect label (judge_limited)",
    "unresolved": "by their own few windows alone, which leave precision open (unresolved)",
}


def precision_block(labelled: pd.DataFrame, record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The block ``precision`` of the summary: ``record`` as ``pipeline.natural_rate.record`` makes it, and what the dictionary's labelled
    rows say by firing rate; None where no judge's verdicts were estimated from.
    """
    if record is None:
        return None
    judged = (
        labelled[labelled["precision_method"] == "judged"] if "precision_method" in labelled.columns else labelled[:0]
    )
    rate, best = numbers(judged, "natural_rate"), numbers(judged, "best_precision")
    width = numbers(judged, "precision_high") - numbers(judged, "precision_low")
    by_rate = []
    for exponent in _DECADES:
        low, high = 10.0**exponent, 10.0 ** (exponent + 1)
        mine = (rate >= low) & (rate < high)
        if mine.any():
            by_rate.append(
                {
                    "rate_low": low,
                    "rate_high": high,
                    "num_labels": int(mine.sum()),
                    "median_width": plain(np.median(width[mine])),
                    "median_best_precision": plain(np.median(best[mine])),
                }
            )
    bases = Counter(str(basis) for basis in judged["precision_basis"]) if len(judged) else Counter()
    return {
        **record,
        "num_labels": len(judged),
        "bases": {name: bases[name] for name in _BASES if bases[name]},
        "by_rate": by_rate,
    }


def precision_notes(block: Mapping[str, Any] | None) -> list[Text]:
    """The lines of the summary; none where nothing was estimated."""
    if not block:
        return []
    notes = []
    if block["num_labels"]:
        line = Text(
            f"Precision and recall of {counted(block['num_labels'], 'label')} are estimates for labels as the judge reads them: where the "
            "latent is silent a yes counts if it is said twice. "
        )
        line.append("Their 95% intervals hold ")
        parts = [
            f"for {percent_text(count / block['num_labels'])} {_BASES[name]}" for name, count in block["bases"].items()
        ]
        line.append("; ".join(parts) + ".")
        notes.append(line)
    failed = Counter[str]()
    for source in block["sources"].values():
        failed.update(source["failures"])
    if failed:
        reasons = ", ".join(f"{plain_line(kind)} {count:,}" for kind, count in failed.most_common())
        notes.append(Text(f"No precision for {counted(sum(failed.values()), 'label')}: {reasons}."))
    lost = Counter[str]()
    for source in block["sources"].values():
        lost.update(source.get("lost_questions", {}))
    if lost:
        said = " and ".join(f"{count:,} of the {stage}" for stage, count in sorted(lost.items()))
        notes.append(
            Text(
                f"Calls and questions without an answer: {said}; those that a server failed come back with --retry.",
                style="bold red",
            )
        )
    audits = {name: source for name, source in block["sources"].items() if source.get("audit_total")}
    if audits:
        covered, total, needed = (
            sum(audit[f"audit_{what}"] for audit in audits.values()) for what in ("covered", "total", "needed")
        )
        line = Text(
            f"Audit: of {counted(total, 'random label')} with further windows judged, {covered:,} answered as the other verdicts foretold "
            f"(a sound fit gives {needed:,} or more)"
        )
        short = [name for name, audit in audits.items() if audit["audit_covered"] < audit["audit_needed"]]
        if short:
            names = ", ".join(
                f"{plain_line(name)} ({audits[name]['audit_covered']} of {audits[name]['audit_total']})"
                for name in short
            )
            line.append(f"; too few in {names}: do not trust what is borrowed there", style="bold red")
        notes.append(line.append("."))
    elif block["num_labels"] and not lost[_AUDIT]:
        notes.append(Text("Audit: no windows were left to check the estimate by."))
    notes += _judge_notes(block)
    return notes


def _judge_notes(block: Mapping[str, Any]) -> list[Text]:
    null, shuffled = block["false_yes"]["null_labels"], block["false_yes"]["shuffled_labels"]
    agreement = block["agreement"]
    parts = []
    if null is not None:
        parts.append(
            f"under labels that fit nothing the judge said yes, twice, to {null['yes']:,} of {null['judged']:,} windows "
            f"(95% interval {_percent(null['low'])} to {_percent(null['high'])}): a perfect label of a latent that fires in 0.1% of "
            f"windows could show a precision of {_best(null['high'])} to {_best(null['low'])}"
        )
    if shuffled is not None and shuffled["judged"]:
        parts.append(f"under other latents' labels to {shuffled['yes']:,} of {shuffled['judged']:,}")
    if agreement["share"] is not None:
        parts.append(
            f"asked again it gave {percent_text(agreement['share'])} of {agreement['asked_again']:,} answers as before"
        )
    return [Text("The judge: " + "; ".join(parts) + ".")] if parts else []


def counted(number: int, noun: str) -> str:
    """``1 label``, ``1,200 labels``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _percent(share: float) -> str:
    return "0%" if share == 0 else f"{100 * share:.2g}%"


def _best(false_yes: float, rate: float = 1e-3) -> str:
    return share_text(rate / (rate + (1 - rate) * false_yes))


def judged_precision_sentence(row: pd.Series[Any]) -> str:
    """What was judged for one latent's precision and recall, what was borrowed, and for whom the 95% hold."""
    figures = {name: known(row.get(name)) for name in ("num_firing_judged", "num_silent_judged", "num_screened")}
    judge = row.get("judge_model")
    words = f"as {plain_line(judge) if isinstance(judge, str) else 'a language model'} reads the label"
    if figures["num_firing_judged"] is not None and figures["num_silent_judged"] is not None:
        words += f": {figures['num_firing_judged']:,.0f} firing and {figures['num_silent_judged']:,.0f} other held-out windows judged"
        words += " (a yes where the latent is silent counts if it is said twice)"
        if figures["num_screened"]:
            words += f", {figures['num_screened']:,.0f} more through a screen"
    basis = row.get("precision_basis")
    meaning = {
        "own": "the 95% intervals rest on these windows",
        "borrowed": (
            "the 95% interval of precision holds on average over labels like this one: how rare false yeses are was estimated over "
            f"{known(row.get('prior_num_latents')) or 0:,.0f} labels together; from its own windows alone precision is only known to lie "
            f"in {_own(row)}"
        ),
        "judge_limited": (
            f"with this judge a perfect label of so rare a latent would show {share_text(known(row.get('best_precision')))}, so a low "
            "precision may be the judge's"
        ),
        "unresolved": "the run's other labels cannot be borrowed from (too few false yeses in all, or a failed audit), and the label's own "
        "windows leave its precision open",
    }.get(basis if isinstance(basis, str) else "", "")
    return f"{words}; {meaning}" if meaning else words


def _own(row: pd.Series[Any]) -> str:
    low, high = known(row.get("precision_own_low")), known(row.get("precision_own_high"))
    return UNDEFINED if low is None or high is None else f"[{percent_text(low)}, {percent_text(high)}]"
