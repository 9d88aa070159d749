"""Texts that a language model wrote and what the latent did on them: evidence for explanations in rounds, and for scores.

Torch-free.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_core.errors import DiskFullError, InputError, MissingFileError

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class TriedText:
    """One text, read by the subject alone after the BOS."""

    latent: int
    """The latent it was tried for."""
    round: int
    """Ordinal of the explainer's round, from 1; 0 for a text that a scorer had written."""
    text: str
    """The text, as it was proposed."""
    token_ids: NDArray[np.int32]
    """[T] its tokens, without the BOS; none where there was nothing to read."""
    activations: NDArray[np.float32]
    """[T] the latent's activation at each of them."""

    @property
    def fires(self) -> bool:
        """Whether the latent fires anywhere in it."""
        return bool((self.activations != 0).any())


def save_tried_texts(path: Path, texts: Sequence[TriedText]) -> None:
    """Write as JSON to ``path``, at once or not at all.

    Raises:
        DiskFullError: no room for it.
    """
    rows = [
        {
            "latent": one.latent,
            "round": one.round,
            "text": one.text,
            "token_ids": one.token_ids.tolist(),
            "activations": one.activations.tolist(),
        }
        for one in texts
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        # ASCII escapes carry half characters too, which UTF-8 cannot
        text = json.dumps({"kind": "tried texts", "format_version": FORMAT_VERSION, "texts": rows}, allow_nan=False)
        temporary.write_text(text, encoding="ascii")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno == errno.ENOSPC:
            raise DiskFullError(f"No room left on the disk for {path}; free some and start the run again.") from error
        raise


def load_tried_texts(path: Path) -> list[TriedText]:
    """Read what :func:`save_tried_texts` wrote, in its order.

    Raises:
        MissingFileError: there is no such file.
        InputError: it holds something else.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is not there; run the stage that writes it first.")
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="ascii"))
        if (data["kind"], data["format_version"]) != ("tried texts", FORMAT_VERSION):
            raise ValueError("another kind or format")
        return [
            TriedText(
                latent=int(row["latent"]),
                round=int(row["round"]),
                text=str(row["text"]),
                token_ids=np.asarray(row["token_ids"], dtype=np.int32),
                activations=np.asarray(row["activations"], dtype=np.float32),
            )
            for row in data["texts"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not hold tried texts of format {FORMAT_VERSION}; delete it and run the stage again."
        ) from error
