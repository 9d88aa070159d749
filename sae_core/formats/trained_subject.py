"""What TransformerLens had done to the subject that a SAELens coder was trained on, as seen from the Hugging Face model.

Three of its options change activations: ``center_writing_weights`` takes the mean off everything that is written to the
residual stream of a model with layer norms, ``fold_ln`` takes a norm's gain out of ``hook_normalized``, and
``fold_value_biases`` takes the values' bias out of ``attn.hook_z``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sae_core.coder import Fact
from sae_core.errors import CoderError
from sae_core.formats.reading import Options, flag, mapping, text
from sae_core.parts.normalisation import Centring, Normalisation, RootMeanSquare

_LAYER_NORM_SUBJECTS = re.compile(
    r"(^|/)(gpt2|gpt-2|distilgpt2|pythia|gpt-neo|gpt-j|opt-|gelu|solu|stanford-gpt2)", re.I
)
_RMS_NORM_SUBJECTS = re.compile(r"(gemma|llama|mistral|mixtral|qwen|olmo-?[23])", re.I)
_PROCESSED_BEFORE = (3, 20)
"""The version of SAELens that began to load subjects without TransformerLens' processing of their weights."""

Place = Literal["stream", "z", "normalised", "other"]
"""What kind of place a coder reads: the residual stream or something written to it, an attention's heads, a norm's value
before its gain, or what none of the options changes."""
_BLOCK = r"(layers|h)\.\d+"
_ATTENTION = r"(attn|self_attn|attention)"
_ATTENTION_OUT = r"(attn\.c_proj|self_attn\.o_proj|attention\.dense)"
_MLP_OUT = r"mlp\.(c_proj|down_proj|dense_4h_to_h)"
_NORM = r"(ln_\d|\w*layernorm)"
_PLACES: dict[Place, tuple[str, ...]] = {
    "stream": (
        r"hook_embed|wte|embed_tokens|embed_in",
        r"blocks\.\d+\.(hook_(resid_(pre|mid|post)|mlp_out|attn_out|mlp_in|attn_in)|mlp\.hook_out)",
        r"(resid_post|resid_out|mlp_out|attn_out)_layer_?\d+",
        rf"{_BLOCK}(:input)?",
        rf"{_BLOCK}\.(mlp|{_ATTENTION}|{_ATTENTION_OUT}|{_MLP_OUT}|{_NORM}:input)",
    ),
    "z": (r"blocks\.\d+\.attn\.hook_z", rf"{_BLOCK}\.{_ATTENTION_OUT}:input"),
    "normalised": (r"(blocks\.\d+\.ln\d|ln_final)\.hook_normalized",),
    "other": (
        r"blocks\.\d+\.(attn|mlp|ln\d)\.hook_\w+",
        rf"{_BLOCK}\.((mlp|{_ATTENTION}):input|{_NORM}|mlp\.\w+(:input)?)",
    ),
}
"""Names of each kind of place, TransformerLens' and those of Hugging Face below the module that holds the blocks; a name is of
the first kind that has it."""


def place_of(name: str) -> Place | None:
    """What kind of place a hookpoint's name means; None where it is not known here."""
    bare = re.sub(r"^((model|transformer|gpt_neox|language_model)\.)+", "", name)
    bare = re.sub(r"[.:]output$", "", re.sub(r"[.:]input$", ":input", bare))
    kinds = (place for place, patterns in _PLACES.items() if any(re.fullmatch(p, bare) for p in patterns))
    return next(kinds, None)


class TrainedSubject(NamedTuple):
    """How the activations that the coder was trained on differ from the Hugging Face model's."""

    normalisation: Normalisation | None
    """What makes the one of the other; None where they are equal but for value biases."""
    hook: str | None
    """Where the coder reads."""
    value_biases_folded: bool
    """Whether its inputs lack the values' bias."""
    facts: tuple[Fact, ...]


def weights_were_processed(config: dict[str, Any]) -> bool:
    """Whether a version of SAELens wrote the config that read subjects with TransformerLens' defaults, all of which process."""
    version = re.match(r"(\d+)\.(\d+)", str(config.get("sae_lens_training_version") or ""))
    return "hook_point" in config or (version is not None and (int(version[1]), int(version[2])) < _PROCESSED_BEFORE)


