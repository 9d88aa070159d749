"""Every form of a corpus gives the same documents; what is damaged is met in a sentence."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sae_core.corpus_files import Place, find_files
from sae_core.dataset_files import chosen_files
from sae_core.document import Document
from sae_core.documents import documents_in, read_documents
from sae_core.errors import CorpusError
from sae_core.readers.field import Field
from sae_core.readers.scanning import readers
from sae_core.seen_digests import SeenDigests
from tests.sae_core.corpus_world import TEXTS, saved_dataset, write, zstd

FORMS = (
    "a.jsonl",
    "a.jsonl.gz",
    "a.jsonl.zst",
    "a.json.gz",
    "a.json.zst",
    "a.parquet",
    "a.stream.arrow",
    "a.arrow",
    "a.feather",
)
ROWS = [*TEXTS, TEXTS[3], "  "]


def texts(path: Path, **options: Any) -> list[str]:
    return [document.text for document in read_documents(str(path), text_field="body", **options)]


def documents(path: Path, field: Field, **options: Any) -> list[Document]:
    vocabulary, leading = options.pop("vocabulary", None), options.pop("leading_id", None)
    found = find_files(Place(str(path), **options), field)
    return list(documents_in(found, field, vocabulary=vocabulary, leading_id=leading))


def refusal(path: Path) -> str | None:
    """What is said of a file that cannot be read, None where it can."""
    try:
        texts(path)
    except CorpusError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", FORMS)
def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    assert texts(write(tmp_path / name, ROWS)) == TEXTS


def test_the_scan_finds_every_reader() -> None:
    assert [module.__name__.rpartition(".")[2] for module in readers()] == ["arrow", "jsonl", "npy", "parquet", "text"]  # type: ignore[attr-defined]


def test_a_folder_holds_any_mixture(tmp_path: Path) -> None:
    for number, name in enumerate(FORMS):
        write(tmp_path / f"{number}{name[1:]}", TEXTS[2 * number : 2 * number + 2])
    (tmp_path / "below").mkdir()
    for number in range(18, 20):
        (tmp_path / "below" / f"{number}.txt").write_text(TEXTS[number])
    np.save(tmp_path / "unrelated.npy", np.zeros(3))
    assert sorted(texts(tmp_path)) == sorted(TEXTS)
    assert sorted(texts(tmp_path, suffixes=(".txt",))) == sorted(TEXTS[18:])


def test_a_saved_dataset_is_read_in_its_own_order(tmp_path: Path) -> None:
    folder = saved_dataset(tmp_path / "plain", [TEXTS[12:], TEXTS[:5], TEXTS[5:12]])
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"] = [state["_data_files"][i] for i in (1, 2, 0)]
    (folder / "state.json").write_text(json.dumps(state))
    write(folder / "cache-of-a-map.stream.arrow", ["not of the data set"])
    assert texts(folder) == TEXTS


def test_splits_of_a_saved_dataset(tmp_path: Path) -> None:
    root = tmp_path / "dict"
    saved_dataset(root / "train", [TEXTS[:15]])
    saved_dataset(root / "test", [TEXTS[15:]])
    (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert texts(root, split="test") == TEXTS[15:]
    assert texts(root / "train") == TEXTS[:15]
    with pytest.raises(CorpusError, match=r"2 splits \('train', 'test'\): set corpus.split to one of them"):
        texts(root)
    with pytest.raises(CorpusError, match=r"corpus.split is 'dev', and .* has 'train', 'test'"):
        texts(root, split="dev")
    (root / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert texts(root) == TEXTS[:15]
    for splits in ('["../dict/train"]', "[]", "3", '[".."]'):
        (root / "dataset_dict.json").write_text(f'{{"splits": {splits}}}')
        with pytest.raises(CorpusError, match="is not what datasets' save_to_disk writes"):
            texts(root)


def test_a_saved_dataset_that_cannot_be_read_in_order(tmp_path: Path) -> None:
    folder = saved_dataset(tmp_path / "a", [TEXTS], _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(CorpusError, match=r"an indices mapping\), which is not read: save it again"):
        texts(folder)
    folder = saved_dataset(tmp_path / "b", [TEXTS[:5], TEXTS[5:]])
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(CorpusError, match=r"names data-00001-of-00002.arrow, which is not there"):
        texts(folder)
    for files in ([{"filename": "../a/data-00000-of-00001.arrow"}], [3], {"filename": "x"}, None):
        state = json.dumps({"_data_files": files})
        (folder / "state.json").write_text(state)
        with pytest.raises(CorpusError, match="is not what datasets' save_to_disk writes"):
            texts(folder)


NAMES = ["en/train-0.parquet", "en/test-0.parquet", "fr/train-0.parquet", "sample/10BT/a.parquet", "data/x/b.parquet"]
README = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample
  data_files: "sample/10BT/*"
- config_name: both
  data_files:
  - split: train
    path: ["en/train*", "fr/train*"]
  - split: test
    path: "**/test*"
---
# text
"""


