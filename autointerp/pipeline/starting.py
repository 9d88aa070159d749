"""Starts a run or takes it up again: everything is checked before anything is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import delete, select

from autointerp.config import RunConfig
from autointerp.explainers.base import Explainer
from autointerp.pipeline.code_version import code_version
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.folder import RunFolder, RunNote
from autointerp.scorers.base import Scorer
from autointerp.store import ChunkState, LabelStore, open_store
from autointerp.store.dialects import parse_url
from autointerp.store.models import Run
from autointerp.store.opening import sqlite_url
from sae_core.errors import ConfigError, CorpusError, DiskFullError, StoreError
from sae_core.records import Source

_BYTES_PER_FIRING = 9
"""Window, column and value of one firing token in a pool."""
_FIRINGS_PER_TOKEN = 32
"""A guess on the high side of what coders have: K of a TopK coder, L0 of the others."""
_SPARE_BYTES = 64 * 2**20


@dataclass
class StartedRun:
    """A run that is ready to go on."""

    context: RunContext
    finished: bool
    """Whether it is done already: there is nothing to do."""
    _made_folder: bool = False
    _new: bool = False

    def undo_if_nothing_done(self) -> None:
        """Remove a run that this start made and that has not done a single chunk: a refusal leaves nothing behind."""
        context = self.context
        if not self._new or context.store.chunks(context.run_id, ChunkState.DONE):
            return
        with context.store.writing() as connection:
            connection.execute(delete(Run).where(Run.id == context.run_id))
            others = connection.execute(select(Run.id)).first() is not None
        context.store.close()
        folder = context.folder
        if self._made_folder and not (others and folder.database.exists()):
            shutil.rmtree(folder.root)
            return
        shutil.rmtree(folder.corpus, ignore_errors=True)
        shutil.rmtree(folder.root / "sources", ignore_errors=True)
        (folder.root / "run.json").unlink(missing_ok=True)
        if not others:
            folder.database.unlink(missing_ok=True)


def start_run(config: RunConfig, name: str, out: Path) -> StartedRun:
    """Start the configuration's run in ``out``, or take it up where it stopped.

    Errors: StoreError for a folder of another run; whatever :func:`preflight` raises, with nothing written.
    """
    folder = RunFolder(out.absolute())
    note = folder.check_free_for(config.digest)
    if note is not None:
        store = open_store(store_url(config, folder))
        if store.has_run(note.run_id) and store.sources(note.run_id):
            context = RunContext(config, folder, store, note.run_id)
            return StartedRun(context, finished=store.run(note.run_id).state == "done")
        store.close()
    sources, loaded = preflight(config, folder)
    made = not folder.root.exists()
    folder.root.mkdir(parents=True, exist_ok=True)
    try:
        store = open_store(store_url(config, folder))
    except StoreError:
        if made:
            folder.root.rmdir()
        raise
    if note is None:
        run_id = f"{config.digest[:12]}-{store.next_ordinal(config.digest)}"
        shown = None if config.store.url is None else parse_url(config.store.url).render_as_string(hide_password=True)
        note = RunNote(run_id, config.digest, shown)
        folder.write_note(note)
    if not store.has_run(note.run_id):
        store.create_run(
            Run(
                id=note.run_id,
                name=name,
                digest=config.digest,
                ordinal=int(note.run_id.rpartition("-")[2]),
                config=config.identity(),
                state="running",
                folder=str(folder.root),
                code_version=code_version(),
            )
        )
    store.add_sources(note.run_id, sources)
    context = RunContext(config, folder, store, note.run_id)
    context.__dict__.update(loaded)
    return StartedRun(context, finished=False, _made_folder=made, _new=True)


def preflight(config: RunConfig, folder: RunFolder) -> tuple[list[Source], dict[str, object]]:
    """Check all that can be checked and write nothing: corpus, subject, coders, hookpoints, latents, room on the disk.

    Returns the run's sources, and what was loaded on the way, by the attributes of RunContext. Errors: InputError's
    family, DiskFullError.
    """
    from sae_core.documents import read_documents

    _check_settings(config)
    given = config.corpus
    documents = read_documents(
        given.path, text_field=given.text_field, suffixes=given.suffixes, revision=given.revision, seed=config.seed
    )
    if next(documents, None) is None:
        raise CorpusError(f"corpus.path is {given.path!r}, and it holds no text: give a corpus with documents in it.")
    _check_room(folder.root, config, [])

    from autointerp.pipeline.attaching import attach_configured, sources_of
    from sae_core.subject import SubjectModel

    settings = config.subject
    subject = SubjectModel.load(
        settings.model, revision=settings.revision, device=settings.device, dtype=settings.dtype
    )
    if config.extraction.context_length > subject.max_context:
        raise ConfigError(
            f"extraction.context_length is {config.extraction.context_length} and the subject sees at most "
            f"{subject.max_context} tokens: set it to {subject.max_context} or less."
        )
    attached = {
        name: attach_configured(subject, coder)
        for name, coder in zip(config.source_names(), config.coders, strict=True)
    }
    sources = sources_of(config, subject, attached)
    _check_room(folder.root, config, sources)
    return sources, {"subject": subject, "_attached": attached}


def _check_settings(config: RunConfig) -> None:
    """What the sections ask of one another. Errors: ConfigError."""
    kept = config.extraction.sampled_exemplars
    components: list[Explainer | Scorer] = [*config.build_explainers(), *config.build_scorers()]
    for component in components:
        for need in component.needs():
            wanted = max(getattr(need, "windows", 0), getattr(need, "prompts", 0))
            if wanted > kept:
                raise ConfigError(
                    f"the component {component.kind!r} asks for {wanted} windows of a latent and extraction keeps {kept}: "
                    f"set extraction.sampled_exemplars to {wanted} or more, or ask for fewer."
                )


def store_url(config: RunConfig, folder: RunFolder) -> str:
    """URL of the run's store."""
    return config.store.url or sqlite_url(folder.database)


