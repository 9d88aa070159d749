"""Exports of whole runs: equal to a plain row-by-row reading, filtered, partitioned, with verdicts, from both databases."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import delete, insert, update

import autointerp
from autointerp.export import (
    MANIFEST_NAME,
    RowFilter,
    dictionary_columns,
    dictionary_schema,
    parquet,
    read_manifest,
    verify_dictionary,
)
from autointerp.export.resuming import PROGRESS_NAME
from autointerp.export.verdict_table import verdict_markdown
from autointerp.imports import LabelRequest, read_labels
from autointerp.judging.verdicts import Verdicts
from autointerp.pipeline import exporting
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.dictionary_rows import judge_kinds, latent_row
from autointerp.pipeline.exporting import ExportOptions, export_run
from autointerp.store.models import LabelRow, ReviewRow
from sae_core.errors import InputError, MissingFileError, StoreError, UnknownNameError
from sae_core.lens_evidence import LensEvidence
from tests.autointerp.export_by_rows import dictionary_rows
from tests.autointerp.export_world import WINDOWS, make_world, open_world
from tests.autointerp.operated_store import make_run_folder
from tests.cli_process import run_cli

SIZE = 230


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two sources with every kind of row. Nobody changes it."""
    folder = tmp_path_factory.mktemp("world") / "run"
    make_world(folder, SIZE, sources=("layers.2", "other"))
    return folder


def by_rows(context: RunContext) -> pa.Table:
    """The dictionary by the plain way."""
    schema = dictionary_schema(judge_kinds(context))
    names = [column.name for column in dictionary_columns(judge_kinds(context))]
    rows = [row for batch in dictionary_rows(context, names, "1.2.3") for row in batch]
    return pa.Table.from_pylist(rows, schema=schema)


def assert_equal(found: pa.Table, wanted: pa.Table) -> None:
    assert found.schema.names == wanted.schema.names
    for name in wanted.schema.names:
        assert found.column(name).to_pylist() == wanted.column(name).to_pylist(), name


def small_lens(context: RunContext) -> LensEvidence:
    rng = np.random.default_rng(0)
    tokens = rng.integers(-1, 5, (2, SIZE, 3)).astype(np.int32)
    near = rng.integers(-1, SIZE, (SIZE, 4)).astype(np.int32)
    zeros = np.zeros((SIZE, 3), np.float32)
    return LensEvidence(near, np.zeros((SIZE, 4), np.float32), tokens[0], zeros, tokens[1], zeros)


class Pieces:
    def visible(self, token: int) -> str:
        return f"token {token}"


