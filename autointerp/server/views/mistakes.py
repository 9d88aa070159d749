"""Windows on which a label was held to be wrong: what it missed, and where it held though the latent was silent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from autointerp.judging.verdicts import Verdict, Verdicts
from autointerp.server.shelf import ServedRun
from autointerp.server.views.base import View
from autointerp.server.views.tokens import WindowView, window_view
from sae_core.exemplar_store import ExemplarStore
from sae_core.records import Origin, Side

_MOST = 6
_ASKED_OF_WINDOWS = ("detection", "saebench")
"""Scorers whose judge says of a window alone whether the label holds in it."""


class MistakeGroup(View):
    """Some windows of one kind of mistake."""

    judge: str
    """The scorer that judged."""
    kind: Literal["false positive", "miss"]
    """Said to fire where it is silent; said to be silent where it fires."""
    num_wrong: int
    num_judged: int
    """Windows of which that many were judged wrong, of those in which the latent is silent (or fires)."""
    windows: tuple[WindowView, ...]
    """The first of them."""


def mistakes_of(
    run: ServedRun, store: ExemplarStore, source: str, latent: int, explainer: str | None
) -> tuple[MistakeGroup, ...]:
    """The mistakes of each scorer that judged windows of the published label."""
    found: list[MistakeGroup] = []
    confirming = {scorer.kind for scorer in run.context.scorers if getattr(scorer, "confirm", False)}
    for row in run.store.verdicts(run.run_id, source, [latent]):
        # other judges are asked other things of the windows: whether marks are right, which of several it is
        if row.explainer != (explainer or "") or row.scorer not in _ASKED_OF_WINDOWS:
            continue
        items = Verdicts.from_json(row.items).items
        # where the run asks twice, a yes on a silent window counts only if it was said twice
        twice = row.scorer in confirming
        kinds: tuple[tuple[Literal["false positive", "miss"], bool], ...] = (("false positive", False), ("miss", True))
        for kind, truth in kinds:
            said = [(one, one.confirmed if twice else one.answer) for one in items if one.truth is truth]
            asked = [(one, answer) for one, answer in said if answer is not None]
            wrong = [one for one, answer in asked if answer is not truth]
            if wrong:
                found.append(
                    MistakeGroup(
                        judge=row.scorer,
                        kind=kind,
                        num_wrong=len(wrong),
                        num_judged=len(asked),
                        windows=_windows(store, latent, wrong),
                    )
                )
    return tuple(found)


def _windows(store: ExemplarStore, latent: int, wrong: Sequence[Verdict]) -> tuple[WindowView, ...]:
    scale = float(np.abs(store.statistics.max_activation[:, latent]).max())
    stored = {
        (one.context, one.position): one for origin in Origin for one in store.exemplars(latent, Side.SCORE, origin)
    }
    views = []
    for verdict in wrong:
        context, _, position = verdict.window.partition(":")
        if not (context.isdigit() and position.isdigit()):
            continue  # a text that was written for the label stands in no corpus
        place = (int(context), int(position))
        exemplar = stored.get(place) or store.pool_window(latent, Side.SCORE, *place)
        if exemplar is not None:
            views.append(window_view(exemplar, store, scale))
        if len(views) == _MOST:
            break
    return tuple(views)
