"""What a format of another tool is: a frozen model whose fields are what a user may set, and the parts that it is written in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from autointerp.exchange.output_files import OutputFiles
from autointerp.exchange.run_reading import RunReading


@dataclass(frozen=True, slots=True)
class Part:
    """Some files of an export, written together; after a kill the parts that are whole are not written again."""

    name: str
    """Unique in the export."""
    write: Callable[[OutputFiles], Mapping[str, int]]
    """Writes them and says how many things are in them, e.g. ``{"latents": 12}``; one without things leaves no files."""


class ExchangeFormat(BaseModel, ABC):
    """A format that a run is written in. Its fields are set by ``--set name=value``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    """Its name on the command line."""

    @abstractmethod
    def check(self, run: RunReading) -> None:
        """Refuses a run that cannot be written so. Errors: InputError."""

    @abstractmethod
    def parts(self, run: RunReading) -> Iterator[Part]:
        """The parts in their order; which there are does not depend on what is written already."""

    @abstractmethod
    def finish(self, run: RunReading, files: OutputFiles, counts: Counter[str]) -> None:
        """Write what says where the parts are, when all of them are there."""

    @abstractmethod
    def described(self) -> str:
        """What the files are and how they are used, as Markdown for a card."""

    @property
    def told(self) -> dict[str, Any]:
        """The fields, as JSON."""
        return self.model_dump(mode="json")
