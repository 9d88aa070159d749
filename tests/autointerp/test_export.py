"""The exported dictionary: what readers find, and what disturbances leave behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from autointerp.export import (
    COLUMNS,
    MANIFEST_NAME,
    SCHEMA_VERSION,
    dictionary_schema,
    export_dictionary,
    folder_swap,
    read_manifest,
    schema_markdown,
    verify_dictionary,
)
from sae_core.errors import DiskFullError, InputError, MissingFileError, NonFiniteError, StoreError

META = {"code_version": "1.2.3", "seed": 7}


def row(latent: int, **values: Any) -> dict[str, Any]:
    return {
        "source": "demo",
        "subject": "subject",
        "hookpoint": "layers.2",
        "coder_fingerprint": "ab" * 32,
        "corpus_fingerprint": "cd" * 32,
        "latent": latent,
        "status": "labelled",
        "run_id": "r1",
        "code_version": "1.2.3",
        **values,
    }


def batches(count: int, size: int = 7, **values: Any) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, count, size):
        yield [row(latent, **values) for latent in range(start, min(count, start + size))]


def hidden(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]


def test_pandas_reads_the_folder_as_it_is(tmp_path: Path) -> None:
    made = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    full = row(
        0, label="self after (", precision=0.75, num_windows=12, top_promoted_tokens=["a", "é"], neighbours=[3, 1],
        created_at=made, pattern_score=0.5,
    )  # fmt: skip
    export_dictionary(iter([[full, row(1, status="dead")]]), tmp_path / "dictionary", META, scorers=["pattern"])
    table = pd.read_parquet(tmp_path / "dictionary")
    assert list(table.columns) == dictionary_schema(["pattern"]).names
    assert table.label[0] == "self after ("
    assert table.precision[0] == 0.75
    assert table.pattern_score[0] == 0.5
    assert list(table.top_promoted_tokens[0]) == ["a", "é"]
    assert list(table.neighbours[0]) == [3, 1]
    assert table.created_at[0] == pd.Timestamp(made)
    assert table.loc[1, ["label", "precision", "num_windows", "neighbours"]].isna().all()


def test_rows_are_streamed_into_groups_and_files(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "dictionary"
    manifest = export_dictionary(batches(103), folder, META, rows_per_group=10, rows_per_file=30)
    assert [part.rows for part in manifest.files] == [30, 30, 30, 13]
    assert [part.name for part in manifest.files] == [f"part-{index:05d}.parquet" for index in range(4)]
    assert [pq.ParquetFile(folder / "part-00000.parquet").metadata.row_group(i).num_rows for i in range(3)] == [10] * 3
    assert pd.read_parquet(folder).latent.tolist() == list(range(103))
    assert (manifest.num_rows, manifest.min_latent, manifest.max_latent) == (103, 0, 102)
    assert hidden(folder.parent) == []


def test_memory_holds_a_group_and_not_the_table(tmp_path: Path) -> None:
    """The source of rows is read only as fast as groups are written."""
    alive: list[int] = []

    def source() -> Iterator[list[dict[str, Any]]]:
        for start in range(0, 50, 5):
            building = next(entry for entry in tmp_path.iterdir() if entry.name.startswith("."))
            alive.append(len(list(building.glob("*.parquet"))))
            yield [row(start + index) for index in range(5)]

    export_dictionary(source(), tmp_path / "dictionary", META, rows_per_group=5, rows_per_file=10)
    assert alive == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]


def test_manifest_says_what_the_files_are(tmp_path: Path) -> None:
    folder = tmp_path / "dictionary"
    returned = export_dictionary(batches(5), folder, META)
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    content = (folder / "part-00000.parquet").read_bytes()
    assert manifest["schema_version"] == SCHEMA_VERSION
    assert manifest["run_ids"] == ["r1"]
    assert manifest["sources"] == ["demo"]
    assert manifest["code_version"] == "1.2.3"
    assert manifest["run"] == META
    assert manifest["files"] == [
        {
            "name": "part-00000.parquet",
            "rows": 5,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    ]
    assert verify_dictionary(folder) == returned == read_manifest(folder)
    assert sorted(entry.name for entry in folder.iterdir()) == [MANIFEST_NAME, "part-00000.parquet"]


def test_a_dictionary_without_rows_still_has_its_columns(tmp_path: Path) -> None:
    manifest = export_dictionary(iter([]), tmp_path / "dictionary", META)
    assert manifest.num_rows == 0
    assert manifest.min_latent is None
    assert list(pd.read_parquet(tmp_path / "dictionary").columns) == [column.name for column in COLUMNS]
    verify_dictionary(tmp_path / "dictionary")


@pytest.mark.parametrize("one_step", [True, False])
def test_a_new_dictionary_takes_the_place_of_the_old(
    tmp_path: Path, one_step: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not one_step:
        monkeypatch.setattr(folder_swap, "_exchange", lambda one, other: False)
    folder = tmp_path / "dictionary"
    folder.mkdir()
    export_dictionary(batches(100), folder, META, rows_per_group=10, rows_per_file=10)
    export_dictionary(batches(3), folder, META)
    assert pd.read_parquet(folder).latent.tolist() == [0, 1, 2]
    assert verify_dictionary(folder).num_rows == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["dictionary"]


def test_a_link_to_a_dictionary_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    export_dictionary(batches(2), tmp_path / "link", META)
    assert (tmp_path / "link").is_symlink()
    assert verify_dictionary(tmp_path / "real").num_rows == 2


def test_an_error_in_the_rows_leaves_the_old_dictionary(tmp_path: Path) -> None:
    folder = tmp_path / "dictionary"
    export_dictionary(batches(5), folder, META)

    def broken() -> Iterator[list[dict[str, Any]]]:
        yield [row(index) for index in range(20)]
        raise RuntimeError("the store went away")

    with pytest.raises(RuntimeError, match="went away"):
        export_dictionary(broken(), folder, META, rows_per_group=4, rows_per_file=8)
    assert verify_dictionary(folder).num_rows == 5
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    folder = tmp_path / "dictionary"
    export_dictionary(batches(5), folder, META)

    def full(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"^no room left on the disk of .*free some space") as caught:
        export_dictionary(batches(50), folder, META, rows_per_group=4, rows_per_file=8)
    assert str(folder) in str(caught.value)
    monkeypatch.undo()
    assert verify_dictionary(folder).num_rows == 5
    assert hidden(tmp_path) == []


def test_a_write_that_finds_no_room_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own refusal, by way of pyarrow: the part file is /dev/full."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    opened = Path.open

    def to_full(self: Path, *args: Any, **kwargs: Any) -> Any:
        return open("/dev/full", "wb") if self.suffix == ".parquet" else opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", to_full)
    with pytest.raises(DiskFullError):
        export_dictionary(batches(2000, label="x" * 200), tmp_path / "dictionary", META, rows_per_group=500)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("bad", "error", "says"),
    [
        ({"precison": 0.5}, InputError, "did you mean 'precision'"),
        ({"status": None}, InputError, "has no 'status'"),
        ({"f1": float("nan")}, NonFiniteError, "latent 3 of 'demo' has f1 = nan"),
        ({"num_windows": "many"}, InputError, "does not fit"),
    ],
)
def test_a_bad_row_is_one_sentence(tmp_path: Path, bad: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        export_dictionary(iter([[row(3, **bad)]]), tmp_path / "dictionary", META)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years of work")
    with pytest.raises(StoreError, match=r"chapter\.txt"):
        export_dictionary(batches(1), thesis, META)
    assert (thesis / "chapter.txt").read_text() == "years of work"
    with pytest.raises(StoreError, match="is a file"):
        export_dictionary(batches(1), thesis / "chapter.txt", META)
    dictionary = tmp_path / "dictionary"
    export_dictionary(batches(1), dictionary, META)
    (dictionary / "notes.md").write_text("mine")
    with pytest.raises(StoreError, match=r"notes\.md"):
        export_dictionary(batches(1), dictionary, META)
    assert (dictionary / "notes.md").read_text() == "mine"


@pytest.mark.parametrize("harm", ["bit", "cut", "gone", "extra", "rows", "manifest"])
def test_verify_names_the_broken_file(tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "dictionary"
    export_dictionary(batches(40), folder, META, rows_per_group=10, rows_per_file=20)
    part = folder / "part-00001.parquet"
    content = bytearray(part.read_bytes())
    if harm == "bit":
        content[len(content) // 3] ^= 1
        part.write_bytes(content)
    elif harm == "cut":
        part.write_bytes(content[:-9])
    elif harm == "gone":
        part.unlink()
    elif harm == "extra":
        part = folder / "part-00009.parquet"
        part.write_bytes(content)
    elif harm == "rows":
        manifest = json.loads((folder / MANIFEST_NAME).read_text())
        manifest["files"][1]["rows"] = 21
        (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    else:
        part = folder / MANIFEST_NAME
        part.write_text("{")
    with pytest.raises(StoreError, match=part.name):
        verify_dictionary(folder)


def test_a_flipped_bit_is_also_found_by_the_pages_own_checksums(tmp_path: Path) -> None:
    folder = tmp_path / "dictionary"
    export_dictionary(batches(2000, label="the same label again and again"), folder, META)
    part = folder / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    column = pq.ParquetFile(part).metadata.row_group(0).column(6)
    assert column.path_in_schema == "latent"
    start = column.dictionary_page_offset or column.data_page_offset
    content[start + column.total_compressed_size - 5] ^= 1
    part.write_bytes(content)
    with pytest.raises(OSError, match="checksum"):
        pq.ParquetFile(part, page_checksum_verification=True).read()


def test_what_is_no_dictionary_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="holds no _manifest"):
        verify_dictionary(tmp_path)


def test_a_killed_export_leaves_the_old_dictionary_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    folder = tmp_path / "dictionary"
    export_dictionary(batches(5), folder, META)
    program = textwrap.dedent(
        """
        import sys, time
        from tests.autointerp.test_export import META, row
        from autointerp.export import export_dictionary
        def slow():
            for start in range(0, 1000, 10):
                yield [row(start + index) for index in range(10)]
                if start == 50:
                    print("half", flush=True)
                    time.sleep(60)
        export_dictionary(slow(), sys.argv[1], META, rows_per_group=10, rows_per_file=10)
        """
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True, cwd=root, env=environment
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half\n"
        assert len(hidden(tmp_path)) == 1
        export_dictionary(batches(6), folder, META)
        assert len(hidden(tmp_path)) == 1, "another export that still runs is not disturbed"
        child.send_signal(signal.SIGKILL)
    assert verify_dictionary(folder).num_rows == 6
    export_dictionary(batches(7), folder, META)
    assert verify_dictionary(folder).num_rows == 7
    assert hidden(tmp_path) == []


def test_a_reader_never_finds_a_half_dictionary(tmp_path: Path) -> None:
    """A second process replaces the dictionary as fast as it can; each look finds a whole file and a manifest."""
    folder = tmp_path / "dictionary"
    export_dictionary(batches(1), folder, META)
    program = textwrap.dedent(
        """
        import sys
        from tests.autointerp.test_export import META, batches
        from autointerp.export import export_dictionary
        for count in range(2, 40):
            export_dictionary(batches(count), sys.argv[1], META)
        """
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    seen: list[int] = []
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], cwd=root, env=environment) as child:
        deadline = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < deadline:
            seen.append(pq.ParquetFile(folder / "part-00000.parquet").metadata.num_rows)
            assert read_manifest(folder).num_rows >= seen[-1]
    assert child.returncode == 0
    assert len(set(seen)) > 5
    assert seen == sorted(seen)
    assert verify_dictionary(folder).num_rows == 39


def test_the_docs_hold_the_schema() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "dictionary.md").read_text(encoding="utf-8")
    assert page.endswith(schema_markdown())
    assert f"version is {SCHEMA_VERSION}." in page


def test_every_column_says_in_one_sentence_what_it_holds() -> None:
    names = [column.name for column in COLUMNS]
    assert len(names) == len(set(names))
    for column in COLUMNS:
        assert column.description.endswith("."), column.name
        assert "|" not in column.description
        field = dictionary_schema().field(column.name)
        assert field.metadata[b"description"].decode() == column.description
        assert field.nullable != column.required


def test_a_scorer_may_not_take_a_columns_name() -> None:
    with pytest.raises(InputError, match="name a scorer"):
        dictionary_schema(["bad name"])


def test_each_judge_has_its_figure_and_why_it_has_none() -> None:
    names = dictionary_schema(["detection", "fuzz", "detection"]).names
    at = names.index("judge_model")
    assert names[at - 4 : at] == ["detection_score", "detection_failure", "fuzz_score", "fuzz_failure"]
    assert dictionary_schema(["detection"]).field("detection_failure").nullable
