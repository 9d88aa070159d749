"""sparsify's coders: ``cfg.json`` + ``sae.safetensors`` in a folder that is named after the hookpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_core.coder import Fact, SparseCoder, fingerprint
from sae_core.errors import CoderError
from sae_core.formats.reading import Architecture, Options, active_latents, flag, one_of, positive_int, read_config
from sae_core.parts.activation import Activation, GroupMax, TopK
from sae_core.parts.encoder import AffineEncoder

NAME = "sparsify"
TITLE = "sparsify"
REFERENCE = "sparsify, which wrote the files"
FILES = "cfg.json + sae.safetensors"
CONFIG, WEIGHTS, RUN_CONFIG = "cfg.json", "sae.safetensors", "config.json"
_KNOWN = (
    "activation", "expansion_factor", "normalize_decoder", "num_latents", "k", "multi_topk", "skip_connection", "transcode",
    "d_in", "signed",
)  # fmt: skip
ARCHITECTURES = (
    Architecture("topk", "sparsify/layers.0.topk"),
    Architecture("topk, latents by expansion_factor", "sparsify/layers.0.topk_expansion_factor"),
    Architecture("topk, decoder not normalised", "sparsify/layers.0.topk_no_decoder_norm"),
    Architecture("topk, multi_topk", "sparsify/layers.0.multi_topk"),
    Architecture("topk, skip connection", "sparsify/layers.0.skip_connection"),
    Architecture("groupmax", "sparsify/layers.0.groupmax"),
    Architecture("topk transcoder", "sparsify/layers.0.transcoder"),
    Architecture("topk transcoder, skip connection", "sparsify/layers.0.transcoder_skip"),
    Architecture("signed", "", refused="a setting of old versions, of which no reference is at hand"),
)


def matches(path: Path) -> bool:
    """Whether ``path`` holds this format."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def read(path: Path, options: Options) -> SparseCoder:
    """An SAE or a transcoder; what is not understood is refused.

    A transcoder reads its module's input and does not subtract ``b_dec``; an SAE reads the output and does.
    """
    where = path / CONFIG
    config = read_config(where)
    function = one_of(where, "activation", config.get("activation", "topk"), ("topk", "groupmax"))
    if flag(where, "signed", config.get("signed")):
        raise CoderError(f"{where}: signed is set: sparsify coders with signed activations are not read.")
    d_in = positive_int(where, "d_in", config.get("d_in"))
    num_latents = config.get("num_latents") or d_in * positive_int(
        where, "expansion_factor", config.get("expansion_factor")
    )
    positive_int(where, "num_latents", num_latents)
    k = active_latents(where, config.get("k"), num_latents)
    if function == "groupmax" and num_latents % k:
        raise CoderError(f"{where}: groupmax needs k to divide the latents, and {k} does not divide {num_latents}.")
    if unknown := [key for key, value in config.items() if key not in _KNOWN and value]:
        raise CoderError(
            f"{where}: {', '.join(sorted(unknown))} is set, which this reader does not know: the coder is refused."
        )
    skip, transcodes = (flag(where, key, config.get(key)) for key in ("skip_connection", "transcode"))
    # Until February 2025 (pull request 49) transcoders subtracted b_dec, and only the run's config said that they are
    # transcoders.
    early = "transcode" not in config and _run_transcodes(path.resolve().parent / RUN_CONFIG)
    if skip and "transcode" not in config and not (path.resolve().parent / RUN_CONFIG).is_file():
        raise CoderError(
            f"{where}: skip_connection is set and transcode is not said, as early transcoders leave it to the run's config.json in "
            "the folder above, which is missing: put that file there, or write transcode into the coder's config."
        )
    transcodes = transcodes or early
    weights = options.open(path / WEIGHTS).read(
        {
            "encoder.weight": (num_latents, d_in),
            "encoder.bias": (num_latents,),
            "W_dec": (num_latents, d_in),
            "b_dec": (d_in,),
        }
        | ({"W_skip": (d_in, d_in)} if skip else {}),
        dtype=options.dtype,
        device=options.device,
    )
    activation: Activation = TopK(k) if function == "topk" else GroupMax(k)
    module = path.resolve().name
    coder = SparseCoder(
        encoder=AffineEncoder(weights["encoder.weight"], weights["encoder.bias"], activation),
        decoder_weight=weights["W_dec"],
        decoder_bias=weights["b_dec"],
        shift=None if transcodes and not early else weights["b_dec"],
        skip=weights.get("W_skip"),
        hookpoints_in=(f"{module}:input" if transcodes else module,),
        hookpoints_out=(module,),
        format=NAME,
        architecture=function + " transcoder" * transcodes + ", skip connection" * skip,
        fingerprint="",
        facts=(
            Fact("hookpoint", module, "the folder's name"),
            Fact("k", str(k), f"{CONFIG}: k"),
            Fact("transcode", str(transcodes), _origin(config, early)),
            Fact("normalisation", "none", "the format has none"),
        ),
    )
    return replace(coder, fingerprint=fingerprint(weights.digest, coder))


def _run_transcodes(run_config: Path) -> bool:
    """Whether the config of the training run, a folder above, says that its coders are transcoders."""
    return run_config.is_file() and read_config(run_config).get("transcode") is True


def _origin(config: dict[str, Any], early: bool) -> str:
    if early:
        return f"../{RUN_CONFIG}: transcode"
    return f"{CONFIG}: transcode" if "transcode" in config else "not said; taken for an SAE"
