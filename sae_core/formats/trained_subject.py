"""What TransformerLens had done to the subject that a SAELens coder was trained on, as seen from the Hugging Face model.

Three of its options change activations: ``center_writing_weights`` takes the mean off everything that is written to the
residual stream of a model with layer norms, ``fold_ln`` takes a norm's gain out of ``hook_normalized``, and
``fold_value_biases`` takes the values' bias out of ``attn.hook_z``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from sae_core.coder import Fact
from sae_core.errors import CoderError
from sae_core.formats.reading import Options, flag, mapping, text
from sae_core.parts.normalisation import Centring, Normalisation, RootMeanSquare

_LAYER_NORM_SUBJECTS = re.compile(
    r"(^|/)(gpt2|gpt-2|distilgpt2|pythia|gpt-neo|gpt-j|opt-|gelu|solu|stanford-gpt2)", re.I
)
_RMS_NORM_SUBJECTS = re.compile(r"(gemma|llama|mistral|mixtral|qwen|olmo)", re.I)
_STREAM_HOOKS = re.compile(
    r"hook_(resid_(pre|mid|post)|mlp_out|attn_out|embed|mlp_in)$"
    r"|(^|\.)(layers|h|blocks)\.\d+(\.(mlp|attn|self_attn|attention))?([.:](in|out)put)?$"
)
"""Names of places that are, or are written to, the residual stream."""


class TrainedSubject(NamedTuple):
    """How the activations that the coder was trained on differ from the Hugging Face model's."""

    normalisation: Normalisation | None
    """What makes the one of the other; None where they are equal but for value biases."""
    hook: str | None
    """Where the coder reads."""
    value_biases_folded: bool
    """Whether its inputs lack the values' bias."""
    facts: tuple[Fact, ...]


def trained_subject(
    where: Path,
    metadata: dict[str, Any],
    hook: str | None,
    *,
    oldest: bool,
    mean_free: bool,
    transcodes: bool,
    options: Options,
) -> TrainedSubject:
    """Read it from a coder's ``metadata``.

    Args:
        where: the config, for messages.
        metadata: SAELens' ``metadata``, or the flat config of old versions.
        hook: where the coder reads, as the files say.
        oldest: whether the config is of SAELens' first versions, which processed weights unless told otherwise.
        mean_free: whether the coder's own normalisation takes the mean off anyway.
        transcodes: whether the output is somewhere else, so that the input's mean is not put back.
        options: what the caller said.

    Raises CoderError where it cannot be told, or cannot be seen from the Hugging Face model.
    """
    subject = text(where, "model_name", metadata.get("model_name"))
    processing = mapping(where, "model_from_pretrained_kwargs", metadata.get("model_from_pretrained_kwargs"))
    for key in ("center_writing_weights", "fold_ln", "fold_value_biases"):
        flag(where, f"model_from_pretrained_kwargs.{key}", processing.get(key))
    if processing.get("fold_ln") and hook is not None and "hook_normalized" in hook:
        found = re.fullmatch(r"blocks\.(\d+)\.ln2\.hook_normalized", hook)
        if "gemma" not in subject.lower() or found is None:
            raise CoderError(
                f"{where}: the coder reads {hook!r} of a subject with folded layer norms (fold_ln), which no module of the "
                "Hugging Face model carries."
            )
        fact = Fact("normalisation", "root mean square, without the norm's gain", f"{where.name}: fold_ln")
        return TrainedSubject(RootMeanSquare(), f"blocks.{found[1]}.hook_resid_mid", False, (fact,))
    if hook is not None and hook.endswith("attn.hook_z"):
        # the first versions loaded subjects with TransformerLens' defaults, which fold value biases
        folded = processing.get("fold_value_biases", oldest and not metadata.get("model_from_pretrained_kwargs"))
        if folded:
            fact = Fact("value biases", "taken off the inputs", "TransformerLens folds them into the output's bias")
            return TrainedSubject(None, hook, True, (fact,))
    # where the caller names a place, that is it; the other name of a pair may be of any library
    stream = next((bool(_STREAM_HOOKS.search(n)) for n in (*options.hookpoints[:1], hook) if n), None)
    centred, origin = processing.get("center_writing_weights"), f"{where.name}: model_from_pretrained_kwargs"
    if options.center_writing_weights is not None:
        centred, origin = options.take_center_writing_weights(), "given"
        if centred and (not stream or mean_free or _RMS_NORM_SUBJECTS.search(subject)):
            raise CoderError(
                f"{where}: center_writing_weights is given, and it changes nothing that this coder reads (hookpoint "
                f"{hook or 'not said'}, subject {subject or 'not said'}): leave it out, or set the hookpoint too."
            )
        if centred:
            return _centred(origin, hook, transcodes)
    elif oldest and stream and centred is None and not mean_free and _LAYER_NORM_SUBJECTS.search(subject):
        raise CoderError(
            f"{where}: the coder is from SAELens' first versions, which read {subject} with centred writing weights unless told "
            "otherwise, and the file does not say: set center_writing_weights to true (gpt2-small-res-jb and its kin) or false."
        )
    if not centred or not stream or mean_free or _RMS_NORM_SUBJECTS.search(subject):
        return TrainedSubject(None, hook, False, ())  # nothing is centred, or centring changes nothing
    if not _LAYER_NORM_SUBJECTS.search(subject):
        raise CoderError(
            f"{where}: the coder was trained on {subject or 'a subject'} with centred writing weights (center_writing_weights), "
            "and whether that model has layer norms is not known here: set center_writing_weights to true if it has, else to false."
        )
    return _centred(origin, hook, transcodes)


def _centred(origin: str, hook: str | None, transcodes: bool) -> TrainedSubject:
    fact = Fact("normalisation", "mean subtracted (center_writing_weights)", origin)
    return TrainedSubject(Centring(undone=not transcodes), hook, False, (fact,))
