"""Search by contrast: the latents that tell passages with a concept from passages without it.

Letters: P passages, L latents of the source, F of them that fire somewhere, C latents of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autointerp.passages.answers import ContrastAnswer, ContrastLatent, CutPassage
from autointerp.passages.questions import ContrastQuestion
from autointerp.passages.reading import labels_of, source_of, tokenized
from autointerp.pipeline.context import RunContext
from sae_core.passage_values import Passage, PassageValues

SIGNIFICANT_Q = 0.05
_TILE_CELLS = 1_000_000
"""Passages times latents that are compared at once: some tens of megabytes."""
_DIGITS = 12
"""Areas that differ by less are one: .7 - .5 and .5 - .3 are not the same float."""


def search_contrast(context: RunContext, question: ContrastQuestion) -> ContrastAnswer:
    """Compare what every latent does on two sets of passages; loads torch.

    All latents of the source count as tests: those that are silent on all passages have an AUROC of .5 and a p of 1, and are
    never computed. Errors: as :func:`autointerp.passages.text.search_text`.
    """
    question.check()
    from sae_core.passage_search import measure_passages

    source = source_of(context, question.source)
    passages, bos_id = tokenized(context, question.named_texts)
    values = measure_passages(
        context.subject, context.attached(source.name), passages, bos_id, question.measure, context.batch_tokens
    )
    num_with = len(question.with_concept)
    in_first = np.arange(len(passages)) < num_with
    figures = _figures(values, in_first)
    q, order = _ranked(figures, source.num_latents)
    order = order[: question.top]
    labels = labels_of(context, source, values.latents[order].tolist())
    return ContrastAnswer(
        run=context.run_id,
        source=source.name,
        measure=question.measure,
        num_with=num_with,
        num_without=len(passages) - num_with,
        tokens_with=_num_tokens(passages[:num_with]),
        tokens_without=_num_tokens(passages[num_with:]),
        cut_with=_cut(passages[:num_with]),
        cut_without=_cut(passages[num_with:]),
        num_latents=source.num_latents,
        num_silent=source.num_latents - len(values.latents),
        num_significant=int((q < SIGNIFICANT_Q).sum()),
        latents=tuple(
            ContrastLatent(
                latent=int(values.latents[place]),
                label=labels.get(int(values.latents[place])),
                **{name: float(figures[name][place]) for name in _PLAIN},
                q=float(q[place]),
                firing_with=int(figures["firing_with"][place]),
                firing_without=int(figures["firing_without"][place]),
            )
            for place in order
        ),
    )


_PLAIN = ("auroc", "auroc_low", "auroc_high", "p", "mean_with", "mean_without")


def _figures(values: PassageValues, in_first: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
    """[F] of each figure, tile by tile."""
    from autointerp.statistics.two_sets import compare_sets

    found = {name: np.empty(len(values.latents)) for name in (*_PLAIN, "firing_with", "firing_without")}
    for part, tile in values.tiles(_TILE_CELLS):
        compared = compare_sets(tile, in_first)
        for name, figure in zip(("auroc", "auroc_low", "auroc_high", "p"), compared, strict=True):
            found[name][part] = figure
        for name, rows in (("with", in_first), ("without", ~in_first)):
            found[f"mean_{name}"][part] = tile[rows].mean(axis=0, dtype=np.float64)
            found[f"firing_{name}"][part] = (tile[rows] != 0).sum(axis=0)
    return found


def _ranked(figures: dict[str, NDArray[np.float64]], num_latents: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """[F] q-values, and the order of the latents: by how far the area lies from .5, then by p, then by number."""
    from autointerp.statistics import benjamini_hochberg

    q = benjamini_hochberg(figures["p"], num_latents)
    return q, np.lexsort((figures["p"], -np.round(np.abs(figures["auroc"] - 0.5), _DIGITS)))


def _num_tokens(passages: Sequence[Passage]) -> int:
    return sum(int(passage.counts.sum()) for passage in passages)


def _cut(passages: Sequence[Passage]) -> tuple[CutPassage, ...]:
    return tuple(
        CutPassage(passage=number, num_tokens=len(passage.cut_ids))
        for number, passage in enumerate(passages)
        if len(passage.cut_ids)
    )
