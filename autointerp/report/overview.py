"""``overview.png``: the run in three panels, or four, drawn without a display and without matplotlib's global state."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

from autointerp.report.causal import standing
from autointerp.report.figures import numbers, percent_text, share_text, signed_text

# Okabe & Ito's palette: told apart by colour-blind readers.
_BLUE, _ORANGE, _GREEN, _GREY, _INK = "#0072B2", "#E69F00", "#009E73", "#8c8c8c", "#222222"
_STYLE: dict[str, Any] = {"color": _INK, "fontsize": 10}


def draw_overview(table: pd.DataFrame, summary: Mapping[str, Any], path: Path | str, controls: pd.DataFrame) -> None:
    """Draw precision against recall, F1 against firing rate with its floors, causal effects against control, and, where labels were put
    in their latents' place, what stays of the latents' effect.

    ``table`` has the dictionary's columns, ``summary`` is :func:`~autointerp.report.summary.build_summary`'s,
    ``controls`` its control rows. Writes a PNG of 150 dpi to ``path``, whatever its suffix.
    """
    substituted = _substituted(summary)
    width = 16.0 if substituted else 12.0
    figure = Figure(figsize=(width, 4.2), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    # Fixed places: a layout engine would shrink the panels to fit the words beside and above them.
    left, scale, middle, right = (
        figure.add_axes((x * 12 / width, y, wide * 12 / width, height))
        for x, y, wide, height in (
            (0.05, 0.13, 0.222, 0.705),
            (0.312, 0.13, 0.009, 0.6),
            (0.398, 0.13, 0.185, 0.705),
            (0.757, 0.13, 0.215, 0.705),
        )
    )
    alive = table[table["status"] != "dead"]
    _precision_against_recall(figure, left, scale, alive, summary)
    _f1_against_rate(middle, alive, summary)
    _effect_against_control(right, alive, controls, summary)
    panels = [left, middle, right]
    if substituted:
        panels.append(figure.add_axes((12.95 / width, 0.13, 2.85 / width, 0.705)))
        _labels_in_place(panels[-1], substituted)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_GREY)
        axes.tick_params(colors=_INK, labelsize=9, length=3)
    figure.savefig(path, format="png", metadata={"Software": "autointerp"})


def _title(axes: Axes, finding: str, detail: str) -> None:
    place: dict[str, Any] = {"transform": axes.transAxes, "va": "bottom", "clip_on": False}
    axes.text(-0.13, 1.105, finding, fontsize=10.5, fontweight="bold", color=_INK, **place)
    axes.text(-0.13, 1.035, detail, fontsize=8.5, color="#555555", **place)


def _empty(axes: Axes, says: str) -> None:
    axes.text(0.5, 0.5, says, transform=axes.transAxes, ha="center", va="center", color=_GREY, fontsize=10)


def _precision_against_recall(
    figure: Figure, axes: Axes, scale: Axes, alive: pd.DataFrame, summary: Mapping[str, Any]
) -> None:
    precision, recall, rate = (numbers(alive, name) for name in ("precision", "recall", "fire_rate"))
    shown = ~np.isnan(precision) & ~np.isnan(recall)
    block = summary["scores"]["alive"]
    _title(
        axes,
        f"Median precision {share_text(block['precision']['median'])}, recall {share_text(block['recall']['median'])}",
        f"{int(shown.sum()):,} labels; medians over all {len(alive):,} alive latents",
    )
    grid = np.linspace(0.01, 1, 200)
    for f1 in (0.2, 0.4, 0.6, 0.8):
        with np.errstate(divide="ignore", invalid="ignore"):
            curve = f1 * grid / (2 * grid - f1)
        inside = (2 * grid > f1) & (curve <= 1)
        axes.plot(grid[inside], curve[inside], color="#d0d0d0", linewidth=0.8, zorder=0)
        axes.text(
            1.005, f1 / (2 - f1), f"F1 {share_text(f1, 1)}", fontsize=7.5, color=_GREY, va="center", clip_on=False
        )
    if shown.any():
        rates = np.maximum(np.nan_to_num(rate[shown], nan=1e-6), 1e-6)
        norm = LogNorm(float(np.quantile(rates, 0.01)), max(float(np.quantile(rates, 0.99)), 1e-6 * 1.01))
        points = axes.scatter(
            recall[shown],
            precision[shown],
            c=rates,
            norm=norm,
            cmap="viridis",
            s=float(np.clip(6000 / shown.sum(), 3, 18)),
            alpha=0.75,
            linewidths=0,
            rasterized=True,
        )
        bar = figure.colorbar(points, cax=scale)
        bar.set_alpha(1)
        scale.set_title("fires on", fontsize=8.5, color=_INK, loc="left", pad=8)
        scale.yaxis.set_major_formatter(FuncFormatter(_rate_tick))
        scale.yaxis.set_minor_formatter(NullFormatter())
        scale.tick_params(labelsize=8, colors=_INK, length=2, which="both")
        scale.spines[:].set_visible(False)
    else:
        _empty(axes, "no label has a precision")
        scale.set_axis_off()
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_xlabel("recall", **_STYLE)
    axes.set_ylabel("precision", **_STYLE)


def _f1_against_rate(axes: Axes, alive: pd.DataFrame, summary: Mapping[str, Any]) -> None:
    judge = None if summary.get("counted", True) else _drawn_judge(summary.get("judged", {}))
    rate = numbers(alive, "fire_rate")
    f1 = np.nan_to_num(numbers(alive, "f1" if judge is None else f"{judge}_score"))
    shown = (rate > 0) & (judge is None or summary["judged"][judge]["num_defined"] > 0)
    floors, median = summary["floors"], summary["scores"]["alive"]["f1"]["median"]
    if judge is not None:
        block = summary["judged"][judge]
        median = block["median"]
        floors = {name: {"f1": block[name]["median"]} for name in ("shuffled", "random_direction")}
        floors["token_rule"] = {"f1": None}
    finding = _f1_finding(summary) if judge is None else f"Median {judge} score {share_text(median)}"
    _title(axes, finding, "medians, and what labels must beat, on held-out windows")
    if shown.any():
        axes.scatter(
            rate[shown],
            f1[shown],
            s=float(np.clip(6000 / shown.sum(), 3, 18)),
            color=_BLUE,
            alpha=0.35,
            linewidths=0,
            rasterized=True,
        )
        axes.set_xscale("log")
        middles, medians = _running_median(rate[shown], f1[shown])
        axes.plot(middles, medians, color=_BLUE, linewidth=2.2)
        axes.xaxis.set_major_formatter(FuncFormatter(_rate_tick))
    else:
        _empty(axes, "no label was judged" if (rate > 0).any() else "no latent fires")
    lines = [("labels", median, _BLUE, "-"), ("token rule", floors["token_rule"]["f1"], _ORANGE, "--")]
    lines += [("shuffled labels", floors["shuffled"]["f1"], _INK, ":")]
    lines += [("random directions", floors["random_direction"]["f1"], _GREEN, "-.")]
    drawn = [(name, value, colour, dash) for name, value, colour, dash in lines if value is not None]
    for name, value, colour, dash in drawn:
        if name != "labels":
            axes.axhline(value, color=colour, linestyle=dash, linewidth=1.6)
    for (name, value, colour, _), height in zip(drawn, _apart([v for _, v, _, _ in drawn], 0.065), strict=True):
        text = f"{name} {share_text(value)}"
        axes.text(1.02, height, text, color=colour, fontsize=9, va="center", transform=axes.get_yaxis_transform())
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("share of tokens the latent fires on", **_STYLE)
    axes.set_ylabel("F1" if judge is None else f"{judge} score", **_STYLE)


def _drawn_judge(judged: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The first judge that has a figure, else the first one."""
    return next((kind for kind, row in judged.items() if row["num_defined"]), next(iter(judged), None))


