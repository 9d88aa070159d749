"""A folder that ``datasets`` wrote with ``save_to_disk``: the files of its rows, in their order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sae_core.errors import CorpusError


def saved_dataset_files(folder: Path, split: str | None) -> list[Path] | None:
    """The Arrow files of a saved data set; None where the folder is none.

    Raises CorpusError where a split must be chosen or is not there, and for what cannot be read in order.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _read(folder / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not splits or not all(_is_name(name) for name in splits):
            raise _damaged(folder / "dataset_dict.json")
        named = ", ".join(map(repr, splits))
        if split is None and len(splits) > 1:
            raise CorpusError(
                f"{folder} has {len(splits)} splits ({named}): set corpus.split to one of them, or give that split's folder."
            )
        if split is not None and split not in splits:
            raise CorpusError(f"corpus.split is {split!r}, and {folder} has {named}: set it to one of them.")
        folder = folder / (split or splits[0])
        if not (folder / "state.json").is_file():
            raise CorpusError(
                f"{folder} has no state.json, which a split of a saved data set has: save or copy it again."
            )
    elif not ((folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()):
        return None
    state = _read(folder / "state.json")
    if any(value for key, value in state.items() if key.startswith("_indices")):
        raise CorpusError(
            f"{folder} keeps an order of rows beside them (an indices mapping), which is not read: save it again after flatten_indices()."
        )
    entries = state.get("_data_files")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries or ()]
    if not isinstance(entries, list) or not all(_is_name(name) for name in names):
        raise _damaged(folder / "state.json")
    files = [folder / str(name) for name in names]
    gone = next((file for file in files if not file.is_file()), None)
    if gone is not None:
        raise CorpusError(f"{folder}: state.json names {gone.name}, which is not there: copy the folder again.")
    return files


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(path) from error
    if not isinstance(data, dict):
        raise _damaged(path)
    return data


def _is_name(name: object) -> bool:
    """Whether it names something in the folder itself."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _damaged(path: Path) -> CorpusError:
    return CorpusError(f"{path} is not what datasets' save_to_disk writes: save or copy the folder again.")
