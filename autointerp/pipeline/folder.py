"""Where a run keeps its files, and the note that says whose folder it is."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autointerp.pipeline.atomic_files import atomic_write, create_once
from autointerp.shown_url import without_password
from sae_core.errors import StoreError

NOTE = "run.json"
DATABASE = "autointerp.db"
_UNUSABLE = {
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ELOOP,
    errno.ENOENT,
}


@contextmanager
def usable_folder(path: Path, given_as: str = "--out") -> Iterator[None]:
    """Turn what a path itself forbids (a file on the way, no permission, a name too long) into a StoreError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _UNUSABLE:
            raise
        raise StoreError(
            f"{given_as} {str(path)!r} cannot be a folder to write to ({(error.strerror or str(error)).lower()}): "
            "give another path."
        ) from error
    except ValueError as error:
        if "null byte" not in str(error) and "null character" not in str(error):
            raise
        raise StoreError(f"{given_as} {str(path)!r} has a null character in it: give another path.") from error


@dataclass(frozen=True, slots=True)
class RunNote:
    """What ``run.json`` says."""

    run_id: str
    digest: str
    """Digest of the configuration."""
    store: str | None
    """URL of the store without its password; None for the folder's own database."""

    @property
    def shown_store(self) -> str | None:
        """The same to be shown and compared: earlier versions left a password in it that was a parameter."""
        return None if self.store is None else without_password(self.store)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """An output folder: ``autointerp.db``, ``corpus/``, ``sources/<name>/``, ``dictionary/``, ``summary.json``, ..."""

    root: Path
    reused: Path | None = None
    """Output folder of the run whose corpus, exemplars and directions are read in the place of its own."""

    @property
    def _extracted(self) -> Path:
        """Where what extraction leaves lies."""
        return self.root if self.reused is None else self.reused

    @property
    def database(self) -> Path:
        """The store, unless ``store.url`` names another."""
        return self.root / DATABASE

    @property
    def corpus(self) -> Path:
        """The token corpus."""
        return self._extracted / "corpus"

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
        return self._extracted / "sources" / name / "exemplars"

    def directions(self, name: str) -> Path:
        """The random directions of a control source."""
        return self._extracted / "sources" / name / "directions.safetensors"

    def lens(self, name: str) -> Path:
        """What a source's directions write: the run's own where it is there, else that of the run whose exemplars it reuses."""
        own = self.evidence(name, "lens", 0)
        return own if self.reused is None or own.is_file() else RunFolder(self.reused).evidence(name, "lens", 0)

    def evidence(self, name: str, kind: str, ordinal: int) -> Path:
        """One chunk's evidence file."""
        return self.source(name) / "evidence" / f"{kind}-{ordinal:06d}.safetensors"

    def drop_evidence(self, kind: str, name: str = "*", ordinal: int | None = None) -> None:
        """Remove files of one kind, of all sources and chunks unless told which, whatever their ending."""
        number = "[0-9]*" if ordinal is None else f"{ordinal:06d}"
        for path in self.root.glob(f"sources/{name}/evidence/{kind}-{number}.*"):
            path.unlink(missing_ok=True)

    def drafts(self, name: str, number: int, ordinal: int) -> Path:
        """One chunk's drafts after a round of an explainer that revises; round 0 is the first draft."""
        return self.source(name) / "evidence" / f"drafts-{number}-{ordinal:06d}.json"

    def tried(self, name: str, number: int, ordinal: int) -> Path:
        """What one chunk's latents did on the texts of a round."""
        return self.source(name) / "evidence" / f"tried-{number}-{ordinal:06d}.json"

    def written(self, name: str, what: str, ordinal: int) -> Path:
        """Texts that scorers had written for one chunk's latents; ``what``: from their own ``labels`` or ``shuffled`` ones."""
        return self.source(name) / "evidence" / f"written-{what}-{ordinal:06d}.json"

    def tried_written(self, name: str, what: str, ordinal: int) -> Path:
        """What the latents did on these texts."""
        return self.source(name) / "evidence" / f"tried-{what}-{ordinal:06d}.json"

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
        """Make the folder the run's own, whoever's it was."""
        with atomic_write(self.root / NOTE) as temporary:
            temporary.write_text(_note_text(note), encoding="utf-8")

    def claim_note(self, note: RunNote) -> bool:
        """Make the folder the run's own, unless another start was first: then nothing changes and False comes back."""
        return create_once(self.root / NOTE, _note_text(note))

    def check_free_for(self, digest: str, changed: Callable[[RunNote], str] = lambda note: "") -> RunNote | None:
        """The note of the same configuration's run here, None for a folder that is new or empty.

        ``changed`` says what differs from the run of another configuration, for the sentence. Errors: StoreError for a
        folder of another run, of something else, or a path that cannot be a folder.
        """
        with usable_folder(self.root):
            return self._check_free_for(digest, changed)

    def _check_free_for(self, digest: str, changed: Callable[[RunNote], str]) -> RunNote | None:
        if self.root.is_symlink() and not self.root.exists():
            raise StoreError(
                f"--out {str(self.root)!r} is a link to {os.readlink(self.root)!r}, which is not there: make that folder, or "
                "choose another --out."
            )
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(
                f"--out {str(self.root)!r} is a file: give a folder, one that is not there yet will be made."
            )
        note = self.read_note()
        if note is not None:
            if note.digest != digest:
                raise StoreError(
                    f"the output folder {str(self.root)!r} belongs to another run, {note.run_id} "
                    f"({changed(note) or 'another configuration'}): "
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


def _note_text(note: RunNote) -> str:
    return json.dumps({"run_id": note.run_id, "digest": note.digest, "store": note.store}, indent=2) + "\n"
