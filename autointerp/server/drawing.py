"""Where the parts of a picture lie on the paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from autointerp.server.views.pictures import CellView, PictureView, PointView

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 34
_Place = Callable[[float], float]


class Tick(NamedTuple):
    """A mark of an axis."""

    at: float
    text: str


class Dot(NamedTuple):
    """A latent."""

    x: float
    y: float
    point: PointView


class Box(NamedTuple):
    """A cell; ``strength`` is 0 to 1, by the logarithm of its count."""

    x: float
    y: float
    width: float
    height: float
    strength: float
    cell: CellView


class Drawing(NamedTuple):
    """A picture in units of the paper."""

    x_ticks: list[Tick]
    y_ticks: list[Tick]
    dots: list[Dot]
    boxes: list[Box]
    lines: list[tuple[str, str]]
    """Name and points of each floor."""
    diagonal: str | None


def drawing(view: PictureView) -> Drawing:
    """Lay a picture out."""
    y_log = view.spec.diagonal
    x_place = _scale(view.x_range, view.spec.x_log, LEFT, WIDTH - RIGHT)
    y_place = _scale(view.y_range, y_log, HEIGHT - BOTTOM, TOP)
    most = max((cell.count for cell in view.cells), default=1)
    boxes = []
    for cell in view.cells:
        left, right, low, high = x_place(cell.x_low), x_place(cell.x_high), y_place(cell.y_low), y_place(cell.y_high)
        strength = 0.15 + 0.85 * math.log1p(cell.count) / math.log1p(most)
        boxes.append(Box(left, high, right - left, low - high, strength, cell))
    lines = [
        (line.name, " ".join(f"{x_place(x):.1f},{y_place(y):.1f}" for x, y in zip(line.x, line.y, strict=True)))
        for line in view.lines
    ]
    low, high = view.x_range
    diagonal = (
        f"{x_place(low):.1f},{y_place(low):.1f} {x_place(high):.1f},{y_place(high):.1f}" if view.spec.diagonal else None
    )
    return Drawing(
        _ticks(view.x_range, view.spec.x_log, x_place),
        _ticks(view.y_range, y_log, y_place),
        [Dot(x_place(point.x), y_place(point.y), point) for point in view.points],
        boxes,
        lines,
        diagonal,
    )


def _scale(ends: tuple[float, float], log: bool, start: float, stop: float) -> _Place:
    low, high = (math.log(ends[0]), math.log(ends[1])) if log else ends
    span = (high - low) or 1.0

    def place(value: float) -> float:
        at = (math.log(value) if log else value) - low
        return start + (stop - start) * at / span

    return place


def _ticks(ends: tuple[float, float], log: bool, place: _Place) -> list[Tick]:
    if log:
        powers = range(math.ceil(math.log10(ends[0])), math.floor(math.log10(ends[1])) + 1)
        if len(powers) > 1:
            return [Tick(place(10.0**power), f"1e{power}") for power in powers[:: max(1, len(powers) // 4)]]
        return [Tick(place(value), f"{value:.2g}") for value in ends]
    values = [ends[0] + (ends[1] - ends[0]) * part / 4 for part in range(5)]
    return [Tick(place(value), f"{value:.3g}") for value in values]
