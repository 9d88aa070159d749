"""Reads the corpus and cuts it into contexts, once."""

from __future__ import annotations

from autointerp.pipeline.context import RunContext
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage
from autointerp.store.models import Artefact
from sae_core.tokens import CorpusSpec, TokenCorpus, build_corpus

CORPUS_ARTEFACT = "corpus"
"""What was read: fingerprint, documents, contexts, tokens."""


class Tokenize(Stage):
    """Corpus to contexts on disk."""

    name = "tokenize"
    queue = "gpu"
    unit = "tokens"

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return [ChunkSpec(0, units=context.config.extraction.num_tokens)]

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        subject = context.subject
        if TokenCorpus.exists(context.folder.corpus):
            corpus = TokenCorpus.open(context.folder.corpus)  # corpus.json is written last, so this one is whole
        else:
            corpus = build_corpus(
                corpus_spec(context), subject.tokenizer, subject.bos_id, context.folder.corpus, progress
            )
        facts = {
            "fingerprint": corpus.fingerprint,
            "num_documents": corpus.num_documents,
            "num_contexts": corpus.num_contexts,
            "num_tokens": corpus.num_tokens,
        }
        return ChunkResult([Artefact(run_id=context.run_id, kind=CORPUS_ARTEFACT, version=1, value=facts)])

    def remark(self, context: RunContext) -> str | None:
        facts = context.store.artefact(context.run_id, CORPUS_ARTEFACT)
        if facts is None:
            return None
        return (
            f"corpus {facts['fingerprint'][:12]}: {facts['num_documents']:,} documents, {facts['num_tokens']:,} tokens"
        )


def corpus_spec(context: RunContext) -> CorpusSpec:
    """What the configuration says of the corpus."""
    given, extraction = context.config.corpus, context.config.extraction
    return CorpusSpec(
        path=given.path,
        num_tokens=extraction.num_tokens,
        context_length=extraction.context_length,
        text_field=given.text_field,
        suffixes=given.suffixes,
        tokens_per_document=given.tokens_per_document,
        revision=given.revision,
        seed=context.config.seed,
    )
