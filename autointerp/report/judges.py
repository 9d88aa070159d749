"""What language models said of labels, beside what they said of wrong ones, and what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from autointerp.report.figures import numbers, plain, share_text

_ENDING = "_score"


def judged_block(alive: pd.DataFrame, controls: pd.DataFrame) -> dict[str, Any]:
    """Medians of every judge's headline figure: of alive latents (0 where there is none), shuffled labels, random directions."""
    block: dict[str, Any] = {}
    for column in (str(name) for name in alive.columns):
        kind = column.removesuffix(_ENDING)
        if kind == column or not alive[column].notna().any():
            continue
        values = numbers(alive, column)
        block[kind] = {
            "median": _median(np.nan_to_num(values)),
            "median_defined": _median(values[~np.isnan(values)]),
            "num_defined": int((~np.isnan(values)).sum()),
            "num_latents": len(values),
            **{name: _control(controls, name, column) for name in ("shuffled", "random_direction")},
        }
    return block


def _control(controls: pd.DataFrame, kind: str, column: str) -> dict[str, Any]:
    rows = controls[controls["kind"] == kind]
    values = numbers(rows, column) if column in rows.columns else np.empty(0)
    values = values[~np.isnan(values)]
    return {
        "median": _median(values),
        "mean": plain(values.mean()) if len(values) else None,
        "num_latents": len(values),
    }


def _median(values: Any) -> float | None:
    return plain(np.median(values)) if len(values) else None


def judges_table(block: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row a judge."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("judged on held-out windows, median")
    for name in ("labels", "shuffled", "random directions", "judged"):
        table.add_column(name, justify="right")
    for kind, row in block.items():
        table.add_row(
            kind,
            Text(share_text(row["median"]), style="bold"),
            share_text(row["shuffled"]["median"]),
            share_text(row["random_direction"]["median"]),
            f"{row['num_defined']:,} of {row['num_latents']:,}",
        )
    return table


def spend_line(purposes: Sequence[Mapping[str, Any]], num_latents: int) -> Text:
    """One sentence on what was asked and what it cost."""
    calls = sum(row["calls"] for row in purposes)
    read, cached = sum(row["input_tokens"] for row in purposes), sum(row["cached_tokens"] for row in purposes)
    written = sum(row["output_tokens"] for row in purposes)
    costs = [row["cost_usd"] for row in purposes]
    text = f"Language models: {calls:,} calls, {read:,} tokens read"
    text += f" ({cached / read:.0%} from prefix caches)" if cached else ""
    text += f" and {written:,} written"
    text += (
        f", {calls / num_latents:.1f} calls and {read / num_latents:,.0f} read tokens a latent" if num_latents else ""
    )
    if costs and all(cost is not None for cost in costs):
        text += f"; {sum(costs):,.4f} US dollars"
    return Text(text + ".")
