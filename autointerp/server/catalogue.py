"""The operator's catalogue: sources, endpoints and corpora that users may ask for by name, so that no request holds a path or a URL."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import delete, select

import autointerp
from autointerp.components import parse_component
from autointerp.config import RunConfig, parse_config
from autointerp.config.places import STDLIB_CORPUS
from autointerp.store import LabelStore
from autointerp.store.column_types import utc_now
from autointerp.store.dialects import insert_new
from autointerp.store.models import CatalogueRow
from sae_core.errors import ConfigError, MissingFileError, StoreError, UnknownNameError, did_you_mean

Kind = Literal["source", "endpoint", "corpus"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
_REST = ("extraction", "explainers", "scorers", "controls", "precision", "labels", "chunk_latents", "seed")
"""What a source may say beside its subject and coder: how its runs are done where a request does not say."""
_EXAMPLE = Path(autointerp.__file__).parents[1] / "examples" / "quickstart.toml"


@dataclass(frozen=True)
class Entry:
    """Something that can be asked for."""

    kind: Kind
    name: str
    settings: Mapping[str, Any]
    """A corpus or an endpoint: its table of the configuration. A source: ``subject``, ``coder``, ``rest`` (further tables) and
    ``num_latents``, where that is known."""
    built_in: bool = False
    """Whether it came with autointerp."""

    @property
    def shown(self) -> str:
        """What it is, in a few words; no address and no folder but its name."""
        if self.kind == "source":
            return f"{_last(self.settings['coder']['path'])} on {_last(self.settings['subject']['model'])}"
        return str(self.settings["model"]) if self.kind == "endpoint" else _last(self.settings["path"])


class Catalogue:
    """The entries that a store keeps, and those that came with autointerp."""

    def __init__(self, store: LabelStore) -> None:
        self._store = store

    def entries(self, kind: Kind) -> list[Entry]:
        """All of a kind, by name."""
        query = select(CatalogueRow.name, CatalogueRow.settings).where(CatalogueRow.kind == kind)
        with self._store.reading() as connection:
            kept = {str(name): Entry(kind, name, settings) for name, settings in connection.execute(query)}
        return [found for _, found in sorted((_built_in(kind) | kept).items())]

    def entry(self, kind: Kind, name: str) -> Entry:
        """Errors: UnknownNameError, with the names that there are."""
        there = {entry.name: entry for entry in self.entries(kind)}
        if name not in there:
            known = did_you_mean(name, there) if there else f"the operator adds one by `autointerp {kind} add`."
            raise UnknownNameError(f"the catalogue has no {kind} {name!r}: {known}")
        return there[name]

    def add(self, entry: Entry) -> None:
        """Errors: StoreError where the name is taken."""
        check_name(entry.name)
        row = {"kind": entry.kind, "name": entry.name, "settings": dict(entry.settings), "created_at": utc_now()}
        with self._store.writing() as connection:
            if connection.execute(insert_new(connection, CatalogueRow).values(**row)).rowcount == 1:
                return
        raise StoreError(
            f"the catalogue has a {entry.kind} {entry.name!r} already: choose another name, or take that one out by "
            f"`autointerp {entry.kind} remove {entry.name}`."
        )

    def remove(self, kind: Kind, name: str) -> None:
        """Runs that were started with it keep their settings. Errors: UnknownNameError; StoreError for what came with autointerp."""
        with self._store.writing() as connection:
            where = (CatalogueRow.kind == kind, CatalogueRow.name == name)
            if connection.execute(delete(CatalogueRow).where(*where)).rowcount == 1:
                return
        if self.entry(kind, name).built_in:
            raise StoreError(f"the {kind} {name!r} came with autointerp and stays in the catalogue.")


def check_name(name: str) -> None:
    """Errors: ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name for the catalogue: give 1 to 40 letters, digits, dots, dashes or underscores, a letter or digit first."
        )