@pytest.mark.parametrize(
    ("readme", "split", "subset", "expected"),
    [
        ("", None, None, [0, 2]),
        ("", "test", None, [1]),
        ("", None, "en", [0]),
        ("", "test", "en", [1]),
        (README, None, None, [4]),
        (README, None, "sample", [3]),
        (README, None, "both", [0, 2]),
        (README, "test", "both", [1]),
        ("---\nconfigs: 3\n---", None, "fr", [2]),
        ("---\n: {\n---", None, "fr", [2]),
    ],
)
def test_files_of_a_split_and_a_subset(readme: str, split: str | None, subset: str | None, expected: list[int]) -> None:
    assert chosen_files(NAMES, split, subset, readme, "x") == [NAMES[i] for i in expected]


@pytest.mark.parametrize(
    ("readme", "split", "subset", "message"),
    [
        ("", "dev", None, r"corpus.split is 'dev', and x has no such split \(it has 'test', 'train'\)"),
        ("", None, "de", r"corpus.subset is 'de', and x has no such subset \(it has 'data', 'en', 'fr', 'sample'\)"),
        (README, None, "de", r"no such subset \(it has 'default', 'sample', 'both'\)"),
        (README, "test", None, r"corpus.split is 'test', and x has no such split \(it has 'train'\)"),
        (README.replace("default", "other"), None, None, r"3 subsets .*: set corpus.subset to one of them"),
        (README.replace("train", "left"), None, "both", r"2 splits \('left', 'test'\): set corpus.split"),
        ("---\nconfigs: [{config_name: a, data_files: [{split: train}]}]\n---", None, None, "are not understood"),
    ],
)
def test_a_choice_that_is_not_there(readme: str, split: str | None, subset: str | None, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        chosen_files(NAMES, split, subset, readme, "x")


def test_the_split_of_a_plain_folder(tmp_path: Path) -> None:
    write(tmp_path / "train-0.jsonl", TEXTS[:9])
    write(tmp_path / "test-0.jsonl", TEXTS[9:])
    assert texts(tmp_path, split="test") == TEXTS[9:]
    assert sorted(texts(tmp_path)) == sorted(TEXTS), "without a split, as it lies there"


IDS = [[3, 1, 4], [1, 5], [9, 2, 6, 5], [3, 1, 4], []]
TOKENS = Field("tokens", "input_ids")


@pytest.mark.parametrize("name", FORMS)
def test_ready_ids_are_documents(tmp_path: Path, name: str) -> None:
    found = documents(write(tmp_path / name, IDS, "input_ids"), TOKENS, vocabulary=10)
    assert [d.ids.tolist() for d in found if d.ids is not None] == IDS[:3]
    assert len({d.digest for d in found}) == 3
    with_bos = documents(write(tmp_path / name, [[7, *ids] for ids in IDS], "input_ids"), TOKENS, leading_id=7)
    assert [d.digest for d in with_bos] == [d.digest for d in found], "a BOS is no part of the document"
    beyond = write(tmp_path / name, IDS, "input_ids")
    with pytest.raises(CorpusError, match=rf"{name}:3 holds the token id 9, and the subject's ids go from 0 to 8"):
        documents(beyond, TOKENS, vocabulary=9)


@pytest.mark.parametrize("dtype", ["<u2", "<i4", "<i8", ">i4", "|u1"])
def test_arrays_of_ids(tmp_path: Path, dtype: str) -> None:
    rows = np.asarray([[3, 1, 4], [1, 5, 9]], dtype=dtype)
    np.save(tmp_path / "rows.npy", rows)
    found = documents(tmp_path / "rows.npy", Field("text", "text"), vocabulary=10)
    assert [d.ids.tolist() for d in found if d.ids is not None] == rows.tolist()
    assert all(d.known for d in found)
    np.save(tmp_path / "flat.npy", rows.reshape(-1))
    (flat,) = documents(tmp_path / "flat.npy", TOKENS)
    assert flat.ids is not None
    assert flat.ids.tolist() == [3, 1, 4, 1, 5, 9]
    assert not flat.known
    with pytest.raises(CorpusError, match=r"rows.npy:2 holds the token id 9"):
        documents(tmp_path / "rows.npy", TOKENS, vocabulary=9)


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 2)), np.zeros((1, 2, 3), int), np.asfortranarray(np.ones((2, 3), int)), np.asarray(3), np.asarray(["a"])],
)  # fmt: skip
def test_arrays_that_are_no_ids(tmp_path: Path, array: Any) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(CorpusError, match=r"where token ids are integers"):
        documents(tmp_path / "a.npy", TOKENS)


