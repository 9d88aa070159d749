"""What was asked of language models and what it cost, in a sentence. Loads nothing that draws or counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text


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
