"""Answers about passages on the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autointerp.passages.answers import ContrastAnswer, FoundLatent, ReadPassage, TextAnswer
from autointerp.report.figures import UNDEFINED, interval_text, percent_text, share_text
from autointerp.report.highlight import exemplar_line, needs_marks, plain_line
from sae_core.records import Exemplar, Origin, Side

_LEAST_LINE, _LABEL_SHARE = 24, 0.4
_UNEVEN = 1.5
"""How many times as long passages of one set are, on average, before that is said."""
_FIGURES_WIDTH = 34
"""Cells of the columns with figures."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """The tokens of a passage, read by their places."""

    tokens: tuple[str, ...]

    def pieces(self, token_ids: Iterable[int], /) -> list[str]:
        return [self.tokens[place] for place in token_ids]


def print_text_answer(answer: TextAnswer, console: Console) -> None:
    """A row a latent: how strongly it fires, where most, and its label."""
    count = len(answer.passages)
    console.print(
        Text(
            f"{answer.num_firing:,} of {answer.num_latents:,} latents of {answer.source} fire on "
            f"{'the passage' if count == 1 else f'{count} passages'}; by "
            + (
                "share of their largest activation over the corpus"
                if answer.order == "relative"
                else "largest activation"
            )
        )
    )
    for number, passage in enumerate(answer.passages, start=1):
        if passage.cut:
            which = "the passage" if count == 1 else f"passage {number}"
            console.print(
                Text(
                    f"the last {len(passage.cut):,} tokens of {which} stand beyond the context length and were not read",
                    style="yellow",
                )
            )
    if not answer.latents:
        return
    width = max(_LEAST_LINE, int((console.width - _FIGURES_WIDTH) * (1 - _LABEL_SHARE)))
    table = _table(
        ("latent", "right"), ("of max", "right"), ("activation", "right"), ("where", "left"), ("label", "left")
    )
    for found in answer.latents:
        table.add_row(
            str(found.latent),
            UNDEFINED if found.relative is None else percent_text(found.relative),
            f"{found.maximum:.3g}",
            _strongest_line(found, answer.passages, width, needs_marks(console)),
            _label(found.label),
        )
    console.print(table)


def print_contrast_answer(answer: ContrastAnswer, console: Console) -> None:
    """A row a latent: its AUROC, how sure that is, on how many passages it fires, and its label."""
    console.print(
        Text(
            f"{answer.num_with} passages with the concept against {answer.num_without} without it, {answer.num_latents:,} latents of "
            f"{answer.source}: {answer.num_significant:,} with q < .05, {answer.num_silent:,} silent on all passages"
        )
    )
    for name, cut in (("with", answer.cut_with), ("without", answer.cut_without)):
        if cut:
            tokens = sum(one.num_tokens for one in cut)
            console.print(
                Text(
                    f"{len(cut)} passages {name} the concept are longer than a context: {tokens:,} tokens were not read",
                    style="yellow",
                )
            )
    with_length, without_length = answer.tokens_with / answer.num_with, answer.tokens_without / answer.num_without
    if answer.measure == "max" and not 1 / _UNEVEN < with_length / without_length < _UNEVEN:
        console.print(
            Text(
                f"passages with the concept have {with_length:.0f} tokens and those without {without_length:.0f}: the longer ones have "
                "larger maxima of latents that fire on any text; give passages of like length, or --measure mean",
                style="yellow",
            )
        )
    if not answer.latents:
        return
    table = _table(
        ("latent", "right"),
        ("AUROC", "right"),
        ("", "left"),
        ("q", "right"),
        ("with", "right"),
        ("without", "right"),
        ("label", "left"),
    )
    for one in answer.latents:
        table.add_row(
            str(one.latent),
            share_text(one.auroc),
            interval_text(one.auroc_low, one.auroc_high),
            _small(one.q),
            f"{one.firing_with}/{answer.num_with}",
            f"{one.firing_without}/{answer.num_without}",
            _label(one.label),
        )
    console.print(table)
    console.print(
        Text("intervals are those of each latent alone; with and without: passages on which it fires", style="dim")
    )


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name, side in columns:
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=name in ("where", ""))
    return table


def _strongest_line(found: FoundLatent, passages: tuple[ReadPassage, ...], width: int, marks: bool) -> Text:
    """The passage in which it fires most, around that place."""
    best = max(found.firing, key=lambda firing: max(map(abs, firing.values)))
    tokens = passages[best.passage].tokens
    activations = np.zeros(len(tokens), dtype=np.float32)
    activations[list(best.tokens)] = best.values
    exemplar = Exemplar(
        latent=found.latent,
        side=Side.SCORE,
        origin=Origin.TOP,
        token_ids=np.arange(len(tokens), dtype=np.int32),
        activations=activations,
        context_ids=np.empty(0, dtype=np.int32),
        document=0,
        context=0,
        position=0,
    )
    return exemplar_line(exemplar, _Shown(tokens), width, marks, scale=found.corpus_maximum or None)


def _label(label: str | None) -> Text:
    return Text(UNDEFINED, style="dim") if label is None else Text(plain_line(label), overflow="ellipsis", no_wrap=True)


def _small(value: float) -> str:
    """``.034``, ``2e-07``."""
    return share_text(value, 3) if value >= 0.001 else f"{value:.0e}"
