"""Labels from elsewhere, from real files of each kind."""

from __future__ import annotations

import gzip
import hashlib
import json
import tracemalloc
from asyncio import run
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from autointerp.components import parse_component
from autointerp.config import parse_config
from autointerp.evidence import LatentEvidence
from autointerp.explainers.imported import ImportedExplainer
from autointerp.explanation import Explanation
from autointerp.export import export_dictionary
from autointerp.failure import Failure, FailureKind
from autointerp.imports import ImportedLabel, LabelRequest, clean_label, json_lines, label_index, reading
from autointerp.imports.label_index import LabelIndex
from autointerp.imports.split import Split
from autointerp.pipeline.folder import RunFolder, RunNote
from autointerp.review import record_review
from autointerp.sampling.scorable import kept_windows
from autointerp.sampling.shown_elsewhere import _of_width, holding_back, places_of_text
from autointerp.store import LabelStore, open_store
from autointerp.store.models import LabelRow, Run
from autointerp.store.opening import sqlite_url
from autointerp.store.rows import explanation_row
from sae_core.errors import ConfigError
from sae_core.records import Side, Source
from tests.autointerp.pools import HandStore, letters, make_pool

WORDS = ["<bos>", *"abcdef"]
FINGERPRINT = "f" * 64


class NamedStore(HandStore):
    """A store of six latents, the last one dead, whose source can be named."""

    named: Source | None = None

    @property
    def source(self) -> Source:
        return self.named or Source("layers.2", "subject", "0", "layers.2", "coder", FINGERPRINT, 6)


def store_of(**changes: Any) -> NamedStore:
    rules = [lambda context, at, n=n: float(context[at] == n) for n in (1, 2, 3, 4, 5, 99)]
    pools = {side: make_pool(side, [[0, 1, 2, 3, 4, 5, 6]], [int(side)], rules) for side in Side}
    store = NamedStore(pools, letters(WORDS))
    store.named = replace(store.source, **changes)
    return store


def explain(path: Path, latent: int, store: NamedStore | None = None, **fields: Any) -> Explanation:
    explainer = ImportedExplainer(path=str(path), **fields)
    return run(explainer.explain(LatentEvidence(latent, store or store_of())))


def failure_of(explanation: Explanation) -> Failure:
    assert explanation.failure is not None
    return explanation.failure


