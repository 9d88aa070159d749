"""Where a dictionary lies: a folder of this machine, or a URL that fsspec opens (s3://, gs://, memory://, file://, ...)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from sae_core.errors import MissingFileError, StoreError

_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
}
"""Packages that bring a protocol, where its name does not say it."""


def is_url(place: Path | str) -> bool:
    """Whether it is a URL and no path."""
    return isinstance(place, str) and "://" in place


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it. Errors: StoreError."""
    protocol = url.partition("://")[0]
    try:
        import fsspec
    except ImportError as error:
        raise StoreError(f"{url} needs the package 'fsspec': pip install fsspec.") from error
    try:
        found, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(protocol, "a package of fsspec for it")
        raise StoreError(
            f"{url} cannot be opened without {package}: pip install {_PACKAGES.get(protocol, protocol)}."
        ) from error
    except ValueError as error:
        raise StoreError(
            f"{url} begins with {protocol!r}, which is no protocol of fsspec: give a folder, or a URL such as s3://bucket/folder."
        ) from error
    return found, str(path).rstrip("/")


class Place:
    """The files below a folder, by names with slashes relative to it."""

    def __init__(self, given: Path | str) -> None:
        self.given = str(given).rstrip("/") or str(given)
        self._fs: Any = None
        self._root = self.given
        if is_url(given):
            self._fs, self._root = file_system(str(given))

    def __str__(self) -> str:
        return self.given

    def shown(self, name: str) -> str:
        """A file as a user names it."""
        return f"{self.given}/{name}"

    def below(self, folder: str) -> Place:
        """A folder in it."""
        return Place(f"{self.given}/{folder}")

    def names(self) -> list[str]:
        """All files, at whatever depth, sorted. Errors: StoreError."""
        if self._fs is None:
            root = Path(self._root)
            return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        with self._told(""):
            found = self._fs.find(self._root)
        inside = len(self._root) + 1 if self._root else 0
        return sorted(str(path)[inside:] for path in found)

    def size(self, name: str) -> int | None:
        """Bytes of a file, None where there is none. Errors: StoreError."""
        if self._fs is None:
            path = Path(self._root) / name
            return path.stat().st_size if path.is_file() else None
        with self._told(name):
            there = f"{self._root}/{name}"
            return int(self._fs.size(there)) if self._fs.isfile(there) else None

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A file to read. Errors: MissingFileError, StoreError."""
        with self._told(name):
            file = self._opened(name)
        with file:
            yield file

    def _opened(self, name: str) -> BinaryIO:
        if self._fs is None:
            return Path(self._root, name).open("rb")
        return cast(BinaryIO, self._fs.open(f"{self._root}/{name}", "rb"))

    def read_text(self, name: str) -> str:
        """A small file's text. Errors: MissingFileError, StoreError, UnicodeDecodeError."""
        with self.open(name) as file:
            return file.read().decode("utf-8")

    def write(self, name: str, local: Path) -> None:
        """Upload a file; only of a URL. Errors: StoreError."""
        with self._told(name):
            target = f"{self._root}/{name}"
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(local), target)

    def remove(self, name: str) -> None:
        """Remove a file; only of a URL. Errors: StoreError."""
        with self._told(name):
            self._fs.rm_file(f"{self._root}/{name}")

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """What a file system says as one sentence."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingFileError(f"{self.shown(name)} is not there.") from error
        except StoreError:
            raise
        except Exception as error:  # each of fsspec's file systems has errors of its own
            if self._fs is None:
                raise
            raise StoreError(
                f"{self.shown(name)} cannot be used ({type(error).__name__}: {error}): check the URL and the credentials."
            ) from error
