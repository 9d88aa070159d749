"""What a chat model is asked while a latent of it is steered: our own list, or a file."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from sae_core.errors import ConfigError


def read_instructions(path: str, count: int) -> list[str]:
    """The first ``count`` instructions of a file with one a line, "" for our own. Errors: ConfigError."""
    if path:
        place = Path(path).expanduser()
        try:
            text = place.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the instructions {path!r} cannot be read ({error}): give a UTF-8 file with an instruction a line, or leave "
                "instructions out."
            ) from error
    else:
        text = files("autointerp.judging").joinpath("instructions.txt").read_text(encoding="utf-8")
    found = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if len(found) < count:
        where = repr(path) if path else "our own list"
        raise ConfigError(
            f"{count} instructions are asked for and {where} has {len(found)} different ones: lower texts, or add some."
        )
    return found[:count]