def _f1_finding(summary: Mapping[str, Any]) -> str:
    difference = summary["comparisons"]["label_minus_token_rule_f1"]["alive"]
    if difference["low"] is None or summary["floors"]["token_rule"]["f1"] is None:
        return f"Median F1 {share_text(summary['scores']['alive']['f1']['median'])}"
    mean = signed_text(difference["mean"])
    if difference["low"] > 0:
        return f"Labels beat the token rule: mean F1 {mean}"
    if difference["high"] < 0:
        return f"Labels fall short of the token rule: mean F1 {mean}"
    return f"No difference from the token rule shown: mean F1 {mean}"


def _effect_against_control(
    axes: Axes, alive: pd.DataFrame, controls: pd.DataFrame, summary: Mapping[str, Any]
) -> None:
    effect = numbers(standing(alive), "causal_effect")
    effect = effect[~np.isnan(effect)]
    random = controls[controls["kind"] == "random_direction"] if "kind" in controls.columns else controls.iloc[:0]
    control = numbers(random, "causal_effect")
    control = control[~np.isnan(control)]
    causal = summary["causal"]
    beyond, control_beyond = causal["share_beyond_random"], causal["control"]["share_beyond_random"]
    detail = "more than 97.5% of pushes of that size"
    if beyond is None:  # too few directions to say what one more would do
        beyond, control_beyond = causal["share_interval_above_zero"], causal["control"]["share_interval_above_zero"]
        detail = f"95% interval above 0, of {len(effect):,} latents"
    detail += f"; random: {percent_text(control_beyond)}" if len(control) else ""
    _title(axes, f"{percent_text(beyond)} do more than a random push" if len(effect) else "Causal effect", detail)
    axes.set_xlabel("causal effect: ln(KL / random push's KL)", **_STYLE)
    axes.set_ylabel("share", **_STYLE)
    if not len(effect):
        _empty(axes, "no latent was ablated")
        return
    both = np.concatenate([effect, control, [0.0]])
    low, high = np.quantile(both, [0.002, 0.998])
    edges = np.linspace(min(low, -0.1), max(high, 0.1), 43 if len(effect) >= 300 else 22)
    heights = []
    for values, colour, name, filled in (
        (effect, _BLUE, f"latents, median {signed_text(causal['median'])}", True),
        (control, _ORANGE, f"random directions, median {signed_text(causal['control']['median'])}", False),
    ):
        if not len(values):
            continue
        # Every second edge for a few directions beside many latents: 64 values in 42 cells are noise.
        every = 1 if filled or len(values) >= 200 or len(edges) < 40 else 2
        cells = edges[::every]
        share_in, _ = np.histogram(np.clip(values, cells[0], cells[-1]), bins=cells)
        height = share_in / len(values) / every
        axes.stairs(height, cells, fill=filled, color=colour, alpha=0.55 if filled else 1.0, linewidth=1.8, label=name)
        heights.append(float(height.max()))
    axes.axvline(0, ymax=0.83, color=_INK, linewidth=1.2)
    top = max(heights) * 1.38
    axes.set_ylim(0, top)
    axes.annotate(
        "0: like a random push",
        (0, top * 0.80),
        xytext=(4, 0),
        textcoords="offset points",
        fontsize=8.5,
        color=_INK,
        va="center",
    )
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(loc="upper right", fontsize=8.5, frameon=False, borderaxespad=0.1)


