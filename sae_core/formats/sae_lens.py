"""SAELens' coders: ``cfg.json`` + ``sae_weights.safetensors`` (docs/formats.md), version 6 and older."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sae_core.coder import Fact, SparseCoder, fingerprint
from sae_core.errors import CoderError, did_you_mean
from sae_core.formats.reading import (
    Architecture,
    Options,
    active_latents,
    check_finite,
    flag,
    mapping,
    one_of,
    positive_int,
    positive_number,
    read_config,
    shown,
    text,
)
from sae_core.parts.activation import AbsTopK, Activation, Gated, JumpReLU, ReLU, TopK
from sae_core.parts.encoder import AffineEncoder, Encoder, MatchingPursuit
from sae_core.parts.normalisation import (
    Centring,
    ConstantNorm,
    LayerNorm,
    NoNormalisation,
    Normalisation,
    RootMeanSquare,
)
from sae_core.weights.stored import Weights

NAME = "sae_lens"
TITLE = "SAELens"
REFERENCE = "sae-lens, which wrote the files"
FILES = "cfg.json + sae_weights.safetensors"
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_TRAINING = "a training checkpoint: its threshold is not that of inference; save it with save_inference_model"
_KINDS = (
    Architecture("standard", "sae_lens/standard"),
    Architecture("gated", "sae_lens/gated"),
    Architecture("jumprelu", "sae_lens/jumprelu"),
    Architecture("topk", "sae_lens/topk"),
    Architecture("abstopk", "sae_lens/abstopk"),
    Architecture("matching_pursuit", "sae_lens/matching_pursuit"),
    Architecture("transcoder", "sae_lens/transcoder"),
    Architecture("skip_transcoder", "sae_lens/skip_transcoder"),
    Architecture("jumprelu_transcoder", "sae_lens/jumprelu_transcoder"),
    Architecture("jumprelu_skip_transcoder", "sae_lens/jumprelu_skip_transcoder"),
    Architecture("batchtopk", "", refused=_TRAINING),
    Architecture("matryoshka_batchtopk", "", refused=_TRAINING),
    Architecture("temporal", "", refused="its activations depend on the whole sequence, through attention of its own"),
)
ARCHITECTURES = (
    *_KINDS,
    Architecture("trained as batchtopk, saved for inference", "sae_lens/batchtopk_as_inference"),
    Architecture("trained as matryoshka_batchtopk, saved for inference", "sae_lens/matryoshka_batchtopk_as_inference"),
    Architecture("b_dec not subtracted", "sae_lens/standard_no_bdec"),
    Architecture("b_dec not subtracted, jumprelu", "sae_lens/jumprelu_no_bdec"),
    Architecture("rescale_acts_by_decoder_norm", "sae_lens/topk_rescale"),
    Architecture("layer_norm", "sae_lens/standard_layer_norm"),
    Architecture("layer_norm, topk", "sae_lens/topk_layer_norm"),
    Architecture("constant_norm_rescale", "sae_lens/standard_constant_norm_rescale"),
    Architecture("expected_average_only_in, given input_scale", "sae_lens/standard_expected_average_only_in"),
    Architecture("hook_z, heads flattened", "sae_lens/standard_hook_z"),
    Architecture("versions before 6", "sae_lens/legacy_v5_standard"),
    Architecture("versions before 6, topk", "sae_lens/legacy_v5_topk"),
    Architecture("covariance_whitening", "", refused="whether it is in the weights already the file does not say"),
)
_NORMALISATIONS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm")
_LAYER_NORM_SUBJECTS = re.compile(
    r"(^|/)(gpt2|gpt-2|distilgpt2|pythia|gpt-neo|gpt-j|opt-|gelu|solu|stanford-gpt2)", re.I
)
_RESCALED = ("topk", "abstopk")
_RMS_NORM_SUBJECTS = re.compile(r"(gemma|llama|mistral|mixtral|qwen|olmo)", re.I)
_STREAM_HOOKS = re.compile(r"hook_(resid_(pre|mid|post)|mlp_out|attn_out|embed|mlp_in)$")


def matches(path: Path) -> bool:
    """Whether ``path`` holds this format."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def read(path: Path, options: Options) -> SparseCoder:
    """Every inference architecture; what is not understood is refused."""
    where = path / CONFIG
    config = read_config(where)
    mapping(where, "metadata", config.get("metadata"))
    if _is_legacy(where, config):
        config = {"architecture": "standard", **_upgraded(where, config)}
    architecture = text(where, "architecture", config.get("architecture"))
    known = {a.name: a for a in _KINDS}
    if architecture not in known:
        readable = [name for name, a in known.items() if not a.refused]
        hint = did_you_mean(architecture, readable, limit=len(readable))
        raise CoderError(f"{where}: architecture is {architecture!r}; {hint}{'' if hint.endswith('?') else '.'}")
    if known[architecture].refused:
        raise CoderError(f"{where}: architecture is {architecture!r}, which is refused: {known[architecture].refused}.")
    if _metadata(config).get("hook_head_index") is not None:
        raise CoderError(
            f"{where}: the coder reads head {shown(_metadata(config)['hook_head_index'])} alone (hook_head_index); coders of one head are not read."
        )
    if architecture == "matching_pursuit" and options.input_scale not in (None, "folded"):
        raise CoderError("input_scale cannot be folded into a matching_pursuit coder, whose encoder is its decoder.")
    weights = _weights(path / WEIGHTS, where, config, architecture, options)
    scale = _fold_input_scale(where, config, weights, options)
    rescale = flag(where, "rescale_acts_by_decoder_norm", config.get("rescale_acts_by_decoder_norm"))
    if rescale and architecture not in _RESCALED:
        raise CoderError(f"{where}: rescale_acts_by_decoder_norm is set, which {architecture} coders do not have.")
    if rescale:
        _fold_decoder_norms(weights)
    if rescale or scale is not None:
        check_finite(path / WEIGHTS, "what is folded into the weights", *weights.tensors.values())
    transcodes = "transcoder" in architecture
    subtract = flag(where, "apply_b_dec_to_input", config.get("apply_b_dec_to_input"), not transcodes)
    if transcodes and subtract:
        raise CoderError(f"{where}: apply_b_dec_to_input is set, and a transcoder's b_dec belongs to its output.")
    hook_in, hook_out = _hooks(where, config, transcodes)
    normalisation, hook_in, note = _normalisation(where, config, hook_in, options)
    decoder_bias = weights["b_dec"]
    if architecture == "matching_pursuit" and not subtract:
        decoder_bias = torch.zeros_like(decoder_bias)
    coder = SparseCoder(
        encoder=_encoder(where, config, architecture, weights),
        decoder_weight=weights["W_dec"],
        decoder_bias=decoder_bias,
        shift=weights["b_dec"] if subtract else None,
        normalisation=normalisation,
        skip=weights.get("W_skip"),
        hookpoints_in=(hook_in,) if hook_in else (),
        hookpoints_out=(hook_out,) if hook_out else (),
        format=NAME,
        architecture=architecture,
        fingerprint="",
        facts=_facts(config, note, scale),
    )
    folded = (f"input scale {scale!r}" if scale is not None else "", "decoder norms" if rescale else "")
    return replace(coder, fingerprint=fingerprint(weights.digest, coder, tuple(f for f in folded if f)))


