"""The benchmarks as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def print_extraction_bench(result: dict[str, Any], console: Console) -> None:
    """What :func:`sae_core.bench.extraction.bench_extraction` found."""
    rows, limits = result["rows"], result["limits"]
    console.print(f"extraction beside its floor, on {result['machine']}", markup=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for row in rows:
        table.add_column(f"{row['num_latents']:,} latents", justify="right")
    lines = [
        ("tokens", "num_tokens", "{:,.0f}"),
        ("time / floor, merged store included", "ratio_to_floor", "{:.3f}"),
        ("  lowest of the repeats", "ratio_to_floor_lowest", "{:.3f}"),
        ("  highest", "ratio_to_floor_highest", "{:.3f}"),
        ("tokens a second", "tokens_per_second", "{:,.0f}"),
        ("  floor", "floor_tokens_per_second", "{:,.0f}"),
        ("  share of the encoder's product alone", "share_of_encoder_product", "{:.2f}"),
        ("peak memory, MiB", "peak_rss_mib", "{:,.0f}"),
        ("  with a pool of 1,000 windows a side", "peak_rss_mib_full_pool", "{:,.0f}"),
        ("  the same at a quarter of the tokens", "peak_rss_mib_full_pool_at_a_quarter", "{:,.0f}"),
        ("exemplars, kB a latent", "exemplar_kb_per_latent", "{:.1f}"),
        ("tokens of the long run", "steady_tokens", "{:,.0f}"),
        ("  time / floor in its last quarter", "ratio_of_last_quarter", "{:.3f}"),
        ("  peak memory, MiB", "peak_rss_mib_steady", "{:,.0f}"),
        ("  exemplars, kB a latent", "exemplar_kb_per_latent_steady", "{:.1f}"),
    ]
    for words, key, form in lines:
        if any(key in row for row in rows):
            table.add_row(words, *(form.format(row[key]) if key in row else "" for row in rows))
    for words, key, form in (
        ("limits: subject and encode, tokens a second", "forward_and_encode_tokens_per_second", "{:,.0f}"),
        ("  the encoder's product alone, tokens a second", "encoder_product_tokens_per_second", "{:,.0f}"),
        ("  the same, GFLOP a second", "encoder_product_gflops", "{:,.0f}"),
        ("  the disk, written and synced, MB a second", "disk_write_mb_per_second", "{:,.0f}"),
    ):
        table.add_row(words, *(form.format(limit[key]) for limit in limits))
    console.print(table)


_PLAIN_WAYS = {
    "batch": "plain, a latent's windows a call",
    "window": "plain, one window a call",
}


def print_causal_bench(result: dict[str, Any], console: Console) -> None:
    """What :func:`sae_core.bench.causal.bench_causal` found."""
    console.print(
        f"ablation and steering of {result['latents']:,} latents in one call, {result['windows']} windows and "
        f"{result['control_directions']} control directions each, at {result['hookpoint']} of {result['subject']} "
        f"({result['layers']} layers of width {result['width']}), contexts of {result['context_length']} tokens, medians of "
        f"{result['turns']} turns, on {result['machine']}",
        markup=False,
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for title in (
        "latents a second",
        "times as fast",
        "lowest",
        "highest",
        "in CPU time",
        "off by, nats",
        "of strengths",
    ):
        table.add_column(title, justify="right")
    table.add_row("autointerp", f"{result['latents_per_second']:.3g}")
    for name, way in result["ways"].items():
        table.add_row(
            _PLAIN_WAYS.get(name, name),
            f"{way['latents_per_second']:.3g}",
            f"{way['ratio']:.1f}x",
            f"{way['ratio_lowest']:.1f}x",
            f"{way['ratio_highest']:.1f}x",
            f"{way['cpu_ratio']:.1f}x",
            f"{way['largest_difference_nats']:.0e}",
            f"{way['largest_difference_of_strengths']:.0e}",
        )
    console.print(table)
    met = all(way["meets_target"] for way in result["ways"].values())
    targets = " and ".join(f"{way['target']:g}x" for way in result["ways"].values())
    console.print(f"the target ({targets} at numbers equal to 1e-4) is {'met' if met else 'missed'}", markup=False)


_WAYS = {
    "autointerp": "autointerp, with store, ledger and budget",
    "openai": "bare openai client",
    "openai_aiohttp": "the same over its aiohttp transport",
    "aiohttp": "bare aiohttp",
}


def print_llm_bench(result: dict[str, Any], console: Console) -> None:
    """What :func:`autointerp.llm.bench.bench_llm` found."""
    console.print(
        f"{result['concurrency']} calls at once to a server that takes {result['latency_ms']:g} ms, prompts of "
        f"{result['prompt_bytes']:,} bytes, medians of {result['rounds']} turns, on {result['machine']}",
        markup=False,
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for title in ("calls a second", "of the most", "CPU ms a call", "lowest", "highest", "cores"):
        table.add_column(title, justify="right")
    for way in result["ways"]:
        table.add_row(
            _WAYS.get(way["way"], way["way"]),
            f"{way['calls_per_second']:,.0f}",
            f"{way['share']:.0%}",
            f"{way['cpu_ms_per_call']:.2f}",
            f"{way['cpu_ms_lowest']:.2f}",
            f"{way['cpu_ms_highest']:.2f}",
            f"{way['cores']:.2f}",
        )
    console.print(table)
    ratios = ", ".join(
        f"{ratio:.2f} of {_WAYS.get(name, name).strip()}" for name, ratio in result["cpu_ratios"].items()
    )
    console.print(
        f"the most is concurrency / latency, {result['most_calls_per_second']:,.0f} calls a second; its CPU is {ratios}; "
        f"the server took {result['server_cpu_ms_per_call']:.2f} ms a call of its own",
        markup=False,
    )
    console.print(f"the target is {'met' if result['meets_target'] else 'missed'}", markup=False)
