"""What every reader of labels gives: one line a latent, and what is kept of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autointerp.imports.split import Split
from sae_core.errors import ConfigError

LabelFormat = Literal["auto", "run", "dictionary", "parquet", "jsonl", "neuronpedia", "circuit-tracer"]
"""What a path holds; ``auto`` looks at it."""
Sides = Literal["same", "held_back", "unknown"]
"""How what a label's writer was shown is kept from being scored: the writer's run dealt the same corpus to the same sides;
its text is left out of the windows that are judged; or nobody knows what it was."""


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """Which labels are wanted of which file. It is the key under which they are kept in the process."""

    path: Path
    """A run's output folder, a dictionary, a file, or a folder of files."""
    format: LabelFormat = "auto"
    """What it is."""
    source: str = ""
    """Name of the source in it; "" for the only one, else for the coder below."""
    own_source: str = ""
    """Name of the source that is being labelled."""
    own_fingerprint: str = ""
    """sha256 of the weights of the coder that is being labelled."""
    latent_column: str = "latent"
    """Column or key with the latent's number."""
    label_column: str = "label"
    """Column or key with the text."""
    author: str = ""
    """Neuronpedia: only explanations of this author id."""
    type_name: str = ""
    """Neuronpedia: only explanations of this type."""


@dataclass(frozen=True, slots=True)
class LabelLine:
    """One line of a file, as it stands there."""

    place: str
    """File and line or row, for messages."""
    latent: int
    """Number of the latent."""
    text: str | None
    """The label; None where the line says that there is none."""
    source: str = ""
    """Source that it belongs to, "" where the file has no such thing."""
    fingerprint: str = ""
    """sha256 of its coder's weights, "" where the file does not say it."""
    model: str = ""
    """Language model that wrote it."""
    kind: str = ""
    """Kind of explainer that wrote it."""
    author: str = ""
    """Who wrote it, or the run that did."""
    reason: str = ""
    """Why there is no text."""
    corpus: str = ""
    """Fingerprint of the corpus from which it was written, "" where the file does not say it."""
    sides: str = ""
    """Of a label that its run took from elsewhere itself: the ``Sides`` there."""
    seen: tuple[str, ...] | None = None
    """Of a label that a person edited: the windows (``context:position``) that the person may have seen; None where that is
    not known."""


@dataclass(frozen=True, slots=True)
class ImportedLabel:
    """One label from elsewhere."""

    text: str | None
    """The cleaned label; None where the file says that there is none."""
    model: str
    """Language model that wrote it, "" where that is not known."""
    kind: str
    """Kind of explainer that wrote it, "" where that is not known."""
    author: str
    """Who wrote it, or the run that did; "" where that is not known."""
    reason: str = ""
    """Why there is no text."""
    corpus: str = ""
    """Fingerprint of the corpus from which it was written, "" where that is not known."""
    sides: str = ""
    """Of a label that its run took from elsewhere itself: the ``Sides`` there."""
    seen: tuple[str, ...] | None = None
    """Windows that the person who edited it may have seen; None where that is not known."""

    @property
    def edited(self) -> bool:
        """Whether a person wrote it after a run, and may have seen windows of the score side."""
        return bool(self.corpus) and self.kind.partition(".")[0] == "human"

    @property
    def foreign(self) -> bool:
        """Whether no run is known that dealt what its writer was shown to sides."""
        taken_over = self.kind == "imported" or bool(self.sides)
        return not self.corpus or (taken_over and self.sides != "same")


@dataclass(frozen=True, slots=True)
class ImportedLabels:
    """The labels of one source of one file."""

    labels: Mapping[int, ImportedLabel]
    """By the latent's number."""
    format: str
    """What the file is."""
    source: str
    """Name of the source in it, "" where the file has none."""
    fingerprint: str
    """sha256 of its coder's weights, "" where the file does not say it."""
    sha256: str
    """Of the file, or of the sha256s of the folder's files."""
    largest: int
    """Largest latent's number, -1 for no labels."""
    split: Split | None = None
    """How the run that wrote them dealt its corpus to sides; None where that is not known."""
    windows: Path | None = None
    """Exemplar store of the source in the run that wrote them, where it is there."""

    def provenance(self, label: ImportedLabel, path: Path) -> dict[str, Any]:
        """Where a label comes from, as JSON."""
        found = {
            "from": path.name,
            "format": self.format,
            "sha256": self.sha256,
            "source": self.source,
            "coder_fingerprint": self.fingerprint,
            "kind": label.kind,
            "author": label.author,
        }
        return {name: value for name, value in found.items() if value}


def clean_label(text: str) -> str:
    """The text on one line, without control characters, NULs and half surrogate pairs, which no database takes."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    printable = "".join(" " if unicodedata.category(sign) == "Cc" else sign for sign in whole)
    return " ".join(printable.split())


def latent_number(value: object, place: str) -> int:
    """A latent's number from what stands in a file: a whole number, or its digits as text.

    Errors: ConfigError for anything else and for negative numbers.
    """
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 12:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40:
        return value
    raise ConfigError(f"{place} has {value!r:.60} as the latent: it must be a whole number from 0 on.")
