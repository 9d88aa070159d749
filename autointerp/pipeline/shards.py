"""Shards of the corpus, which stages read as soon as their contexts are on disk, while more of it is still tokenized."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autointerp.config import RunConfig
from autointerp.pipeline.atomic_files import atomic_write
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.stage import NotThere
from sae_core.errors import StoreError
from sae_core.tokens import TokenCorpus

CORPUS_ARTEFACT = "corpus"
"""What was read: fingerprint, documents, contexts, tokens. In the store once the corpus is whole."""


def shard_units(config: RunConfig) -> list[int]:
    """Tokens of each shard, the BOS of contexts and the EOS between documents not counted."""
    total, size = config.extraction.num_tokens, config.extraction.shard_size
    return [min(size, total - start) for start in range(0, total, size)]


def shard_contexts(corpus: TokenCorpus, shard: int, config: RunConfig) -> range | None:
    """The contexts that begin within a shard, None while some of them may be missing; the last shard has all the rest."""
    size = config.extraction.shard_size
    last = shard == len(shard_units(config)) - 1
    if not corpus.finished and (last or corpus.num_body_tokens < (shard + 1) * size):
        return None
    start = corpus.body_start()[:-1]
    first, stop = np.searchsorted(start, [shard * size, (shard + 1) * size]).tolist()
    return range(first, corpus.num_contexts if last else stop)


def is_there(context: RunContext, shard: int) -> bool:
    """Whether a shard can be read now, or never will be."""
    return _find(context, shard) is not None or _is_whole(context)


def read_shard(context: RunContext, shard: int) -> tuple[TokenCorpus, range]:
    """The corpus as far as it is there, and the contexts of a shard.

    Errors: NotThere for a shard that is not on disk; StoreError where the corpus was whole and is gone.
    """
    found = _find(context, shard)
    if found is None and _is_whole(context):
        raise StoreError(
            f"the corpus of the run {context.run_id} is gone from {str(context.folder.corpus)!r}: choose another --out, or "
            "delete that output folder."
        )
    if found is None:
        raise NotThere
    return found


def note_text(path: Path, corpus: TokenCorpus, contexts: range) -> None:
    """Note beside the file ``path``, made of some contexts, what stands in them."""
    with atomic_write(path.with_suffix(".text")) as temporary:
        temporary.write_text(corpus.digest(contexts), encoding="utf-8")


def check_text(path: Path, context: RunContext, shard: int) -> None:
    """Errors: StoreError where the whole corpus has another text in a shard than that of which ``path`` was made."""
    contexts = shard_contexts(context.corpus, shard, context.config)
    assert contexts is not None
    if path.with_suffix(".text").read_text(encoding="utf-8") != context.corpus.digest(contexts):
        raise StoreError(
            f"corpus.path {context.config.corpus.path!r} gives another text now than when the run {context.run_id} began: "
            "choose another --out, or delete that output folder."
        )


def _find(context: RunContext, shard: int) -> tuple[TokenCorpus, range] | None:
    corpus = TokenCorpus.open_growing(context.folder.corpus)
    contexts = None if corpus is None else shard_contexts(corpus, shard, context.config)
    return None if corpus is None or contexts is None else (corpus, contexts)


def _is_whole(context: RunContext) -> bool:
    return context.store.artefact(context.run_id, CORPUS_ARTEFACT) is not None
