"""The firing rates as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from autointerp.inspection.description import places
from autointerp.inspection.firing_rates import rate_cells
from autointerp.inspection.looking import Inspection
from autointerp.report.figures import percent_text, share_text, size_text
from autointerp.report.highlight import plain_line


def draw_firing_rates(found: Inspection, path: Path | str) -> None:
    """The histogram of log10 firing rates as a PNG of 150 dpi, whatever the suffix of ``path``; needs ``health``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    health, measured = found.health, found.measured
    assert health is not None
    assert measured is not None
    # Okabe & Ito's blue and orange, as in overview.png.
    blue, orange, grey, ink = "#0072B2", "#E69F00", "#8c8c8c", "#222222"
    figure = Figure(figsize=(6.4, 4.2), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.11, 0.13, 0.85, 0.68))
    counts, edges = rate_cells(health, 6)
    axes.stairs(counts, edges, fill=True, color=blue, alpha=0.75)
    top = max(int(counts.max(initial=0)), 1) * 1.18
    axes.set(xlim=(edges[0], 0), ylim=(0, top))
    dense = np.log10(0.1)
    axes.axvspan(dense, 0, color=orange, alpha=0.12, linewidth=0, zorder=0)
    axes.text(
        dense / 2,
        top * 0.965,
        f"dense\n{percent_text(health.dense_share)}",
        ha="center",
        va="top",
        fontsize=8.5,
        color=ink,
    )
    if counts.any():
        median = float(np.log10(np.median(health.fire_rate[health.fire_count > 0])))
        axes.axvline(median, ymax=0.9, color=ink, linewidth=1.2, linestyle="--")
        axes.annotate(
            f"median {100 * 10**median:.2g}%",
            (median, top * 0.925),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=8.5,
            color=ink,
            va="center",
        )
    else:
        axes.text(0.5, 0.5, "no latent fires", transform=axes.transAxes, ha="center", va="center", color=grey)
    dead = int((health.fire_count == 0).sum())
    place: dict[str, Any] = {"transform": axes.transAxes, "va": "bottom", "clip_on": False, "parse_math": False}
    finding = (
        f"{found.coder.num_latents - dead:,} of {found.coder.num_latents:,} latents fire, {health.l0:.3g} on a token"
    )
    axes.text(-0.09, 1.13, finding, fontsize=10.5, fontweight="bold", color=ink, **place)
    detail = f"{places(found.coder.hookpoints_in)}, {size_text(health.num_tokens)} tokens; {dead:,} never fired; explained variance {share_text(health.explained_variance)}, loss recovered {share_text(health.loss_recovered)}"
    axes.text(-0.09, 1.05, plain_line(detail)[:110], fontsize=8.5, color="#555555", **place)
    axes.set_xlabel("log10 of the firing rate per token", color=ink, fontsize=10)
    axes.set_ylabel("latents", color=ink, fontsize=10)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(grey)
    axes.tick_params(colors=ink, labelsize=9, length=3)
    figure.savefig(path, format="png", metadata={"Software": "autointerp"})
