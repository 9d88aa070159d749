"""What ``autointerp inspect`` says about a coder: what it is, and, with a subject and a corpus, how well it does there.

The same content three times: on the terminal, as JSON, and the firing rates as a picture. Torch is loaded by :func:`look` only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autointerp.report.figures import UNDEFINED, percent_text, plain, share_text, size_text
from autointerp.report.highlight import plain_line
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
        corpus = build_corpus(spec, subject.tokenizer, subject.bos_id, Path(folder))
        return Inspection(path, coder, measure, measure_health(subject, attached, corpus, progress=progress))


def inspection_json(found: Inspection) -> dict[str, Any]:
    """Everything that was found, for ``json.dumps``; null stands for a figure that is not defined."""
    out: dict[str, Any] = {"coder": {"path": found.path} | _description(found.coder)}
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
        out["firing_rates"] = _rate_histogram(found.health)
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


def _description(coder: SparseCoder) -> dict[str, Any]:
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


def print_inspection(found: Inspection, console: Console) -> None:
    """What was found, on a terminal."""
    coder, about = found.coder, _description(found.coder)
    console.print(Text(plain_line(found.path), style="bold cyan"))
    table = _plain_table()
    hooks = " x ".join([f"{coder.num_hooks_in} hookpoints"] * (coder.num_hooks_in > 1) + [f"{coder.d_in:,}"])
    to = " x ".join([f"{coder.num_hooks_out} hookpoints"] * (coder.num_hooks_out > 1) + [f"{coder.d_out:,}"])
    rows = [
        ("format", about["format"]),
        ("architecture", about["architecture"]),
        ("latents", f"{coder.num_latents:,}"),
        ("reads", f"{_places(coder.hookpoints_in)} (width {hooks})"),
        ("writes", f"{_places(coder.hookpoints_out)} (width {to})"),
        ("normalisation", about["normalisation"]),
        ("shift", "a vector is subtracted before the encoder" if about["shift"] else "none"),
        ("activation", about["activation"]),
        ("skip", "from the input to the output" if about["skip"] else "none"),
        ("dtype", about["dtype"]),
        ("fingerprint", about["fingerprint"]),
    ]
    if coder.num_subjects > 1:
        rows.insert(5, ("subjects", f"{coder.num_subjects} models, each read at its own place"))
    for name, value in rows:
        table.add_row(Text(name, style="dim"), plain_line(str(value)))
    console.print(table)
    if coder.facts:
        console.print()
        facts = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for heading in ("fact", "value", "read from"):
            facts.add_column(heading, overflow="fold")
        for fact in coder.facts:
            facts.add_row(*(Text(plain_line(str(word))) for word in fact))
        console.print(facts)
    if found.health is not None and found.measured is not None:
        console.print()
        _print_health(found.health, found.measured, coder, console)


def _print_health(health: CoderHealth, measured: MeasureOptions, coder: SparseCoder, console: Console) -> None:
    where = f"{plain_line(measured.subject)} on {plain_line(measured.corpus)}"
    console.print(Text(f"Health: {where}, {health.num_tokens:,} tokens", style="bold"))
    table = _plain_table()
    dead, dense = int((health.fire_count == 0).sum()), round(health.dense_share * len(health.fire_count))
    rows = [
        ("L0, L1", f"{health.l0:.4g} active latents a token, activations that sum to {health.l1:.4g}"),
        ("dead", f"{percent_text(health.dead_share)}: {dead:,} of {coder.num_latents:,} latents fired on none of the {health.num_tokens:,} tokens"),
        ("dense", f"{percent_text(health.dense_share)}: {dense:,} fire on more than 10% of tokens"),
        ("explained variance", f"{share_text(health.explained_variance, 4)}, unexplained {share_text(health.fraction_of_variance_unexplained, 4)}"
            f" (SAEBench's formula {share_text(health.saebench_explained_variance, 4)})"),
        ("error", f"mean square {health.mean_squared_error:.4g}, cosine {share_text(health.cosine, 4)}"),
        ("norm of the output", f"{share_text(health.l2_ratio, 4)} of the true one, relative bias {health.relative_reconstruction_bias:.4f}"),
        ("cross-entropy", f"{health.ce_clean:.4f} nats clean, {health.ce_coder:.4f} with the coder's output ({health.loss_increase:+.4f}), {health.ce_zero:.4f} with zeros"),
        ("loss recovered", share_text(health.loss_recovered, 4)),
        ("KL to clean", f"{health.kl_coder:.4f} nats with the coder's output, {health.kl_zero:.4f} with zeros: score {share_text(health.kl_score, 4)}"),
        ("bits a token", f"{health.bits_per_token:.1f}: {health.position_bits:.1f} for which fire, {health.value_bits:.1f} for how much (to within 9%)"),
    ]  # fmt: skip
    if len(health.explained_variance_by_hookpoint) > 1:
        each = zip(coder.hookpoints_out, health.explained_variance_by_hookpoint, strict=True)
        rows.insert(4, ("  by hookpoint", ", ".join(f"{name} {share_text(value, 4)}" for name, value in each)))
    for name, value in rows:
        table.add_row(Text(name, style="dim"), Text(value))
    console.print(table)
    came = (
        "with the coder's output in place it reads the clean pass, as one of its hookpoints comes after one that it writes"
        if health.inputs_from == "clean pass"
        else "with the coder's output in place it reads the same pass"
    )
    notes = f"Special tokens are not counted and keep their activations, but for zeros, which are everywhere; {came}."
    console.print(Text(notes, style="dim"))
    console.print()
    for line in firing_rate_lines(health, console):
        console.print(line)


def firing_rate_lines(health: CoderHealth, console: Console) -> list[Text]:
    """Latents by their firing rate, a bar for every half of a decade, dead ones last."""
    counts, edges = _rate_cells(health, 2)
    dead = int((health.fire_count == 0).sum())
    block = "█" if console.encoding.lower().startswith("utf") else "#"
    width = max(10, min(60, console.width - 36))
    top = max(int(counts.max(initial=0)), dead, 1)
    lines = [Text("log10 of the firing rate per token      latents", style="bold")]
    cells = [(f"{edges[i]:5.1f} to {edges[i + 1]:4.1f}", int(counts[i])) for i in reversed(range(len(counts)))]
    for name, count in [*cells, ("never", dead)]:
        bar = block * max(round(count / top * width), int(count > 0))
        lines.append(Text.assemble((f"  {name:<16}", "dim"), f"{count:>9,}  ", (bar, "blue")))
    return lines


def _rate_histogram(health: CoderHealth) -> dict[str, Any]:
    counts, edges = _rate_cells(health, 6)
    never = int((health.fire_count == 0).sum())
    return {"log10_edges": edges.round(6).tolist(), "num_latents": counts.tolist(), "num_never": never}


def _rate_cells(health: CoderHealth, cells_per_decade: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Latents that fired, by log10 of their firing rate: counts, and edges from one token in all of them to every token."""
    decades = max(np.ceil(np.log10(health.num_tokens) * cells_per_decade), 1) / cells_per_decade
    edges = np.linspace(-decades, 0.0, round(decades * cells_per_decade) + 1)
    rates = np.log10(health.fire_rate[health.fire_count > 0])
    # a rate on the lowest edge may lie a rounding below it
    counts, _ = np.histogram(np.clip(rates, edges[0], 0.0), bins=edges)
    return counts, edges