def trained_subject(
    where: Path,
    metadata: dict[str, Any],
    hook: str | None,
    *,
    processed: bool,
    mean_free: bool,
    transcodes: bool,
    options: Options,
) -> TrainedSubject:
    """Read it from a coder's ``metadata``.

    Args:
        where: the config, for messages.
        metadata: SAELens' ``metadata``, or the flat config of old versions.
        hook: where the coder reads, as the files say.
        processed: whether weights were processed where ``model_from_pretrained_kwargs`` does not say otherwise.
        mean_free: whether the coder's own normalisation takes the mean off anyway.
        transcodes: whether the output is somewhere else, so that the input's mean is not put back.
        options: what the caller said.

    Raises CoderError where it cannot be told, or cannot be seen from the Hugging Face model.
    """
    subject = text(where, "model_name", metadata.get("model_name"))
    processing = mapping(where, "model_from_pretrained_kwargs", metadata.get("model_from_pretrained_kwargs"))
    for key in ("center_writing_weights", "fold_ln", "fold_value_biases"):
        flag(where, f"model_from_pretrained_kwargs.{key}", processing.get(key))
    # the caller's word first, then TransformerLens' name, whose meaning the options are about
    names = [n for n in (*options.hookpoints[:1], metadata.get("hook_name"), metadata.get("hook_point"), hook) if n]
    place = next((place for name in names if (place := place_of(str(name))) is not None), None)
    if place == "normalised" and processing.get("fold_ln", processed):
        found = re.fullmatch(r"blocks\.(\d+)\.ln2\.hook_normalized", str(names[0]))
        if "gemma" not in subject.lower() or found is None or not transcodes:
            raise CoderError(
                f"{where}: the coder reads {names[0]!r} of a subject with folded layer norms (fold_ln), which no module of the "
                "Hugging Face model carries."
            )
        fact = Fact("normalisation", "root mean square, without the norm's gain", f"{where.name}: fold_ln")
        return TrainedSubject(RootMeanSquare(), f"blocks.{found[1]}.hook_resid_mid", False, (fact,))
    if place == "z" and processing.get("fold_value_biases", processed):
        fact = Fact("value biases", "taken off the inputs", "TransformerLens folds them into the output's bias")
        return TrainedSubject(None, hook, True, (fact,))
    centred, origin = processing.get("center_writing_weights"), f"{where.name}: model_from_pretrained_kwargs"
    rms_norms = bool(_RMS_NORM_SUBJECTS.search(subject))
    if options.center_writing_weights is not None:
        centred, origin = options.take_center_writing_weights(), "given"
        if centred and (place != "stream" or mean_free or rms_norms):
            raise CoderError(
                f"{where}: center_writing_weights is given, and it changes nothing that this coder is known to read (hookpoint "
                f"{names[0] if names else 'not said'}, subject {subject or 'not said'}): leave it out, or set the hookpoint too."
            )
    elif processed and place == "stream" and centred is None and not mean_free and not rms_norms:
        raise CoderError(
            f"{where}: a version of SAELens wrote this that read {subject or 'its subject'} with centred writing weights unless told "
            "otherwise, and the file does not say: set center_writing_weights to true (gpt2-small-res-jb and its kin) or false."
        )
    if not centred or mean_free or rms_norms or place not in ("stream", None):
        return TrainedSubject(None, hook, False, ())  # nothing is centred, or centring changes nothing
    if place is None:
        raise CoderError(
            f"{where}: the coder was trained on a subject with centred writing weights (center_writing_weights), and whether "
            f"{names[0] if names else 'what it reads'} is changed by that is not known: set the hookpoint."
        )
    if origin != "given" and not _LAYER_NORM_SUBJECTS.search(subject):
        raise CoderError(
            f"{where}: the coder was trained on {subject or 'a subject'} with centred writing weights (center_writing_weights), "
            "and whether that model has layer norms is not known here: set center_writing_weights to true if it has, else to false."
        )
    fact = Fact("normalisation", "mean subtracted (center_writing_weights)", origin)
    return TrainedSubject(Centring(undone=not transcodes), hook, False, (fact,))
