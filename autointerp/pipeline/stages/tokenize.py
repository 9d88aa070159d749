"""Reads the corpus and cuts it into contexts, once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from autointerp.config import RunConfig
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.reusing import find_reused
from autointerp.pipeline.shards import CORPUS_ARTEFACT
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage
from autointerp.store.models import Artefact
from sae_core.token_cache import TokenCache
from sae_core.tokens import CorpusSpec, TokenCorpus, build_corpus

if TYPE_CHECKING:
    from sae_core.chat import TextRules
    from sae_core.subject import SubjectModel


class Tokenize(Stage):
    """Corpus to contexts on disk, where others read them as they come."""

    name = "tokenize"
    queue = "gpu"
    unit = "tokens"
    beside = True

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        if context.folder.reused is not None:  # what is there already is said to be this run's
            facts = find_reused(context.config).corpus
            context.store.add_artefact(context.run_id, CORPUS_ARTEFACT, facts)
            return []
        return [ChunkSpec(0, units=context.config.extraction.num_tokens)]

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        subject = context.subject
        told = 0

        def advance(done: int) -> None:
            nonlocal told
            told = done
            progress(done)

        def stop() -> bool:
            progress(told)  # raises where it must end, also while documents are read that give no token yet
            return False

        if TokenCorpus.exists(context.folder.corpus):
            corpus = TokenCorpus.open(context.folder.corpus)  # corpus.json is written last, so this one is whole
        else:
            rules = corpus_rules(context.config, subject)
            corpus = build_corpus(
                corpus_spec(context.config),
                subject.tokenizer,
                rules.bos_id,
                context.folder.corpus,
                advance,
                leading_id=rules.leading_id,
                eos_id=rules.eos_id,
                render=rules.render,
                cache=TokenCache.of(os.environ),
                stop=stop,
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


def corpus_rules(config: RunConfig, subject: SubjectModel) -> TextRules:
    """How the subject's contexts begin and are joined. Errors: ConfigError, SubjectError."""
    from sae_core.chat import text_rules

    given = config.corpus
    return text_rules(
        config.subject.model,
        subject.bos_id,
        revision=config.subject.revision,
        bos=given.bos,
        packed=given.packed,
        chat=given.messages_field is not None,
    )


def corpus_spec(config: RunConfig) -> CorpusSpec:
    """What the configuration says of the corpus."""
    given, extraction = config.corpus, config.extraction
    return CorpusSpec(
        path=given.path,
        num_tokens=extraction.num_tokens,
        context_length=extraction.context_length,
        text_field=given.text_field or "text",
        tokens_field=given.tokens_field,
        messages_field=given.messages_field,
        split=given.split,
        subset=given.subset,
        packed=given.packed,
        suffixes=given.suffixes,
        tokens_per_document=given.tokens_per_document,
        revision=given.revision,
        seed=config.seed,
    )
