"""Windows of text, token by token, with the activation at each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autointerp.server.views.base import View
from sae_core.exemplar_store import ExemplarStore
from sae_core.records import Exemplar, Origin, Side

NUM_BANDS = 5
_STRONGEST, _OF_A_BAND = 10, 4


class Span(NamedTuple):
    """Neighbouring tokens that are shown alike."""

    text: str
    strength: float
    """Of one firing token; 0 of those that are silent."""
    in_window: bool


class WindowView(View):
    """One stored window, token by token, and the text before it, whose activations are not stored."""

    texts: tuple[str, ...]
    """[P + T] visible text of each token: no control characters, no line ends, no text direction marks."""
    strengths: tuple[float, ...]
    """[P + T] |activation| over the latent's largest one, 0 to 1; 0 where it does not fire."""
    num_before: int
    """P, tokens before the window."""
    max_activation: float
    document: int
    """Ordinal of the document in the corpus."""
    context: int
    position: int
    """Ordinal of its context in the corpus, and of its first token in that."""

    @property
    def spans(self) -> list[Span]:
        """The window in as few pieces as it can be shown in."""
        found = [Span("".join(self.texts[: self.num_before]), 0.0, False)] if self.num_before else []
        silent: list[str] = []
        for text, strength in zip(self.texts[self.num_before :], self.strengths[self.num_before :], strict=True):
            if strength > 0:
                if silent:
                    found.append(Span("".join(silent), 0.0, True))
                    silent = []
                found.append(Span(text, strength, True))
            else:
                silent.append(text)
        return [*found, Span("".join(silent), 0.0, True)] if silent else found


class ExemplarGroup(View):
    """Windows that belong together."""

    name: str
    note: str
    windows: tuple[WindowView, ...]


def window_view(exemplar: Exemplar, store: ExemplarStore, scale: float) -> WindowView:
    """An exemplar, shaded by ``scale``, the activation of strength 1."""
    before = exemplar.context_ids.tolist()
    activations = np.abs(exemplar.activations.astype(np.float64))
    top = scale or float(activations.max(initial=0.0)) or 1.0
    strengths = np.minimum(activations / top, 1.0).round(4).tolist()
    # constructed without the checks of a request: a page has two thousand tokens
    return WindowView.model_construct(
        texts=tuple(store.pieces.visible_pieces([*before, *exemplar.token_ids.tolist()])),
        strengths=(*([0.0] * len(before)), *strengths),
        num_before=len(before),
        max_activation=exemplar.max_activation,
        document=exemplar.document,
        context=exemplar.context,
        position=exemplar.position,
    )


def exemplar_groups(store: ExemplarStore, latent: int) -> tuple[ExemplarGroup, ...]:
    """The strongest held-out windows, then a few of each quantile of the uniform sample, the strongest band first."""
    side = next(
        (side for side in (Side.SCORE, Side.CHOOSE, Side.EXPLAIN) if store.exemplars(latent, side, Origin.TOP)), None
    )
    if side is None:
        return ()
    scale = float(np.abs(store.statistics.max_activation[:, latent]).max())
    seen = (
        "no explainer saw them"
        if side is Side.SCORE
        else f"of the {side.name.lower()} side: there are none that no explainer saw"
    )
    strongest = store.exemplars(latent, side, Origin.TOP)[:_STRONGEST]
    groups = [_group("Strongest", f"held out, {seen}" if side is Side.SCORE else seen, strongest, store, scale)]
    sampled = sorted(store.exemplars(latent, side, Origin.SAMPLED), key=lambda found: -abs(found.max_activation))
    for band, part in enumerate(np.array_split(np.arange(len(sampled)), NUM_BANDS)):
        chosen = [sampled[int(place)] for place in _spread(part)]
        if chosen:
            low, high = (abs(sampled[int(place)].max_activation) for place in (part[-1], part[0]))
            note = f"{len(part)} of {len(sampled)} sampled windows, peaks {low:.3g} to {high:.3g}"
            groups.append(_group(f"Quantile {NUM_BANDS - 1 - band}", note, chosen, store, scale))
    return tuple(groups)


def _spread(places: Sequence[int] | np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[int]:
    """A few places, evenly spread."""
    count = min(_OF_A_BAND, len(places))
    return [int(places[at]) for at in np.linspace(0, len(places) - 1, count).astype(int)] if count else []


def _group(name: str, note: str, found: Sequence[Exemplar], store: ExemplarStore, scale: float) -> ExemplarGroup:
    return ExemplarGroup(name=name, note=note, windows=tuple(window_view(one, store, scale) for one in found))


class HistogramView(View):
    """How strongly the latent fires: windows by their peak, on a log scale."""

    edges: tuple[float, ...]
    """[C + 1] activation units."""
    counts: tuple[int, ...]
    """[C] windows."""


def histogram_view(store: ExemplarStore, latent: int) -> HistogramView | None:
    """The cells between the first and the last that hold something; None where it never fires."""
    from sae_core.records import HISTOGRAM_EDGES

    counts = np.asarray(store.statistics.histogram[:, latent]).sum(axis=0)[1:-1]
    held = np.flatnonzero(counts)
    if not len(held):
        return None
    first, last = int(held[0]), int(held[-1]) + 1
    return HistogramView(
        edges=tuple(float(edge) for edge in HISTOGRAM_EDGES[first : last + 1]),
        counts=tuple(int(count) for count in counts[first:last]),
    )
