"""The files of a corpus, in the order in which they are read: of a folder, a saved data set, the hub, or a lone one."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae_core.dataset_files import chosen_files
from sae_core.errors import CorpusError
from sae_core.hashing import seed_for
from sae_core.hub import HubDataset, data_set
from sae_core.readers.field import Field
from sae_core.readers.file import CorpusFile
from sae_core.readers.scanning import reader_of, suffixes
from sae_core.saved_dataset import saved_dataset_files

PYTHON_STDLIB = "python-stdlib"
"""Corpus path that means the standard library of the running interpreter."""
_MAX_SOURCE_BYTES = 256 * 1024
"""In a folder of texts: a larger source file is a generated table. Does not bind .txt and files of rows."""
_SKIPPED_FOLDERS = ("site-packages", "dist-packages", "__pycache__")


@dataclass(frozen=True)
class Place:
    """Where a corpus lies and which of its files are read."""

    path: str
    """Folder, file, hub data set id, or :data:`PYTHON_STDLIB`."""
    suffixes: tuple[str, ...] = ()
    """Files of a folder to read, by their ending; empty for those that can hold the wanted field."""
    split: str | None = None
    subset: str | None = None
    revision: str | None = None
    seed: int = 0
    """Orders a folder's files."""


@dataclass(frozen=True)
class CorpusFiles:
    """The files to read, in their order."""

    files: tuple[CorpusFile, ...]
    commit: str | None
    """Of a hub data set."""

    def identity(self) -> list[Any]:
        """What tells, as a JSON value, whether the files are still the same."""
        return [self.commit, [[file.name, file.size, file.version] for file in self.files]]


def find_files(place: Place, field: Field) -> CorpusFiles:
    """The files of the corpus. A folder's files come in an order drawn from the seed, so that the first n tokens are a
    fair sample of it; a saved data set's come in its own.

    Raises CorpusError where none fits, MissingFileError where there is no such place.
    """
    if place.path == PYTHON_STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        return _shuffled(_below(root, place.suffixes or (".py",)), place, str(root), place.suffixes or (".py",))
    found = data_set(place.path, what="corpus.path", revision=place.revision)
    if isinstance(found, HubDataset):
        return _on_hub(found, place, field)
    if found.is_file():
        return CorpusFiles((_lone(found, field),), None)
    saved = saved_dataset_files(found, place.split)
    if saved is not None:
        return CorpusFiles(tuple(CorpusFile.local(file, file.relative_to(found).as_posix()) for file in saved), None)
    endings = place.suffixes or suffixes(field.kind)
    files = _below(found, endings)
    if not files and not place.suffixes:
        files = _below(found, suffixes("tokens"))  # arrays of ids need no field to be named
    if place.split is not None or place.subset is not None:
        readme = found / "README.md"
        text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
        chosen = set(chosen_files([file.name for file in files], place.split, place.subset, text, str(found)))
        files = [file for file in files if file.name in chosen]
    return _shuffled(files, place, str(found), endings)


def _lone(path: Path, field: Field) -> CorpusFile:
    reader = reader_of(path.name)
    if reader is None:
        known = dict.fromkeys([".txt", *suffixes("text"), *suffixes("tokens")])
        raise CorpusError(
            f"corpus.path is {str(path)!r}; a corpus is a folder or a file that ends in {', '.join(known)}."
        )
    if field.kind not in reader.KINDS and reader.KINDS != ("tokens",):
        raise CorpusError(
            f"corpus.path is {str(path)!r}, which has no fields, and {field.setting} is set: leave that out, or give a file "
            f"that ends in {', '.join(suffixes(field.kind))}."
        )
    try:
        return CorpusFile.local(path, path.name, lone=True)
    except OSError as error:
        raise CorpusError(
            f"corpus.path is {str(path)!r}, which cannot be read ({error.strerror}): give another file."
        ) from error


def _below(root: Path, endings: tuple[str, ...]) -> list[CorpusFile]:
    """Files of a folder whose names end so, by name."""
    named = ((path, path.relative_to(root).as_posix()) for path in root.rglob("*") if path.name.endswith(endings))
    wanted = (CorpusFile.local(path, name) for path, name in sorted(named) if not _skipped(name) and path.is_file())
    return [file for file in wanted if file.size <= _MAX_SOURCE_BYTES or not _is_source(file.name)]


def _skipped(name: str) -> bool:
    return any(part in _SKIPPED_FOLDERS or part.startswith(".") for part in name.split("/"))


def _is_source(name: str) -> bool:
    """Whether it is read as plain text and is none by its name."""
    reader = reader_of(name)
    return (reader is None or reader.KINDS == ("text",)) and not name.endswith(".txt")


def _on_hub(repository: HubDataset, place: Place, field: Field) -> CorpusFiles:
    kinds = [place.suffixes] if place.suffixes else [_rows(field), suffixes("tokens"), (".txt",), (".md", ".py")]
    names: Sequence[str] = []
    endings: tuple[str, ...] = ()
    for endings in kinds:
        names = [n for n in sorted(repository.sizes) if n.endswith(endings) and not _skipped(n) and n != "README.md"]
        if names:
            break
    readme = repository.read_text("README.md")
    given = f"the hub data set {repository.name!r}"
    names = chosen_files(names, place.split, place.subset, readme, given) if names else []
    files = [
        CorpusFile(
            name,
            f"{repository.name}/{name}",
            repository.sizes[name],
            repository.commit,
            repository.opener(name),
            repository.local(name),
        )
        for name in names
    ]
    every = tuple(dict.fromkeys(ending for kind in kinds for ending in kind))
    found = _shuffled(files, place, given, endings if place.suffixes else every)
    return CorpusFiles(found.files, repository.commit)


def _rows(field: Field) -> tuple[str, ...]:
    """Endings of files of rows that can hold the field."""
    plain = suffixes("text") if field.kind != "text" else suffixes("messages")
    return tuple(s for s in suffixes(field.kind) if s in plain) if field.kind == "text" else suffixes(field.kind)


def _shuffled(files: Sequence[CorpusFile], place: Place, given: str, endings: tuple[str, ...]) -> CorpusFiles:
    if not files:
        raise CorpusError(
            f"corpus.path is {given if place.path == PYTHON_STDLIB else place.path!r}, and no file in it ends in "
            f"{', '.join(endings)}: set corpus.suffixes to what is there."
        )
    order = np.random.default_rng(seed_for(place.seed, "file order")).permutation(len(files))
    return CorpusFiles(tuple(files[index] for index in order), None)
