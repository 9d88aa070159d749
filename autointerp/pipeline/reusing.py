"""Runs that take corpus and exemplars over from another run, its base, and so need no subject of their own. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.config import CONTROL_SUFFIX, RunConfig, parse_config
from autointerp.evidence import LensRequest
from autointerp.pipeline.folder import RunFolder
from sae_core.errors import ConfigError, StoreError
from sae_core.records import Source

if TYPE_CHECKING:
    from autointerp.explainers.base import Explainer
    from autointerp.scorers.base import Scorer
    from autointerp.store import LabelStore

_NOT_OF_EXEMPLARS = ("batch_tokens", "shard_tokens", "latents_per_pass", "reuse")
"""Settings of [extraction] that change how exemplars are made and not what they are."""
_CORPUS = "corpus"
"""Artefact with the facts of the corpus; ``pipeline.shards`` needs numpy for its name."""


@dataclass(frozen=True, slots=True)
class Reused:
    """What is taken over from a base."""

    folder: Path
    """Its output folder."""
    run_id: str
    """Its id."""
    sources: tuple[Source, ...]
    """Its sources that the new run has too, controls behind."""
    corpus: dict[str, Any]
    """Facts of its corpus, as the ``tokenize`` stage leaves them."""


def find_reused(config: RunConfig) -> Reused:
    """What ``extraction.reuse`` names, checked against the rest of the configuration.

    Errors: ConfigError where it is no run's folder, its exemplars are not merged yet, or they were made by other settings;
    StoreError where its store cannot be opened.
    """
    from autointerp.pipeline.finding import open_of_note

    given = config.extraction.reuse
    assert given is not None, "asked only of a configuration that reuses exemplars"
    folder = Path(given)
    note = RunFolder(folder).read_note() if folder.is_dir() else None
    if note is None:
        raise ConfigError(
            f"extraction.reuse is {given!r}, which is no output folder of a run (it has no run.json): give one, or leave the key out."
        )
    store = open_of_note(folder, note)
    try:
        return checked(config, store, note.run_id, folder)
    finally:
        store.close()


def checked(config: RunConfig, store: LabelStore, run_id: str, folder: Path) -> Reused:
    """What a base gives a configuration. Errors: as :func:`find_reused`."""
    base = parse_config(store.run(run_id).config, f"the stored configuration of run {run_id}")
    if base.extraction.reuse is not None:
        raise ConfigError(
            f"extraction.reuse is {str(folder)!r}, a run that reuses the exemplars of another one itself: give that one's folder, "
            f"{base.extraction.reuse!r}."
        )
    _check_settings(config, base, folder)
    chosen = _sources(config, store.sources(run_id), folder)
    corpus = store.artefact(run_id, _CORPUS)
    missing = [
        source.name for source in chosen if not (RunFolder(folder).exemplars(source.name) / "index.json").is_file()
    ]
    if corpus is None or missing:
        raise ConfigError(
            f"the run in {str(folder)!r}, which extraction.reuse names, has no merged exemplars"
            f"{f' of {missing[0]!r}' if missing else ''} yet: go on with it by the command that started it, or leave the key out."
        )
    return Reused(folder, run_id, tuple(chosen), corpus)


def _check_settings(config: RunConfig, base: RunConfig, folder: Path) -> None:
    from autointerp.pipeline.starting import first_difference

    before = dict(zip(base.source_names(), base.stored()["coders"], strict=True))
    for name, coder in zip(config.source_names(), config.stored()["coders"], strict=True):
        if name not in before:
            raise ConfigError(
                f"the run in {str(folder)!r}, which extraction.reuse names, has no source {name!r}; it has "
                f"{', '.join(map(repr, before))}: give its coders the same paths, hookpoints and names."
            )
        changed = first_difference(before[name] | {"name": None}, coder | {"name": None}, f"the coder of {name!r}")
        if changed:
            raise _other(folder, changed)
    changed = first_difference(_decides_exemplars(base), _decides_exemplars(config))
    if changed:
        raise _other(folder, changed)


def _decides_exemplars(config: RunConfig) -> dict[str, Any]:
    stored = config.stored()
    extraction = {name: value for name, value in stored["extraction"].items() if name not in _NOT_OF_EXEMPLARS}
    extraction["pool_windows"] = config.extraction.pool_size
    subject = {name: value for name, value in stored["subject"].items() if name != "device"}
    return {"subject": subject, "corpus": stored["corpus"], "extraction": extraction, "seed": config.seed}


def _other(folder: Path, changed: str) -> ConfigError:
    return ConfigError(
        f"the exemplars in {str(folder)!r}, which extraction.reuse names, were made by other settings ({changed}): set it as there, "
        "or leave extraction.reuse out to extract anew."
    )


def _sources(config: RunConfig, known: Sequence[Source], folder: Path) -> list[Source]:
    by_name = {source.name: source for source in known}
    missing = [name for name in config.source_names() if name not in by_name]
    if missing:
        raise ConfigError(
            f"the run in {str(folder)!r}, which extraction.reuse names, has not begun its source {missing[0]!r} yet: go on with it by "
            "the command that started it, or leave the key out."
        )
    chosen = [by_name[name] for name in config.source_names()]
    for source in chosen:
        config.select_latents(source.num_latents, source.name)
    wanted = config.controls.random_directions
    if not wanted:
        return chosen
    for name in config.source_names():
        control = by_name.get(name + CONTROL_SUFFIX)
        if control is None or control.num_latents != wanted:
            has = 0 if control is None else control.num_latents
            raise _other(folder, f"controls.random_directions was {has}, is {wanted}")
        chosen.append(control)
    return chosen


def runs_subject(config: RunConfig, folder: RunFolder) -> bool:
    """Whether a run that reuses exemplars runs its subject all the same: for evidence that a component asks for."""
    components: list[Explainer | Scorer] = [*config.build_explainers(), *config.build_scorers()]
    needs = [need for component in components for need in component.needs()]
    if any(not isinstance(need, LensRequest) for need in needs):
        return True
    if any(explainer.rounds_of_tests for explainer in config.build_explainers()):
        return True
    if any(scorer.writes_texts for scorer in config.build_scorers()):
        return True
    return bool(needs) and not all(reuses_lens(config, folder, name) for name in config.source_names())


def reuses_lens(config: RunConfig, folder: RunFolder, source: str) -> bool:
    """Whether what the base found of a source's directions is what this run's components ask for."""
    if folder.reused is None or not RunFolder(folder.reused).evidence(source, "lens", 0).is_file():
        return False
    return _lens_request(config) == _lens_request(_config_of(folder.reused))


def _lens_request(config: RunConfig) -> LensRequest | None:
    components: list[Explainer | Scorer] = [*config.build_explainers(), *config.build_scorers()]
    return next((need for part in components for need in part.needs() if isinstance(need, LensRequest)), None)


def _config_of(folder: Path) -> RunConfig:
    from autointerp.pipeline.finding import open_of_note

    note = RunFolder(folder).read_note()
    if note is None:
        raise StoreError(f"the run whose exemplars are reused is gone from {str(folder)!r}: put its folder back.")
    store = open_of_note(folder, note)
    try:
        return parse_config(store.run(note.run_id).config, f"the stored configuration of run {note.run_id}")
    finally:
        store.close()
