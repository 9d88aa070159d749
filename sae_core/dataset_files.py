"""Which files of a data set are read: those of a split and a subset, as its README says it or as the files are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from sae_core.errors import CorpusError

_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)


def chosen_files(names: Sequence[str], split: str | None, subset: str | None, readme: str, given: str) -> list[str]:
    """Those of ``names`` that belong to the split and the subset, in their order.

    ``subset`` is a configuration of the README's head, else a folder. Without a split the one called train is read where
    there is one. ``given`` is the corpus in messages. Raises CorpusError for a name that is not there, or where one must be chosen.
    """
    configs = _configs(readme)
    config = _config(configs, subset, given) if configs else None
    splits = _patterns(config, given) if config is not None else {}
    if splits:
        if split is None and len(splits) > 1 and "train" not in splits:
            raise _choose("split", splits, given)
        wanted = split or ("train" if "train" in splits else next(iter(splits)))
        if wanted not in splits:
            raise _no_such("split", wanted, splits, given)
        return [name for name in names if any(pattern.fullmatch(name) for pattern in splits[wanted])]
    folder = str((config or {}).get("data_dir") or "").strip("/") if config is not None else subset
    if folder:
        below = [name for name in names if name.startswith(f"{folder.strip('/')}/")]
        if not below:
            raise _no_such("subset", folder, sorted({n.split("/")[0] for n in names if "/" in n}), given)
        names = below
    found = {_split_in(name) for name in names} - {None}
    if split is None:
        return [n for n in names if _split_in(n) == "train"] if "train" in found else list(names)
    word = _split_in(split) or split
    of_split = [n for n in names if _split_in(n) == word or _has_word(n, split)]
    if not of_split:
        raise _no_such("split", split, sorted(name for name in found if name), given)
    return of_split


def _configs(readme: str) -> dict[str, dict[str, Any]]:
    head = _FRONT_MATTER.match(readme)
    try:
        data = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        return {}
    entries = data.get("configs") if isinstance(data, dict) else None
    if not isinstance(entries, list):
        return {}
    return {str(entry["config_name"]): entry for entry in entries if isinstance(entry, dict) and "config_name" in entry}


def _config(configs: dict[str, dict[str, Any]], subset: str | None, given: str) -> dict[str, Any] | None:
    if subset is not None:
        if subset in configs:
            return configs[subset]
        if any("data_files" in config or "data_dir" in config for config in configs.values()):
            raise _no_such("subset", subset, configs, given)
        return None
    default = next((n for n, c in configs.items() if c.get("default") is True), None)
    name = default or ("default" if "default" in configs else None)
    if name is None and len(configs) > 1:
        raise _choose("subset", configs, given)
    return configs[name or next(iter(configs))]


def _patterns(config: dict[str, Any], given: str) -> dict[str, list[re.Pattern[str]]]:
    """Patterns of a configuration's file names by split; a path or list without splits is its train split."""
    entries = config.get("data_files")
    if entries is None:
        return {}
    entries = entries if isinstance(entries, list) else [entries]
    if isinstance(entries[0] if entries else "", str):
        entries = [{"split": "train", "path": entries}]
    directory = str(config.get("data_dir") or "").strip("/")
    found: dict[str, list[re.Pattern[str]]] = {}
    for entry in entries:
        paths = entry.get("path") if isinstance(entry, dict) else None
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise CorpusError(
                f"{given}: its README names data_files that are not understood: set corpus.suffixes and give its files as a folder."
            )
        prefix = f"{directory}/" if directory else ""
        found.setdefault(str(entry.get("split", "train")), []).extend(_glob(prefix + path) for path in paths)
    return found


def _glob(pattern: str) -> re.Pattern[str]:
    """``*`` within a folder, ``**`` across folders, ``?``, ``[...]`` and ``{a,b}`` are not read."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.removeprefix("./"))
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(meaning.get(part, re.escape(part)) for part in parts))


def _split_in(name: str) -> str | None:
    """The split that a file's name or folder speaks of; the part nearest to the file counts."""
    for part in reversed(name.split("/")):
        for split, words in _WORDS.items():
            if any(_has_word(part, word) for word in words):
                return split
    return None


def _has_word(name: str, word: str) -> bool:
    return re.search(rf"(?:^|[^a-zA-Z]){re.escape(word)}(?:$|[^a-zA-Z])", name) is not None


def _choose(what: str, known: Any, given: str) -> CorpusError:
    return CorpusError(f"{given} has {len(known)} {what}s ({_listed(known)}): set corpus.{what} to one of them.")


def _no_such(what: str, name: str, known: Any, given: str) -> CorpusError:
    there = f"it has {_listed(known)}" if known else "it has none"
    return CorpusError(
        f"corpus.{what} is {name!r}, and {given} has no such {what} ({there}): set it to one that is there, or leave it out."
    )


def _listed(names: Any) -> str:
    names = [repr(name) for name in names]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
