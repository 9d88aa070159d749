"""Passages in a file: one a line, or one a row of JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

from sae_core.errors import InputError, MissingFileError

_MOST_BYTES = 64 * 2**20


def read_passages(path: Path) -> list[str]:
    """The passages of a file, lines without text left out; of a ``.jsonl`` file those of its rows' field ``text``.

    Errors: MissingFileError; InputError for a file that is no text, has no passage or is larger than 64 MiB.
    """
    if not path.is_file():
        raise MissingFileError(f"there is no file {str(path)!r}: give one with a passage a line.")
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{str(path)!r} has more than {_MOST_BYTES >> 20} MiB: give fewer passages.")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{str(path)!r} is not UTF-8 text: give a file with a passage a line.") from error
    numbered = [(number, line.removesuffix("\r")) for number, line in enumerate(lines, start=1) if line.strip()]
    if path.suffix == ".jsonl":
        passages = [_of_row(path, number, line) for number, line in numbered]
    else:
        passages = [line for _, line in numbered]
    if not passages:
        raise InputError(f"{str(path)!r} holds no passage: give a file with a passage a line.")
    return passages


def _of_row(path: Path, number: int, line: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"line {number} of {str(path)!r} is not JSON: give a JSON object with a text a line."
        ) from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise InputError(f'line {number} of {str(path)!r} has no "text": give a JSON object with a text a line.')
    return text
