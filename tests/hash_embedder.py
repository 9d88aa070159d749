"""An embedder without a model: the sum of a vector of each word, which follows from the word alone. Also a child process with it.

Run as a program it stands in for ``python -m autointerp.browsing.embedder_child``. A second argument has it misbehave: ``refuses`` to load,
``crashes`` at the first label that it is to read, ``slow`` at every step.
"""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autointerp.browsing.embedder_child import main
from sae_core.errors import ConfigError

WIDTH = 40


class HashEmbedder:
    """Counts the texts that it was given."""

    name = "hashes"

    def __init__(self, how: str = "") -> None:
        self.how = how
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.texts += texts
        if self.how == "crashes" and len(texts) > 1:
            raise RuntimeError("the wires melted")
        if self.how == "slow" and len(texts) > 1:
            time.sleep(2.0)
        found = np.zeros((len(texts), WIDTH), np.float32)
        for row, text in zip(found, texts, strict=True):
            for word in text.split():
                row += np.random.default_rng(zlib.crc32(word.encode("utf-8", "replace"))).standard_normal(WIDTH)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return np.divide(found, lengths, where=lengths > 0, out=found)


def loaded() -> HashEmbedder:
    """As the program was told."""
    if "refuses" in sys.argv:
        raise ConfigError("the model is none.")
    return HashEmbedder(sys.argv[1] if len(sys.argv) > 1 else "")


COMMAND = (sys.executable, __file__)
"""Starts the child."""

if __name__ == "__main__":
    main(loaded)
