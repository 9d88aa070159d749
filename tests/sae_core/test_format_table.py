"""The table of formats in the docs: made from the readers, and true of what is checked."""

from __future__ import annotations

import json
from pathlib import Path

from sae_core.format_table import formats_markdown
from sae_core.loading import readers
from tests.sae_core.test_loading import FIXTURES, FOLDERS, REFUSED, name_of

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"


def test_the_docs_hold_the_table() -> None:
    assert formats_markdown() in PAGE.read_text(encoding="utf-8"), "python -m sae_core.format_table prints the new one"


def test_every_row_that_is_read_is_checked_and_every_check_has_a_row() -> None:
    checked = {a.checked for reader in readers() for a in reader.ARCHITECTURES if not a.refused}
    assert checked == {name_of(folder) for folder in FOLDERS} - set(REFUSED)


def test_the_reference_is_the_one_that_the_fixture_names() -> None:
    words = {"sae-lens' converter": "sae-lens 6", "numpy encode": "numpy encode"}
    for reader in readers():
        for architecture in reader.ARCHITECTURES:
            if architecture.refused:
                continue
            manifest = json.loads((FIXTURES / architecture.checked / "manifest.json").read_text())
            oracle = manifest.get("oracle") or f"{manifest['library'].removeprefix('eai-')}, which wrote the files"
            said = architecture.reference or reader.REFERENCE
            if said in words:
                assert oracle.startswith(words[said]), architecture
            else:
                assert oracle.replace("-", "_") == said.replace("-", "_"), architecture
