"""Starts a run or takes it up again: everything is checked before anything is written."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, select

from autointerp.config import RunConfig, parse_config
from autointerp.evidence import (
    AblationRequest,
    AttributionRequest,
    LensRequest,
    SteeringRequest,
    SubstitutionRequest,
    SuffixRequest,
    TokenChangeRequest,
)
from autointerp.explainers.base import Explainer
from autointerp.imports.split import Split
from autointerp.llm.prior_calls import PriorCalls
from autointerp.pipeline.code_version import code_version
from autointerp.pipeline.context import RunContext, evidence_request, extraction_settings
from autointerp.pipeline.endpoint_check import check_endpoints
from autointerp.pipeline.folder import RunFolder, RunNote, usable_folder
from autointerp.pipeline.memory_check import check_memory
from autointerp.pipeline.owner import Owner
from autointerp.pipeline.reusing import Reused, find_reused, runs_subject
from autointerp.pipeline.steered_texts import check_steered_texts
from autointerp.predictions.finding import can_predict
from autointerp.scorers.base import Scorer
from autointerp.shown_url import shown_url
from autointerp.store import ChunkState, LabelStore, open_store
from autointerp.store.dialects import parse_url
from autointerp.store.models import Run
from autointerp.store.opening import sqlite_url
from sae_core.errors import ConfigError, DiskFullError, StoreError
from sae_core.records import Source

if TYPE_CHECKING:
    from sae_core.subject import SubjectModel

_BYTES_PER_FIRING = 9
"""Window, column and value of one firing token in a pool."""
_FIRINGS_PER_TOKEN = 32
"""A guess on the high side of what coders have: K of a TopK coder, L0 of the others."""
_PROMPTS = "prompts"
"""Name of the artefact that keeps the hashes of the prompt files with which a run began."""
_SPARE_BYTES = 64 * 2**20


@dataclass
class StartedRun:
    """A run that is ready to go on."""

    context: RunContext
    finished: bool
    """Whether it is done already: there is nothing to do."""
    memory: str = ""
    """What a run that begins says of the memory that extraction needs."""
    _made_folders: tuple[Path, ...] = ()
    """Folders that this start made, the innermost first."""
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
        if self._made_folders and not (others and folder.database.exists()):
            shutil.rmtree(folder.root)
            _remove_empty(self._made_folders[1:])
            return
        shutil.rmtree(folder.root / "corpus", ignore_errors=True)  # its own: one that it reuses stays
        shutil.rmtree(folder.root / "sources", ignore_errors=True)
        (folder.root / "run.json").unlink(missing_ok=True)
        if not others:
            folder.database.unlink(missing_ok=True)


def start_run(
    config: RunConfig, name: str, out: Path, began: float | None = None, *, owner: str | None = None, after: int = 0
) -> StartedRun:
    """Start the configuration's run in ``out``, or take it up where it stopped.

    ``owner``: name of the token that asked a server for it, ``after``: ordinal that its own is above; of a new run.
    ``began`` is when the command began (``time.monotonic()``), from which a new run's time to load is counted. Of several starts at once in one folder the first one to leave its note there decides, and the others join its run.
    Errors: StoreError for a folder of another run; whatever :func:`preflight` raises, with nothing written.
    """
    began = time.monotonic() if began is None else began
    folder = RunFolder(out.absolute())
    note = _note_for(config, folder)
    if note is not None:
        store = open_store(store_url(config, folder))
        if store.has_run(note.run_id) and store.sources(note.run_id):
            _check_own(store, note, folder)
            context = RunContext(config, folder, store, note.run_id)
            store.set_run_config(note.run_id, config.stored())  # a server may have moved, a budget may have grown
            return StartedRun(context, finished=store.run(note.run_id).state == "done")
        store.close()
    sources, loaded, memory, calls = preflight(config, folder)
    made = tuple(place for place in (folder.root, *folder.root.parents) if not place.exists())
    with usable_folder(folder.root):
        folder.root.mkdir(parents=True, exist_ok=True)
    try:
        store = open_store(store_url(config, folder))
    except StoreError:
        _remove_empty(made)
        raise
    note, new = claim_folder(store, config, name, folder, owner=owner, after=after)
    store.add_sources(note.run_id, sources)
    context = RunContext(config, folder, store, note.run_id)
    context.__dict__.update(loaded)
    if new:
        for name, found in context.capabilities.items():
            store.add_artefact(note.run_id, f"capabilities/{name}", {"capabilities": sorted(found)})
        calls.enter(store, note.run_id, str(Owner.of_this_process()))
        store.add_timing(note.run_id, "load", time.monotonic() - began)
    return StartedRun(context, finished=False, memory=memory, _made_folders=made if new else (), _new=new)


def claim_folder(
    store: LabelStore,
    config: RunConfig,
    name: str,
    folder: RunFolder,
    *,
    submitted: bool = False,
    submit_key: str | None = None,
    owner: str | None = None,
    after: int = 0,
) -> tuple[RunNote, bool]:
    """Make a folder the configuration's run's own, and that run, where they are not yet; whether the run is new comes back.

    ``submitted``: whether a cluster's workers do it. ``owner``: name of the token that asked a server for it. ``after``: ordinal that a new run's is above, where other stores have runs of the configuration too. Of several at once the first one to leave its note decides, and the others join its run. Errors: StoreError for a folder of
    another run.
    """
    first = False
    note = _note_for(config, folder)
    while note is None:
        note = RunNote(
            f"{config.digest[:12]}-{max(store.next_ordinal(config.digest), after + 1)}",
            config.digest,
            _shown_url(config),
        )
        first = folder.claim_note(note)
        if not first:
            note = _note_for(config, folder)
    new = _create_run(store, config, note, name, folder, submitted, submit_key, owner)
    if first and not new and not _is_own(store, note, folder):
        # another folder's start took the number in a shared store between the look and the note
        note = RunNote(
            f"{config.digest[:12]}-{max(store.next_ordinal(config.digest), after + 1)}",
            config.digest,
            _shown_url(config),
        )
        folder.write_note(note)
        new = _create_run(store, config, note, name, folder, submitted, submit_key, owner)
    _check_own(store, note, folder)
    return note, new


def _create_run(
    store: LabelStore,
    config: RunConfig,
    note: RunNote,
    name: str,
    folder: RunFolder,
    submitted: bool,
    submit_key: str | None,
    owner: str | None,
) -> bool:
    """Add the note's run; False where it is there already."""
    if store.has_run(note.run_id):
        return False
    run = Run(
        id=note.run_id,
        name=name,
        digest=config.digest,
        ordinal=int(note.run_id.rpartition("-")[2]),
        config=config.stored(),
        state="running",
        submitted=submitted,
        submit_key=submit_key,
        folder=str(folder.root),
        code_version=code_version(),
        owner=owner,
    )
    try:
        store.create_run(run)
        store.add_artefact(note.run_id, _PROMPTS, config.prompt_hashes())
    except StoreError:
        if not store.has_run(note.run_id):
            raise
        return False  # a start beside this one was quicker
    return True


