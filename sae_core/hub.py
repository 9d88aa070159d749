"""The one module that talks to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from sae_core.errors import MissingFileError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


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
    path = Path(path_or_id).expanduser()
    if path.exists():
        return path
    looks_like_path = path.is_absolute() or path_or_id.startswith(".") or not _HUB_ID.fullmatch(path_or_id)
    if looks_like_path:
        raise MissingFileError(
            f"{what} is {path_or_id!r}, and there is no such file or folder: give an existing folder or a hub id like 'org/name'."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(path_or_id, revision=revision, repo_type=repo_type, allow_patterns=allow_patterns)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MissingFileError(
            f"{what} is {path_or_id!r}: no such folder here, and the hub (or its local cache) does not give it ({first_line}): "
            "check the spelling, the network, or download it first and give the folder."
        ) from error
