"""A night's report for people, and where it is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from autointerp.nightly.schedule import Schedule
from autointerp.pipeline.atomic_files import atomic_write

_SHOWN = 10
"""Labels of each kind that the text names; the JSON has more."""


def write_report(schedule: Schedule, report: Mapping[str, Any]) -> None:
    """Write ``reports/DATE.json`` and ``.txt``."""
    folder = schedule.root / "reports"
    with atomic_write(folder / f"{report['date']}.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    with atomic_write(folder / f"{report['date']}.txt") as temporary:
        temporary.write_text(report_text(report), encoding="utf-8")


def report_text(report: Mapping[str, Any]) -> str:
    """The report in plain lines."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    counts, spent = report["counts"], report["spent"]
    yield f"{report['schedule']}, night of {report['date']}: run {report['run_id']} is {report['state']}"
    if report["note"]:
        yield f"  {report['note']}"
    usd = "at no known price" if spent["usd"] is None else f"${spent['usd']:,.4f}"
    yield f"  {counts['scored']:,} labels scored of {counts['planned']:,} planned; {spent['calls']:,} calls, {spent['tokens']:,} tokens, {usd}"
    stale = ", ".join(f"{number:,} {reason.replace('_', ' ')}" for reason, number in counts["stale"].items()) or "none"
    yield f"  out of date before: {stale}, of {counts['labelled']:,} labels"
    if counts["failed"]:
        yield "  without a score: " + ", ".join(
            f"{number:,} {kind}" for kind, number in sorted(counts["failed"].items())
        )
    yield from _drift_lines(report)
    labels = report["labels"]
    if labels["tested"]:
        yield f"labels that changed by more than their own windows explain: {labels['num_moved']:,} of {labels['tested']:,} scored again"
        for one in labels["moved"][:_SHOWN]:
            yield f"  {one['source']} {one['latent']}: {one['key']} {one['before']:.2f} -> {one['now']:.2f} (q {one['q']:.2g})"
    for key, bar in report["bars"].items():
        yield f"below the bar {key} = {bar['bar']:g}: {bar['num_below']:,}, of which {bar['num_fell']:,} fell below it tonight"
        for one in bar["latents"][:_SHOWN]:
            before = "not scored before" if one["before"] is None else f"{one['before']:.2f} before"
            yield f"  {one['source']} {one['latent']}: {one['now']:.2f} ({before})"


def _drift_lines(report: Mapping[str, Any]) -> Iterator[str]:
    for scorer, changed in report["changed_on_purpose"].items():
        yield f"{scorer}: changed on purpose ({', '.join(changed)}), so that its scores are not compared with {report['before']}"
    if report["before"] is None:
        yield "no earlier night to compare with"
        return
    if report["judges"] != report["judges_before"]:
        names = [", ".join(report[key]) or "nobody" for key in ("judges_before", "judges")]
        yield f"judges name themselves otherwise: {names[0]} before, {names[1]} now"
    yield f"DRIFT since {report['before']}:" if report["drift"] else f"no drift since {report['before']}"
    for change in report["changes"]:
        mark = "!" if change["drifted"] else " "
        yield (
            f"{mark} {change['key']}: {change['before']:.3f} -> {change['now']:.3f}, {change['difference']:+.3f} "
            f"[{change['low']:+.3f}, {change['high']:+.3f}], noise {change['noise']:.3f} ({change['noise_from']}), "
            f"p {change['p']:.2g}, {change['num']} labels"
        )
