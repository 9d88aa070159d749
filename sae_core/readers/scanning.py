"""Which reader reads a file: the modules of this package, by the ending of the file's name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from typing import Protocol, cast

import sae_core.readers
from sae_core.document import Document
from sae_core.readers.field import Field, FieldKind
from sae_core.readers.file import CorpusFile


class Reader(Protocol):
    """A module of ``sae_core.readers`` that reads one kind of file."""

    SUFFIXES: tuple[str, ...]
    """Endings of its files' names."""
    KINDS: tuple[FieldKind, ...]
    """What its files can hold."""

    def read(self, file: CorpusFile, field: Field) -> Iterator[Document]:
        """The documents of a file. Raises CorpusError."""
        ...


@cache
def readers() -> tuple[Reader, ...]:
    """Every reader, by name: the modules of ``sae_core.readers`` that have ``SUFFIXES``."""
    found = (
        importlib.import_module(f"sae_core.readers.{m.name}") for m in pkgutil.iter_modules(sae_core.readers.__path__)
    )
    return tuple(cast(Reader, module) for module in found if hasattr(module, "SUFFIXES"))


def reader_of(name: str) -> Reader | None:
    """The reader of a file of this name, if there is one."""
    return next((reader for reader in readers() if name.endswith(reader.SUFFIXES)), None)


def suffixes(kind: FieldKind) -> tuple[str, ...]:
    """Endings of the files that can hold documents of this kind."""
    return tuple(suffix for reader in readers() if kind in reader.KINDS for suffix in reader.SUFFIXES)
