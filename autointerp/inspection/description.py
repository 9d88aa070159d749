"""What was found, as values for JSON and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from autointerp.inspection.firing_rates import rate_histogram
from autointerp.inspection.looking import Inspection
from autointerp.report.figures import UNDEFINED, plain

if TYPE_CHECKING:
    from sae_core.coder import SparseCoder
    from sae_core.health import CoderHealth


def inspection_json(found: Inspection) -> dict[str, Any]:
    """Everything that was found, for ``json.dumps``; null stands for a figure that is not defined."""
    out: dict[str, Any] = {"coder": {"path": found.path} | description(found.coder)}
    out["facts"] = [fact._asdict() for fact in found.coder.facts]
    if found.health is not None and found.measured is not None:
        measured = found.measured
        out["measured_on"] = {
            "subject": measured.subject,
            "corpus": measured.corpus,
            "context_length": measured.context_length,
            "num_tokens": found.health.num_tokens,
        }
        out["health"] = _figures(found.health)
        out["saebench"] = saebench_metrics(found.health)
        out["firing_rates"] = rate_histogram(found.health)
    return out


def saebench_metrics(health: CoderHealth) -> dict[str, dict[str, float | int | None]]:
    """The figures under SAEBench's names, in the groups of its core evaluation; only what has its very definition.

    Its ``mse`` is left out: it depends on the size of its batches. ``explained_variance`` is by SAEBench's formula, which is not that of
    ``health.explained_variance``. For transcoders and crosscoders the same formulas are applied to what they write.
    """
    return {
        "model_behavior_preservation": {
            "kl_div_score": plain(health.kl_score),
            "kl_div_with_ablation": plain(health.kl_zero),
            "kl_div_with_sae": plain(health.kl_coder),
        },
        "model_performance_preservation": {
            "ce_loss_score": plain(health.loss_recovered),
            "ce_loss_with_ablation": plain(health.ce_zero),
            "ce_loss_with_sae": plain(health.ce_coder),
            "ce_loss_without_sae": plain(health.ce_clean),
        },
        "reconstruction_quality": {
            "explained_variance": plain(health.saebench_explained_variance),
            "explained_variance_legacy": plain(health.explained_variance_legacy),
            "cossim": plain(health.cosine),
        },
        "shrinkage": {
            "l2_norm_in": plain(health.l2_norm_in),
            "l2_norm_out": plain(health.l2_norm_out),
            "l2_ratio": plain(health.l2_ratio),
            "relative_reconstruction_bias": plain(health.relative_reconstruction_bias),
        },
        "sparsity": {"l0": plain(health.l0), "l1": plain(health.sum_activation)},
        "misc_metrics": {
            "frac_alive": plain(1 - health.dead_share),
            "freq_over_1_percent": plain(health.share_firing_over(0.01)),
            "freq_over_10_percent": plain(health.dense_share),
        },
    }


def _figures(health: CoderHealth) -> dict[str, Any]:
    names = [entry.name for entry in fields(health)]
    names += ["dead_share", "dense_share", "fraction_of_variance_unexplained", "loss_increase", "loss_recovered"]
    names += ["kl_score", "bits_per_token"]
    figures: dict[str, Any] = {}
    for name in names:
        value = getattr(health, name)
        if isinstance(value, float):
            figures[name] = plain(value)
        elif isinstance(value, tuple):
            figures[name] = [plain(v) for v in value]
        elif isinstance(value, (int, str)):
            figures[name] = value
    return figures


def description(coder: SparseCoder) -> dict[str, Any]:
    return {
        "format": coder.format,
        "architecture": coder.architecture,
        "num_latents": coder.num_latents,
        "d_in": coder.d_in,
        "d_out": coder.d_out,
        "hookpoints_in": list(coder.hookpoints_in),
        "hookpoints_out": list(coder.hookpoints_out),
        "num_hooks_in": coder.num_hooks_in,
        "num_hooks_out": coder.num_hooks_out,
        "num_subjects": coder.num_subjects,
        "normalisation": _part(coder.normalisation),
        "shift": coder.shift is not None,
        "activation": _part(getattr(coder.encoder, "activation", coder.encoder)),
        "skip": coder.skip is not None,
        "decodes_partly": coder.decodes_partly,
        "dtype": str(coder.decoder_weight.dtype).removeprefix("torch."),
        "fingerprint": coder.fingerprint,
    }


def _part(part: object) -> str:
    """A part of a coder in a few words: ``TopK(k=16, rectify=True)``, ``JumpReLU(threshold=0.01 to 2.3, rectify=True)``."""
    if not is_dataclass(part):
        return type(part).__name__
    words = []
    for entry in fields(part):
        value = getattr(part, entry.name)
        if isinstance(value, (bool, int, float, str)):
            words.append(f"{entry.name}={value}")
        elif hasattr(value, "numel") and hasattr(value, "dim") and value.dim() < 2 and value.numel():
            low, high = float(value.min()), float(value.max())
            words.append(f"{entry.name}={low:.4g}" + (f" to {high:.4g}" if high > low else ""))
    name = type(part).__name__.replace("NoNormalisation", "none")
    return f"{name}({', '.join(words)})" if words else name


def places(hookpoints: Sequence[str]) -> str:
    """Names of hookpoints on one line."""
    return ", ".join(hookpoints) or UNDEFINED
