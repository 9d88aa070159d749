"""``autointerp bench``: how far the work is from what the hardware allows."""

from __future__ import annotations

from typing import Annotated

import typer

from autointerp.commands.opening import open_console

bench_app = typer.Typer(help="Measure how far the work is from what the hardware allows.", no_args_is_help=True)


@bench_app.callback()
def _bench() -> None:
    """Measure how far the work is from what the hardware allows."""


@bench_app.command("extraction")
def bench_extraction(
    latents: Annotated[list[int] | None, typer.Option(min=64, help="Latents of the coder, once for each row.")] = None,
    tokens: Annotated[int, typer.Option(min=16_384, help="Tokens of the corpus.")] = 1_048_576,
    repeats: Annotated[int, typer.Option(min=1, help="Times the whole corpus is extracted.")] = 3,
    steady_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens of a longer run, whose last quarter is compared; 0 for none.")
    ] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else on stdout.")] = False,
) -> None:
    """Time extraction against the subject's pass, a dense encode and torch.topk, and measure its memory."""
    import json

    from sae_core.bench.extraction import bench_extraction as measure

    errors = open_console(stderr=True)
    result = measure(latents or [4_096, 16_384], tokens, repeats, steady_tokens, device, errors.print)
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        from autointerp.report.bench import print_extraction_bench

        print_extraction_bench(result, open_console())


@bench_app.command("causal")
def bench_causal(
    subject: Annotated[
        str | None, typer.Option(help="A subject's folder or hub id; without it a random one.", show_default=False)
    ] = None,
    coder: Annotated[str | None, typer.Option(help="A coder of that subject.", show_default=False)] = None,
    layers: Annotated[int, typer.Option(min=2, help="Layers of a random subject, read in the middle.")] = 8,
    width: Annotated[int, typer.Option(min=64, help="Its width.")] = 512,
    latents: Annotated[int, typer.Option(min=1, help="Latents of a call of ours.")] = 64,
    windows: Annotated[int, typer.Option(min=2, help="Windows a latent is ablated in, and steered in.")] = 8,
    contexts: Annotated[int, typer.Option(min=4, help="Contexts of 256 tokens.")] = 96,
    turns: Annotated[int, typer.Option(min=1, help="Turns that the ways take.")] = 3,
    plain_latents: Annotated[int, typer.Option(min=1, help="Latents of the plain ways in a turn.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else on stdout.")] = False,
) -> None:
    """Time ablation and steering beside the two plain ways of doing them, and compare the numbers."""
    import json

    from sae_core.bench.causal import bench_causal as measure

    result = measure(
        subject=subject,
        coder=coder,
        layers=layers,
        width=width,
        latents=latents,
        windows=windows,
        contexts=contexts,
        turns=turns,
        plain_latents=plain_latents,
        tell=open_console(stderr=True).print,
    )
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        from autointerp.report.bench import print_causal_bench

        print_causal_bench(result, open_console())


@bench_app.command("llm")
def bench_llm(
    concurrency: Annotated[int, typer.Option(min=1, help="Calls under way at once.")] = 64,
    latency_ms: Annotated[float, typer.Option(min=0, help="Time that the server takes for a call.")] = 100.0,
    calls: Annotated[int, typer.Option(min=16, help="Calls of each way.")] = 4_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else on stdout.")] = False,
) -> None:
    """Time calls to a server of fixed latency beside a bare openai client and a bare HTTP client, with their CPU."""
    import json

    from autointerp.llm.bench import bench_llm as measure

    result = measure(concurrency, latency_ms, calls)
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        from autointerp.report.bench import print_llm_bench

        print_llm_bench(result, open_console())


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(bench_app, name="bench")
