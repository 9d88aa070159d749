"""Finds out what a path holds, reads the labels of one source of it, strictly, and keeps them for the process."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from autointerp.imports import json_lines
from autointerp.imports.label_index import LabelIndex
from autointerp.imports.label_line import (
    ImportedLabel,
    ImportedLabels,
    LabelFormat,
    LabelLine,
    LabelRequest,
    clean_label,
)
from autointerp.imports.neuronpedia import KEYS, neuronpedia_labels
from autointerp.imports.split import Split
from sae_core.errors import ConfigError, did_you_mean

_MANIFEST = "_manifest.json"
_JSON_LINES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
_SEVERAL = ("neuronpedia", "circuit-tracer")
"""Formats in which a latent may have several labels, of which the first counts."""
_SOURCES_KEPT = 4
"""Files whose labels stay in memory: stages go through the sources one after the other."""
RECHECK_S = 2.0
"""How long what was read is taken as it is before the file is looked at again: every latent asks."""
_LOADING = threading.Lock()
_RECENT: dict[LabelRequest, tuple[float, ImportedLabels]] = {}


class _Place(NamedTuple):
    """What a path holds."""

    format: LabelFormat
    files: tuple[Path, ...]
    """Of a run its output folder."""
    manifest: Path | None = None
    """Folder of the dictionary whose files these are."""


def read_labels(request: LabelRequest) -> ImportedLabels:
    """The labels of one source of a file or folder; the same object until a file's time or size changes, or a run is reviewed.

    Errors: ConfigError for a path that is not there or holds no labels, lines that cannot be read, labels that are empty,
    latents that come twice, or a source that is not clear.
    """
    with _LOADING:  # several chunks ask at once, and a large file must not be in memory twice
        recent = _RECENT.get(request)
        if recent is not None and time.monotonic() - recent[0] < RECHECK_S:
            return recent[1]
        place = _look(request)
        found = _kept(request, place, _stamp(place))
        if len(_RECENT) >= _SOURCES_KEPT:
            _RECENT.clear()
        _RECENT[request] = (time.monotonic(), found)
        return found


@lru_cache(maxsize=_SOURCES_KEPT)
def _kept(request: LabelRequest, place: _Place, stamp: tuple[tuple[int, ...], ...]) -> ImportedLabels:
    gathered = _gather(place, request)
    if _stamp(place) != stamp:
        raise ConfigError(f"{str(request.path)!r} changed while it was read: run the same command again.")
    return gathered


def _stamp(place: _Place) -> tuple[tuple[int, ...], ...]:
    """Time of change in nanoseconds and size in bytes of each file; of a run how far its reviews go."""
    if place.format == "run":
        from autointerp.imports.run_labels import run_state

        return (run_state(place.files[0]),)
    try:
        return tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in place.files)
    except OSError as error:
        raise ConfigError(
            f"{str(error.filename)!r} cannot be read ({error.strerror}): look what became of it."
        ) from error


def _look(request: LabelRequest) -> _Place:
    from autointerp.imports.run_labels import run_folder_of

    path = request.path
    run = run_folder_of(path)
    if run is not None:  # its dictionary may be older than what people said of the labels
        return _Place("run", (run,))
    if request.format == "run":
        raise ConfigError(f"there is no run in {str(path)!r}: give a run's output folder, or leave format out.")
    if path.is_file():
        return _Place(request.format if request.format != "auto" else _format_of(path), (path,))
    if not path.is_dir():
        raise ConfigError(
            f"there are no labels at {str(path)!r}: give a run's output folder, a dictionary, a parquet or JSON lines file, a graph "
            "of circuit-tracer's, or a folder of Neuronpedia's explanations."
        )
    if (path / _MANIFEST).is_file():
        from autointerp.export.manifest import read_manifest

        return _Place("dictionary", tuple(path / part.name for part in read_manifest(path).files), path)
    if request.format == "circuit-tracer":
        return _Place("circuit-tracer", tuple(_below(path, (".json",))))
    lines = _below(path, _JSON_LINES)
    explanations = [file for file in lines if "explanations" in file.parts[:-1]] or lines
    tables = [] if lines else _below(path, (".parquet",))
    found = explanations or tables
    if not found:
        raise ConfigError(
            f"the folder {str(path)!r} holds no labels (no {_MANIFEST}, no .parquet and no .jsonl file): give the folder or "
            "the file that has them."
        )
    return _Place(request.format if request.format != "auto" else _format_of(found[0]), tuple(found))


def _below(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.name.endswith(endings) and path.is_file())


def _format_of(path: Path) -> LabelFormat:
    if path.name.endswith(".parquet"):
        from autointerp.imports.parquet_files import is_dictionary

        return "dictionary" if is_dictionary(path) else "parquet"
    if path.name.endswith(_JSON_LINES):
        return "neuronpedia" if json_lines.first_object(path).keys() >= KEYS else "jsonl"
    if path.name.endswith(".json"):
        return "circuit-tracer"
    raise ConfigError(
        f"{path.name!r} is no file of labels by its name: give one that ends in .parquet, .jsonl, .jsonl.gz or .json, or set format."
    )


def _lines(place: _Place, request: LabelRequest) -> Iterator[LabelLine]:
    if place.format == "neuronpedia":
        return neuronpedia_labels(place.files, request)
    if place.format == "run":
        from autointerp.imports.run_labels import run_lines

        return run_lines(place.files[0], request)
    if place.format == "circuit-tracer":
        from autointerp.imports.circuit_tracer import circuit_tracer_labels

        return circuit_tracer_labels(place.files, request)
    if place.format == "jsonl":
        return json_lines.jsonl_labels(place.files, request)
    from autointerp.imports.parquet_files import parquet_labels

    return parquet_labels(place.files, request, _told(place).get("seen", {}))


def _told(place: _Place) -> dict[str, Any]:
    """What a dictionary's manifest says of the run that made it."""
    if place.manifest is None:
        return {}
    from autointerp.export.manifest import read_manifest

    return read_manifest(place.manifest).run


