"""The ``autointerp`` command. Heavy modules are imported by the commands that need them."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from autointerp.commands import register_all
from autointerp.commands.opening import open_console, open_context
from sae_core.errors import AutointerpError, StoreError

if TYPE_CHECKING:
    from autointerp.config import RunConfig
    from autointerp.pipeline.context import RunContext
    from autointerp.pipeline.starting import StartedRun

REFUSED = 2
"""Exit code where something that was given does not fit."""

app = typer.Typer(
    name="autointerp",
    help="Label the latents of sparse coders, and say how far each label can be trusted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Entry point: an error that the user can mend is one sentence on stderr and exit code 2."""
    from autointerp.pipeline.interruption import Halted, Interrupted

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a sign shows "?" for it
    try:
        app()
    except AutointerpError as error:
        print(f"autointerp: {_one_line(str(error))}", file=sys.stderr)
        sys.exit(REFUSED)
    except Halted as halted:
        print(
            f"The run {halted.run_id} was {halted.state} by somebody. Run the same command again and it goes on from here.",
            file=sys.stderr,
        )
        sys.exit(3)
    except Interrupted as interrupted:
        print("Stopped. Run the same command again and it goes on from here.", file=sys.stderr)
        sys.exit(128 + interrupted.signal_number)


def _version(wanted: bool) -> None:
    if wanted:
        from autointerp.pipeline.code_version import code_version

        print(f"autointerp {code_version()}")
        raise typer.Exit