def write_lines(path: Path, rows: Iterable[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def dictionary(folder: Path, rows: Iterable[dict[str, Any]]) -> Path:
    common = {
        "source": "layers.2",
        "subject": "subject",
        "hookpoint": "layers.2",
        "coder_fingerprint": FINGERPRINT,
        "corpus_fingerprint": "c" * 64,
        "status": "labelled",
        "run_id": "run-1",
        "code_version": "1",
        "explainer": "max_activating",
        "explainer_model": "some/model",
    }
    export_dictionary(iter([[common | row for row in rows]]), folder, {"code_version": "1"})
    return folder


def test_our_own_dictionary_gives_labels_reasons_and_where_they_are_from(tmp_path: Path) -> None:
    rows = [
        {"latent": 0, "label": "the letter a", "label_output": "makes it write b"},
        {"latent": 1, "status": "rare", "failure_message": "fires in 3 windows."},
    ]
    folder = dictionary(tmp_path / "dictionary", rows)
    found = explain(folder, 0)
    assert (found.text, found.model, found.explainer, found.failure) == ("the letter a", "some/model", "imported", None)
    part = next(folder.glob("*.parquet"))
    assert found.payload["imported"] == {
        "from": "dictionary",
        "format": "dictionary",
        "sha256": hashlib.sha256(part.read_bytes()).hexdigest(),
        "source": "layers.2",
        "coder_fingerprint": FINGERPRINT,
        "kind": "max_activating",
        "author": "run-1",
        "sides": "same",
    }
    rare = failure_of(explain(folder, 1))
    assert rare.kind is FailureKind.NO_EXPLANATION
    assert rare.message == "the file has no label for it (dictionary): fires in 3 windows"
    missing = failure_of(explain(folder, 3))
    assert missing.message == "the file has no label for it (dictionary)"
    dead = failure_of(explain(folder, 5))
    assert dead.kind is FailureKind.DEAD
    output = explain(folder, 0, about="output")
    assert (output.text, output.side) == ("makes it write b", "output")


def run_folder(folder: Path, state: str = "done", seed: int = 0) -> LabelStore:
    """The output folder of a run of three latents without its exemplar store; its dictionary says other things."""
    store = open_store(sqlite_url(folder / "autointerp.db"))
    config = parse_config(
        {"subject": {"model": "m"}, "coders": [{"path": "c"}], "corpus": {"path": "python-stdlib"}, "seed": seed},
        "test",
    )
    store.create_run(
        Run(
            id="run-1",
            name="n",
            digest="d" * 64,
            ordinal=1,
            config=config.stored(),
            state=state,
            folder=str(folder),
            code_version="1",
        )
    )
    store.add_sources("run-1", [Source("layers.2", "subject", "0", "layers.2", "coder", FINGERPRINT, 6)])
    store.add_artefact("run-1", "corpus", {"fingerprint": "c" * 64})
    common: dict[str, Any] = {"run_id": "run-1", "source": "layers.2", "decided_by": "configuration order"}
    store._add(
        [
            explanation_row(
                "run-1", "layers.2", Explanation(latent=0, explainer="max_activating", text="a", model="m")
            ),
            LabelRow(**common, latent=0, status="labelled", text="a", text_output="to b", explainer="max_activating"),
            LabelRow(**common, latent=1, status="rare", failure_kind="too_few_windows", failure_message="3 windows."),
            LabelRow(**common, latent=2, status="labelled", text="c", explainer="max_activating"),
        ]
    )
    RunFolder(folder).write_note(RunNote("run-1", "d" * 64, None))
    dictionary(folder / "dictionary", [{"latent": 0, "label": "old"}, {"latent": 2, "label": "old"}])
    return store


def test_a_runs_labels_are_those_that_hold_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "RECHECK_S", 0.0)
    store = run_folder(tmp_path)
    for path in (tmp_path, tmp_path / "dictionary", next((tmp_path / "dictionary").glob("*.parquet"))):
        found = explain(path, 0)
        assert (found.text, found.model) == ("a", "m"), path
        told = found.payload["imported"]
        assert (told["format"], told["kind"], told["author"], told["sides"]) == (
            "run",
            "max_activating",
            "run-1",
            "same",
        )
    assert explain(tmp_path, 0, about="output").text == "to b"
    assert failure_of(explain(tmp_path, 1)).message.endswith("3 windows")
    record_review(store, "run-1", "layers.2", 2, "reject", None, "ann")
    assert "rejected by ann" in failure_of(explain(tmp_path, 2)).message  # also where it has been read before
    with pytest.raises(ConfigError, match="labels of a run are label or label_output"):
        explain(tmp_path, 0, label_column="other")
    (tmp_path / "dictionary").rename(tmp_path / "copy")
    assert explain(tmp_path / "copy", 0).text == "old"  # what lies elsewhere is what was written there


def test_what_a_run_took_from_elsewhere_stays_as_it_stood_there(tmp_path: Path) -> None:
    store = run_folder(tmp_path)
    common: dict[str, Any] = {"run_id": "run-1", "source": "layers.2", "decided_by": "configuration order"}
    for latent, sides, seen in ((3, "same", ("1:32",)), (4, "held_back", ())):
        payload = {"imported": {"sides": sides}}
        taken = Explanation(latent=latent, explainer="imported", text="t", payload=payload, exemplar_ids=seen)
        label = LabelRow(**common, latent=latent, status="labelled", text="t", explainer="imported")
        store._add([explanation_row("run-1", "layers.2", taken), label])
    apart, not_known = explain(tmp_path, 3), explain(tmp_path, 4)
    assert (apart.payload["imported"]["sides"], apart.exemplar_ids) == ("same", ("1:32",))
    assert (not_known.payload["imported"]["sides"], not_known.exemplar_ids) == ("unknown", ())


def test_a_run_that_goes_on_has_no_labels_yet(tmp_path: Path) -> None:
    run_folder(tmp_path, state="paused")
    with pytest.raises(ConfigError, match=r"has not ended .its state is 'paused'"):
        explain(tmp_path, 0)
    with pytest.raises(ConfigError, match="there is no run in"):
        explain(tmp_path / "dictionary" / "none", 0, format="run")


def test_an_edit_in_a_run_without_its_windows_is_refused_or_marked(tmp_path: Path) -> None:
    record_review(run_folder(tmp_path), "run-1", "layers.2", 2, "edit", "the letter c", "ann")
    source, own = store_of().source, Split.of(CONFIG)
    with pytest.raises(ConfigError, match=r"1 labels .* were edited by people \(that of latent 2"):
        ImportedExplainer(path=str(tmp_path)).check_sources([source], own)
    ImportedExplainer(path=str(tmp_path), allow_other_split=True).check_sources([source], own)
    found = explain(tmp_path, 2)
    assert (found.text, found.payload["imported"]["sides"]) == ("the letter c", "unknown")


CONFIG: dict[str, Any] = {
    "seed": 0,
    "corpus": {"bos": "auto"},
    "extraction": {"context_length": 256, "num_tokens": 100},
}


def own_dictionary(folder: Path, rows: Iterable[dict[str, Any]], **meta: Any) -> Path:
    common = {"corpus_fingerprint": "c" * 64, "status": "labelled", "run_id": "run-1", "code_version": "1"}
    place = {"source": "layers.2", "subject": "subject", "hookpoint": "layers.2", "coder_fingerprint": FINGERPRINT}
    export_dictionary(iter([[common | place | row for row in rows]]), folder, meta)
    return folder


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"seed": 1}, "its seed is 0, this run's 1"),
        ({"extraction": {"context_length": 64, "num_tokens": 100}}, "its contexts are cut in another way"),
        ({"corpus": {"bos": "never"}}, "its contexts are cut in another way"),
        ({"extraction": {"context_length": 256, "num_tokens": 200}}, None),
        ({"corpus": {"bos": "auto", "path": "elsewhere"}}, None),
    ],
)
def test_labels_of_a_run_with_other_sides_are_refused_unless_allowed(
    tmp_path: Path, changes: dict[str, Any], why: str | None
) -> None:
    folder = own_dictionary(tmp_path / "d", [{"latent": 0, "label": "x", "explainer": "contrastive"}], config=CONFIG)
    source, own = store_of().source, Split.of(CONFIG | changes)
    explainer = ImportedExplainer(path=str(folder))
    if why is None:
        explainer.check_sources([source], own)
        return
    with pytest.raises(ConfigError, match=rf"dealt its corpus to other sides \({why}\).*allow_other_split = true"):
        explainer.check_sources([source], own)
    ImportedExplainer(path=str(folder), allow_other_split=True).check_sources([source], own)