def draw_firing_rates(found: Inspection, path: Path | str) -> None:
    """The histogram of log10 firing rates as a PNG of 150 dpi, whatever the suffix of ``path``; needs ``health``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    health, measured = found.health, found.measured
    assert health is not None
    assert measured is not None
    # Okabe & Ito's blue and orange, as in overview.png.
    blue, orange, grey, ink = "#0072B2", "#E69F00", "#8c8c8c", "#222222"
    figure = Figure(figsize=(6.4, 4.2), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.11, 0.13, 0.85, 0.68))
    counts, edges = _rate_cells(health, 6)
    axes.stairs(counts, edges, fill=True, color=blue, alpha=0.75)
    top = max(int(counts.max(initial=0)), 1) * 1.18
    axes.set(xlim=(edges[0], 0), ylim=(0, top))
    dense = np.log10(0.1)
    axes.axvspan(dense, 0, color=orange, alpha=0.12, linewidth=0, zorder=0)
    axes.text(
        dense / 2,
        top * 0.965,
        f"dense\n{percent_text(health.dense_share)}",
        ha="center",
        va="top",
        fontsize=8.5,
        color=ink,
    )
    if counts.any():
        median = float(np.log10(np.median(health.fire_rate[health.fire_count > 0])))
        axes.axvline(median, ymax=0.9, color=ink, linewidth=1.2, linestyle="--")
        axes.annotate(
            f"median {100 * 10**median:.2g}%",
            (median, top * 0.925),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=8.5,
            color=ink,
            va="center",
        )
    else:
        axes.text(0.5, 0.5, "no latent fires", transform=axes.transAxes, ha="center", va="center", color=grey)
    dead = int((health.fire_count == 0).sum())
    place: dict[str, Any] = {"transform": axes.transAxes, "va": "bottom", "clip_on": False, "parse_math": False}
    finding = (
        f"{found.coder.num_latents - dead:,} of {found.coder.num_latents:,} latents fire, {health.l0:.3g} on a token"
    )
    axes.text(-0.09, 1.13, finding, fontsize=10.5, fontweight="bold", color=ink, **place)
    detail = f"{_places(found.coder.hookpoints_in)}, {size_text(health.num_tokens)} tokens; {dead:,} never fired; explained variance {share_text(health.explained_variance)}, loss recovered {share_text(health.loss_recovered)}"
    axes.text(-0.09, 1.05, plain_line(detail)[:110], fontsize=8.5, color="#555555", **place)
    axes.set_xlabel("log10 of the firing rate per token", color=ink, fontsize=10)
    axes.set_ylabel("latents", color=ink, fontsize=10)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(grey)
    axes.tick_params(colors=ink, labelsize=9, length=3)
    figure.savefig(path, format="png", metadata={"Software": "autointerp"})


def _places(hookpoints: Sequence[str]) -> str:
    return ", ".join(hookpoints) or UNDEFINED


def _plain_table() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table