def _shown_url(config: RunConfig) -> str | None:
    """``store.url`` as notes have it: without its password; None for the folder's own database."""
    return None if config.store.url is None else shown_url(parse_url(config.store.url))


def _note_for(config: RunConfig, folder: RunFolder) -> RunNote | None:
    """The note of the configuration's run in a folder, None for a new one.

    Errors: StoreError for a folder of another run, or one whose results are kept in another store.
    """
    note = folder.check_free_for(config.digest, lambda note: _what_changed(config, folder, note))
    there, asked = None if note is None else note.shown_store, _shown_url(config)
    if note is not None and there != asked:
        kept, now = (repr(url) if url else "its own autointerp.db" for url in (there, asked))
        do = f"set store.url to {there!r}" if there else "leave store.url out"
        raise StoreError(
            f"the run in {str(folder.root)!r} is kept in {kept}, and store.url now asks for {now}: {do}, or choose another --out."
        )
    return note


def _what_changed(config: RunConfig, folder: RunFolder, note: RunNote) -> str:
    """The first setting that differs from the folder's run, "" where its store does not tell."""
    from autointerp.pipeline.finding import open_of_note

    try:
        store = open_of_note(folder.root, note)
        before = store.run(note.run_id).config if store.has_run(note.run_id) else {}
        prompts = store.artefact(note.run_id, _PROMPTS)
        store.close()
    except StoreError:
        return ""
    if not before:
        return ""
    try:
        before = parse_config(before, "the folder's run").identity()
        if prompts:
            before["prompts"] = prompts  # as they were then
    except ConfigError:  # written by another version
        return ""
    return first_difference(before, config.identity())


