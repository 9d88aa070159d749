"""What a stage is: how its work is cut into chunks, what must be done before, and what one chunk does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from autointerp.store.models import Base

if TYPE_CHECKING:
    from autointerp.pipeline.context import RunContext

Queue = Literal["gpu", "llm", "export", "control"]


@dataclass(frozen=True, slots=True)
class ChunkSpec:
    """One chunk of a stage: what :meth:`Stage.run` needs to know, as JSON."""

    ordinal: int
    source: str = ""
    """Name of the source; "" for a chunk of all sources."""
    payload: dict[str, Any] = field(default_factory=dict, hash=False)
    units: int = 1
    """Work in it, in the stage's unit."""


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """What a chunk leaves in the store; its files are on disk already."""

    rows: Sequence[Base] = ()
    units: int | None = None
    """Work done; None for as much as was planned."""


class NotThere(Exception):
    """What a chunk reads is not there, yet or any more: the chunk is given back, for a later try."""


class Progress(Protocol):
    """Told how many units of the chunk are done, counted from its start; raises to stop the work."""

    def __call__(self, done: int, /) -> None: ...


class Stage(ABC):
    """A step of a run. Stages hold no state: they are data for the drivers."""

    name: str
    """Of its chunks in the store; stages of rounds have one for each of theirs."""
    queue: ClassVar[Queue]
    unit: ClassVar[str] = "chunks"
    """What is counted in progress bars."""
    after_all: tuple[str, ...] = ()
    """Stages that must have settled whole before this one is planned: what makes it a barrier."""
    after_same: tuple[str, ...] = ()
    """Stages of which the chunk with the same source and ordinal must have settled."""
    writes: ClassVar[tuple[type[Base], ...]] = ()
    """Tables that its chunks write, with a source and a latent in each row: what a second try must clear first."""
    leaves: tuple[str, ...] = ()
    """Kinds of its files in the evidence folders, names up to the ordinal: they go where its chunks are forgotten, so that nobody takes
    them for what a second try found."""
    prepares: ClassVar[tuple[type[Base], ...]] = ()
    """Tables that a later stage writes from what servers answered in this one: a second try of their rows begins here."""
    essential: ClassVar[bool] = True
    """Whether the run stops where a chunk is poisoned; else its latents get typed failures and the run goes on."""

    beside: ClassVar[bool] = False
    """Whether a driver works its chunk in a thread of its own, and others, that read what it writes, at the same time."""

    def at_once(self, context: RunContext) -> int:
        """Chunks of it that a driver works at once, each in a thread of its own; 0 for the driver's own thread."""
        return int(self.beside)

    @property
    def barrier(self) -> bool:
        """Whether only the reconciler releases it."""
        return bool(self.after_all)

    @abstractmethod
    def plan(self, context: RunContext) -> list[ChunkSpec]:
        """The stage's chunks. Called when ``after_all`` has settled and ``after_same`` is planned; deterministic."""

    def can_begin(self, context: RunContext, spec: ChunkSpec) -> bool:
        """Whether what a ready chunk reads is there; a driver asks before it claims the chunk."""
        return True

    def remark(self, context: RunContext) -> str | None:
        """A line for the user once all chunks are done, None for nothing to tell."""
        return None

    @abstractmethod
    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        """Do one chunk. Files are written atomically and are the same whoever writes them; rows are returned."""


def latent_chunks(context: RunContext) -> list[ChunkSpec]:
    """The selected latents of every source in chunks of ``chunk_latents``: the same for every stage over latents."""
    size = context.config.chunk_latents
    chunks: list[ChunkSpec] = []
    for source in context.sources:
        latents = context.latents(source.name)
        for ordinal, start in enumerate(range(0, len(latents), size)):
            part = latents[start : start + size]
            chunks.append(ChunkSpec(ordinal, source.name, {"latents": encode_latents(part)}, len(part)))
    return chunks


def encode_latents(latents: Sequence[int]) -> str | list[int]:
    """Ascending latents as ``"first:last+1"`` where none is left out, else as a list."""
    if len(latents) > 1 and latents[-1] - latents[0] == len(latents) - 1:
        return f"{latents[0]}:{latents[-1] + 1}"
    return list(latents)


def decode_latents(spec: ChunkSpec) -> list[int]:
    """The latents of a chunk, ascending."""
    given = spec.payload["latents"]
    if isinstance(given, str):
        first, last = given.split(":")
        return list(range(int(first), int(last)))
    return [int(latent) for latent in given]