def needed_bytes(config: RunConfig, sources: Sequence[Source]) -> int:
    """A rough guess, on the high side, of what a run writes: corpus, partials and stores with exemplars and pools."""
    extraction = config.extraction
    corpus = 8 * extraction.num_tokens
    kept = extraction.top_exemplars + extraction.sampled_exemplars
    total = _SPARE_BYTES + corpus
    for source in sources:
        exemplars = 3 * source.num_latents * kept * extraction.window_length * 12
        pooled = min(extraction.num_tokens, 3 * extraction.pool_size * extraction.window_length)
        pools = pooled * _FIRINGS_PER_TOKEN * _BYTES_PER_FIRING * (0.1 if source.control else 1.0)
        shards = -(-extraction.num_tokens // extraction.shard_tokens)
        # each shard's partial may fill its exemplars, then all go into the store once
        total += int(pools) * 2 + int(exemplars * (shards + 1))
    return total


def _check_room(root: Path, config: RunConfig, sources: Sequence[Source]) -> None:
    place = root
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        raise StoreError(f"{str(place)!r} cannot be written to: choose another --out.")
    needed, free = needed_bytes(config, sources), shutil.disk_usage(place).free
    if free < needed:
        raise DiskFullError(
            f"this run may write {needed / 2**20:,.0f} MiB below {str(place)!r} and {free / 2**20:,.0f} MiB are free there: "
            "free some space, choose another --out, or lower extraction.num_tokens."
        )


def open_run(store: LabelStore, run_id: str, folder: Path | None = None) -> RunContext:
    """A context to read a run with; ``folder`` is where it lies now, if that is known (it may have been moved)."""
    from autointerp.config import parse_config

    run = store.run(run_id)
    config = parse_config(run.config, f"the stored configuration of run {run.id}")
    return RunContext(config, RunFolder(folder or Path(run.folder)), store, run.id)
