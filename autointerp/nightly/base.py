"""The run whose labels a schedule scores, and the configuration of a night's run over it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autointerp.config import RunConfig, parse_config
from autointerp.explanation import Explanation
from autointerp.nightly.schedule import Schedule
from autointerp.pipeline.folder import RunFolder
from autointerp.pipeline.label_figures import TAKEN_OVER
from autointerp.pipeline.reusing import checked
from autointerp.store import LabelStore
from sae_core.errors import ConfigError, StoreError
from sae_core.records import Source


@dataclass(frozen=True, slots=True)
class Base:
    """A finished run with its labels."""

    store: LabelStore
    run_id: str
    folder: Path
    config: RunConfig
    sources: tuple[Source, ...]
    """The sources that are scored, no controls."""
    corpus: str
    """Fingerprint of its corpus."""
    extracted: Path
    """Output folder in which its exemplars lie: its own, or that of the run which it took them from."""


@contextmanager
def open_base(store: LabelStore, schedule: Schedule) -> Iterator[Base]:
    """The run that ``schedule.run`` names: an output folder, an id in the store, or the newest finished run of a name.

    Errors: ConfigError, StoreError.
    """
    from autointerp.pipeline.finding import open_of_note

    place = Path(schedule.run)
    note = RunFolder(place).read_note() if place.is_dir() else None
    if note is None:
        yield _base(store, schedule, _run_id(store, schedule), None)
        return
    other = open_of_note(place, note)
    try:
        yield _base(other, schedule, note.run_id, place)
    finally:
        other.close()


def _run_id(store: LabelStore, schedule: Schedule) -> str:
    named = [run for run in store.runs() if schedule.run in (run.id, run.name)]
    done = [run for run in named if run.state == "done"]
    if not done:
        state = f" that is done (it is {named[-1].state!r})" if named else ""
        raise ConfigError(
            f"the schedule {schedule.name!r} scores the run {schedule.run!r}, and the store has none of that id or name{state}: "
            "give a finished run's name, id or output folder."
        )
    return done[-1].id


def _base(store: LabelStore, schedule: Schedule, run_id: str, place: Path | None) -> Base:
    run = store.run(run_id)
    if run.state != "done":
        raise ConfigError(
            f"the schedule {schedule.name!r} scores the run {run_id!r}, which has not ended (its state is {run.state!r}): finish it first."
        )
    config = parse_config(run.config, f"the stored configuration of run {run_id}")
    folder = place or Path(run.folder)
    if not (folder / "run.json").is_file():
        raise StoreError(
            f"the output folder {str(folder)!r} of the run {run_id}, whose labels are scored every night, is not there: put it back."
        )
    known = [source for source in store.sources(run_id) if not source.control]
    strange = sorted(set(schedule.sources) - {source.name for source in known})
    if strange:
        names = ", ".join(repr(source.name) for source in known)
        raise ConfigError(
            f"the schedule {schedule.name!r} names the source {strange[0]!r}, and the run {run_id} has {names}: give one of these."
        )
    sources = tuple(source for source in known if not schedule.sources or source.name in schedule.sources)
    corpus = store.artefact(run_id, "corpus") or {}
    extracted = folder if config.extraction.reuse is None else Path(config.extraction.reuse)
    return Base(store, run_id, folder, config, sources, str(corpus.get("fingerprint", "")), extracted)


def night_config(schedule: Schedule, base: Base, latents: Mapping[str, Sequence[int]]) -> RunConfig:
    """The configuration of a night's run that scores ``latents`` (by source) of the base's labels. Errors: ConfigError."""
    stored = base.config.stored()
    named = [{**coder, "name": name} for name, coder in zip(base.config.source_names(), stored["coders"], strict=True)]
    data: dict[str, Any] = {
        "subject": stored["subject"],
        "coders": [coder for coder in named if latents.get(coder["name"])],
        "corpus": stored["corpus"],
        "extraction": stored["extraction"] | {"reuse": str(base.extracted)},
        "seed": stored["seed"],
        "latents": {name: list(numbers) for name, numbers in latents.items() if numbers},
        "chunk_latents": schedule.chunk_size(),
        "scorers": list(schedule.scorers),
        "endpoints": list(schedule.endpoints),
        "labels": {"from": str(base.folder), "allow_other_split": base.config.labels.allow_other_split},
        "budget": schedule.budget.model_dump(mode="json"),
        "controls": schedule.controls.model_dump(mode="json"),
        "precision": schedule.precision.model_dump(mode="json"),
    }
    config = parse_config(data, f"the schedule {schedule.name!r}", base=Path("/"))
    _check_scorers(config, schedule)
    return config


def _check_scorers(config: RunConfig, schedule: Schedule) -> None:
    """Errors: ConfigError for a scorer that would leave every label without a score, night after night."""
    text = Explanation(latent=0, explainer=TAKEN_OVER, text="a label")
    for scorer in config.build_scorers():
        if scorer.judges_explanation and not scorer.can_judge(text) and not scorer.needs():
            raise ConfigError(
                f"the schedule {schedule.name!r} has the scorer {scorer.kind!r}, which counts what an explainer left beside its label and "
                "says nothing of a label's text, which is what nights score: name scorers that judge it, such as 'detection'."
            )


def night_sources(config: RunConfig, base: Base) -> tuple[Source, ...]:
    """The records of a night's sources, controls behind. Errors: ConfigError where the base's exemplars do not serve."""
    from autointerp.pipeline.finding import open_of_note

    if base.extracted == base.folder:
        return checked(config, base.store, base.run_id, base.folder).sources
    note = RunFolder(base.extracted).read_note()
    if note is None:
        raise StoreError(
            f"the run whose exemplars are reused is gone from {str(base.extracted)!r}: put its folder back."
        )
    store = open_of_note(base.extracted, note)
    try:
        return checked(config, store, note.run_id, base.extracted).sources
    finally:
        store.close()