def first_difference(before: Any, now: Any, key: str = "") -> str:
    """``subject.model was 'a', is 'b'`` for the first place where two JSON values differ; "" where they are equal."""
    if isinstance(before, dict) and isinstance(now, dict):
        steps = [(name, before.get(name), now.get(name)) for name in dict.fromkeys([*now, *before])]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        steps = [(str(number), *pair) for number, pair in enumerate(zip(before, now, strict=True))]
    else:
        return "" if before == now else f"{key} was {_short(before)}, is {_short(now)}"
    found = (first_difference(old, new, f"{key}.{name}" if key else name) for name, old, new in steps)
    return next(filter(None, found), "")


def _short(value: Any) -> str:
    text = "not set" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_own(store: LabelStore, note: RunNote, folder: RunFolder) -> bool:
    """Whether the store's run is this folder's. A folder may have been moved; its own database moves with it."""
    home = Path(store.run(note.run_id).folder)
    if note.store is None or home == folder.root or not (home / "run.json").is_file():
        return True
    there = RunFolder(home).read_note()
    return there is None or there.run_id != note.run_id or home.resolve() == folder.root.resolve()


def _check_own(store: LabelStore, note: RunNote, folder: RunFolder) -> None:
    if not _is_own(store, note, folder):
        raise StoreError(
            f"the run {note.run_id} in {note.shown_store!r} is that of the folder {store.run(note.run_id).folder!r}: go on "
            f"there, or choose another --out than {str(folder.root)!r}."
        )


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders as far as nothing has come to lie in them."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def preflight(
    config: RunConfig, folder: RunFolder, *, ask_endpoints: bool = True, subject: SubjectModel | None = None
) -> tuple[list[Source], dict[str, object], str, PriorCalls]:
    """Check all that can be checked and write nothing: corpus, subject, coders, hookpoints, latents, room on disk and in memory.

    Returns the run's sources, what was loaded on the way, by the attributes of RunContext, a sentence on the memory
    that extraction needs, and the calls to language models that were made (none without ``ask_endpoints``). ``subject``: the configured
    one, where it has been loaded already. Errors: InputError's family, DiskFullError.
    """
    from autointerp.pipeline.stages.tokenize import corpus_rules, corpus_spec

    _check_settings(config)
    for scorer in config.build_scorers():
        scorer.check()
    reused = None if config.extraction.reuse is None else find_reused(config)
    calls = PriorCalls(config.budget)
    capabilities = check_endpoints(config, calls) if ask_endpoints else {}
    if reused is not None and not runs_subject(config, replace(folder, reused=reused.folder)):
        _check_room(folder.root, config, [])
        for explainer in config.build_explainers():
            explainer.check_sources(reused.sources, Split.of(config.stored()))
        return list(reused.sources), {"capabilities": capabilities}, "", calls
    if reused is None:
        corpus_spec(config).check_readable()
    _check_room(folder.root, config, [])

    from autointerp.pipeline.attaching import attach_configured, check_interventions, sources_of
    from sae_core.subject import SubjectModel

    settings = config.subject
    if subject is None:
        subject = SubjectModel.load(
            settings.model, revision=settings.revision, device=settings.device, dtype=settings.dtype
        )
    if config.extraction.context_length > subject.max_context:
        raise ConfigError(
            f"extraction.context_length is {config.extraction.context_length} and the subject sees at most "
            f"{subject.max_context} tokens: set it to {subject.max_context} or less."
        )
    corpus_rules(config, subject)
    attached = {
        name: attach_configured(subject, coder)
        for name, coder in zip(config.source_names(), config.coders, strict=True)
    }
    sources = sources_of(config, subject, attached)
    if reused is not None:
        _check_same_sources(sources, reused)
    for explainer in config.build_explainers():
        explainer.check_sources(sources, Split.of(config.stored()))
    components: list[Explainer | Scorer] = [*config.build_explainers(), *config.build_scorers()]
    editing = (AblationRequest, AttributionRequest, SteeringRequest, SubstitutionRequest, TokenChangeRequest)
    if any(evidence_request(components, kind) for kind in editing):
        for coder in attached.values():
            check_interventions(subject, coder)
    _check_room(folder.root, config, [] if reused is not None else sources)
    memory = "" if reused is not None else check_memory(config, extraction_settings(config), subject, attached)
    loaded: dict[str, object] = {"subject": subject, "_attached": attached, "capabilities": capabilities}
    return sources, loaded, memory, calls


