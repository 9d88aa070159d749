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
from sae_core.formats.trained_subject import trained_subject, weights_were_processed
from sae_core.parts.activation import AbsTopK, Activation, Gated, JumpReLU, ReLU, TopK
from sae_core.parts.encoder import AffineEncoder, Encoder, MatchingPursuit
from sae_core.parts.normalisation import (
    ConstantNorm,
    LayerNorm,
    NoNormalisation,
    Normalisation,
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
    Architecture("layer_norm, transcoder (not undone)", "sae_lens/transcoder_layer_norm"),
    Architecture(
        "constant_norm_rescale, jumprelu_skip_transcoder (not undone)",
        "sae_lens/jumprelu_skip_transcoder_constant_norm",
    ),
    Architecture("matching_pursuit, b_dec left out", "sae_lens/matching_pursuit_no_bdec"),
    Architecture("layer_norm, topk", "sae_lens/topk_layer_norm"),
    Architecture("constant_norm_rescale", "sae_lens/standard_constant_norm_rescale"),
    Architecture("expected_average_only_in, given input_scale", "sae_lens/standard_expected_average_only_in"),
    Architecture("hook_z, heads flattened", "sae_lens/standard_hook_z"),
    Architecture("versions before 6", "sae_lens/legacy_v5_standard"),
    Architecture("versions before 6, topk", "sae_lens/legacy_v5_topk"),
    Architecture("covariance_whitening", "", refused="whether it is in the weights already the file does not say"),
)
_NORMALISATIONS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm")


_RESCALED = ("topk", "abstopk")


def matches(path: Path) -> bool:
    """Whether ``path`` holds this format."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def read(path: Path, options: Options) -> SparseCoder:
    """Every inference architecture; what is not understood is refused."""
    where = path / CONFIG
    config = read_config(where)
    mapping(where, "metadata", config.get("metadata"))
    processed = False
    if _is_legacy(where, config):
        processed = weights_were_processed(config)
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
    rescale = flag(where, "rescale_acts_by_decoder_norm", config.get("rescale_acts_by_decoder_norm"))
    if rescale and architecture not in _RESCALED:
        raise CoderError(f"{where}: rescale_acts_by_decoder_norm is set, which {architecture} coders do not have.")
    transcodes = "transcoder" in architecture
    subtract = flag(where, "apply_b_dec_to_input", config.get("apply_b_dec_to_input"), not transcodes)
    if transcodes and subtract:
        raise CoderError(f"{where}: apply_b_dec_to_input is set, and a transcoder's b_dec belongs to its output.")
    hook_in, hook_out = _hooks(where, config, transcodes)
    normalisation = _own_normalisation(where, config, transcodes)
    trained = trained_subject(
        where,
        _metadata(config),
        hook_in,
        processed=processed,
        mean_free=isinstance(normalisation, LayerNorm),
        transcodes=transcodes,
        options=options,
    )
    if trained.normalisation is not None and not isinstance(normalisation, NoNormalisation):
        raise CoderError(
            f"{where}: normalize_activations is {config['normalize_activations']!r} beside a subject that TransformerLens had "
            "changed (centred writing weights or folded norms); the two together are not read."
        )
    normalisation, hook_in = trained.normalisation or normalisation, trained.hook
    scale = _input_scale(where, config, options)
    k = (
        active_latents(where, config.get("k"), positive_int(where, "d_sae", config.get("d_sae")))
        if architecture in _RESCALED
        else None
    )
    weights = _weights(path / WEIGHTS, where, config, architecture, options)
    if scale is not None and scale != 1:
        weights["W_enc"].mul_(scale)
        weights["W_dec"].div_(scale)
        weights["b_dec"].div_(scale)
    if rescale:
        _fold_decoder_norms(weights)
    if rescale or scale is not None:
        check_finite(path / WEIGHTS, "what is folded into the weights", *weights.tensors.values())
    decoder_bias = weights["b_dec"]
    if architecture == "matching_pursuit" and not subtract:
        decoder_bias = torch.zeros_like(decoder_bias)
    coder = SparseCoder(
        encoder=_encoder(where, config, architecture, k, weights),
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
        value_biases_folded=trained.value_biases_folded,
        facts=_facts(config, trained.facts, scale),
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


def _input_scale(where: Path, config: dict[str, Any], options: Options) -> float | None:
    """SAELens scales nothing at run time for ``expected_average_only_in``: the factor must be in the weights."""
    if config.get("normalize_activations") != "expected_average_only_in":
        return None
    given = options.take_input_scale()
    if given is None:
        raise CoderError(
            f"{where}: normalize_activations is 'expected_average_only_in', and the file does not say whether the factor "
            'sqrt(d_in) / mean norm is in the weights already: set input_scale to the factor, or to "folded" if it is.'
        )
    return given[0]


def _fold_decoder_norms(weights: Weights) -> None:
    """``topk(pre * |d|)`` decoded by ``d / |d|`` is topk of an encoder whose rows are longer by ``|d|``."""
    norms = weights["W_dec"].norm(dim=1)
    weights["W_enc"].mul_(norms)
    weights["b_enc"].mul_(norms)
    weights["W_dec"].div_(norms.clamp_min(torch.finfo(norms.dtype).tiny).unsqueeze(1))


def _encoder(where: Path, config: dict[str, Any], architecture: str, k: int | None, weights: Weights) -> Encoder:
    if architecture == "matching_pursuit":
        most = config.get("max_iterations")
        return MatchingPursuit(
            weight=weights["W_dec"],
            residual_threshold=_residual_threshold(where, config.get("residual_threshold", 1e-2)),
            max_iterations=int(config["d_in"]) if most is None else positive_int(where, "max_iterations", most),
            stop_on_duplicate_support=flag(
                where, "stop_on_duplicate_support", config.get("stop_on_duplicate_support"), True
            ),
        )
    activation: Activation
    if architecture == "gated":
        activation = Gated(weights["b_gate"], weights["r_mag"], weights["b_mag"])
    elif "jumprelu" in architecture:
        activation = JumpReLU(weights["threshold"])
    elif k is not None:
        activation = TopK(k) if architecture == "topk" else AbsTopK(k)
    else:
        activation = ReLU()
    return AffineEncoder(weights["W_enc"].T, weights.get("b_enc"), activation)


def _residual_threshold(where: Path, value: object) -> float:
    return 0.0 if value == 0 else positive_number(where, "residual_threshold", value)


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


def _own_normalisation(where: Path, config: dict[str, Any], transcodes: bool) -> Normalisation:
    """What the coder itself does to its inputs; SAELens undoes it on the output, but for transcoders."""
    named = one_of(where, "normalize_activations", config.get("normalize_activations") or "none", _NORMALISATIONS)
    if named == "layer_norm":
        return LayerNorm(undone=not transcodes)
    return ConstantNorm(undone=not transcodes) if named == "constant_norm_rescale" else NoNormalisation()


def _facts(config: dict[str, Any], notes: tuple[Fact, ...], scale: float | None) -> tuple[Fact, ...]:
    metadata = _metadata(config)
    facts = [
        Fact("normalisation", str(config.get("normalize_activations") or "none"), f"{CONFIG}: normalize_activations")
    ]
    facts += notes
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