def _metadata(config: dict[str, Any]) -> dict[str, Any]:
    metadata = config.get("metadata")
    return metadata if isinstance(metadata, dict) else config


def _is_legacy(where: Path, config: dict[str, Any]) -> bool:
    """Whether a version before 6 wrote it: flat, without ``sae_lens_version``."""
    version = config.get("sae_lens_version") or _metadata(config).get("sae_lens_version")
    if version is None:
        return True
    major = re.match(r"\d{1,6}(?=\.|$)", text(where, "sae_lens_version", version))
    if major is None:
        raise CoderError(f"{where}: sae_lens_version is {shown(version)}; it must be a version such as '6.0.0'.")
    return int(major[0]) < 6


def _upgraded(where: Path, config: dict[str, Any]) -> dict[str, Any]:
    """A flat config in the words of version 6, with the defaults of its time."""
    renamed = {
        "hook_point": "hook_name",
        "hook_point_head_index": "hook_head_index",
        "activation_fn_str": "activation_fn",
    }
    new = {renamed.get(key, key): value for key, value in config.items()}
    new["oldest"] = "hook_point" in config
    function = new.get("activation_fn") or "relu"
    if function == "topk":
        new["architecture"] = "topk"
        new["k"] = mapping(where, "activation_fn_kwargs", new.get("activation_fn_kwargs")).get("k", new.get("k"))
    elif function != "relu":
        raise CoderError(f"{where}: activation_fn is {shown(function)}; 'relu' and 'topk' are known.")
    new.setdefault("apply_b_dec_to_input", "transcoder" not in str(new.get("architecture")))
    if isinstance(new.get("normalize_activations"), bool):
        new["normalize_activations"] = "expected_average_only_in" if new["normalize_activations"] else "none"
    if "hook_z" in str(_metadata(new).get("hook_name") or ""):
        new.setdefault("reshape_activations", "hook_z")
    return new