def _check_same_sources(sources: Sequence[Source], reused: Reused) -> None:
    """The weights are those from which the reused exemplars were made. Errors: StoreError."""
    before = {source.name: source for source in reused.sources}
    for source in sources:
        if source != before[source.name]:
            raise StoreError(
                f"the coder or the subject of {source.name!r} has other weights now than when the run {reused.run_id} began, whose "
                "exemplars extraction.reuse takes over: leave the key out to extract anew."
            )


def _check_settings(config: RunConfig) -> None:
    """What the sections ask of one another. Errors: ConfigError."""
    kept = config.extraction.sampled_exemplars
    components: list[Explainer | Scorer] = [*config.build_explainers(), *config.build_scorers()]
    for kind in (
        SuffixRequest,
        AblationRequest,
        AttributionRequest,
        SteeringRequest,
        SubstitutionRequest,
        LensRequest,
        TokenChangeRequest,
    ):
        evidence_request(components, kind)
    check_steered_texts(components)
    if evidence_request(components, SubstitutionRequest) is not None and not can_predict(components):
        explainers = ", ".join(repr(explainer.kind) for explainer in config.build_explainers())
        raise ConfigError(
            f"the scorer 'substitution' puts what a label predicts in its latent's place, and labels of {explainers} predict no "
            'activations: add [[explainers]] with kind = "pattern" or [[scorers]] with kind = "simulation", or take '
            "'substitution' out."
        )
    for component in components:
        for need in component.needs():
            if isinstance(need, TokenChangeRequest):
                continue  # its prompts are random tokens, not windows
            wanted = max(getattr(need, "windows", 0), getattr(need, "prompts", 0))
            if wanted > kept:
                raise ConfigError(
                    f"the component {component.kind!r} asks for {wanted} windows of a latent and extraction keeps {kept}: "
                    f"set extraction.sampled_exemplars to {wanted} or more, or ask for fewer."
                )


def store_url(config: RunConfig, folder: RunFolder) -> str:
    """URL of the run's store; that of the environment has its password from AUTOINTERP_STORE__PASSWORD_FILE, where that is set. Errors: ConfigError."""
    if config.store.url is None:
        return sqlite_url(folder.database)
    from autointerp.cluster.settings import load_settings

    settings = load_settings()
    return settings.store_url if settings.store.url == config.store.url else config.store.url


def needed_bytes(config: RunConfig, sources: Sequence[Source]) -> int:
    """A rough guess, on the high side, of what a run writes: corpus, partials and stores with exemplars and pools."""
    extraction = config.extraction
    if extraction.reuse is not None:
        return _SPARE_BYTES
    corpus = 8 * extraction.num_tokens
    kept = extraction.top_exemplars + extraction.sampled_exemplars
    total = _SPARE_BYTES + corpus
    for source in sources:
        exemplars = 3 * source.num_latents * kept * extraction.window_length * 12
        pooled = min(extraction.num_tokens, 3 * extraction.pool_size * extraction.window_length)
        pools = pooled * _FIRINGS_PER_TOKEN * _BYTES_PER_FIRING * (0.1 if source.control else 1.0)
        shards = -(-extraction.num_tokens // extraction.shard_size)
        # of n shards the i-th keeps about 1/i of its exemplars, but all if each was worked by a process of its own
        total += int(pools) * 2 + int(exemplars * (min(shards, 8) + 1))
    return total


def _check_room(root: Path, config: RunConfig, sources: Sequence[Source]) -> None:
    place = root
    while not place.exists():
        place = place.parent
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        raise StoreError(f"{str(place)!r} cannot be written to: choose another --out.")
    needed, free = needed_bytes(config, sources), shutil.disk_usage(place).free
    if free < needed:
        raise DiskFullError(
            f"this run may write {needed / 2**20:,.0f} MiB below {str(place)!r} and {free / 2**20:,.0f} MiB are free there: "
            "free some space, choose another --out, or lower extraction.num_tokens."
        )


def open_run(store: LabelStore, run_id: str, folder: Path | None = None) -> RunContext:
    """A context to read a run with; ``folder`` is where it lies now, if that is known (it may have been moved)."""
    run = store.run(run_id)
    config = parse_config(run.config, f"the stored configuration of run {run.id}")
    return RunContext(config, RunFolder(folder or Path(run.folder)), store, run.id)