def _substituted(summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What was found of the first source whose labels were all put in their latents' place."""
    for found in ((summary.get("substitution") or {}).get("sources") or {}).values():
        whole = found["all_at_once"]
        if whole and whole["recovered"].get("substituted", {}).get("value") is not None:
            return dict(whole)
    return None


def _labels_in_place(axes: Axes, whole: Mapping[str, Any]) -> None:
    """Bars: what stays of the latents' effect with labels' predictions, shuffled ones, and means in their place."""
    recovered = whole["recovered"]
    kept = percent_text(recovered["substituted"]["value"])
    _title(
        axes,
        f"Labels keep {kept} of the effect",
        f"of all {whole['num_latents']:,} latents at once; 95% intervals",
    )
    ways = (
        ("substituted", "labels'\npredictions", _BLUE),
        ("mean", "its mean,\nwhere it fires", _GREY),
        ("shuffled", "shuffled\nlabels'", _ORANGE),
    )
    shown = [(way, words, colour) for way, words, colour in ways if recovered.get(way, {}).get("value") is not None]
    for place, (way, _, colour) in enumerate(shown):
        found = recovered[way]
        axes.bar(place, found["value"], width=0.62, color=colour, alpha=0.75)
        if found["low"] is not None and found["high"] is not None:
            axes.plot([place, place], [found["low"], found["high"]], color=_INK, linewidth=1.6)
        above = found["value"] > 0.15
        height = found["value"] - 0.12 if above else max(found["value"], 0.0) + 0.03
        axes.text(
            place - 0.05,
            height,
            percent_text(found["value"]),
            ha="center",
            fontsize=9,
            color=_INK,
        )
    axes.axhline(1.0, color=_GREY, linewidth=1.0, linestyle="--", zorder=0)
    axes.axhline(0.0, color=_INK, linewidth=1.0)
    axes.text(len(shown) - 0.6, 1.04, "as with the latents themselves", fontsize=8, color="#555555", ha="right")
    lowest = min([0.0, *(recovered[way]["value"] for way, _, _ in shown)])
    axes.set_ylim(max(min(lowest * 1.2, -0.02), -1.0), 1.22)
    axes.set_xticks(range(len(shown)), [words for _, words, _ in shown], fontsize=8.5)
    axes.set_ylabel("share of the effect that stays", **_STYLE)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _running_median(rate: Any, f1: Any, cells: int = 10) -> tuple[list[float], list[float]]:
    """Median F1 in bands of the firing rate with like numbers of latents."""
    order = np.argsort(rate)
    bands = [band for band in np.array_split(order, min(cells, max(len(order) // 25, 1))) if len(band)]
    return [float(np.median(rate[band])) for band in bands], [float(np.median(f1[band])) for band in bands]


def _apart(heights: list[float], gap: float) -> list[float]:
    """The same heights in the same order of size, pushed at least ``gap`` apart so that their labels do not overlap."""
    order = np.argsort(heights, kind="stable")
    placed = np.array(heights, dtype=np.float64)
    for below, above in pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    over = max(float(placed.max()) - 1.0, 0.0) if len(placed) else 0.0
    return [float(height - over) for height in placed]


def _rate_tick(value: float, _position: int | None = None) -> str:
    return f"{100 * value:g}%" if value > 0 and 0.99 < value / 10 ** round(np.log10(value)) < 1.01 else ""
