"""What both searches do with a run: its source, its passages as tokens, the text of these, labels."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autointerp.passages.answers import ReadPassage
from autointerp.pipeline.context import RunContext
from autointerp.review import effective_labels
from sae_core.errors import StoreError
from sae_core.passage_values import Passage
from sae_core.records import Source
from sae_core.token_corpus import TokenCorpus
from sae_core.token_text import TokenText, show_whitespace

if TYPE_CHECKING:
    from sae_core.exemplar_store import ExemplarStore


def source_of(context: RunContext, name: str | None) -> Source:
    """The source called so, by default the first one. Errors: UnknownNameError, StoreError for a run that has none yet."""
    if name is not None:
        return context.source(name)
    for source in context.sources:
        if not source.control:
            return source
    raise StoreError(f"the run {context.run_id} has no latents yet: go on with it by the command that started it.")


def tokenized(context: RunContext, named_texts: Sequence[tuple[str, str]]) -> tuple[list[Passage], int | None]:
    """``(name, text)`` as the run's contexts are made, and the BOS before each. Errors: InputError, SubjectError."""
    from sae_core.passage_search import tokenize_passages

    bos_id = _bos_id(context)
    length = context.config.extraction.context_length
    return tokenize_passages(context.subject, named_texts, bos_id, length), bos_id


def _bos_id(context: RunContext) -> int | None:
    """What begins the contexts of the run's corpus, or would begin them where it is not there (any more)."""
    if TokenCorpus.exists(context.folder.corpus):
        return context.corpus.bos_id
    from sae_core.chat import text_rules

    given = context.config.subject
    rules = text_rules(given.model, context.subject.bos_id, revision=given.revision, bos=context.config.corpus.bos)
    return rules.bos_id


def exemplars_of(context: RunContext, source: str) -> ExemplarStore | None:
    """A source's exemplar store, None where the run has not come so far."""
    there = (context.folder.exemplars(source) / "index.json").is_file()
    return context.exemplars(source) if there else None


def token_text(context: RunContext, store: ExemplarStore | None) -> TokenText:
    """What makes tokens readable: as exemplars are shown, where there are any."""
    if store is not None:
        return store.pieces
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        context.subject.tokenizer.save(str(path))
        return TokenText.from_file(path)


def shown(passage: Passage, reader: TokenText) -> ReadPassage:
    """A passage with the visible text of its tokens."""
    # together, since a character may be split where the context ends
    pieces = reader.pieces([*passage.token_ids.tolist(), *passage.cut_ids.tolist()])
    visible = tuple(show_whitespace(piece) for piece in pieces)
    num_read = len(passage.token_ids)
    return ReadPassage(
        tokens=visible[:num_read],
        not_counted=tuple(np.flatnonzero(~passage.counts).tolist()),
        cut=visible[num_read:],
    )


def labels_of(context: RunContext, source: Source, latents: Sequence[int]) -> dict[int, str]:
    """By latent its label as people's reviews left it, for those that have one."""
    found = {}
    for latent in latents:  # one by one: together the store reads all latents in between
        for label in effective_labels(context.store, context.run_id, source.name, [latent]):
            if label.text is not None:
                found[latent] = label.text
    return found
