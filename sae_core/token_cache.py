"""Finished token corpora, kept so that another run on the same text need not read and tokenize it again.

An entry is a folder named by the digest of all that decides its content. It appears whole by a rename; runs take its files
by hard links. Nothing here may stop a run: what cannot be read is built again, what cannot be written is left.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_core.corpus_writer import CORPUS, TOKENIZER
from sae_core.errors import ConfigError

FOLDER_VARIABLE, LIMIT_VARIABLE = "AUTOINTERP_CACHE", "AUTOINTERP_CACHE_GIB"
DEFAULT_LIMIT_BYTES = 20 << 30
_USED = "used"
"""Its time of change is when an entry was last taken."""
_UNFINISHED = "."
"""How the names of folders that are being made or removed begin."""
_ABANDONED_S = 24 * 3600.0


@dataclass(frozen=True)
class TokenCache:
    """A folder of finished corpora."""

    folder: Path
    limit_bytes: int = DEFAULT_LIMIT_BYTES
    """Beyond it, entries that were not used for the longest time are removed; 0 keeps nothing."""

    @staticmethod
    def of(environment: Mapping[str, str]) -> TokenCache:
        """The cache that ``AUTOINTERP_CACHE`` and ``AUTOINTERP_CACHE_GIB`` name, else that in the user's cache folder.

        Raises ConfigError for a limit that is no number.
        """
        given = environment.get(LIMIT_VARIABLE, "")
        try:
            limit = int(float(given) * 2**30) if given else DEFAULT_LIMIT_BYTES
        except (ValueError, OverflowError) as error:
            raise ConfigError(f"{LIMIT_VARIABLE} is {given!r}: give a number of GiB, 0 for no cache.") from error
        if environment.get(FOLDER_VARIABLE):
            root = Path(environment[FOLDER_VARIABLE]).expanduser()
        else:
            root = _user_caches(environment) / "autointerp"
        return TokenCache(root.absolute() / "corpora", limit)

    def take(self, key: str, folder: Path) -> bool:
        """Put the files of an entry into ``folder``, ``corpus.json`` last; False where there is no whole one."""
        entry = self.folder / key
        try:
            if not entry.is_dir():
                return False
            if not _is_whole(entry):
                self._remove(entry)
                return False
            folder.mkdir(parents=True, exist_ok=True)
            names = sorted(path.name for path in entry.iterdir() if path.name not in (CORPUS, _USED))
            for name in [*names, CORPUS]:
                _link(entry / name, folder / name)
        except OSError:
            return False
        with suppress(OSError):
            os.utime(entry / _USED)
        return True

    def keep(self, key: str, folder: Path) -> None:
        """Make the finished corpus in ``folder`` an entry, and remove others where there is too much."""
        with suppress(OSError, ValueError):
            names = [*json.loads((folder / CORPUS).read_text(encoding="utf-8"))["files"], CORPUS]
            if sum((folder / name).stat().st_size for name in names) > self.limit_bytes:
                return
            part = self.folder / f"{_UNFINISHED}{key}-{uuid.uuid4().hex}"
            part.mkdir(parents=True)
            try:
                for name in names:
                    _link(folder / name, part / name)
                (part / _USED).touch()
                if not (self.folder / key / CORPUS).is_file():
                    part.rename(self.folder / key)
            finally:
                shutil.rmtree(part, ignore_errors=True)  # gone already where it was renamed
            self._make_room()

    def _make_room(self) -> None:
        sizes: dict[Path, tuple[float, int]] = {}
        for entry in self.folder.iterdir():
            with suppress(OSError):
                if entry.name.startswith(_UNFINISHED):
                    if time.time() - entry.stat().st_mtime > _ABANDONED_S:
                        shutil.rmtree(entry, ignore_errors=True)
                    continue
                sizes[entry] = ((entry / _USED).stat().st_mtime, sum(f.stat().st_size for f in entry.iterdir()))
        total = sum(size for _, size in sizes.values())
        for entry, (_, size) in sorted(sizes.items(), key=lambda item: item[1][0]):
            if total <= self.limit_bytes:
                return
            self._remove(entry)
            total -= size

    def _remove(self, entry: Path) -> None:
        """Take an entry away in one step, then delete it."""
        gone = self.folder / f"{_UNFINISHED}{entry.name}-{uuid.uuid4().hex}"
        with suppress(OSError):
            entry.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def cache_key(*parts: Any) -> str:
    """sha256 of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _is_whole(entry: Path) -> bool:
    """Whether the files are those that ``corpus.json`` speaks of."""
    try:
        told = json.loads((entry / CORPUS).read_text(encoding="utf-8"))
        if not isinstance(told["fingerprint"], str) or TOKENIZER not in told["files"]:
            return False
        for name, facts in told["files"].items():
            if (entry / name).stat().st_size != facts["bytes"] or _blake2b(entry / name) != facts["blake2b"]:
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


def _blake2b(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no such link. The target appears whole."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        temporary.replace(target)
        temporary.unlink(missing_ok=True)  # a rename onto another name of the same file does nothing
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _user_caches(environment: Mapping[str, str]) -> Path:
    if environment.get("XDG_CACHE_HOME"):
        return Path(environment["XDG_CACHE_HOME"])
    if sys.platform == "win32" and environment.get("LOCALAPPDATA"):
        return Path(environment["LOCALAPPDATA"])
    with suppress(RuntimeError):
        return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path("/nonexistent")  # no home: nothing can be kept
