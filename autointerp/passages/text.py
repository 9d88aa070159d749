"""Search by text: the latents that fire on passages, and at which tokens."""

from __future__ import annotations

import numpy as np

from autointerp.passages.answers import FoundLatent, PassageFiring, TextAnswer
from autointerp.passages.questions import TextQuestion
from autointerp.passages.reading import exemplars_of, labels_of, shown, source_of, token_text, tokenized
from autointerp.pipeline.context import RunContext
from sae_core.passage_values import PassageActivations, run_starts

_DIGITS = 5
"""Shares that differ by less are one."""


def search_text(context: RunContext, question: TextQuestion) -> TextAnswer:
    """Run the subject and the coder of a run on passages; loads torch.

    Errors: InputError for passages that cannot be read, UnknownNameError for the source, SubjectError, NonFiniteError.
    """
    question.check()
    from sae_core.passage_search import passage_activations

    source = source_of(context, question.source)
    passages, bos_id = tokenized(context, question.named_texts)
    found = passage_activations(context.subject, context.attached(source.name), passages, bos_id, context.batch_tokens)
    latents, maxima = found.latents, found.maxima
    store = exemplars_of(context, source.name)
    usual = np.full(len(latents), np.nan)
    if store is not None:
        usual = np.abs(store.statistics.max_activation[:, latents]).max(axis=0).astype(np.float64)
    with np.errstate(divide="ignore"):
        relative = np.where(usual > 0, np.abs(maxima) / usual, np.nan)
    by_maximum = -np.abs(maxima.astype(np.float64))
    if question.order == "relative":
        unknown = np.isnan(relative)
        # the largest of the corpus itself, in a batch of another shape, is 1 but for rounding
        order = np.lexsort((latents, by_maximum, -np.round(np.nan_to_num(relative), _DIGITS), unknown))
    else:
        order = np.lexsort((latents, by_maximum))
    order = order[: question.top]
    labels = labels_of(context, source, latents[order].tolist())
    reader = token_text(context, store)
    return TextAnswer(
        run=context.run_id,
        source=source.name,
        order=question.order,
        passages=tuple(shown(passage, reader) for passage in passages),
        num_latents=source.num_latents,
        num_firing=len(latents),
        latents=tuple(
            FoundLatent(
                latent=int(latents[place]),
                label=labels.get(int(latents[place])),
                maximum=float(maxima[place]),
                corpus_maximum=_known(usual[place]),
                relative=_known(relative[place]),
                firing=_firing(found.of(int(latents[place]))),
            )
            for place in order
        ),
    )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _firing(acts: PassageActivations) -> tuple[PassageFiring, ...]:
    starts = run_starts(acts.passage)
    parts = [slice(first, last) for first, last in zip(starts, [*starts[1:], len(acts.passage)], strict=True)]
    return tuple(
        PassageFiring(
            passage=int(acts.passage[part.start]),
            tokens=tuple(acts.token[part].tolist()),
            values=tuple(acts.value[part].tolist()),
        )
        for part in parts
    )