def test_an_export_is_what_reading_row_by_row_gives(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = exporting.pages
    monkeypatch.setattr(exporting, "pages", lambda reading, after: pages(reading, after, 37))
    context = open_world(world)
    for source in context.sources:
        context._lenses[source.name] = small_lens(context)
        context.exemplars(source.name).__dict__["pieces"] = Pieces()
    export_run(context, tmp_path / "dictionary")
    wanted = by_rows(context)
    assert_equal(pq.read_table(tmp_path / "dictionary"), wanted)
    # the made-up run has what could differ
    rows = wanted.to_pylist()
    assert {row["status"] for row in rows} == {"labelled", "dead", "rare", "failed"}
    assert {row["explainer"] for row in rows} >= {"human", "human.2", "contrastive", "pattern", None}
    for column in ("causal_q", "output_label_steered_choice_score", "fuzz_failure", "precision_failure", "judge_model"):
        assert any(row[column] is not None for row in rows), column
    assert [row["latent"] for row in rows] == [*range(SIZE), *range(SIZE)]


def test_one_latents_row_is_that_of_the_export(world: Path) -> None:
    context = open_world(world)
    columns = [column.name for column in dictionary_columns(judge_kinds(context))]
    told = [f"{kind}_failure{what}" for kind in judge_kinds(context) for what in ("", "_message")]
    columns += [name for name in told if name not in columns]
    wanted = {row["latent"]: row for row in next(iter(dictionary_rows(context, columns, "1.2.3")))}
    messages = [row for row in wanted.values() if row.get("fuzz_failure_message")]
    assert messages
    for latent in (0, 1, 2, 3, 9, 24, 25, 27, 33, *(row["latent"] for row in messages[:3])):
        found = latent_row(context, "layers.2", latent)
        for name, value in wanted[latent].items():
            assert found.get(name) == (list(value) if isinstance(value, tuple) else value), name
    assert "detection_fpr_bulk" in latent_row(context, "layers.2", 5)


def test_postgresql_and_sqlite_give_the_same_files(world: Path, tmp_path: Path, postgres_url: str) -> None:
    make_world(tmp_path / "run", SIZE, url=postgres_url, sources=("layers.2", "other"))
    options = ExportOptions(verdicts=True, by_source=True)
    ours = export_run(open_world(world), tmp_path / "lite", options)
    theirs = export_run(open_world(tmp_path / "run", postgres_url), tmp_path / "post", options)
    assert [part.sha256 for part in ours.files] == [part.sha256 for part in theirs.files]
    assert _second(tmp_path / "lite") == _second(tmp_path / "post")
    for name in ("lite", "post"):
        verify_dictionary(tmp_path / name)


def test_filters_keep_what_fits_and_the_manifest_says_the_rest(world: Path, tmp_path: Path) -> None:
    context, folder = open_world(world), tmp_path / "d"
    whole = by_rows(context).to_pandas()
    chosen = RowFilter.of(["other"], ["labelled", "failed"], ["precision_low >= 0.3", "f1<0.9"], ["label,f1"])
    manifest = export_run(context, folder, ExportOptions(chosen))
    wanted = whole[(whole.source == "other") & whole.status.isin(["labelled", "failed"])]
    wanted = wanted[(wanted.precision_low >= 0.3) & (wanted.f1 < 0.9)]
    found = pd.read_parquet(folder)
    assert list(found.columns) == ["source", "latent", "label", "f1"]
    assert found.latent.tolist() == wanted.latent.tolist()
    assert 0 < len(found) < len(whole)
    assert manifest.left_out == len(whole) - len(found)
    assert json.loads((folder / MANIFEST_NAME).read_text())["filter"] == {
        "sources": ["other"], "statuses": ["labelled", "failed"], "where": ["precision_low>=0.3", "f1<0.9"],
        "columns": ["label", "f1"],
    }  # fmt: skip
    nulls = export_run(context, folder, ExportOptions(RowFilter.of(bounds=["causal_effect!=0"])))
    assert nulls.num_rows == int(whole.causal_effect.notna().sum()) > 0
    none = export_run(context, folder, ExportOptions(RowFilter.of(bounds=["f1>2"])))
    assert (none.num_rows, none.left_out) == (0, len(whole))
    verify_dictionary(folder)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--where", "precison_low>=0.7"], "did you mean 'precision_low'"),
        (["--where", "label>=0.7"], "holds string and no numbers"),
        (["--where", "f1"], "is no bound"),
        (["--where", "f1>=high"], "which is no number"),
        (["--where", "f1>=nan"], "which no figure"),
        (["--status", "alive"], "no latent has the status 'alive'"),
        (["--source", "layers.3"], "did you mean 'layers.2'"),
        (["--columns", "label,lable"], "no column 'lable'"),
        (["--partition-by", "status"], "only source is possible"),
        (["--verify"], "--verify takes one folder"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(world: Path, tmp_path: Path, given: list[str], says: str) -> None:
    done = run_cli(["export", str(world), str(tmp_path / "d"), *given])
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_partitions_read_as_one_table(world: Path, tmp_path: Path) -> None:
    context, folder = open_world(world), tmp_path / "d"
    manifest = export_run(context, folder, ExportOptions(by_source=True))
    assert [part.name for part in manifest.files] == [
        "source=layers.2/part-00000.parquet", "source=other/part-00000.parquet",
    ]  # fmt: skip
    found, wanted = pd.read_parquet(folder), by_rows(context).to_pandas()
    assert found.source.astype(str).tolist() == wanted.source.tolist()
    assert found.label.tolist() == wanted.label.tolist()
    loaded = autointerp.load_dictionary(folder, source="other", columns=["label"])
    assert list(loaded.columns) == ["source", "latent", "label"]
    assert set(loaded.source) == {"other"}
    assert len(loaded) == SIZE
    verify_dictionary(folder)
    export_run(context, folder)  # one without partitions takes its place
    assert [path.name for path in sorted(folder.iterdir())] == [MANIFEST_NAME, "part-00000.parquet"]


def test_every_judged_window_is_a_row_beside_the_dictionary(world: Path, tmp_path: Path) -> None:
    context, folder = open_world(world), tmp_path / "d"
    chosen = RowFilter.of(["other"], bounds=["detection_score>=0.5"])
    manifest = export_run(context, folder, ExportOptions(chosen, verdicts=True))
    kept = pd.read_parquet(folder).latent.tolist()
    assert len(kept) == manifest.num_rows > 20
    found = pd.read_parquet(folder / "_verdicts")
    wanted = [
        (row.latent, row.scorer, row.explainer, item)
        for row in context.store.verdicts(context.run_id, "other")
        if row.latent in kept
        for item in Verdicts.from_json(row.items).items
    ]
    assert manifest.verdicts is not None
    assert len(found) == manifest.verdicts.rows == len(wanted) > WINDOWS
    plain = found.astype(object).where(found.notna(), None)
    for row, (latent, scorer, explainer, item) in zip(plain.itertuples(), wanted, strict=True):
        assert (row.source, row.latent, row.scorer, row.explainer) == ("other", latent, scorer, explainer)
        assert f"{row.context}:{row.position}" == item.window
        assert (row.stratum, row.truth, row.verdict) == (item.stratum.value, item.truth, item.answer)
        assert (row.again, row.probability, row.failure) == (item.again, item.probability, item.failure)
    verify_dictionary(folder)
    assert len(pd.read_parquet(folder)) == len(kept), "readers of the folder leave the second table alone"


@pytest.mark.parametrize("harm", ["bit", "cut", "gone", "foreign", "renamed", "verdicts", "second manifest", "rows"])
def test_verify_names_the_file(world: Path, tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "d"
    export_run(open_world(world), folder, ExportOptions(by_source=True, verdicts=True))
    name = "source=other/part-00000.parquet"
    part, content = folder / name, bytearray((folder / name).read_bytes())
    if harm == "bit":
        content[len(content) // 3] ^= 4
        part.write_bytes(content)
    elif harm == "cut":
        part.write_bytes(content[:-1])
    elif harm == "gone":
        part.unlink()
    elif harm == "foreign":
        name = "source=other/notes.txt"
        (folder / name).write_text("mine")
    elif harm == "renamed":
        part.rename(folder / "source=other/part-00007.parquet")
    elif harm == "verdicts":
        name = "_verdicts/source=layers.2/part-00000.parquet"
        (folder / name).write_bytes((folder / name).read_bytes()[:-4] + b"PAR2")
    elif harm == "second manifest":
        name = f"_verdicts/{MANIFEST_NAME}"
        (folder / name).write_text((folder / name).read_text().replace('"created_at": "2', '"created_at": "3'))
    else:
        name = MANIFEST_NAME
        (folder / name).write_text((folder / name).read_text().replace('"num_rows": 4', '"num_rows": 5'))
    done = run_cli(["export", "--verify", str(folder)])
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{folder / name} " in done.stderr


def test_verify_says_that_all_is_well(world: Path, tmp_path: Path) -> None:
    export_run(open_world(world), tmp_path / "d", ExportOptions(verdicts=True))
    done = run_cli(["export", "--verify", str(tmp_path / "d")])
    assert done.returncode == 0
    assert f"is whole: {2 * SIZE:,} latents in 1 files and " in done.stdout


def test_verify_takes_a_runs_folder_for_its_dictionary(world: Path, tmp_path: Path) -> None:
    folder = make_run_folder(tmp_path / "out", "a-1")
    none = run_cli(["export", "--verify", str(folder.root)])
    assert none.returncode == 2
    assert "a run that has no dictionary yet" in none.stderr
    export_run(open_world(world), folder.dictionary)
    done = run_cli(["export", "--verify", str(folder.root)])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{folder.dictionary} is whole: {2 * SIZE:,} latents")
    part = next(folder.dictionary.glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-1])
    broken = run_cli(["export", "--verify", str(folder.root)])
    assert broken.returncode == 2
    assert str(part) in broken.stderr


# kills, and two at once

_CHILD = """
import os, sys, time
from pathlib import Path
from autointerp.export import parquet, parts, folder_swap, resuming
from autointerp.pipeline import exporting
from autointerp.pipeline.exporting import ExportOptions, export_run
from tests.autointerp.export_world import open_world
stop = sys.argv[3]
SMALL
def halt(*_, **__):
    print("here", flush=True)
    time.sleep(60)
def after(module, name, times):
    real, count = getattr(module, name), [0]
    def run(*args, **kwargs):
        found = real(*args, **kwargs)
        count[0] += 1
        if count[0] == times:
            halt()
        return found
    setattr(module, name, run)
if stop == "first page":
    after(exporting._Reading, "run_meta", 1)
elif stop == "in a part":
    after(parts.PartWriter, "_open", 4)
elif stop == "between parts":
    after(resuming.Progress, "add", 3)
elif stop == "verdicts":
    after(resuming.Progress, "add", 16)
elif stop == "before the manifest":
    after(resuming.Progress, "end", 1)
elif stop == "before the swap":
    after(parquet, "_write", 1)
elif stop == "after the swap":
    after(parquet, "put_in_place", 1)
export_run(open_world(Path(sys.argv[1])), Path(sys.argv[2]), ExportOptions(verdicts=True))
"""
STEPS = (
    "first page",
    "in a part",
    "between parts",
    "verdicts",
    "before the manifest",
    "before the swap",
    "after the swap",
)
QUICK_STEPS = ("in a part", "after the swap")


def child(world: Path, folder: Path, stop: str) -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parents[2]
    program = textwrap.dedent(_CHILD).replace("SMALL", _SMALL)
    return subprocess.Popen(
        [sys.executable, "-c", program, str(world), str(folder), stop],
        stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip


_SMALL = "exporting.GROUP, exporting.FILE, exporting._VERDICT_LATENTS = 40, 40, 20"


def hidden(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty rows a file, so that there are files to go on with."""
    monkeypatch.setattr(exporting, "GROUP", 40)
    monkeypatch.setattr(exporting, "FILE", 40)
    monkeypatch.setattr(exporting, "_VERDICT_LATENTS", 20)


@pytest.mark.parametrize(
    "step", [step if step in QUICK_STEPS else pytest.param(step, marks=pytest.mark.long) for step in STEPS]
)
def test_a_killed_export_leaves_the_old_one_and_the_next_goes_on(
    world: Path, tmp_path: Path, step: str, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, options = tmp_path / "d", ExportOptions(verdicts=True)
    context = open_world(world)
    old = export_run(context, folder, ExportOptions(RowFilter.of(["other"])))
    wanted = export_run(context, tmp_path / "unbroken", options)
    with child(world, folder, step) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        assert len(hidden(tmp_path)) == 1 or step == "first page"
        process.send_signal(signal.SIGKILL)
    there = verify_dictionary(folder)
    assert there.num_rows == (wanted if step == "after the swap" else old).num_rows
    written: list[str] = []
    real = parquet.PartWriter._open
    monkeypatch.setattr(
        parquet.PartWriter, "_open", lambda self, source: (written.append(source), real(self, source))[1]
    )
    found = export_run(context, folder, options)
    kept = {"in a part": 3, "between parts": 3, "verdicts": 16}.get(step, 0)
    assert len(written) == len(wanted.files) + len(_second(tmp_path / "unbroken")) - kept
    assert [part.sha256 for part in found.files] == [part.sha256 for part in wanted.files]
    assert _second(folder) == _second(tmp_path / "unbroken")
    verify_dictionary(folder)
    assert hidden(tmp_path) == []


def _second(folder: Path) -> list[str]:
    files = json.loads((folder / "_verdicts" / MANIFEST_NAME).read_text())["files"]
    return [part["sha256"] for part in files]


@pytest.mark.long
def test_an_export_goes_on_only_with_its_own_files(tmp_path: Path, small_parts: None) -> None:
    """Of another state of the run, of other arguments, or spoilt ones: nothing of these is taken."""
    world, folder = tmp_path / "run", tmp_path / "d"
    make_world(world, 200)
    with child(world, folder, "between parts") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGKILL)
    left = tmp_path / hidden(tmp_path)[0]
    progress = json.loads((left / PROGRESS_NAME).read_text())
    assert [part["file"]["name"] for part in progress["parts"]] == [f"part-{n:05d}.parquet" for n in range(3)]
    spoilt = left / "part-00001.parquet"
    spoilt.write_bytes(spoilt.read_bytes()[:-1] + b"x")
    context = open_world(world)
    export_run(context, folder, ExportOptions(verdicts=True))
    verify_dictionary(folder)
    assert_equal(pq.read_table(folder), by_rows(context))
    with child(world, folder, "between parts") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGKILL)
    review = {"run_id": context.run_id, "source": "layers.2", "latent": 3, "action": "reject", "by": "ann"}
    with context.store.writing() as connection:
        connection.execute(insert(ReviewRow).values(**review))
    export_run(context, folder, ExportOptions(verdicts=True))
    assert_equal(pq.read_table(folder), by_rows(context))
    assert pq.read_table(folder).to_pylist()[3]["status"] == "failed"
    assert hidden(tmp_path) == []


@pytest.mark.long
def test_two_exports_at_once_do_not_meet(world: Path, tmp_path: Path, small_parts: None) -> None:
    folder = tmp_path / "d"
    with child(world, folder, "between parts") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "here\n"
        export_run(open_world(world), folder, ExportOptions(verdicts=True))
        assert len(hidden(tmp_path)) == 1
        assert verify_dictionary(folder).num_rows == 2 * SIZE
        first.send_signal(signal.SIGKILL)
    with child(world, folder, "never") as one, child(world, folder, "never") as other:
        assert (one.wait(120), other.wait(120)) == (0, 0)
    assert verify_dictionary(folder).num_rows == 2 * SIZE
    assert hidden(tmp_path) == []


def test_a_run_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_world(tmp_path / "run", 60)
    context = open_world(tmp_path / "run")
    real, changes = exporting.pages, [3, 23]

    def disturbed(reading: Any, after: int) -> Any:
        yield from real(reading, after)
        if changes:
            with context.store.writing() as connection:
                latent = changes.pop()
                values = {"status": "failed", "text": None, "explainer": None}
                connection.execute(delete(LabelRow).where(LabelRow.latent == latent))
                connection.execute(insert(LabelRow).values(
                    run_id=context.run_id, source="layers.2", latent=latent, decided_by="x", **values
                ))  # fmt: skip

    monkeypatch.setattr(exporting, "pages", disturbed)
    export_run(context, tmp_path / "d")
    assert_equal(pq.read_table(tmp_path / "d"), by_rows(context))
    changes.extend(range(30, 40))
    with pytest.raises(StoreError, match="changed while"):
        export_run(context, tmp_path / "d")


def test_postgresql_holds_one_state_while_it_is_read(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_world(tmp_path / "run", 60, url=postgres_url)
    context = open_world(tmp_path / "run", postgres_url)
    wanted, real = by_rows(context), exporting.pages

    def disturbed(reading: Any, after: int) -> Any:
        with context.store.writing() as connection:
            connection.execute(update(LabelRow).where(LabelRow.status == "labelled").values(text="changed"))
        yield from real(reading, after)

    monkeypatch.setattr(exporting, "pages", disturbed)
    export_run(context, tmp_path / "d")
    assert_equal(pq.read_table(tmp_path / "d"), wanted)


def test_a_full_disk_leaves_the_old_dictionary(world: Path, tmp_path: Path) -> None:
    """The kernel refuses to let a file grow beyond 40 kB."""
    folder = tmp_path / "d"
    export_run(open_world(world), folder, ExportOptions(RowFilter.of(columns=["label"])))
    program = textwrap.dedent(
        """
        import resource, signal, sys
        from pathlib import Path
        from autointerp.pipeline.exporting import export_run
        from tests.autointerp.export_world import open_world
        context = open_world(Path(sys.argv[1]))
        context.scorers
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
        try:
            export_run(context, Path(sys.argv[2]))
        except Exception as error:
            print(type(error).__name__, error)
        """
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, str(world), str(folder)],
        capture_output=True, text=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("DiskFullError no room left on the disk of "), done
    assert list(verify_dictionary(folder).filter or {}) == ["columns"]
    assert hidden(tmp_path) == []


# reading


def test_load_dictionary_gives_types_that_hold(world: Path, tmp_path: Path) -> None:
    context, folder = open_world(world), tmp_path / "d"
    export_run(context, folder)
    table = autointerp.load_dictionary(folder)
    assert len(table) == 2 * SIZE
    assert table.latent.dtype == "int64"
    assert str(table.num_judged.dtype) == "Int64"
    assert table.num_judged.isna().any()
    assert isinstance(table.status.dtype, pd.CategoricalDtype)
    assert table.created_at.dtype.tz is not None  # type: ignore[union-attr]
    wanted = by_rows(context).to_pandas()
    assert (
        table.label.where(table.label.notna(), None).tolist() == wanted.label.where(wanted.label.notna(), None).tolist()
    )
    good = autointerp.load_dictionary(folder, where="f1_low>=0.5", source="other", columns=["label"], verify=True)
    assert good.latent.tolist() == wanted[(wanted.f1_low >= 0.5) & (wanted.source == "other")].latent.tolist()
    one = autointerp.load_dictionary(folder / "part-00000.parquet")
    assert len(one) == len(table)


def test_what_is_no_whole_dictionary_is_not_loaded(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    with pytest.raises(MissingFileError, match="holds no _manifest"):
        autointerp.load_dictionary(tmp_path)
    with pytest.raises(MissingFileError, match="there is no file"):
        autointerp.load_dictionary(tmp_path / "none.parquet")
    export_run(open_world(world), folder)
    with pytest.raises(UnknownNameError, match="did you mean 'label'"):
        autointerp.load_dictionary(folder, columns=["labl"])
    with pytest.raises(UnknownNameError, match="there is no source 'elsewhere'"):
        autointerp.load_dictionary(folder, source="elsewhere")
    with pytest.raises(InputError, match="is no bound"):
        autointerp.load_dictionary(folder, where="f1")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(StoreError, match="is no labelled dictionary"):
        autointerp.load_dictionary(tmp_path / "other.parquet")
    part = folder / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 1
    part.write_bytes(content)
    with pytest.raises(StoreError, match=r"part-00000\.parquet has changed"):
        autointerp.load_dictionary(folder, verify=True)
    part.write_bytes(content[:-1])
    with pytest.raises(StoreError, match=r"part-00000\.parquet has \d+ bytes where"):
        autointerp.load_dictionary(folder)


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_a_url_is_exported_to_verified_and_loaded(world: Path, tmp_path: Path, protocol: str) -> None:
    import fsspec

    url = f"{protocol}://{tmp_path}/bucket/d"
    context = open_world(world)
    first = export_run(context, url, ExportOptions(by_source=True, verdicts=True))
    assert verify_dictionary(url).num_rows == first.num_rows == 2 * SIZE
    assert len(autointerp.load_dictionary(url, source="other")) == SIZE
    second = export_run(context, url, ExportOptions(RowFilter.of(["other"])))
    assert verify_dictionary(url) == second, "what the first one had is gone, or verifying would name it"
    files, path = fsspec.core.url_to_fs(url)
    assert not {part.name for part in first.files} & {part.name for part in second.files}
    with files.open(f"{path}/{second.files[0].name}", "wb") as file:
        file.write(b"PAR1")
    with pytest.raises(StoreError, match=second.files[0].name):
        verify_dictionary(url)
    with files.open(f"{path}/thesis.txt", "wb") as file:
        file.write(b"years of work")
    with pytest.raises(StoreError, match=r"thesis\.txt"):
        export_run(context, url)


def test_an_upload_that_is_cut_off_leaves_the_old_dictionary(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autointerp.export.places import Place

    url = f"memory://{tmp_path}/d"
    context = open_world(world)
    old = export_run(context, url, ExportOptions(RowFilter.of(["other"])))
    real = Place.write

    def broken(self: Place, name: str, local: Path) -> None:
        if name == MANIFEST_NAME:
            raise StoreError("the network is away")
        real(self, name, local)

    monkeypatch.setattr(Place, "write", broken)
    with pytest.raises(StoreError, match="the network is away"):
        export_run(context, url)
    assert read_manifest(url) == old
    assert len(autointerp.load_dictionary(url, verify=False)) == old.num_rows
    monkeypatch.undo()
    export_run(context, url)
    assert verify_dictionary(url).num_rows == 2 * SIZE


def test_a_protocol_that_is_not_installed_is_a_sentence(world: Path) -> None:
    with pytest.raises(StoreError, match="pip install"):
        export_run(open_world(world), "s3://bucket/d")
    with pytest.raises(StoreError, match="no protocol of fsspec"):
        verify_dictionary("nonsense://bucket/d")


@pytest.mark.parametrize("by_source", [True, False])
def test_a_filtered_export_can_be_scored_by_another_run(world: Path, tmp_path: Path, by_source: bool) -> None:
    context, folder = open_world(world), tmp_path / "d"
    wanted = RowFilter.of(statuses=["labelled"], bounds=["f1>=0.2"])
    export_run(context, folder, ExportOptions(wanted, by_source=by_source, verdicts=True))
    rows = pd.read_parquet(folder)
    for source in ("layers.2", "other"):
        found = read_labels(LabelRequest(path=folder, own_source=source))
        own = rows[rows.source == source]
        assert found.source == source
        assert {latent: label.text for latent, label in found.labels.items()} == dict(
            zip(own.latent, own.label, strict=True)
        )


def test_the_docs_hold_the_columns_of_verdicts() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "dictionary.md").read_text(encoding="utf-8")
    assert verdict_markdown() in page
