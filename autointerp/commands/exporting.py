"""``autointerp export``: the labelled dictionary of a run as parquet or in another tool's format, and whether one is whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autointerp.commands.opening import open_context

if TYPE_CHECKING:
    from autointerp.exchange import ExchangeFormat
    from autointerp.export import RowFilter
    from autointerp.pipeline.context import RunContext


def export(
    run_id: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="An output folder, a run id, or the beginning of one; with --verify an output folder or a dictionary.",
        ),
    ],
    folder: Annotated[
        str | None,
        typer.Argument(
            metavar="DIR", help="Folder or URL (s3://..., file://...) to write the dictionary to.", show_default=False
        ),
    ] = None,
    store: Annotated[str | None, typer.Option(help="Store in which to look for a run id.")] = None,
    source: Annotated[list[str] | None, typer.Option(help="Only latents of this source; once for each.")] = None,
    status: Annotated[
        list[str] | None, typer.Option(help="Only latents that are labelled, dead, rare or failed; once for each.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="BOUND", help="Only rows whose figure fits, e.g. 'precision_low>=0.7'; null never does."),
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option(help="Only these columns, with commas between; source and latent come along.")
    ] = None,
    partition_by: Annotated[str | None, typer.Option(help="source: a folder a source.")] = None,
    verdicts: Annotated[
        bool, typer.Option("--verdicts", help="Write every judged window too, to the folder _verdicts in it.")
    ] = False,
    format: Annotated[
        str, typer.Option(metavar="FORMAT", help="parquet, or another tool's: neuronpedia or circuit-tracer.")
    ] = "parquet",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting of another tool's format, e.g. source_set=res-16k; once for each.",
        ),
    ] = None,
    card: Annotated[
        bool,
        typer.Option(
            "--card", help="Write a data set card for the hub (README.md); parquet then goes to DIR/dictionary."
        ),
    ] = False,
    corpus_license: Annotated[
        str | None,
        typer.Option(
            help="Licence of the corpus that the card tells, e.g. cc-by-4.0; without it the card says that it is unknown."
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the files of a dictionary that is there, and write nothing.")
    ] = False,
) -> None:
    """Write the labelled dictionary of a run as parquet or in another tool's format, or check one."""
    from sae_core.errors import ConfigError, StoreError

    if verify:
        given = [store, source, status, where, columns, partition_by, verdicts or None, settings, card or None]
        given += [corpus_license, None if format == "parquet" else format]
        if folder is not None or any(value is not None for value in given):
            raise ConfigError("--verify takes one folder (a run's or a dictionary's) or URL, and no other option.")
        from autointerp.export import verify_dictionary

        there = _dictionary_of(run_id)
        manifest = verify_dictionary(there)
        beside = f" and {manifest.verdicts.rows:,} verdicts" if manifest.verdicts is not None else ""
        print(f"{there} is whole: {manifest.num_rows:,} latents in {len(manifest.files)} files{beside}")
        return
    if folder is None:
        raise ConfigError("say where to: autointerp export RUN DIR.")
    if partition_by not in (None, "source"):
        raise ConfigError(f"--partition-by is {partition_by!r}: only source is possible.")
    if corpus_license is not None and not card:
        raise ConfigError("--corpus-license is told in a card: give --card too.")
    if format == "parquet" and settings:
        raise ConfigError("--set is for other tools' formats, and parquet has no settings: give --format too.")
    if format != "parquet":
        for name, value in (("--columns", columns), ("--partition-by", partition_by), ("--verdicts", verdicts)):
            if value:
                raise ConfigError(f"{name} is for parquet, and {format} has no such thing: leave one of the two out.")
    from autointerp.export import RowFilter
    from autointerp.pipeline.exporting import ExportOptions, export_run

    if format != "parquet":
        from autointerp.exchange import format_of

        chosen = format_of(format, settings or ())
    wanted = RowFilter.of(source or (), status or (), where or (), columns or ())
    context = open_context(run_id, store)
    if context.store.run(context.run_id).state != "done":
        raise StoreError(
            f"the run {context.run_id} has not ended: go on with it by the command that started it, then export."
        )
    if format != "parquet":
        _write_exchange(context, folder, chosen, wanted, corpus_license or "" if card else None)
        return
    options = ExportOptions(wanted, by_source=partition_by is not None, verdicts=verdicts)
    if card:
        from autointerp.exchange.dictionary_card import export_with_card

        manifest = export_with_card(context, folder, options, corpus_license or "")
    else:
        manifest = export_run(context, folder, options)
    more = f" ({manifest.left_out:,} left out by the filter)" if manifest.filter is not None else ""
    beside = f", with {manifest.verdicts.rows:,} verdicts" if manifest.verdicts is not None else ""
    print(f"{manifest.num_rows:,} latents written to {folder}{more}{beside}")


def _write_exchange(
    context: RunContext, folder: str, format: ExchangeFormat, wanted: RowFilter, corpus_license: str | None
) -> None:
    """Write another tool's files, with a card where a licence (which may be "") is told."""
    from autointerp.exchange import export_exchange
    from autointerp.exchange.card import exchange_card

    card = None if corpus_license is None else exchange_card(context, format, wanted, corpus_license)
    counts = export_exchange(context, folder, format, wanted, card).counts
    print(
        f"{counts.get('latents', 0):,} latents written to {folder} for {format.kind}, with {counts.get('labels', 0):,} labels and "
        f"{counts.get('windows', 0):,} windows"
    )


def _dictionary_of(given: str) -> str:
    """``given``, or the dictionary in it where it is a run's output folder. Errors: StoreError where that has none."""
    from autointerp.export.manifest import MANIFEST_NAME
    from autointerp.pipeline.folder import RunFolder
    from sae_core.errors import StoreError

    place = Path(given)
    if not place.is_dir() or (place / MANIFEST_NAME).exists() or RunFolder(place).read_note() is None:
        return given
    dictionary = RunFolder(place).dictionary
    if not dictionary.is_dir():
        raise StoreError(
            f"{given!r} is the output folder of a run that has no dictionary yet: go on with the run, or give a dictionary's folder."
        )
    return str(dictionary)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(export)
