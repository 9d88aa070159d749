"""A folder for the hub: a card beside the dictionary as parquet (``README.md`` and ``dictionary/``)."""

from __future__ import annotations

import os
from pathlib import Path

from autointerp.exchange.card import MARK, CardContent, card_text
from autointerp.exchange.exporting import CARD_NAME
from autointerp.export import MANIFEST_NAME, Manifest, schema_markdown
from autointerp.export.places import is_url
from autointerp.pipeline.atomic_files import atomic_write
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.exporting import ExportOptions, export_run
from autointerp.pipeline.folder import usable_folder
from sae_core.errors import InputError, StoreError

DICTIONARY = "dictionary"
"""Folder of the parquet files, whose own manifest knows no other file."""


def export_with_card(context: RunContext, folder: Path | str, options: ExportOptions, corpus_license: str) -> Manifest:
    """Write ``folder/dictionary`` and ``folder/README.md``. Errors: StoreError, InputError, DiskFullError."""
    if is_url(folder):
        raise InputError(
            f"{folder} is a URL, and a card is written to folders of this machine: give one, or leave --card out."
        )
    place = Path(os.path.realpath(folder))
    with usable_folder(place, "the folder"):
        _check_free(place)
        _content(context, options, corpus_license, None)  # what is wrong with it is told before anything is written
        place.mkdir(parents=True, exist_ok=True)
        manifest = export_run(context, place / DICTIONARY, options)
        with atomic_write(place / CARD_NAME) as temporary:
            temporary.write_text(_content(context, options, corpus_license, manifest), encoding="utf-8")
    return manifest


def _check_free(place: Path) -> None:
    """Errors: StoreError where a card would stand in the place of something else, or in a dictionary."""
    if (place / MANIFEST_NAME).is_file():
        raise StoreError(
            f"{place} is a dictionary itself, and with --card the dictionary stands in a folder of that one: give another folder."
        )
    card = place / CARD_NAME
    if os.path.lexists(card) and (not card.is_file() or MARK.encode() not in card.read_bytes()):
        raise StoreError(
            f"{card} was not made by autointerp, so it is not replaced: move it away, or give another folder."
        )


def _content(context: RunContext, options: ExportOptions, corpus_license: str, manifest: Manifest | None) -> str:
    wanted = options.filter
    chosen = wanted.sources if wanted is not None else ()
    sources = [s for s in context.sources if not s.control and (not chosen or s.name in chosen)]
    part = f"{DICTIONARY}/{'source=*/' if options.by_source else ''}part-*.parquet"
    configs = [{"config_name": "default", "data_files": part}]
    if options.verdicts:
        within = part.removeprefix(f"{DICTIONARY}/")
        configs.append({"config_name": "verdicts", "data_files": f"{DICTIONARY}/_verdicts/{within}"})
    return card_text(
        context,
        CardContent(
            kind="parquet",
            num_rows=0 if manifest is None else manifest.num_rows,
            described=_described(options.verdicts),
            sources=sources,
            corpus_license=corpus_license,
            filter=None if wanted is None else wanted.told,
            configs=configs,
        ),
    )


def _described(verdicts: bool) -> str:
    more = " `dictionary/_verdicts/` has a row a judged window." if verdicts else ""
    return (
        f"`dictionary/` has a row a latent, as parquet, and a manifest with rows and sha256 of each file.{more}\n\n"
        "```python\nimport pandas as pd\n\n"
        'labels = pd.read_parquet("dictionary")\n\n'
        "import autointerp  # compares the files with the manifest\n\n"
        'labels = autointerp.load_dictionary("dictionary", where="precision_low>=0.7")\n```\n\n'
        "Null means not defined or not measured, never 0. Besides the columns below, `<kind>_score` and `<kind>_failure` stand for each scorer "
        "that judges.\n\n" + schema_markdown()
    )
