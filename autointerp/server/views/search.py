"""Search by text and by contrast: what can be asked of a run, and answers ready to be shown."""

from __future__ import annotations

from collections.abc import Sequence

from autointerp.passages import ContrastAnswer, FoundLatent, TextAnswer
from autointerp.server.meanings import MeaningState
from autointerp.server.shelf import ServedRun
from autointerp.server.views.base import View
from autointerp.server.views.tokens import WindowView

_SHOWN_TOKENS = 160
"""Of a passage beside each latent, around where it fires most."""


class SearchView(View):
    """What can be searched."""

    run_id: str
    sources: tuple[str, ...]
    meaning: MeaningState
    """Whether labels can be searched by their meaning."""


class ShownLatent(View):
    """A latent over the passages on which it fires."""

    latent: int
    label: str | None
    maximum: float
    relative: float | None
    windows: tuple[WindowView, ...]


class TextSearchView(View):
    """An answer with the passages shaded for each latent."""

    run_id: str
    source: str
    num_latents: int
    num_firing: int
    num_tokens: int
    cut: int
    """Tokens beyond the context length, which were not read."""
    latents: tuple[ShownLatent, ...]


def search_view(run: ServedRun, meaning: MeaningState) -> SearchView:
    """What can be searched in a run."""
    return SearchView(run_id=run.run_id, sources=tuple(run.real_sources()), meaning=meaning)


def text_search_view(run_id: str, answer: TextAnswer) -> TextSearchView:
    """An answer as it is shown."""
    return TextSearchView(
        run_id=run_id,
        source=answer.source,
        num_latents=answer.num_latents,
        num_firing=answer.num_firing,
        num_tokens=sum(len(passage.tokens) for passage in answer.passages),
        cut=sum(len(passage.cut) for passage in answer.passages),
        latents=tuple(
            ShownLatent(
                latent=found.latent,
                label=found.label,
                maximum=found.maximum,
                relative=found.relative,
                windows=_windows(answer, found),
            )
            for found in answer.latents
        ),
    )


def _windows(answer: TextAnswer, found: FoundLatent) -> tuple[WindowView, ...]:
    scale = max(abs(found.maximum), found.corpus_maximum or 0.0) or 1.0
    views = []
    for firing in found.firing:
        texts = answer.passages[firing.passage].tokens
        strengths = [0.0] * len(texts)
        for place, value in zip(firing.tokens, firing.values, strict=True):
            strengths[place] = min(abs(value) / scale, 1.0)
        peak = max(range(len(texts)), key=lambda place, given=strengths: given[place])  # type: ignore[misc]
        first = max(0, min(peak - _SHOWN_TOKENS // 2, len(texts) - _SHOWN_TOKENS))
        shown = slice(first, first + _SHOWN_TOKENS)
        views.append(
            WindowView(
                texts=_with_ends(texts[shown], first > 0, first + _SHOWN_TOKENS < len(texts)),
                strengths=_with_zeros(strengths[shown], first > 0, first + _SHOWN_TOKENS < len(texts)),
                num_before=int(first > 0),
                max_activation=max(firing.values, key=abs),
                document=firing.passage,
                context=0,
                position=first,
            )
        )
    return tuple(views)


def _with_ends(texts: Sequence[str], before: bool, after: bool) -> tuple[str, ...]:
    return (*(["…"] if before else []), *texts, *(["…"] if after else []))


def _with_zeros(strengths: Sequence[float], before: bool, after: bool) -> tuple[float, ...]:
    return (*([0.0] if before else []), *strengths, *([0.0] if after else []))


class ContrastView(View):
    """An answer of a contrast, and whose run it is."""

    run_id: str
    answer: ContrastAnswer