def _weights(path: Path, where: Path, config: dict[str, Any], architecture: str, options: Options) -> Weights:
    d_in, num = positive_int(where, "d_in", config.get("d_in")), positive_int(where, "d_sae", config.get("d_sae"))
    d_out = positive_int(where, "d_out", config.get("d_out", d_in)) if "transcoder" in architecture else d_in
    shapes: dict[str, tuple[int, ...]] = {"W_dec": (num, d_out), "b_dec": (d_out,)}
    if architecture != "matching_pursuit":
        shapes["W_enc"] = (d_in, num)
    if architecture == "gated":
        shapes |= {"b_gate": (num,), "b_mag": (num,), "r_mag": (num,)}
    elif architecture != "matching_pursuit":
        shapes["b_enc"] = (num,)
    if "jumprelu" in architecture:
        shapes["threshold"] = (num,)
    if "skip" in architecture:
        shapes["W_skip"] = (d_out, d_in)
    stored = options.open(path)
    legacy_scale = {"scaling_factor": (num,)} if _is_legacy(where, config) else {}
    weights = stored.read(shapes, legacy_scale, dtype=options.dtype, device=options.device)
    scaling = weights.tensors.pop("scaling_factor", None)
    if scaling is not None and not bool((scaling == 1).all()):
        raise CoderError(f"{path}: scaling_factor is not all ones: coders with fine-tuned scales are not read.")
    return weights


def _fold_input_scale(where: Path, config: dict[str, Any], weights: Weights, options: Options) -> float | None:
    """SAELens scales nothing at run time for ``expected_average_only_in``: the factor must be in the weights."""
    if config.get("normalize_activations") != "expected_average_only_in":
        return None
    given = options.take_input_scale()
    if given is None:
        raise CoderError(
            f"{where}: normalize_activations is 'expected_average_only_in', and the file does not say whether the factor "
            'sqrt(d_in) / mean norm is in the weights already: set input_scale to the factor, or to "folded" if it is.'
        )
    scale = given[0]
    if scale != 1:
        weights["W_enc"].mul_(scale)
        weights["W_dec"].div_(scale)
        weights["b_dec"].div_(scale)
    return scale


def _fold_decoder_norms(weights: Weights) -> None:
    """``topk(pre * |d|)`` decoded by ``d / |d|`` is topk of an encoder whose rows are longer by ``|d|``."""
    norms = weights["W_dec"].norm(dim=1)
    weights["W_enc"].mul_(norms)
    weights["b_enc"].mul_(norms)
    weights["W_dec"].div_(norms.clamp_min(torch.finfo(norms.dtype).tiny).unsqueeze(1))


def _encoder(where: Path, config: dict[str, Any], architecture: str, weights: Weights) -> Encoder:
    num_latents, d_in = weights["W_dec"].shape[0], int(config["d_in"])
    if architecture == "matching_pursuit":
        most = config.get("max_iterations")
        return MatchingPursuit(
            weight=weights["W_dec"],
            residual_threshold=positive_number(where, "residual_threshold", config.get("residual_threshold", 1e-2)),
            max_iterations=d_in if most is None else positive_int(where, "max_iterations", most),
            stop_on_duplicate_support=flag(
                where, "stop_on_duplicate_support", config.get("stop_on_duplicate_support"), True
            ),
        )
    activation: Activation
    if architecture == "gated":
        activation = Gated(weights["b_gate"], weights["r_mag"], weights["b_mag"])
    elif "jumprelu" in architecture:
        activation = JumpReLU(weights["threshold"])
    elif architecture == "topk":
        activation = TopK(active_latents(where, config.get("k"), num_latents))
    elif architecture == "abstopk":
        activation = AbsTopK(active_latents(where, config.get("k"), num_latents))
    else:
        activation = ReLU()
    return AffineEncoder(weights["W_enc"].T, weights.get("b_enc"), activation)


def _hooks(where: Path, config: dict[str, Any], transcodes: bool) -> tuple[str | None, str | None]:
    metadata = _metadata(config)
    # where both are said the Hugging Face module is meant: some TransformerLens names have changed their meaning
    names = {
        key: text(where, key, metadata.get(key))
        for key in ("hf_hook_name", "hook_name", "hf_hook_name_out", "hook_name_out")
    }
    hook = names["hf_hook_name"] or names["hook_name"]
    out = (names["hf_hook_name_out"] or names["hook_name_out"]) if transcodes else hook
    reshape = one_of(where, "reshape_activations", config.get("reshape_activations") or "none", ("none", "hook_z"))
    if reshape == "hook_z" and hook and "hook_z" not in hook:
        raise CoderError(
            f"{where}: reshape_activations is 'hook_z' on {hook!r}: heads are flattened at attn.hook_z only."
        )
    return hook or None, out or None


