"""``autointerp search`` and ``autointerp contrast``: which latents fire on a passage, and which tell two sets of passages apart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from autointerp.commands.opening import open_console, open_context

_RUN = typer.Argument(metavar="RUN", help="An output folder, a run id, or the beginning of one.")
_SOURCE = typer.Option(help="Name of the source, where the run has several.")
_STORE = typer.Option(help="Store in which to look for a run id.")
_TOP = typer.Option(help="Latents to show.")
_JSON = typer.Option("--json", help="Print JSON, and nothing else on stdout.")


def search(
    run_id: Annotated[str, _RUN],
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="The passage.", show_default=False)] = None,
    file: Annotated[
        Path | None, typer.Option(help="Passages in its place: a file with one a line, or JSON lines with a text each.")
    ] = None,
    source: Annotated[str | None, _SOURCE] = None,
    order: Annotated[
        Literal["relative", "maximum"],
        typer.Option(
            help="By the activation as a share of the latent's largest one over the corpus, or by the activation itself."
        ),
    ] = "relative",
    top: Annotated[int, _TOP] = 20,
    store: Annotated[str | None, _STORE] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Run the subject on a passage, and show the latents that fire on it."""
    from autointerp.passages import TextQuestion, read_passages, search_text
    from sae_core.errors import ConfigError

    if (text is None) == (file is None):
        raise ConfigError("give either a TEXT or --file FILE.")
    texts = read_passages(file) if file is not None else [text or ""]
    question = TextQuestion(source=source, top=top, texts=tuple(texts), order=order)
    question.check()
    context = open_context(run_id, store)
    answer = search_text(context, question)
    if as_json:
        print(answer.model_dump_json(indent=1))
        return
    from autointerp.report.passages import print_text_answer

    print_text_answer(answer, open_console())


def contrast(
    run_id: Annotated[str, _RUN],
    with_concept: Annotated[
        Path,
        typer.Argument(
            metavar="WITH", help="Passages with the concept: a file with one a line, or JSON lines with a text each."
        ),
    ],
    without_concept: Annotated[Path, typer.Argument(metavar="WITHOUT", help="Passages without it.")],
    source: Annotated[str | None, _SOURCE] = None,
    measure: Annotated[
        Literal["max", "mean"],
        typer.Option(help="What stands for a passage: its largest activation, or the mean over its tokens."),
    ] = "max",
    top: Annotated[int, _TOP] = 20,
    store: Annotated[str | None, _STORE] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Show the latents that tell passages with a concept from passages without it."""
    from autointerp.passages import ContrastQuestion, read_passages, search_contrast

    question = ContrastQuestion(
        source=source,
        top=top,
        with_concept=tuple(read_passages(with_concept)),
        without_concept=tuple(read_passages(without_concept)),
        measure=measure,
    )
    question.check()
    context = open_context(run_id, store)
    answer = search_contrast(context, question)
    if as_json:
        print(answer.model_dump_json(indent=1))
        return
    from autointerp.report.passages import print_contrast_answer

    print_contrast_answer(answer, open_console())


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(search)
    app.command()(contrast)
