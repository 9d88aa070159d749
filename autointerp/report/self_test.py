"""What the self-test of scorers found, in one line: whose figures say something of which errors of a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from autointerp.judging.supposed import NATURAL_RATE

_ERRORS = ("missing", "extra")
_GROUPS = {
    (True, True): "sees both errors",
    (True, False): "blind to extra firing",
    (False, True): "blind to missing firing",
    (False, False): "blind to both",
}


def self_test_note(block: Mapping[str, Mapping[str, Any]]) -> Text | None:
    """Scorers by what they see, of ``summary["self_test"]``; None where nothing was tested.

    Of several sources the worst counts: who is blind in one of them cannot be relied on. How often the latents fire stands beside it:
    where they fire in half of the text, everybody sees extra firing.
    """
    groups: dict[tuple[bool, ...], list[str]] = {sees: [] for sees in _GROUPS}
    for kind in dict.fromkeys(kind for scorers in block.values() for kind in scorers):
        found = [scorers[kind] for scorers in block.values() if kind in scorers]
        tested = [scorer for scorer in found if "not_tested" not in scorer]
        if tested:
            sees = tuple(all(scorer[error]["sees"] for scorer in tested) for error in _ERRORS)
            groups[sees].append(_name(kind, {name for scorers in block.values() for name in scorers}))
    parts = [f"{words}: {', '.join(groups[sees])}" for sees, words in _GROUPS.items() if groups[sees]]
    if not parts:
        return None
    return Text(f"Self-test of the scorers{_span(block)}: {'; '.join(parts)}.")


def _span(block: Mapping[str, Mapping[str, Any]]) -> str:
    """The decades of firing rates that decided; where there were too few latents for that, the one that holds most of them."""
    groups: list[Mapping[str, Any]] = []
    for scorer in (scorer for scorers in block.values() for scorer in scorers.values() if "not_tested" not in scorer):
        for decades in (scorer[error]["by_decade"] for error in _ERRORS):
            deciding = [group for group in decades if group["decides"]]
            groups += deciding or sorted(decades, key=lambda group: -int(group["num_latents"]))[:1]
    if not groups:
        return ""
    low, high = min(group["rate_from"] for group in groups), max(group["rate_below"] for group in groups)
    return f" (on latents that fire in {100 * low:g}% to {100 * high:g}% of the windows)"


def _name(kind: str, kinds: set[str]) -> str:
    if kind.endswith(NATURAL_RATE):
        return f"{kind.removesuffix(NATURAL_RATE)} at the natural rate"
    return f"{kind} (balanced accuracy)" if kind + NATURAL_RATE in kinds else kind