def _normalisation(
    where: Path, config: dict[str, Any], hook: str | None, options: Options
) -> tuple[Normalisation, str | None, Fact | None]:
    """What is done to the Hugging Face model's activations before the coder reads them, and where they are read.

    SAELens reads a TransformerLens model, which ``model_from_pretrained_kwargs`` may have changed.
    """
    named = one_of(where, "normalize_activations", config.get("normalize_activations") or "none", _NORMALISATIONS)
    normalisation: Normalisation = NoNormalisation()
    if named == "layer_norm":
        normalisation = LayerNorm()
    elif named == "constant_norm_rescale":
        normalisation = ConstantNorm()
    metadata = _metadata(config)
    subject = text(where, "model_name", metadata.get("model_name"))
    origin = f"{CONFIG}: model_from_pretrained_kwargs"
    processing = mapping(where, "model_from_pretrained_kwargs", metadata.get("model_from_pretrained_kwargs"))
    for key in ("center_writing_weights", "fold_ln", "fold_value_biases"):
        flag(where, f"model_from_pretrained_kwargs.{key}", processing.get(key))
    centred = processing.get("center_writing_weights")
    layer_norms = bool(_LAYER_NORM_SUBJECTS.search(subject))
    streams = hook is not None and bool(_STREAM_HOOKS.search(hook))
    if options.center_writing_weights is not None:
        centred, origin = options.take_center_writing_weights(), "given"
    elif config.get("oldest") and layer_norms and streams and centred is None and named != "layer_norm":
        raise CoderError(
            f"{where}: the coder is from SAELens' first versions, which read {subject} with centred writing weights unless told "
            "otherwise, and the file does not say: set center_writing_weights to true (gpt2-small-res-jb and its kin) or false."
        )
    if processing.get("fold_ln") and hook is not None and "hook_normalized" in hook:
        found = re.fullmatch(r"blocks\.(\d+)\.ln2\.hook_normalized", hook)
        if "gemma" not in subject.lower() or found is None or named != "none":
            raise CoderError(
                f"{where}: the coder reads {hook!r} of a subject with folded layer norms (fold_ln), which no module of the "
                "Hugging Face model carries."
            )
        fact = Fact("normalisation", "root mean square, without the norm's gain", f"{CONFIG}: fold_ln")
        return RootMeanSquare(), f"blocks.{found[1]}.hook_resid_mid", fact
    if processing.get("fold_value_biases") and hook is not None and hook.endswith("attn.hook_z"):
        raise CoderError(
            f"{where}: the coder reads {hook!r} of a subject with folded value biases: its inputs are shifted."
        )
    if not centred or not streams or named == "layer_norm" or _RMS_NORM_SUBJECTS.search(subject):
        return normalisation, hook, None  # where nothing is centred, or centring changes nothing
    if not layer_norms:
        raise CoderError(
            f"{where}: the coder was trained on {subject or 'a subject'} with centred writing weights (center_writing_weights), "
            "and whether that model has layer norms is not known here: set center_writing_weights to false if it has not."
        )
    if named == "constant_norm_rescale":
        raise CoderError(f"{where}: constant_norm_rescale together with center_writing_weights is not read.")
    return Centring(), hook, Fact("normalisation", "mean subtracted (center_writing_weights)", origin)


def _facts(config: dict[str, Any], note: Fact | None, scale: float | None) -> tuple[Fact, ...]:
    metadata = _metadata(config)
    facts = [
        Fact("normalisation", str(config.get("normalize_activations") or "none"), f"{CONFIG}: normalize_activations")
    ]
    if note is not None:
        facts.append(note)
    if scale is not None:
        facts.append(Fact("input scale", f"{scale:g}" if scale != 1 else "folded", "given"))
    for key in ("k", "apply_b_dec_to_input", "rescale_acts_by_decoder_norm"):
        if config.get(key) is not None:
            facts.append(Fact(key, shown(config[key]), f"{CONFIG}: {key}"))
    for key in (
        "model_name",
        "hook_name",
        "hook_name_out",
        "context_size",
        "prepend_bos",
        "dataset_path",
        "sae_lens_version",
    ):
        if metadata.get(key) is not None:
            facts.append(Fact(key, str(metadata[key]), f"{CONFIG}: {key}"))
    return tuple(facts)
