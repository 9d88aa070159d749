"""Reads JSON lines, plain or gzipped, one at a time and none of unbounded length."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from autointerp.imports.label_line import LabelLine, LabelRequest, latent_number
from sae_core.errors import ConfigError

LONGEST_LINE_BYTES = 4 * 2**20
"""A line that is longer is no label; the largest real ones hold an embedding of 256 numbers."""


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """``(place, object)`` of each line that is not blank. Errors: ConfigError."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(LONGEST_LINE_BYTES + 1):
                number += 1
                place = f"line {number} of {path.name!r}"
                if len(line) > LONGEST_LINE_BYTES:
                    raise ConfigError(f"{place} is longer than {LONGEST_LINE_BYTES >> 20} MiB: it holds no label.")
                if not line.strip():
                    continue
                try:
                    value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except (ValueError, RecursionError) as error:
                    raise ConfigError(f"{place} is no JSON ({error}): give one JSON object a line.") from error
                if not isinstance(value, dict):
                    raise ConfigError(f"{place} is no JSON object: give one object with its keys a line.")
                yield place, value
    except (OSError, EOFError, zlib.error) as error:  # gzip's BadGzipFile is an OSError
        raise ConfigError(
            f"{str(path)!r} cannot be read after line {number} ({error}): give a whole file of JSON lines, plain or gzipped."
        ) from error


def first_object(path: Path) -> dict[str, Any]:
    """The first line's object, {} for a file without any."""
    return next((value for _, value in json_lines(path)), {})


def jsonl_labels(files: Sequence[Path], request: LabelRequest) -> Iterator[LabelLine]:
    """Lines with a latent's number and a label under the request's keys, and ``source``, ``coder_fingerprint``, ``model``,
    ``explainer`` and ``author`` where they are there."""
    for path in files:
        for place, value in json_lines(path):
            missing = [key for key in (request.latent_column, request.label_column) if key not in value]
            if missing:
                known = ", ".join(repr(key)[:40] for key in list(value)[:8])
                raise ConfigError(
                    f"{place} has no key {missing[0]!r}, it has {known or 'none'}: "
                    "name the keys with latent_column and label_column."
                )
            yield LabelLine(
                place=place,
                latent=latent_number(value[request.latent_column], place),
                text=optional_text(value, request.label_column, place),
                source=optional_text(value, "source", place) or "",
                fingerprint=optional_text(value, "coder_fingerprint", place) or "",
                model=optional_text(value, "model", place) or "",
                kind=optional_text(value, "explainer", place) or "",
                author=optional_text(value, "author", place) or "",
            )


def optional_text(value: dict[str, Any], key: str, place: str) -> str | None:
    """The text at a key, None where it is null or not there. Errors: ConfigError for anything else."""
    found = value.get(key)
    if found is None or isinstance(found, str):
        return found
    raise ConfigError(f"{place} has {key} = {found!r:.60}: it must be a text or null.")