@pytest.mark.parametrize(
    ("row", "sides"),
    [
        ({"explainer": "contrastive"}, "same"),
        ({"explainer": "contrastive", "corpus_fingerprint": "e" * 64}, "unknown"),
        ({"explainer": "human"}, "unknown"),
        ({"explainer": "human.2", "latent": 4}, "same"),  # the manifest says what was seen
        ({"explainer": "imported"}, "unknown"),
        ({"explainer": "imported", "label_sides": "same"}, "same"),
        (
            {"explainer": "imported", "label_sides": "held_back"},
            "unknown",
        ),  # what was held back there is not known here
        ({"explainer": "human", "label_sides": "unknown", "latent": 4}, "unknown"),
    ],
)
def test_how_the_writers_windows_stand_to_this_runs_sides(tmp_path: Path, row: dict[str, Any], sides: str) -> None:
    folder = own_dictionary(
        tmp_path / "d", [{"latent": 0, "label": "x"} | row], config=CONFIG, seen={"layers.2": {"4": ["0:3", "7:32"]}}
    )
    found = explain(folder, row.get("latent", 0))
    assert found.payload["imported"]["sides"] == sides
    assert found.exemplar_ids == (("0:3", "7:32") if "latent" in row else ())


def test_of_other_files_the_sides_are_not_known(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "labels.jsonl", [{"latent": 1, "label": "b", "explainer": "human"}])
    ImportedExplainer(path=str(path)).check_sources([store_of().source], Split.of(CONFIG))  # nothing is known of a run
    assert explain(path, 1).payload["imported"]["sides"] == "unknown"


