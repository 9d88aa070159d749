"""Load a coder, and measure it on a subject and a corpus where they are given. Torch is loaded by :func:`look` only."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sae_core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from sae_core.coder import SparseCoder
    from sae_core.health import CoderHealth

DTYPES = ("float32", "float16", "bfloat16")
_FLAGS = {
    "extraction.num_tokens": "--tokens",
    "extraction.context_length": "--context-length",
    "corpus.text_field": "--text-field",
    "corpus.path": "--corpus",
    "set allow_pickle": "give --allow-pickle",
    "set input_scale": "set --input-scale",
    "set k.": "set --k.",
    "set the hookpoint": "set --hookpoint",
    "set center_writing_weights to": "give --[no-]center-writing-weights, that is,",
}
"""What the settings of a run, which the sentences of errors name, are called on the command line."""


@dataclass(frozen=True)
class LoadOptions:
    """How a coder is read; :func:`sae_core.loading.load_coder` has the meanings."""

    hookpoints: tuple[str, ...] = ()
    revision: str | None = None
    allow_pickle: bool = False
    input_scale: tuple[float, ...] | Literal["folded"] | None = None
    k: int | None = None
    center_writing_weights: bool | None = None
    dtype: str = "float32"
    """Of the coder, and of the subject where there is one."""


@dataclass(frozen=True)
class MeasureOptions:
    """On what a coder is measured."""

    subject: str
    """Folder or hub id."""
    corpus: str
    """Folder, file, hub data set id or ``python-stdlib``."""
    num_tokens: int
    """Tokens of text to read."""
    context_length: int
    """Tokens of a context, the BOS counted."""
    device: str = "auto"
    text_field: str = "text"


@dataclass(frozen=True)
class Inspection:
    """What was found."""

    path: str
    coder: SparseCoder
    measured: MeasureOptions | None = None
    health: CoderHealth | None = None
    """None without a subject."""


def input_scale_of(given: Sequence[str]) -> tuple[float, ...] | Literal["folded"] | None:
    """The values of ``--input-scale``. Raises ConfigError for what is neither ``folded`` nor a number."""
    if list(given) == ["folded"]:
        return "folded"
    try:
        return tuple(float(value) for value in given) or None
    except ValueError as error:
        raise ConfigError(
            f"--input-scale is {' '.join(given)}: give a number for each hookpoint that is read, or 'folded'."
        ) from error


def check_destination(option: str, path: Path | None) -> None:
    """Raise ConfigError where ``path`` cannot be a new file, before anything is computed."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        what = "a folder" if path.is_dir() else f"in {path.parent}, which is not a folder"
        raise ConfigError(f"{option} is {str(path)!r}, {what}: give the name of a file in a folder that is there.")


def look(
    path: str,
    options: LoadOptions,
    measure: MeasureOptions | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Inspection:
    """Load the coder at ``path`` and, with ``measure``, run it on a corpus; ``progress`` gets the tokens done.

    Raises:
        InputError: the coder, the subject or the corpus cannot be read, or they do not fit together.
        NonFiniteError: activations are NaN or infinite.
    """
    try:
        return _look(path, options, measure, progress)
    except InputError as error:
        sentence = str(error)
        for setting, flag in _FLAGS.items():
            sentence = sentence.replace(setting, flag)
        raise type(error)(sentence) from error


def _look(
    path: str, options: LoadOptions, measure: MeasureOptions | None, progress: Callable[[int], None]
) -> Inspection:
    import torch

    from sae_core.loading import load_coder

    if options.dtype not in DTYPES:
        raise ConfigError(f"--dtype is {options.dtype!r}; use one of {', '.join(DTYPES)}.")

    def load(device: torch.device | str) -> SparseCoder:
        return load_coder(
            path,
            hookpoint=options.hookpoints or None,
            revision=options.revision,
            device=device,
            dtype=getattr(torch, options.dtype),
            allow_pickle=options.allow_pickle,
            input_scale=options.input_scale,
            k=options.k,
            center_writing_weights=options.center_writing_weights,
        )

    coder = load("cpu")
    if measure is None:
        return Inspection(path, coder)

    from sae_core.attachment import attach
    from sae_core.health import measure_health
    from sae_core.subject import SubjectModel
    from sae_core.token_cache import TokenCache
    from sae_core.tokens import CorpusSpec, build_corpus

    subject = SubjectModel.load(measure.subject, device=measure.device, dtype=options.dtype)
    if measure.context_length > subject.max_context:
        raise ConfigError(
            f"--context-length is {measure.context_length}, and the subject reads at most {subject.max_context} tokens: give at most that."
        )
    if subject.device.type != "cpu":
        coder = load(subject.device)
    attached = attach(subject, coder)
    spec = CorpusSpec(measure.corpus, measure.num_tokens, measure.context_length, measure.text_field)
    with tempfile.TemporaryDirectory(prefix="autointerp-inspect-") as folder:
        cache = TokenCache.of(os.environ)
        corpus = build_corpus(spec, subject.tokenizer, subject.bos_id, Path(folder), cache=cache)
        return Inspection(path, coder, measure, measure_health(subject, attached, corpus, progress=progress))
