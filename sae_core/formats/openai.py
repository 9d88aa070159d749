"""OpenAI's GPT-2 coders: ``<location>/autoencoders/<layer>.pt``, a torch pickle (Gao et al. 2024).

``TopK`` coders normalise each input to mean 0 and standard deviation 1 and undo it on their output.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sae_core.coder import Fact, SparseCoder, fingerprint
from sae_core.errors import CoderError
from sae_core.formats.reading import Architecture, Options, active_latents, one_of, shown
from sae_core.parts.activation import Activation, ReLU, TopK
from sae_core.parts.encoder import AffineEncoder
from sae_core.parts.normalisation import LayerNorm, NoNormalisation

NAME = "openai"
TITLE = "OpenAI GPT-2"
REFERENCE = "numpy encode"
FILES = "<location>/autoencoders/<layer>.pt"
ARCHITECTURES = (
    Architecture("relu", "openai/v1_relu"),
    Architecture("relu, no activation in the file", "openai/v1_bare"),
    Architecture("relu, tied, no decoder in the file", "openai/tied"),
    Architecture("relu, tied, the decoder as a layer", "openai/tied_linear"),
    Architecture("topk", "openai/v5_topk"),
    Architecture("identity", "", refused="no published coder has it"),
)
_HOOKS = {
    "mlp_post_act": "mlp.hook_post",
    "resid_delta_attn": "hook_attn_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_post_mlp": "hook_resid_post",
}
_ONLY_TRAINING = (
    "stats_last_nonzero", "latents_activation_frequency", "latents_mean_square", "activation.k", "activation.postact_fn",
)  # fmt: skip


def matches(path: Path) -> bool:
    """Whether ``path`` is a file of this format."""
    return (
        bool(re.fullmatch(r"\d+\.pt", path.name))
        and path.is_file()
        and not path.with_name(f"{path.stem}_cfg.json").exists()
    )


def read(path: Path, options: Options) -> SparseCoder:
    """A ReLU or TopK coder; one without a decoder, or with a tied one, decodes by its encoder's rows."""
    stored = options.open(path)
    num, d = stored.shape("encoder.weight", 2)
    tied = "decoder.weight" not in stored.tensors
    ignored = {*_ONLY_TRAINING, "decoder.linear.weight"} & set(stored.tensors)
    weights = stored.read(
        {"encoder.weight": (num, d), "pre_bias": (d,), "latent_bias": (num,)}
        | ({} if tied else {"decoder.weight": (d, num)}),
        ignored=ignored,
        dtype=options.dtype,
        device=options.device,
    )
    function = one_of(path, "activation", stored.values.get("activation", "ReLU"), ("ReLU", "TopK"))
    if "activation" not in stored.values and {"activation.k", "activation_state_dict"} & {
        *stored.tensors,
        *stored.values,
    }:
        raise CoderError(f"{path} says how many latents are active, and not by which activation; fetch it again.")
    activation: Activation = ReLU()
    if function == "TopK":
        state = stored.values.get("activation_state_dict")
        if not isinstance(state, Mapping) or state.get("postact_fn", "ReLU") != "ReLU":
            raise CoderError(
                f"{path}: activation_state_dict is {shown(state)}; a TopK coder's says k, and postact_fn ReLU."
            )
        activation = TopK(active_latents(path, state.get("k"), num))
    hook = _hook(path)
    coder = SparseCoder(
        encoder=AffineEncoder(weights["encoder.weight"], weights["latent_bias"], activation),
        decoder_weight=weights["encoder.weight"] if tied else weights["decoder.weight"].T,
        decoder_bias=weights["pre_bias"],
        shift=weights["pre_bias"],
        normalisation=LayerNorm() if function == "TopK" else NoNormalisation(),
        hookpoints_in=(hook,) if hook else (),
        hookpoints_out=(hook,) if hook else (),
        format=NAME,
        architecture=function.lower() + (", tied" if tied else ""),
        fingerprint="",
        facts=(
            Fact("hookpoint", hook or "not said", "the path: location and layer"),
            Fact("normalisation", "layer norm" if function == "TopK" else "none", "TopK coders have it"),
        ),
    )
    return replace(coder, fingerprint=fingerprint(weights.digest, coder))


def _hook(path: Path) -> str | None:
    found = re.search(rf"/({'|'.join(_HOOKS)})(?:_v\w+)?/", (path.parent.resolve() / path.name).as_posix())
    return f"blocks.{path.stem}.{_HOOKS[found[1]]}" if found else None
