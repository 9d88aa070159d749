"""The one module that talks to the Hugging Face hub."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

from sae_core.errors import CoderError, InputError, MissingFileError
from sae_core.hook_names import layer_in

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_PATH = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:/(.+))?")
_WEIGHTS = (".safetensors", ".npz", ".pt", ".pth")
_CONFIGS = (".json", ".yaml", ".yml")
_RANGE_BYTES = 1 << 20
"""Fetched at least, and ahead, of a file that is read in ranges."""
_RANGE_BUFFER_BYTES = 1 << 16


def local_folder(
    path_or_id: str,
    *,
    what: str,
    revision: str | None = None,
    repo_type: str = "model",
    allow_patterns: list[str] | None = None,
) -> Path:
    """The folder (or file) itself where it exists, else a snapshot of the hub repository of that id.

    ``what`` names the thing in the error ("subject.model"). With ``HF_HUB_OFFLINE=1`` only the local cache is asked.
    Raises MissingFileError where neither is to be had.
    """
    path = _local(path_or_id)
    if path is not None and path.exists():
        return path
    if path is None or path.is_absolute() or path_or_id.startswith(".") or not _HUB_ID.fullmatch(path_or_id):
        raise _no_such_path(what, path_or_id)
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(path_or_id, revision=revision, repo_type=repo_type, allow_patterns=allow_patterns)
        )
    except Exception as error:  # the client lets its HTTP library's own errors through
        raise _not_given(what, path_or_id, error) from error


@dataclass(frozen=True)
class HubDataset:
    """A data set of the hub at one commit; its files are read as they are needed."""

    name: str
    commit: str
    sizes: dict[str, int]
    """Bytes of each file."""
    snapshot: Path | None
    """Where the local cache has its files when offline; None where they are read over the network."""

    def local(self, file: str) -> Path | None:
        """Where a file lies on this machine, if the local cache has it."""
        if self.snapshot is not None:
            return self.snapshot / file
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.name, file, repo_type="dataset", revision=self.commit)
        return Path(found) if isinstance(found, str) else None

    def opener(self, file: str) -> Callable[[], BinaryIO]:
        """What opens a file to be read from its beginning, in ranges."""
        return partial(self._open, file)

    def read_text(self, file: str) -> str:
        """A small text file, "" where there is none. Raises MissingFileError where the hub does not give it."""
        if file not in self.sizes:
            return ""
        with self._open(file) as stream:
            return stream.read().decode("utf-8", "replace")

    def _open(self, file: str) -> BinaryIO:
        path = self.local(file)
        if path is not None:
            return path.open("rb")
        return cast(BinaryIO, io.BufferedReader(_Ranges(self, file), _RANGE_BUFFER_BYTES))


class _Ranges(io.RawIOBase):
    """A file of the hub, fetched range by range. Raises MissingFileError where the hub does not give one."""

    def __init__(self, repository: HubDataset, file: str) -> None:
        from huggingface_hub import HfFileSystem

        self._what = f"{repository.name}/{file}"
        self._size = repository.sizes[file]
        place = f"datasets/{repository.name}@{repository.commit}/{file}"
        self._file: Any = self._of_hub(
            lambda: HfFileSystem().open(place, "rb", block_size=_RANGE_BYTES, size=self._size)
        )

    def _of_hub(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # the client lets its HTTP library's own errors through
            raise MissingFileError(
                f"the hub does not give {self._what} ({_first_line(error)}): check the network and start again, or download the data set "
                "and give its folder."
            ) from error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self.tell())
        content = self._of_hub(lambda: self._file.read(wanted)) if wanted > 0 else b""
        if wanted > 0 and not content:
            raise MissingFileError(f"the hub gave less of {self._what} than it said it has: start again.")
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def data_set(path_or_id: str, *, what: str, revision: str | None = None) -> Path | HubDataset:
    """The folder or file itself where it exists, else the data set of the hub of that id, at one commit.

    With ``HF_HUB_OFFLINE=1`` only the local cache is asked. Raises MissingFileError where neither is to be had.
    """
    path = _local(path_or_id)
    if path is not None and path.exists():
        return path
    if path is None or path.is_absolute() or path_or_id.startswith(".") or not _HUB_ID.fullmatch(path_or_id):
        raise _no_such_path(what, path_or_id)
    from huggingface_hub import HfApi, constants, snapshot_download

    try:
        if constants.HF_HUB_OFFLINE:
            root = Path(snapshot_download(path_or_id, revision=revision, repo_type="dataset", local_files_only=True))
            sizes = {name: (root / name).stat().st_size for name in _files_below(root)}
            return HubDataset(path_or_id, root.name, sizes, root)
        commit = str(HfApi().dataset_info(path_or_id, revision=revision).sha)
        tree = HfApi().list_repo_tree(path_or_id, recursive=True, revision=commit, repo_type="dataset")
        return HubDataset(path_or_id, commit, {f.path: f.size for f in tree if hasattr(f, "size")}, None)
    except Exception as error:  # the client lets its HTTP library's own errors through
        raise _not_given(what, path_or_id, error) from error


class CoderPath(NamedTuple):
    """Where a coder lies on this machine."""

    path: Path
    """Its folder, or its one file."""
    commit: str | None
    """The commit of the hub repository that it was taken from; None for a path that was given."""


def coder_path(path_or_id: str, *, revision: str | None = None, hookpoint: str | None = None) -> CoderPath:
    """Where a coder lies; from the hub only the files of that coder are fetched, at one commit.

    ``path_or_id`` is a path, a hub id, or a hub id with a folder or file in the repository behind it
    (``org/name/layer_3/width_16k``). ``hookpoint`` chooses a folder of that name, or the file of that layer.
    Raises MissingFileError where it is not to be had, CoderError where a repository holds many coders and none is chosen.
    """
    path = _local(path_or_id)
    if path is not None and path.exists():
        return CoderPath(path, None)
    match = _HUB_PATH.fullmatch(path_or_id.rstrip("/"))
    if path is None or path.is_absolute() or path_or_id.startswith(".") or match is None:
        raise _no_such_path("a coder's path", path_or_id)
    from huggingface_hub import HfApi, constants, snapshot_download

    repository, inside = match[1], match[2] or ""
    try:
        if constants.HF_HUB_OFFLINE:
            # no pattern: where the snapshot lies, whether or not it is the whole repository
            root = Path(snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=[]))
            files = _files_at(repository, root)
        else:
            info = HfApi().model_info(repository, revision=revision)
            commit, files = info.sha, [sibling.rfilename for sibling in info.siblings or ()]
        prefix, wanted = _files_of_coder(path_or_id, files, inside, hookpoint)
        escaped = [re.sub(r"([\[*?])", r"[\1]", name) for name in wanted]
        if constants.HF_HUB_OFFLINE:
            snapshot_download(repository, revision=root.name, local_files_only=True, allow_patterns=escaped)
            return CoderPath(root / prefix, root.name)
        # by its name, so that the cache knows it offline; by the commit where the name has moved since
        root = Path(snapshot_download(repository, revision=revision, allow_patterns=escaped))
        if root.name != commit:
            root = Path(snapshot_download(repository, revision=commit, allow_patterns=escaped))
        return CoderPath(root / prefix, commit)
    except InputError:
        raise
    except Exception as error:  # the client lets its HTTP library's own errors through
        raise _not_given("a coder's path", path_or_id, error) from error


def _local(path_or_id: str) -> Path | None:
    """What was given as a path; None where it cannot be one (too long for a name, ``~`` of an unknown user)."""
    try:
        path = Path(path_or_id).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError):
        return None
    return path


def _files_at(repository: str, snapshot: Path) -> list[str]:
    """The files of a repository at the commit of a cached snapshot: all where the cache knows them, else those in it."""
    try:
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError
    except ImportError:  # a client before version 2, which keeps no listing
        return _files_below(snapshot)
    try:
        return [file.path for file in get_cached_repo_tree(repository, revision=snapshot.name)]
    except CachedRepoTreeNotFoundError:
        return _files_below(snapshot)


def _files_below(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]


def _files_of_coder(given: str, files: list[str], inside: str, hookpoint: str | None) -> tuple[str, list[str]]:
    """``(prefix, files)``: where in a repository the coder lies, and which of its ``files`` belong to it."""
    if inside and inside not in files and not any(name.startswith(f"{inside}/") for name in files):
        raise MissingFileError(f"{given!r}: the hub repository has no folder or file {inside!r}.")
    if hookpoint and any(name.startswith(f"{inside}/{hookpoint}/".lstrip("/")) for name in files):
        inside = f"{inside}/{hookpoint}".lstrip("/")
    if inside in files:
        above = {str(parent) for parent in PurePosixPath(inside).parents}
    else:
        above = {inside or ".", *(str(parent) for parent in PurePosixPath(inside or ".").parents)}
    configs = [name for name in files if name.endswith(_CONFIGS) and str(PurePosixPath(name).parent) in above]
    if inside in files:
        return inside, [inside, *configs]
    below = [name for name in files if not inside or name.startswith(f"{inside}/")]
    weights = [name for name in below if name.endswith(_WEIGHTS)]
    direct = [name for name in weights if str(PurePosixPath(name).parent) == (inside or ".")]
    folders = sorted({str(PurePosixPath(name).parent) for name in weights})
    if not direct and len(folders) > 1:
        raise CoderError(
            f"{given!r} holds {len(folders)} coders ({', '.join(folders[:6])}{', ...' if len(folders) > 6 else ''}): "
            "give one, as org/name/folder."
        )
    chosen = direct or weights
    layer = layer_in(hookpoint or "")
    if len(direct) > 1 and layer is not None:
        of_layer = [n for n in direct if re.search(rf"(?<!\d){layer}(?!\d)", PurePosixPath(n).name)]
        chosen = of_layer or direct
    small = [
        name
        for name in below
        if name.endswith(_CONFIGS) and (not direct or name.count("/") == inside.count("/") + bool(inside))
    ]
    return inside, sorted({*chosen, *configs, *small})


def _no_such_path(what: str, given: str) -> MissingFileError:
    return MissingFileError(
        f"{what} is {given!r}, and there is no such file or folder: give an existing folder or a hub id like 'org/name'."
    )


def _not_given(what: str, given: str, error: Exception) -> MissingFileError:
    return MissingFileError(
        f"{what} is {given!r}: no such folder here, and the hub (or its local cache) does not give it ({_first_line(error)}): "
        "check the spelling, the network, or download it first and give the folder."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