CHAT = [
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}],
    [{"role": "user", "content": "a"}],
]


@pytest.mark.parametrize("name", FORMS)
def test_conversations_are_documents(tmp_path: Path, name: str) -> None:
    found = documents(write(tmp_path / name, [*CHAT, CHAT[0], []], "messages"), Field("messages", "messages"))
    assert [list(d.messages or ()) for d in found] == CHAT
    calls = [[{"role": "assistant", "content": None, "calls": "f()"}]]
    (called,) = documents(write(tmp_path / name, calls, "messages"), Field("messages", "messages"))
    assert list(called.messages or ()) == calls[0], "what calls a function says nothing"
    strange = [[{"from": "human", "value": "hi"}]]
    with pytest.raises(CorpusError, match=r"has 'from', 'value', where 'role' and 'content' are read: rename"):
        documents(write(tmp_path / name, strange, "messages"), Field("messages", "messages"))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    ("rows", "field"),
    [
        ([1, 2], Field("text", "body")),
        (TEXTS, Field("tokens", "body")),
        (TEXTS, Field("messages", "body")),
        ([[1.5]], Field("tokens", "body")),
        ([["a"]], Field("messages", "body")),
        ([[3]], Field("text", "body")),
    ],
)
def test_a_field_of_another_kind(tmp_path: Path, name: str, rows: list[Any], field: Field) -> None:
    with pytest.raises(CorpusError, match=rf"set corpus.{field.kind}_field to a (field|column) that does") as caught:
        documents(write(tmp_path / name, rows), field)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", FORMS)
def test_a_field_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(CorpusError, match=rf"{name}.* has no token ids under 'ids' \(it has 'n', 'body'\)") as caught:
        documents(write(tmp_path / name, TEXTS), Field("tokens", "ids"))
    assert str(caught.value).endswith("set corpus.tokens_field.")


