"""Where a run keeps its files, and the note that says whose folder it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from autointerp.pipeline.atomic_files import atomic_write
from sae_core.errors import StoreError

NOTE = "run.json"
DATABASE = "autointerp.db"


@dataclass(frozen=True, slots=True)
class RunNote:
    """What ``run.json`` says."""

    run_id: str
    digest: str
    """Digest of the configuration."""
    store: str | None
    """URL of the store without its password; None for the folder's own database."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """An output folder: ``autointerp.db``, ``corpus/``, ``sources/<name>/``, ``dictionary/``, ``summary.json``, ..."""

    root: Path

    @property
    def database(self) -> Path:
        """The store, unless ``store.url`` names another."""
        return self.root / DATABASE

    @property
    def corpus(self) -> Path:
        """The token corpus."""
        return self.root / "corpus"

    @property
    def dictionary(self) -> Path:
        """The labelled dictionary as parquet."""
        return self.root / "dictionary"

    @property
    def summary(self) -> Path:
        """The summary as JSON."""
        return self.root / "summary.json"

    @property
    def overview(self) -> Path:
        """The picture."""
        return self.root / "overview.png"

    def source(self, name: str) -> Path:
        """Everything of one source."""
        return self.root / "sources" / name

    def partial(self, name: str, ordinal: int) -> Path:
        """What one shard of the corpus left for a source."""
        return self.source(name) / "partials" / f"{ordinal:06d}.safetensors"

    def exemplars(self, name: str) -> Path:
        """A source's exemplar store."""
        return self.source(name) / "exemplars"

    def evidence(self, name: str, kind: str, ordinal: int) -> Path:
        """One chunk's evidence file."""
        return self.source(name) / "evidence" / f"{kind}-{ordinal:06d}.safetensors"

    def read_note(self) -> RunNote | None:
        """The note, None where there is none. Errors: StoreError for a note that cannot be read."""
        path = self.root / NOTE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return RunNote(str(data["run_id"]), str(data["digest"]), data["store"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise StoreError(f"{str(path)!r} is not the note of a run: choose another --out, or delete it.") from error

    def write_note(self, note: RunNote) -> None:
        """Make the folder the run's own."""
        with atomic_write(self.root / NOTE) as temporary:
            text = json.dumps({"run_id": note.run_id, "digest": note.digest, "store": note.store}, indent=2)
            temporary.write_text(text + "\n", encoding="utf-8")

    def check_free_for(self, digest: str) -> RunNote | None:
        """The note of the same configuration's run here, None for a folder that is new or empty.

        Errors: StoreError for a folder of another run, or of something else.
        """
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(
                f"--out {str(self.root)!r} is a file: give a folder, one that is not there yet will be made."
            )
        note = self.read_note()
        if note is not None:
            if note.digest != digest:
                raise StoreError(
                    f"the output folder {str(self.root)!r} belongs to another run, {note.run_id} (another configuration): "
                    "choose another --out, or delete that folder to start anew."
                )
            return note
        # a start that was killed early leaves the database and hidden temporary files
        foreign = (
            [p.name for p in self.root.iterdir() if not p.name.startswith((DATABASE, "."))]
            if self.root.is_dir()
            else []
        )
        if foreign:
            raise StoreError(
                f"the output folder {str(self.root)!r} holds {sorted(foreign)[0]!r}, which is no part of a run: "
                "choose another --out, or an empty folder."
            )
        return None