@pytest.mark.parametrize("width", [13, 20, 32, 70, 90])
def test_a_row_that_is_cut_keeps_its_runs_whole(width: int) -> None:
    rows = np.arange(1, 141, dtype=np.int32).reshape(2, 70)
    pieces = _of_width(rows, width)
    assert pieces.shape[1] == width

    def runs(tokens: NDArray[np.int32]) -> set[tuple[int, ...]]:
        found = {tuple(row[at : at + 13]) for row in tokens.tolist() for at in range(tokens.shape[1] - 12)}
        return {run for run in found if -1 not in run}

    assert runs(pieces) == runs(rows)


@pytest.mark.parametrize("width", [24, 32, 70])
def test_text_that_was_shown_elsewhere_is_held_back_whatever_the_width_of_its_windows(width: int) -> None:
    rng = np.random.default_rng(0)
    texts = [[0, *rng.integers(1, 500, 63).tolist()] for _ in range(40)]
    words = letters(["<bos>", *(str(n) for n in range(1, 500))])
    rules = [lambda context, at: float(context[at] < 100)]

    def of(chosen: dict[Side, range], window: int, before: int) -> HandStore:
        pools = {
            side: make_pool(side, [texts[n] for n in rows], list(rows), rules, window, before)
            for side, rows in chosen.items()
        }
        return HandStore(pools, words)

    own = of({Side.EXPLAIN: range(20), Side.CHOOSE: range(20), Side.SCORE: range(20, 40)}, 16, 16)
    other = of(
        {Side.EXPLAIN: range(20, 26), Side.CHOOSE: range(26, 30), Side.SCORE: range(30, 40)},
        width // 2,
        width - width // 2,
    )
    held = LatentEvidence(0, holding_back(own, other))
    documents = set(own.pool(Side.SCORE).document[kept_windows(held, Side.SCORE)])
    assert documents == set(range(30, 40))
    before = LatentEvidence(0, own)
    assert set(own.pool(Side.SCORE).document[kept_windows(before, Side.SCORE)]) == set(range(20, 40))
    # of what a person saw there exactly the windows with its text
    seen = frozenset({(2, width // 2)})
    lost = places_of_text(own, 0, other, seen)
    assert lost
    assert {context for context, _ in lost} == {12}  # document 32 in both


def test_another_coders_labels_are_refused_unless_allowed(tmp_path: Path) -> None:
    folder = dictionary(tmp_path / "d", [{"latent": 0, "label": "x"}])
    other = store_of(coder_fingerprint="a" * 64)
    with pytest.raises(ConfigError, match=r"another coder .*ffffffffffff.*aaaaaaaaaaaa.*allow_other_coder"):
        explain(folder, 0, other)
    assert explain(folder, 0, other, allow_other_coder=True).text == "x"


def test_the_source_is_that_which_is_named_or_of_the_same_coder_or_name(tmp_path: Path) -> None:
    rows = [
        {"latent": 0, "label": "of one", "source": "one", "coder_fingerprint": "1" * 64},
        {"latent": 0, "label": "of two", "source": "two", "coder_fingerprint": "2" * 64},
        {"latent": 0, "label": "of three", "source": "three", "coder_fingerprint": "3" * 64},
    ]
    folder = dictionary(tmp_path / "d", rows)
    assert explain(folder, 0, store_of(coder_fingerprint="2" * 64)).text == "of two"
    assert explain(folder, 0, store_of(name="three", coder_fingerprint="3" * 64)).text == "of three"
    assert explain(folder, 0, source="one", allow_other_coder=True).text == "of one"
    with pytest.raises(
        ConfigError, match=r"labels of 3 sources .'one', 'three', 'two'. and none of them is 'layers.2'"
    ):
        explain(folder, 0)
    with pytest.raises(ConfigError, match="no source 'tow': did you mean 'two'"):
        explain(folder, 0, source="tow")


def test_any_parquet_with_a_latent_and_a_label(tmp_path: Path) -> None:
    table = pa.table({"feature": pa.array([3, 1], pa.int32()), "text": pa.array(["d", None]), "more": [1.0, 2.0]})
    path = tmp_path / "labels.parquet"
    pq.write_table(table, path)
    named: dict[str, Any] = {"latent_column": "feature", "label_column": "text"}
    assert explain(path, 3, **named).text == "d"
    assert explain(path, 3, **named).payload["imported"]["format"] == "parquet"
    nothing = failure_of(explain(path, 1, **named))
    assert nothing.kind is FailureKind.NO_EXPLANATION
    with pytest.raises(ConfigError, match=r"has no column 'latent'.*set latent_column"):
        explain(path, 3)
    with pytest.raises(ConfigError, match="holds double, not whole numbers"):
        explain(path, 3, latent_column="more", label_column="text")
    with pytest.raises(ConfigError, match="holds double, not texts"):
        explain(path, 3, latent_column="feature", label_column="more")


def test_json_lines_with_numbers_as_numbers_or_text(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "labels.jsonl", [{"latent": 1, "label": "b", "model": "m"}, {"latent": "2", "label": "c"}]
    )
    assert [explain(path, latent).text for latent in (1, 2)] == ["b", "c"]
    assert explain(path, 1).model == "m"


def neuronpedia_line(index: object, description: object, **more: object) -> dict[str, object]:
    line = {"modelId": "gpt2-small", "layer": "2-res-jb", "index": index, "description": description}
    return line | {"authorId": "a1", "typeName": "oai_token-act-pair", "explanationModelName": "gpt-4o-mini"} | more


def test_neuronpedias_batches_of_explanations(tmp_path: Path) -> None:
    folder = tmp_path / "gpt2-small" / "2-res-jb"
    for number in (2, 10):  # read in the order of their numbers, so the one in batch-2 is first
        rows = [neuronpedia_line("4", f"from batch {number}", embedding=[0.5] * 256)]
        write_lines(folder / "explanations" / f"batch-{number}.jsonl.gz", rows)
    rows = [
        neuronpedia_line(0, ""),
        neuronpedia_line("0", "the second, not empty"),
        neuronpedia_line("0", "by another", authorId="a2", typeName="np_max-act", explanationModelName="gemini"),
        neuronpedia_line(1, " "),
    ]
    write_lines(folder / "explanations" / "batch-0.jsonl.gz", rows)
    write_lines(folder / "features" / "batch-0.jsonl.gz", [{"index": "0", "vector": [1.0]}])  # not explanations
    assert explain(folder, 4).text == "from batch 2"
    first = explain(folder, 0)
    assert (first.text, first.model) == ("the second, not empty", "gpt-4o-mini")
    assert first.payload["imported"]["source"] == "2-res-jb"
    assert first.payload["imported"]["kind"] == "oai_token-act-pair"
    assert explain(folder, 0, author="a2").model == "gemini"
    assert explain(folder, 0, type_name="np_max-act").text == "by another"
    empty = failure_of(explain(folder, 1))
    assert empty.message.endswith("its description is empty")
    with pytest.raises(ConfigError, match="holds no label with author 'a9'"):
        explain(folder, 0, author="a9")


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([{"latent": 1, "label": "a"}, {"latent": 1, "label": "b"}], "line 2 .* second label of latent 1"),
        ([{"latent": 6, "label": "a"}], "label for latent 6, but the coder of 'layers.2' has 6 latents"),
        ([{"latent": -1, "label": "a"}], "-1 as the latent"),
        ([{"latent": True, "label": "a"}], "True as the latent"),
        ([{"latent": 1.5, "label": "a"}], "1.5 as the latent"),
        ([{"latent": 1, "label": "  "}], "empty label for latent 1"),
        ([{"latent": 1, "label": 7}], "label = 7: it must be a text"),
        ([{"latent": 1, "text": "a"}], "no key 'label', it has 'latent', 'text'"),
        ([[1, "a"]], "no JSON object"),
        ([], "holds no label"),
    ],
)
def test_a_file_that_is_not_right_is_refused_in_one_sentence(tmp_path: Path, rows: list[object], match: str) -> None:
    path = write_lines(tmp_path / "labels.jsonl", rows)
    with pytest.raises(ConfigError, match=match):
        explain(path, 1)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"latent": 1, "label": "x"}\n{"latent": 2,\n')
    with pytest.raises(ConfigError, match=r"line 2 of 'a.jsonl' is no JSON"):
        explain(tmp_path / "a.jsonl", 1)
    whole = gzip.compress(b'{"latent": 1, "label": "x"}\n' * 1000)
    (tmp_path / "b.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"b\.jsonl\.gz"):
        explain(tmp_path / "b.jsonl.gz", 1)
    (tmp_path / "c.jsonl").write_text('{"latent": 1, "label": "' + "x" * (5 * 2**20) + '"}\n')
    with pytest.raises(ConfigError, match="longer than 4 MiB"):
        explain(tmp_path / "c.jsonl", 1)
    (tmp_path / "d.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ConfigError, match="cannot be read as parquet"):
        explain(tmp_path / "d.parquet", 1)
    (tmp_path / "e.csv").write_text("latent,label\n")
    with pytest.raises(ConfigError, match="no file of labels by its name"):
        explain(tmp_path / "e.csv", 1)
    with pytest.raises(ConfigError, match="there are no labels at"):
        explain(tmp_path / "nowhere", 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no labels"):
        explain(tmp_path / "empty", 1)


def test_what_no_database_takes_is_cleaned_and_what_is_no_label_is_refused_for_its_latent(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    texts = ["a\\u0000b\\ud800c\\n\\u001b[31md", "x" * 2000, "y" * 2001, "\\u0007"]
    path.write_text("".join(f'{{"latent": {n}, "label": "{text}"}}\n' for n, text in enumerate(texts)))
    assert explain(path, 0).text == "a b�c [31md"
    assert len(explain(path, 1).text) == 2000
    for latent, message in ((2, "has 2,001 characters"), (3, "no printable character")):
        failure = failure_of(explain(path, latent))
        assert failure.kind is FailureKind.BAD_LABEL
        assert message in failure.message


@given(st.text(st.characters(), max_size=50))
def test_a_cleaned_label_is_one_line_that_can_be_stored(text: str) -> None:
    cleaned = clean_label(text)
    assert cleaned.encode("utf-8").decode() == cleaned
    assert not any(sign in cleaned for sign in "\x00\n\r\x1b\x85")
    assert clean_label(cleaned) == cleaned


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "labels.jsonl", [{"latent": 1, "label": "old"}])
    reads: list[Path] = []
    original = json_lines.jsonl_labels

    def counting(files: Any, request: Any) -> Any:
        reads.append(path)
        return original(files, request)

    monkeypatch.setattr(json_lines, "jsonl_labels", counting)
    monkeypatch.setattr(reading, "RECHECK_S", 0.0)
    assert [explain(path, 1).text for _ in range(5)] == ["old"] * 5
    assert len(reads) == 1
    write_lines(path, [{"latent": 1, "label": "newer"}])
    assert explain(path, 1).text == "newer"
    assert len(reads) == 2


def test_random_directions_take_no_labels_from_elsewhere(tmp_path: Path) -> None:
    failure = failure_of(explain(tmp_path / "nowhere", 0, store_of(control=True)))
    assert failure.kind is FailureKind.NO_EXPLANATION


def test_it_is_a_component_like_the_others(tmp_path: Path) -> None:
    found = parse_component("explainers", {"kind": "imported", "path": str(tmp_path)})
    assert found == ImportedExplainer(path=str(tmp_path))
    with pytest.raises(ConfigError):
        parse_component("explainers", {"kind": "imported"})


@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 40), st.integers(2**26 - 1, 2**26 + 2)),
            st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=5)),
            st.sampled_from(["", "m"]),
            st.sampled_from([None, ("1:2",)]),
        ),
        max_size=30,
    )
)
def test_labels_in_little_room_are_those_of_a_plain_dict(puts: list[tuple[int, str | None, str, Any]]) -> None:
    index, plain = LabelIndex(), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_index, "_DENSE", 30)  # so that both ways are used
        for latent, text, model, seen in puts:
            label = ImportedLabel(text, model, "k", "a", "", "", "", seen)
            index.put(latent, label)
            plain[latent] = label
        assert dict(index.items()) == plain
        assert (list(index), len(index)) == (sorted(plain), len(plain))
        assert -1 not in index
        assert index.get(10**9) is None


@pytest.mark.long
def test_a_million_labels_take_little_room(tmp_path: Path) -> None:
    """A tenth of them; as objects they took 270 bytes each."""
    count = 100_000
    table = pa.table({"latent": range(count), "label": [f"the word number {n:06}" for n in range(count)]})
    pq.write_table(table, tmp_path / "labels.parquet")
    del table
    tracemalloc.start()
    try:
        labels = reading.read_labels(LabelRequest(path=tmp_path / "labels.parquet", own_source="x")).labels
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert labels[77].text == "the word number 000077"
    assert taken < 80 * count
