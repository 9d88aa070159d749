"""Pictures of a whole dictionary: two figures of every latent, as points or, of many latents, as cells."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autointerp.browsing import DictionaryColumns
from autointerp.server.shelf import ServedRun
from autointerp.server.views.base import View
from sae_core.errors import StoreError, UnknownNameError, did_you_mean

MOST_POINTS = 2_500
_CELLS = 48


class PictureSpec(View):
    """What stands on the axes of a picture."""

    name: str
    title: str
    x: str
    y: str
    x_title: str
    y_title: str
    x_log: bool = False
    share_axes: tuple[Literal["x", "y"], ...] = ()
    """Axes that go from 0 to 1 whatever is drawn."""
    floors: tuple[str, ...] = ()
    """Figures of the dictionary whose running median over x is drawn as a line."""
    diagonal: bool = False
    """Whether the line on which both are equal is drawn."""


PICTURES = (
    PictureSpec(
        name="precision-recall",
        title="Precision against recall",
        x="recall",
        y="precision",
        x_title="recall",
        y_title="precision",
        share_axes=("x", "y"),
    ),
    PictureSpec(
        name="f1-rate",
        title="F1 against firing rate",
        x="fire_rate",
        y="f1",
        x_title="share of tokens on which it fires",
        y_title="F1",
        x_log=True,
        share_axes=("y",),
        floors=("token_rule_f1",),
    ),
    PictureSpec(
        name="effect-control",
        title="Causal effect against random pushes",
        x="control_kl_typical",
        y="ablation_kl_typical",
        x_title="KL of random pushes, nats",
        y_title="KL of ablation, nats",
        x_log=True,
        diagonal=True,
    ),
)


class PointView(View):
    """One latent."""

    source: str
    latent: int
    label: str | None
    x: float
    y: float


class CellView(View):
    """A cell of a grid, and how many latents lie in it."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    count: int


class LineView(View):
    """A floor: the running median of another figure."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


class PictureView(View):
    """A picture, as numbers."""

    run_id: str
    spec: PictureSpec
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    num_latents: int
    """With both figures."""
    points: tuple[PointView, ...]
    """Every latent; empty where there are more than can be told apart."""
    cells: tuple[CellView, ...]
    """Of many latents instead."""
    lines: tuple[LineView, ...]


def picture_view(run: ServedRun, name: str) -> PictureView:
    """Errors: UnknownNameError, StoreError where the run has no dictionary or no such figures."""
    spec = next((spec for spec in PICTURES if spec.name == name), None)
    if spec is None:
        raise UnknownNameError(f"there is no picture {name!r}: {did_you_mean(name, [spec.name for spec in PICTURES])}")
    columns = run.columns()
    if columns is None:
        raise StoreError(f"the run {run.run_id} has made no dictionary yet: look at how far it is, and come back.")
    return drawn(run.run_id, columns, spec)


def drawn(run_id: str, columns: DictionaryColumns, spec: PictureSpec) -> PictureView:
    """One picture of a dictionary, kept beside its columns once it is made."""
    kept: dict[str, PictureView] = columns.__dict__.setdefault("_pictures", {})
    if spec.name not in kept:
        kept[spec.name] = _draw(run_id, columns, spec)
    return kept[spec.name]


def _draw(run_id: str, columns: DictionaryColumns, spec: PictureSpec) -> PictureView:
    known = columns.outline.numbers
    if spec.x not in known or spec.y not in known:
        return PictureView(
            run_id=run_id, spec=spec, x_range=(0, 1), y_range=(0, 1), num_latents=0, points=(), cells=(), lines=()
        )
    x, y = np.asarray(columns.numbers(spec.x)), np.asarray(columns.numbers(spec.y))
    fits = np.isfinite(x) & np.isfinite(y)
    log_both = spec.diagonal
    if spec.x_log:
        fits &= x > 0
    if log_both:
        fits &= y > 0
    rows = np.flatnonzero(fits)
    x, y = x[rows], y[rows]
    x_range, y_range = _range(x, "x" in spec.share_axes), _range(y, "y" in spec.share_axes)
    if log_both:
        x_range = y_range = (min(x_range[0], y_range[0]), max(x_range[1], y_range[1]))
    points: tuple[PointView, ...] = ()
    cells: tuple[CellView, ...] = ()
    if len(rows) <= MOST_POINTS:
        points = tuple(
            PointView(source=row["source"], latent=row["latent"], label=row.get("label"), x=float(a), y=float(b))
            for row, a, b in zip(columns.rows(rows), x, y, strict=True)
        )
    else:
        cells = _cells(x, y, x_range, y_range, spec.x_log, log_both)
    lines = tuple(_line(columns, name, rows, x, spec.x_log) for name in spec.floors if name in known)
    return PictureView(
        run_id=run_id,
        spec=spec,
        x_range=x_range,
        y_range=y_range,
        num_latents=len(rows),
        points=points,
        cells=cells,
        lines=lines,
    )


def _range(values: NDArray[np.float64], share: bool) -> tuple[float, float]:
    if share or not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low * 0.9, high * 1.1 or 1.0)


def _cells(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    x_log: bool,
    y_log: bool,
) -> tuple[CellView, ...]:
    x_edges, y_edges = _edges(x_range, x_log), _edges(y_range, y_log)
    counts, _, _ = np.histogram2d(x, y, bins=(x_edges, y_edges))
    return tuple(
        CellView(
            x_low=float(x_edges[i]),
            x_high=float(x_edges[i + 1]),
            y_low=float(y_edges[j]),
            y_high=float(y_edges[j + 1]),
            count=int(counts[i, j]),
        )
        for i, j in zip(*np.nonzero(counts), strict=True)
    )


def _edges(ends: tuple[float, float], log: bool) -> NDArray[np.float64]:
    edges = np.geomspace(*ends, _CELLS + 1) if log else np.linspace(*ends, _CELLS + 1)
    edges[0], edges[-1] = ends  # rounding must not leave the extremes out
    return edges


def _line(
    columns: DictionaryColumns, name: str, rows: NDArray[np.int64], x: NDArray[np.float64], log: bool
) -> LineView:
    """Medians over twenty equally full ranges of x."""
    values = np.asarray(columns.numbers(name))[rows]
    order = np.argsort(x, kind="stable")
    parts = [part for part in np.array_split(order, 20) if len(part) and np.isfinite(values[part]).any()]
    middle = np.exp if log else (lambda value: value)
    scale = np.log if log else (lambda value: value)
    return LineView(
        name=name,
        x=tuple(float(middle(np.mean(scale(x[part])))) for part in parts),
        y=tuple(float(np.nanmedian(values[part])) for part in parts),
    )