@app.callback()
def _root(
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Label the latents of sparse coders, and say how far each label can be trusted."""


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="The run's TOML file.")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. extraction.num_tokens=500000."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; by default runs/ and the file's name.")] = None,
    retry: Annotated[
        bool,
        typer.Option("--retry", help="Try again what a server failed, and chunks that ended their process too often."),
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(help="Another tool's protocol, for comparison with its published scores: delphi, saebench."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the calls, tokens and cost of language models, and do nothing.")
    ] = False,
) -> None:
    """Label a dictionary, or go on with a run that stopped."""
    began = time.monotonic()
    from autointerp.config import load_config
    from autointerp.pipeline.interruption import Interrupted

    try:
        given = list(sets or []) + ([f"preset={preset}"] if preset else [])
        parsed = load_config(config, given, os.environ)
        if dry_run:
            _print_dry_run(parsed)
            return
        from autointerp.pipeline.starting import start_run

        started = start_run(parsed, config.stem, out or Path("runs") / config.stem, began)
        _go_on(started, retry)
    except KeyboardInterrupt:
        raise Interrupted(2) from None


@app.command()
def show(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="An output folder, a run id, or the beginning of one.")],
    latent: Annotated[int, typer.Argument(min=0, help="Number of the latent.")],
    source: Annotated[str | None, typer.Option(help="Name of the source, where the run has several.")] = None,
    store: Annotated[str | None, typer.Option(help="Store in which to look for a run id.")] = None,
) -> None:
    """Show one latent: its label, how far it can be trusted, and where it fires."""
    import pandas as pd

    from autointerp.pipeline.dictionary_rows import latent_row
    from autointerp.report.show import print_latent

    context = open_context(run_id, store)
    names = [record.name for record in context.sources if not record.control]
    if not names:
        raise StoreError(f"the run {context.run_id} has no latents yet: go on with it by the command that started it.")
    name = source or names[0]
    row = latent_row(context, name, latent)
    has_exemplars = (context.folder.exemplars(name) / "index.json").is_file()
    print_latent(pd.Series(row), context.exemplars(name) if has_exemplars else None, open_console())


@app.command()
def review(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="An output folder, a run id, or the beginning of one.")],
    latent: Annotated[int, typer.Argument(min=0, help="Number of the latent.")],
    by: Annotated[str, typer.Option(help="Who says so; kept with the date.")],
    accept: Annotated[bool, typer.Option("--accept", help="The label is right.")] = False,
    reject: Annotated[bool, typer.Option("--reject", help="The label is wrong; the latent has none then.")] = False,
    edit: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="A better label; it is scored on windows that nobody has been shown yet."),
    ] = None,
    note: Annotated[str | None, typer.Option(help="Why, in a sentence.")] = None,
    source: Annotated[str | None, typer.Option(help="Name of the source, where the run has several.")] = None,
    store: Annotated[str | None, typer.Option(help="Store in which to look for a run id.")] = None,
) -> None:
    """Say what a person thinks of a label: accept, reject or edit it."""
    from autointerp.review.reviewing import review_latent
    from sae_core.errors import ConfigError

    if accept + reject + (edit is not None) != 1:
        raise ConfigError("give one of --accept, --reject and --edit TEXT.")
    context = open_context(run_id, store)
    names = [record.name for record in context.sources if not record.control]
    if source is None and len(names) != 1:
        raise ConfigError(f"the run has the sources {', '.join(map(repr, names))}: say which one with --source.")
    action: Literal["accept", "reject", "edit"] = "accept" if accept else "reject" if reject else "edit"
    try:
        outcome = review_latent(context, source or names[0], latent, action, edit, by, note)
    finally:
        context.close()
    print(outcome.sentence)


@app.command()
def inspect(
    coder: Annotated[str, typer.Argument(metavar="CODER", help="Folder, file or hub id of a sparse coder.")],
    hookpoint: Annotated[
        list[str] | None,
        typer.Option(help="Where it attaches, once for each hookpoint it reads; else as it says itself."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, branch or tag of a hub coder.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read torch pickles too, their tensors only.")
    ] = False,
    input_scale: Annotated[
        list[str] | None,
        typer.Option(help="What inputs are multiplied by, once for each hookpoint it reads, or 'folded'."),
    ] = None,
    k: Annotated[
        int | None, typer.Option(min=1, help="Active latents of a token, where the file leaves it out.")
    ] = None,
    center_writing_weights: Annotated[
        bool | None,
        typer.Option(
            "--center-writing-weights/--no-center-writing-weights",
            help="Whether the weights of the subject it was trained on were centred (TransformerLens).",
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16, of the coder and the subject.")] = "float32",
    subject: Annotated[
        str | None, typer.Option(help="Folder or hub id of the subject, to measure the coder on it.")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="Text to measure on: a folder, a file, a hub data set, or python-stdlib.")
    ] = None,
    text_field: Annotated[str, typer.Option(help="Field of a .jsonl or .parquet corpus that holds the text.")] = "text",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to measure on.")] = 100_000,
    context_length: Annotated[int, typer.Option(min=2, help="Tokens of a context.")] = 256,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    json_file: Annotated[
        str | None,
        typer.Option(
            "--json", metavar="FILE|-", help="Write everything as JSON; '-' for stdout, and nothing else there."
        ),
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the firing rates as a PNG.")] = None,
) -> None:
    """Say what a sparse coder is, and how well it stands for a subject's activations."""
    from sae_core.errors import ConfigError

    if (subject is None) != (corpus is None):
        given, missing = ("--subject", "--corpus") if corpus is None else ("--corpus", "--subject")
        raise ConfigError(
            f"{given} is given and {missing} is not: a coder is measured on a subject that reads a corpus; give both or neither."
        )
    if picture is not None and subject is None:
        raise ConfigError(
            "--picture shows how often latents fire, which must be measured: give --subject and --corpus too."
        )
    import json

    from autointerp import inspection

    inspection.check_destination("--picture", picture)
    inspection.check_destination("--json", None if json_file in (None, "-") else Path(json_file))
    options = inspection.LoadOptions(
        tuple(hookpoint or ()),
        revision,
        allow_pickle,
        inspection.input_scale_of(input_scale or ()),
        k,
        center_writing_weights,
        dtype,
    )
    measure = None
    if subject is not None and corpus is not None:
        measure = inspection.MeasureOptions(subject, corpus, tokens, context_length, device, text_field)
    with _token_bar(tokens, shown=measure is not None) as advance:
        found = inspection.look(coder, options, measure, advance)
    if json_file != "-":
        inspection.print_inspection(found, open_console())
    if json_file is not None:
        text = json.dumps(inspection.inspection_json(found), indent=1, allow_nan=False) + "\n"
        if json_file == "-":
            print(text, end="")
        else:
            Path(json_file).write_text(text, encoding="utf-8")
    if picture is not None:
        inspection.draw_firing_rates(found, picture)


@contextmanager
def _token_bar(total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """What takes the number of tokens done, as a bar on a terminal that goes away in the end."""
    from rich.progress import Progress

    console = open_console(stderr=True)
    with Progress(console=console, transient=True, disable=not (shown and console.is_terminal)) as progress:
        task = progress.add_task("tokens", total=total)
        yield lambda done: progress.update(task, completed=done)


def _print_dry_run(config: RunConfig) -> None:
    from autointerp.pipeline.attaching import load_configured
    from autointerp.planning.expected_precision import expected_precision
    from autointerp.planning.plan import plan_run
    from autointerp.report.plan import print_plan

    num_latents = [load_configured(coder).num_latents for coder in config.coders]
    print_plan(plan_run(config, num_latents=num_latents), open_console(), expected_precision(config, num_latents))


def _go_on(started: StartedRun, retry: bool) -> None:
    from autointerp.pipeline.driver import LocalDriver
    from autointerp.pipeline.results import missing_results, write_results
    from autointerp.pipeline.retrying import anything_to_retry
    from autointerp.pipeline.stages import STAGES
    from autointerp.planning.plan import plan_run
    from autointerp.progress import display
    from sae_core.errors import InputError

    context = started.context
    if started.finished and not (retry and anything_to_retry(context.store, context.run_id)):
        missing = missing_results(context.folder)
        if missing:
            write_results(context)
            print(
                f"Run {context.run_id} is done; {', '.join(missing)} had gone from {context.folder.root} and the results were "
                "written again from the store."
            )
            return
        print(
            f"Run {context.run_id} is done: there is nothing to do. Its results are in {context.folder.root} "
            f"(summary.json, overview.png, dictionary/)."
        )
        _say_where_to_look(context)
        return
    try:
        with display(open_console(stderr=True), STAGES) as shown:
            shown.note(f"run {context.run_id} in {context.folder.root}")
            if started.memory:
                shown.note(started.memory)
                known = [source.num_latents for source in context.sources if not source.control]
                for sentence in plan_run(context.config, num_latents=known).over_budget:
                    shown.note(f"note: {sentence}.")
            LocalDriver(context, STAGES, shown).run(retry=retry)
    except InputError:
        started.undo_if_nothing_done()
        raise
    _print_end(context)


def _print_end(context: RunContext) -> None:
    import json

    import pandas as pd

    from autointerp.progress import print_timings
    from autointerp.report.terminal import print_best_and_worst, print_summary

    console = open_console()
    summary = json.loads(context.folder.summary.read_text(encoding="utf-8"))
    readers = {source.name: context.exemplars(source.name) for source in context.sources if not source.control}
    print_best_and_worst(pd.read_parquet(context.folder.dictionary), readers, console)
    console.print()
    print_timings(context.store.timings(context.run_id), console)
    console.print()
    print_summary(summary, console)
    _say_where_to_look(context)


def _say_where_to_look(context: RunContext) -> None:
    """The command that shows the run in the browser, as it can be typed here."""
    command, folder = Path(sys.argv[0]), context.folder.root
    here = Path.cwd()
    shown = command.relative_to(here) if command.is_relative_to(here) else command
    folder = folder.relative_to(here) if folder.is_relative_to(here) else folder
    print(
        f"Look at it in the browser: {shown if len(shown.parts) > 1 and shown.exists() else 'autointerp'} serve {folder}"
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


register_all(app)

if __name__ == "__main__":
    main()
