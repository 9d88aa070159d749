"""How often a night is reported as drift where none is, and where one is: the table of docs/nightly.md, by simulation.

python -m benchmarks.nightly_drift
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.autointerp.test_nightly_drift import weeks


def main() -> None:
    """Print the table's rows; every number is seeded."""
    calm = [_all(weeks(flip, 0.0, 8, 60)) for flip in (0.02, 0.2, 1.0)]
    _row("no drift; 2%, 20% or all of the answers drawn anew each night", calm)
    together = list(weeks(0.2, 0.02, 26, 16))
    _row("no drift, but whole nights move together by sd .02: nights 1 to 9", [_all(week[:9] for week in together)])
    _row("the same, nights 16 to 25", [_all(week[15:] for week in together)])
    for drift in (0.02, 0.05):
        found = [_all(week[-1:] for week in weeks(0.1, 0.0, nights, 20, drift=drift)) for nights in (3, 14)]
        _row(f"wrong answers likelier by {drift}, 10% drawn anew: on night 3, on night 14", found)
    found = [_all(week[-1:] for week in weeks(0.2, 0.02, 16, 12, drift=drift)) for drift in (0.1, 0.2)]
    _row("by .1 and .2 where whole nights move together, on night 16", found)


def _all(histories: Iterable[list[bool]]) -> list[bool]:
    return [night for history in histories for night in history]


def _row(what: str, reported: list[list[bool]]) -> None:
    print(f"{what}: {', '.join(f'{sum(nights)} of {len(nights)}' for nights in reported)}", flush=True)


if __name__ == "__main__":
    main()