def source_entry(name: str, data: Mapping[str, Any], base: Path, origin: str, *, built_in: bool = False) -> Entry:
    """The entry of a configuration with one coder, checked as a run's is; paths are taken from ``base``.

    Corpus, endpoints, latents and budget are left to the requests. Errors: ConfigError, MissingFileError.
    """
    check_name(name)
    rest = deepcopy({key: data[key] for key in _REST if key in data})
    for forbidden, table in (("reuse", "extraction"), ("from", "labels")):
        if forbidden in (rest.get(table) or {}):
            raise ConfigError(
                f"{table}.{forbidden} is set in {origin}: a source of the catalogue reads no other run; leave it out."
            )
    for table in [*rest.get("explainers", ()), *rest.get("scorers", ())]:
        table.pop("endpoint", None)  # each request names its own
        if table.get("kind") == "imported":
            raise ConfigError(
                f"{origin} takes labels made elsewhere: a source of the catalogue has its labels written."
            )
    coders = [dict(coder) for coder in data.get("coders", ())]
    if len(coders) != 1:
        raise ConfigError(f"{origin} has {len(coders)} coders: a source of the catalogue has one.")
    coders[0].setdefault("name", name)
    stub = {"kind": "openai", "model": "any", "base_url": "http://127.0.0.1/v1"}  # whoever asks names the real one
    whole = {**rest, "subject": data.get("subject", {}), "coders": coders, "corpus": {"path": STDLIB_CORPUS}}
    config = parse_config({**whole, "endpoints": [stub]}, origin, base=base)
    for key, place in (("subject.model", config.subject.model), ("the coder's path", config.coders[0].path)):
        _check_there(key, place)
    settings = {
        "subject": config.subject.model_dump(mode="json", exclude_defaults=True),
        "coder": config.coders[0].model_dump(mode="json", exclude_defaults=True),
        "rest": rest,
    }
    return Entry("source", name, settings, built_in)


def source_config(entry: Entry) -> RunConfig:
    """A source's tables as a configuration, with a corpus that stands for any."""
    data = {
        "subject": entry.settings["subject"],
        "coders": [entry.settings["coder"]],
        "corpus": {"path": STDLIB_CORPUS},
    }
    return parse_config(data, f"the source {entry.name!r} of the catalogue")


def endpoint_entry(name: str, table: Mapping[str, Any]) -> Entry:
    """The entry of a table of ``[[endpoints]]``. Errors: ConfigError."""
    check_name(name)
    endpoint = parse_component("endpoints", {**table, "name": name})
    return Entry("endpoint", name, endpoint.model_dump(mode="json", exclude_defaults=True) | {"kind": endpoint.kind})


def corpus_entry(name: str, table: Mapping[str, Any], base: Path, origin: str) -> Entry:
    """The entry of a table ``[corpus]``; its path is taken from ``base``. Errors: ConfigError, MissingFileError."""
    check_name(name)
    data = {"subject": {"model": "any/any"}, "coders": [{"path": "any/any"}], "corpus": dict(table)}
    config = parse_config(data, origin, base=base)
    if config.corpus.path != STDLIB_CORPUS:
        _check_there("corpus.path", config.corpus.path)
    return Entry("corpus", name, config.corpus.model_dump(mode="json", exclude_defaults=True))


def _check_there(key: str, place: str) -> None:
    if place.startswith("/") and not Path(place).exists():
        raise MissingFileError(f"{key} is {place!r}, which is not there: give a path that is, or a hub id.")


@cache
def _built_in(kind: Kind) -> dict[str, Entry]:
    """The quickstart's coder, where the example's files are found, and a corpus that every machine has, read as the example does."""
    data: dict[str, Any] = {}
    if _EXAMPLE.is_file():
        data = tomllib.loads(_EXAMPLE.read_text(encoding="utf-8"))
    if kind == "corpus":
        table = {"suffixes": [".py"], **data.get("corpus", {}), "path": STDLIB_CORPUS}
        return {STDLIB_CORPUS: Entry("corpus", STDLIB_CORPUS, table, built_in=True)}
    if kind == "source" and data:
        try:
            return {"quickstart": source_entry("quickstart", data, _EXAMPLE.parent, str(_EXAMPLE), built_in=True)}
        except MissingFileError:
            return {}
    return {}


def _last(place: str) -> str:
    """A hub id as it is, of a local path the last two parts at most."""
    return "/".join(Path(place).parts[-2:]) if place.startswith("/") else place