def test_odd_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    words = pa.array(["a b", "c", None, "a b"])
    for column in (words.cast(pa.large_string()), words.dictionary_encode(), words.cast(pa.string_view())):
        pq.write_table(pa.table({"body": column}), path)
        assert texts(path) == ["a b", "c"]
    for kind in (pa.large_list(pa.uint16()), pa.list_(pa.int8(), 2), pa.list_(pa.uint64())):
        pq.write_table(pa.table({"input_ids": pa.array([[1, 2], None, [3, 4]], kind)}), path)
        assert [d.ids.tolist() for d in documents(path, TOKENS) if d.ids is not None] == [[1, 2], [3, 4]]
    pq.write_table(pa.table({"input_ids": [[1, None]]}), path)
    with pytest.raises(CorpusError, match="row 1: 'input_ids' has a null among its token ids"):
        documents(path, TOKENS)
    invalid = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    pq.write_table(pa.table({"body": invalid}), path)
    with pytest.raises(CorpusError, match="one of the rows 1 to 1 is not UTF-8"):
        texts(path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(CorpusError, match=r"has no fields, and corpus\.tokens_field is set"):
        documents(tmp_path / "a.txt", TOKENS)


def test_a_lone_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a b " * 10 + b"caf\xe9")
    with pytest.raises(CorpusError, match=r"a\.txt is not UTF-8 \(.* in block 1 of .*\): write the file as UTF-8"):
        texts(tmp_path / "a.txt")


@pytest.mark.parametrize("name", [*FORMS[1:], "a.npy", "a.jsonl"])
def test_a_file_cut_short_is_a_sentence_wherever_it_is_cut(tmp_path: Path, name: str) -> None:
    """Cut at many places: never a traceback, and for all but lines and texts never fewer documents."""
    rng = random.Random(0)
    rows = ["".join(rng.choice("abcdefgh ") for _ in range(60)) for _ in range(120)]
    path = tmp_path / name
    if name.endswith(".npy"):
        np.save(path, np.arange(2000, dtype=np.int32).reshape(50, 40))
    else:
        write(path, rows)
    whole = path.read_bytes()
    places = {0, 1, 5, 8, 9, 10, len(whole) - 1, len(whole) - 4, len(whole) - 8, len(whole) - 9}
    for place in sorted(places | {rng.randrange(len(whole)) for _ in range(150)}):
        path.write_bytes(whole[:place])
        said = refusal(path)
        if said is None:
            assert name == "a.jsonl", f"a file cut at {place} of {len(whole)} is read as if it were whole"
        else:
            assert name in said
            assert "\n" not in said


@pytest.mark.parametrize("name", [*FORMS, "a.npy"])
def test_bytes_that_were_changed_are_no_traceback(tmp_path: Path, name: str) -> None:
    rng = random.Random(1)
    path = tmp_path / name
    if name.endswith(".npy"):
        np.save(path, np.arange(200, dtype=np.int32).reshape(5, 40))
    else:
        write(path, TEXTS)
    whole = path.read_bytes()
    for _ in range(150):
        changed = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        path.write_bytes(bytes(changed))
        assert name in (refusal(path) or name)


def test_frames_one_after_the_other_are_one_stream(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    parts = [json.dumps({"body": text}).encode() + b"\n" for text in TEXTS]
    path.write_bytes(b"".join(zstd(b"".join(parts[i : i + 5])) for i in range(0, 20, 5)))
    assert texts(path) == TEXTS


def test_seen_digests_are_a_set() -> None:
    rng = random.Random(0)
    numbers = [rng.choice([0, -1, 2**63 - 1, -(2**63), *range(50)]) for _ in range(300)]
    numbers += [rng.randrange(-(2**63), 2**63) for _ in range(20_000)]
    numbers += [n << 40 for n in range(3000)] + rng.sample(numbers, 5000)
    seen, truth = SeenDigests(), set[int]()
    for number in numbers:
        assert seen.add(number) == (number not in truth)
        truth.add(number)
    assert len(seen) == len(truth)
