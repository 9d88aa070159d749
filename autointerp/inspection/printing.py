"""What was found, on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autointerp.inspection.description import description, places
from autointerp.inspection.firing_rates import rate_cells
from autointerp.inspection.looking import Inspection, MeasureOptions
from autointerp.report.figures import percent_text, share_text
from autointerp.report.highlight import plain_line

if TYPE_CHECKING:
    from sae_core.coder import SparseCoder
    from sae_core.health import CoderHealth


def print_inspection(found: Inspection, console: Console) -> None:
    """What was found, on a terminal."""
    coder, about = found.coder, description(found.coder)
    console.print(Text(plain_line(found.path), style="bold cyan"))
    table = _plain_table()
    hooks = " x ".join([f"{coder.num_hooks_in} hookpoints"] * (coder.num_hooks_in > 1) + [f"{coder.d_in:,}"])
    to = " x ".join([f"{coder.num_hooks_out} hookpoints"] * (coder.num_hooks_out > 1) + [f"{coder.d_out:,}"])
    rows = [
        ("format", about["format"]),
        ("architecture", about["architecture"]),
        ("latents", f"{coder.num_latents:,}"),
        ("reads", f"{places(coder.hookpoints_in)} (width {hooks})"),
        ("writes", f"{places(coder.hookpoints_out)} (width {to})"),
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
    if coder.decodes_partly:
        warning = (
            "This is one layer of a coder whose layers add up to one output, and that alone stood in its place: variance explained, "
            "loss and KL say what is missing without the other layers, not how good the coder is."
        )
        console.print(Text(warning, style="yellow"))
    notes = f"Special tokens are not counted and keep their activations, but for zeros, which are everywhere; {came}."
    console.print(Text(notes, style="dim"))
    console.print()
    for line in firing_rate_lines(health, console):
        console.print(line)


def firing_rate_lines(health: CoderHealth, console: Console) -> list[Text]:
    """Latents by their firing rate, a bar for every half of a decade, dead ones last."""
    counts, edges = rate_cells(health, 2)
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


def _plain_table() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table
