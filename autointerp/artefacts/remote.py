"""The place where workers leave each other files: anything that fsspec can reach. Objects are whole or not there."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from autointerp.pipeline.atomic_files import atomic_write, disk_full
from autointerp.shown_url import without_password
from sae_core.errors import AutointerpError, ConfigError, StoreError, StoreUnavailableError

_PUT_IS_WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "memory"}
"""Stores that show an object once all of it is there. On others a file is put under another name, then moved."""
_CHUNK = 2**20


class Remote:
    """A URL and what lies below it."""

    def __init__(self, url: str) -> None:
        """``url``: ``s3://bucket/prefix``, ``file:///shared/folder``, a path, ... Errors: ConfigError."""
        from fsspec.core import url_to_fs

        self.url = url.rstrip("/")
        try:
            files, root = url_to_fs(self.url)
        except ImportError as error:
            raise ConfigError(
                f"artefacts.url {_shown(url)!r} needs a package that is not installed: {without_password(str(error))}."
            ) from error
        except ValueError as error:
            raise ConfigError(
                f"artefacts.url {_shown(url)!r} is no place for files ({without_password(str(error))}): give a folder, or a URL such as s3://bucket/prefix."
            ) from error
        self._files: Any = files
        self._root = root.rstrip("/")
        self._protocols = {files.protocol} if isinstance(files.protocol, str) else set(files.protocol)

    def put(self, path: Path, key: str, size: int) -> None:
        """Leave a file of ``size`` bytes under a key that nothing else will ever have. Errors: StoreUnavailableError."""
        target = f"{self._root}/{key}"
        with self._reached(key):
            if self._size(target) == size:
                return
            if "file" in self._protocols:
                with atomic_write(Path(target)) as temporary:
                    shutil.copyfile(path, temporary)
                return
            if self._protocols & _PUT_IS_WHOLE:
                self._files.put_file(str(path), target)
                return
            self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
            beside = f"{target}.tmp~{uuid.uuid4().hex[:8]}"
            self._files.put_file(str(path), beside)
            self._files.mv(beside, target)

    def get(self, key: str, path: Path, size: int, sha256: str) -> None:
        """Make ``path`` the file that lies under a key, whole. Errors: StoreError where it is another; StoreUnavailableError."""
        with self._reached(key), atomic_write(path) as temporary:
            try:
                self._files.get_file(f"{self._root}/{key}", str(temporary))
            except FileNotFoundError as error:
                raise StoreError(
                    f"{key!r} is gone from {_shown(self.url)!r}: put it back, or run what made it again."
                ) from error
            there = temporary.stat().st_size
            if there != size or digest(temporary) != sha256:
                raise StoreError(
                    f"{key!r} in {_shown(self.url)!r} is not what was left there ({there:,} bytes, and {size:,} were written): "
                    "restore it, or run what made it again."
                )

    def _size(self, target: str) -> int | None:
        """Bytes of what lies under a name, None for nothing; one question."""
        try:
            found = self._files.info(target)["size"]
        except FileNotFoundError:
            return None
        return None if found is None else int(found)

    @contextmanager
    def _reached(self, key: str) -> Iterator[None]:
        try:
            with disk_full(Path(key)):
                yield
        except AutointerpError:
            raise
        except Exception as error:
            raise StoreUnavailableError(
                f"the files in {_shown(self.url)!r} cannot be reached ({type(error).__name__}: {without_password(str(error))}): see to it that they can."
            ) from error


def digest(path: Path) -> str:
    """sha256 of a file."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            hasher.update(block)
    return hasher.hexdigest()


def _shown(url: str) -> str:
    """A URL without what may be a key in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
