"""Gemma Scope's first release: ``params.npz`` in a folder whose path says layer and width, in a repository that says the site.

Lieberum et al. 2024, "Gemma Scope". JumpReLU, nothing subtracted from the input.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from sae_core.coder import Fact, SparseCoder, fingerprint
from sae_core.errors import CoderError
from sae_core.formats.reading import Architecture, Options, check_finite, file_in
from sae_core.parts.activation import JumpReLU
from sae_core.parts.encoder import AffineEncoder
from sae_core.parts.normalisation import NoNormalisation, RootMeanSquare

NAME = "gemma_scope"
TITLE = "Gemma Scope"
REFERENCE = "sae-lens' converter"
FILES = "layer_N/width_W/average_l0_X/params.npz"
WEIGHTS = "params.npz"
ARCHITECTURES = (
    Architecture("residual stream", "gemma_scope/res"),
    Architecture("MLP output", "gemma_scope/mlp"),
    Architecture("attention output", "gemma_scope/att"),
    Architecture("embedding", "gemma_scope/embedding"),
    Architecture("transcoder", "gemma_scope/transcoder"),
)
ALIKE = re.compile(r"(^|\.)(layers|h)\.\d+(\.output)?$|hook_resid_post$|o_proj[.:]input$|attn\.hook_z$")
"""Places at which all of Gemma Scope's coders read alike."""
_SITES = {
    "transcoder": ("layers.{}.pre_feedforward_layernorm:input", "layers.{}.post_feedforward_layernorm"),
    "embedding": ("embed_tokens", "embed_tokens"),
    "residual stream": ("layers.{}", "layers.{}"),
    "MLP output": ("layers.{}.post_feedforward_layernorm", "layers.{}.post_feedforward_layernorm"),
    "attention output": ("layers.{}.self_attn.o_proj:input", "layers.{}.self_attn.o_proj:input"),
}


def matches(path: Path) -> bool:
    """Whether ``path`` holds this format."""
    return file_in(path, WEIGHTS).is_file()


def read(path: Path, options: Options) -> SparseCoder:
    """A coder of any of the release's five kinds, told apart by the repository's name and the path."""
    weights_path = file_in(path, WEIGHTS)
    # the folder is resolved, not the file: in the hub's cache files are links to where no name says anything
    named = weights_path.parent.resolve().as_posix()
    site, layers = _site(named), re.findall(r"/layer_(\d+)(?=/|$)", named)
    if site is None and not options.hookpoints:
        raise CoderError(
            f"{named} does not say which of Gemma Scope's repositories it comes from (gemma-scope-2b-pt-res, -mlp, -att, "
            "-transcoders), so what it reads is not known: keep the repository's name in the path, or set the hookpoint."
        )
    if site is None and not ALIKE.search(options.hookpoints[0]):
        raise CoderError(
            f"{named} does not say which of Gemma Scope's repositories it comes from, and what a coder at "
            f"{options.hookpoints[0]!r} does to its input depends on that: keep the repository's name in the path."
        )
    stored = options.open(weights_path)
    d_in, num = stored.shape("W_enc", 2)
    d_out = stored.shape("W_dec", 2)[1]
    weights = stored.read(
        {"W_enc": (d_in, num), "W_dec": (num, d_out), "b_enc": (num,), "b_dec": (d_out,), "threshold": (num,)},
        dtype=options.dtype,
        device=options.device,
    )
    folded: tuple[str, ...] = ()
    if site == "embedding":
        # trained on embeddings before Gemma multiplies them by sqrt(d); the module gives them after that
        weights["W_enc"].div_(d_in**0.5)
        weights["W_dec"].mul_(d_in**0.5)
        weights["b_dec"].mul_(d_in**0.5)
        check_finite(weights_path, "a weight times sqrt(d)", weights["W_dec"], weights["b_dec"])
        folded = ("embedding scale",)
    hooks = _SITES[site] if site == "embedding" or (site and layers) else None
    into, out = (tuple(name.format(layers[-1] if layers else "") for name in hooks)) if hooks else ("", "")
    coder = SparseCoder(
        encoder=AffineEncoder(weights["W_enc"].T, weights["b_enc"], JumpReLU(weights["threshold"])),
        decoder_weight=weights["W_dec"],
        decoder_bias=weights["b_dec"],
        # the transcoders read the MLP's normalised input without the norm's gain, which no module of the model carries
        normalisation=RootMeanSquare() if site == "transcoder" else NoNormalisation(),
        hookpoints_in=(into,) if into else (),
        hookpoints_out=(out,) if out else (),
        format=NAME,
        architecture=site or "not said",
        fingerprint="",
        facts=(
            Fact("hookpoint", into or "not said", "the repository's name and the path"),
            Fact(
                "normalisation",
                "root mean square, without the norm's gain" if site == "transcoder" else "none",
                "the paper",
            ),
        ),
    )
    return replace(coder, fingerprint=fingerprint(weights.digest, coder, folded))


def _site(named: str) -> str | None:
    found = re.findall(r"gemma-scope-\w+-(?:pt|it)-(res|mlp|att|transcoders)", named)
    if not found:
        return None
    if found[-1] == "res" and "/embedding/" in named + "/":
        return "embedding"
    return {"res": "residual stream", "mlp": "MLP output", "att": "attention output", "transcoders": "transcoder"}[
        found[-1]
    ]