class _Source:
    """The labels of one source as they are read."""

    def __init__(self, name: str, fingerprint: str, *, several: bool) -> None:
        self.name, self.fingerprint, self._several = name, fingerprint, several
        self.labels = LabelIndex()

    def add(self, line: LabelLine) -> None:
        if self.fingerprint and line.fingerprint and line.fingerprint != self.fingerprint:
            raise ConfigError(
                f"{line.place} is about another coder ({line.fingerprint[:12]}) than the lines before it "
                f"({self.fingerprint[:12]}): set source to one source, or give a file of one coder."
            )
        self.fingerprint = self.fingerprint or line.fingerprint
        if line.text is not None and not line.text.strip():
            raise ConfigError(f"{line.place} has an empty label for latent {line.latent}: write one, or leave it out.")
        before = self.labels.get(line.latent)
        if before is not None and not self._several:
            raise ConfigError(f"{line.place} has a second label of latent {line.latent}: one a latent is allowed.")
        if before is not None and (before.text is not None or line.text is None):
            return
        text = None if line.text is None else clean_label(line.text)
        reason = "" if text else line.reason
        self.labels.put(
            line.latent,
            ImportedLabel(text, line.model, line.kind, line.author, reason, line.corpus, line.sides, line.seen),
        )


def _gather(place: _Place, request: LabelRequest) -> ImportedLabels:
    """The lines of the wanted source; of others no more is kept than that they are there."""
    kept: dict[str, _Source] = {}
    names: set[str] = set()
    for line in _lines(place, request):
        if line.source not in kept:
            first = not names
            names.add(line.source)
            same_coder = bool(line.fingerprint) and line.fingerprint == request.own_fingerprint
            maybe = line.source == request.own_source or same_coder or first
            if line.source != request.source if request.source else not maybe:
                continue
            kept[line.source] = _Source(line.source, line.fingerprint, several=place.format in _SEVERAL)
        kept[line.source].add(line)
    if not names:
        raise ConfigError(f"{str(request.path)!r} holds no label{_filter(request)}: give a file that has some.")
    chosen = kept[_chosen(kept, names, request)]
    split, windows = _origin(place, chosen.name)
    return ImportedLabels(
        chosen.labels,
        place.format,
        chosen.name,
        chosen.fingerprint,
        _sha256_of_labels(chosen.labels) if place.format == "run" else _sha256(place.files),
        max(chosen.labels),
        split,
        windows,
    )


def _origin(place: _Place, source: str) -> tuple[Split | None, Path | None]:
    """How the run that wrote the labels dealt its corpus to sides, and its exemplar store, as far as they are known."""
    if place.format == "run":
        from autointerp.imports.run_labels import run_split, run_windows

        return run_split(place.files[0]), run_windows(place.files[0], source)
    config = _told(place).get("config")
    return (Split.of(config) if isinstance(config, dict) else None), None


def _filter(request: LabelRequest) -> str:
    given = [("author", request.author), ("type_name", request.type_name)]
    wanted = [f"{name} {value!r}" for name, value in given if value]
    return f" with {' and '.join(wanted)}" if wanted else ""


def _chosen(kept: Mapping[str, _Source], names: Collection[str], request: LabelRequest) -> str:
    """The source that is named, else the only one, else that of the same coder, else that of the same name."""
    if request.source:
        if request.source not in kept:
            raise ConfigError(
                f"{str(request.path)!r} has no source {request.source!r}: {did_you_mean(request.source, names)}"
            )
        return request.source
    if len(names) == 1:
        return next(iter(names))
    same = [one.name for one in kept.values() if one.fingerprint and one.fingerprint == request.own_fingerprint]
    chosen = same[0] if len(same) == 1 else request.own_source
    if chosen not in kept:
        known = ", ".join(repr(name) for name in sorted(names)[:5])
        raise ConfigError(
            f"{str(request.path)!r} has labels of {len(names)} sources ({known}) and none of them is {request.own_source!r}: "
            "set source to the one that is meant."
        )
    return chosen


def _sha256(files: Sequence[Path]) -> str:
    """Of the one file, or of the sha256s of several, in their order."""
    found = []
    for path in files:
        with path.open("rb") as file:
            found.append(hashlib.file_digest(file, "sha256"))
    if len(found) == 1:
        return found[0].hexdigest()
    return hashlib.sha256(b"".join(one.digest() for one in found)).hexdigest()


def _sha256_of_labels(labels: Mapping[int, ImportedLabel]) -> str:
    """Of the labels themselves, by latent: a run's database changes with every look at it."""
    found = hashlib.sha256()
    for latent in sorted(labels):
        found.update(f"{latent}\t{labels[latent].text or ''}\n".encode())
    return found.hexdigest()
