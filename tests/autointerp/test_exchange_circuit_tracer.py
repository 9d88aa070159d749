"""circuit-tracer's feature files: read by hand as its page reads them, by our own reader, and from files that others might write."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.exchange import export_exchange, format_of
from autointerp.exchange.feature_files import FeatureFiles
from autointerp.exchange.graph_labels import label_graph, latent_nodes, read_graph, read_labels_of
from autointerp.exchange.layers import cantor_pair, cantor_unpair, layer_of
from autointerp.export import RowFilter
from autointerp.imports import LabelRequest, read_labels
from autointerp.pipeline.context import RunContext
from sae_core.errors import ConfigError, InputError, MissingFileError
from tests.autointerp.exchange_run import (
    DEAD,
    FAILED,
    NEGATIVE,
    NUM_LATENTS,
    OUTPUT,
    RARE,
    firing,
    label_of,
    make_run,
    text_of,
)
from tests.made_up_world import OCCURRENCES, SOURCE

KEYS = {
    "transcoder_id",
    "index",
    "examples_quantiles",
    "top_logits",
    "bottom_logits",
    "act_min",
    "act_max",
    "quantile_values",
    "histogram",
    "activation_frequency",
}
TOKENS = 2 * 1024 * sum(OCCURRENCES.values())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    return make_run(tmp_path_factory.mktemp("exchange") / "run")


@pytest.fixture(scope="module")
def folder(run: RunContext, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("circuit-tracer") / "out"
    export_exchange(run, out, format_of("circuit-tracer", ["scan=me/repository//transcoders@main"]))
    return out


def page_reads(folder: Path, feature: int) -> Any:
    """As circuit-tracer's page does: the index, a range of bytes with both ends in it, the length, what is packed."""
    layer, latent = cantor_unpair(feature)
    index = json.loads(gzip.decompress((folder / "features/index.json.gz").read_bytes()))
    offsets, name = index[str(layer)]["offsets"], index[str(layer)]["filename"]
    data = (folder / "features" / name).read_bytes()[offsets[latent] : offsets[latent + 1] + 1]
    (length,) = struct.unpack("<I", data[:4])
    return json.loads(gzip.decompress(data[4 : 4 + length]))


def test_features_are_what_the_corpus_says(run: RunContext, folder: Path) -> None:
    for latent in range(NUM_LATENTS):
        feature = page_reads(folder, cantor_pair(0, latent))
        assert feature.keys() == KEYS
        assert feature["index"] == latent * (latent + 1) // 2 + latent
        assert feature["transcoder_id"] == "me/repository//transcoders@main"
        windows = firing(run.folder.root, latent)
        truth = sorted(([text_of(t).replace("\x00", "␀") for t in tokens], values) for _, _, tokens, values in windows)
        groups = {group["quantile_name"]: group["examples"] for group in feature["examples_quantiles"]}
        found = sorted(
            (example["tokens"], example["tokens_acts_list"])
            for examples in groups.values()
            for example in examples
            if not example["is_repeated_datapoint"]
        )
        assert [tokens for tokens, _ in found] == [tokens for tokens, _ in truth]
        for (_, values), (_, true_values) in zip(found, truth, strict=True):
            assert np.allclose(values, true_values, rtol=1e-6)
        for example in (example for examples in groups.values() for example in examples):
            values = example["tokens_acts_list"]
            assert abs(values[example["train_token_ind"]]) == max(map(abs, values))
        activations = [value for _, _, _, values in windows for value in values if value]
        assert np.isclose(feature["act_min"], min([0.0, *activations]), rtol=1e-6)
        assert np.isclose(feature["act_max"], max([0.0, *activations]), rtol=1e-6)
        assert np.isclose(feature["activation_frequency"], len(activations) / TOKENS, rtol=1e-9)
        assert sum(feature["histogram"]) == len(activations)
        assert feature["bottom_logits"] == [text_of(12), text_of(13)]
    dead = page_reads(folder, cantor_pair(0, DEAD))
    assert dead["examples_quantiles"] == [{"quantile_name": "Top activations", "examples": []}], (
        "pages want a first group"
    )
    assert page_reads(folder, cantor_pair(0, NEGATIVE))["act_max"] == 0


def test_our_reader_reads_the_same(folder: Path) -> None:
    files = FeatureFiles(folder / "features")
    assert files.layers == [0]
    assert files.num_latents(0) == NUM_LATENTS
    for latent in range(NUM_LATENTS):
        assert files.feature(0, latent) == page_reads(folder, cantor_pair(0, latent))
    assert files.feature(0, NUM_LATENTS) is None
    assert files.feature(1, 0) is None


def test_latents_that_are_left_out_have_empty_records(run: RunContext, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_exchange(run, out, format_of("circuit-tracer"), RowFilter.of(statuses=["rare", "failed"]))
    files = FeatureFiles(out / "features")
    there = [latent for latent in range(NUM_LATENTS) if files.feature(0, latent) is not None]
    assert there == [RARE, FAILED]
    assert files.num_latents(0) == NUM_LATENTS
    assert (out / "labels/layer_0.jsonl").read_bytes() == b""
    with pytest.raises(MissingFileError, match="no labels"):
        read_labels_of(out)


def test_labels_are_only_labels(folder: Path) -> None:
    labels = read_labels_of(folder)
    assert labels == {(0, n): label_of(n) for n in range(NUM_LATENTS) if n not in (DEAD, RARE, FAILED)}
    lines = [json.loads(line) for line in (folder / "labels/layer_0.jsonl").read_text().splitlines()]
    assert {line["latent"] for line in lines if line["label_output"] is not None} == {OUTPUT}
    assert all(line["feature"] == cantor_pair(line["layer"], line["latent"]) for line in lines)
    found = read_labels(LabelRequest(path=folder / "labels/layer_0.jsonl", own_source=SOURCE))
    assert found.fingerprint == "f" * 64
    assert found.labels[1].text == "label 1"
    assert found.labels[1].model == "some/model"


@given(st.integers(0, 100), st.integers(0, 2**40))
def test_numbers_of_features_go_both_ways(layer: int, latent: int) -> None:
    number = cantor_pair(layer, latent)
    assert number == (layer + latent) * (layer + latent + 1) // 2 + latent
    assert cantor_unpair(number) == (layer, latent)


@pytest.mark.parametrize(
    ("hookpoint", "layer"),
    [
        ("layers.3", 3),
        ("layers.11.mlp:input", 11),
        ("h.0.attn", 0),
        ("layers.2.mlp, layers.3.mlp", 2),
        ("embed_tokens", None),
        ("", None),
    ],
)
def test_layers_of_hookpoints(hookpoint: str, layer: int | None) -> None:
    assert layer_of(hookpoint) == layer


def _feature(index: int) -> dict[str, Any]:
    example = {"tokens": ["a", "b"], "tokens_acts_list": [0.0, 1.5], "train_token_ind": 1}
    return {"index": index, "examples_quantiles": [{"quantile_name": "Top", "examples": [example]}]}


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
@pytest.mark.parametrize("listed", [True, False])
def test_files_that_others_packed_are_read(tmp_path: Path, pack: Any, listed: bool) -> None:
    data, offsets = b"", [0]
    for number in range(3):
        packed = pack(json.dumps(_feature(number)).encode())
        data += struct.pack("<I", len(packed)) + packed
        offsets.append(len(data))
    entry = {"filename": "layer_1.bin", "offsets": offsets}
    (tmp_path / "layer_1.bin").write_bytes(data)
    index: Any = [None, entry] if listed else {"1": entry}
    (tmp_path / "index.json.gz").write_bytes(gzip.compress(json.dumps(index).encode()))
    files = FeatureFiles(tmp_path)
    assert files.layers == [1]
    assert [files.feature(1, n) for n in range(4)] == [_feature(0), _feature(1), _feature(2), None]


def test_files_of_their_own_are_read(tmp_path: Path) -> None:
    (tmp_path / f"{cantor_pair(2, 5)}.json").write_text(json.dumps(_feature(cantor_pair(2, 5))))
    files = FeatureFiles(tmp_path)
    assert files.feature(2, 5) == _feature(cantor_pair(2, 5))
    assert files.feature(2, 6) is None


def _packed(tmp_path: Path, index: Any, record: bytes = b"") -> FeatureFiles:
    (tmp_path / "l.bin").write_bytes(record)
    (tmp_path / "index.json.gz").write_bytes(gzip.compress(json.dumps(index).encode()))
    return FeatureFiles(tmp_path)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"0": {"filename": "../l.bin", "offsets": [0, 9]}}, "no file beside it"),
        ({"0": {"filename": "l.bin", "offsets": [0, 1.5]}}, "not whole numbers"),
        ({"0": [1]}, "no layer with filename"),
        ({"0": {"filename": "l.bin", "offsets": [0, 90]}}, "cut, or the index is that of another file"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, index: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        _packed(tmp_path, index, struct.pack("<I", 2**31) + b"abcdefgh").feature(0, 0)


def test_a_record_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autointerp.exchange.feature_files.LARGEST_RECORD_BYTES", 2**16)
    bomb = zlib.compress(b" " * 2**22)
    record = struct.pack("<I", len(bomb)) + bomb
    with pytest.raises(InputError, match="larger than"):
        _packed(tmp_path, {"0": {"filename": "l.bin", "offsets": [0, len(record)]}}, record).feature(0, 0)


def test_windows_without_as_many_figures_as_tokens_are_refused(tmp_path: Path) -> None:
    broken = _feature(0)
    broken["examples_quantiles"][0]["examples"][0]["tokens"].append("c")
    packed = zlib.compress(json.dumps(broken).encode())
    record = struct.pack("<I", len(packed)) + packed
    with pytest.raises(InputError, match="without as many"):
        _packed(tmp_path, {"0": {"filename": "l.bin", "offsets": [0, len(record)]}}, record).feature(0, 0)


def _node(layer: int, latent: int, position: int = 0, clerp: str = "", **changed: Any) -> dict[str, Any]:
    node = {
        "node_id": f"{layer}_{latent}_{position}",
        "feature": (layer + latent) * (layer + latent + 1) // 2 + latent,
        "layer": str(layer),
        "ctx_idx": position,
        "feature_type": "cross layer transcoder",
        "clerp": clerp,
    }
    return node | changed


def _graph(path: Path, *nodes: dict[str, Any]) -> Path:
    other = {"node_id": "E_5_0", "feature": 0, "layer": "E", "ctx_idx": 0, "feature_type": "embedding", "clerp": "Emb"}
    path.write_text(json.dumps({"metadata": {}, "qParams": {}, "nodes": [*nodes, other], "links": []}))
    return path


def test_labels_go_into_graphs_and_come_out_of_them(folder: Path, tmp_path: Path) -> None:
    path = _graph(
        tmp_path / "g.json", _node(0, 1), _node(0, 1, 3), _node(0, 2, clerp="a person's"), _node(0, DEAD), _node(4, 1)
    )
    graph = read_graph(path)
    assert label_graph(graph, read_labels_of(folder)) == 2
    texts = [node["clerp"] for _, _, node in latent_nodes(graph, "g")]
    assert texts == ["label 1", "label 1", "a person's", "", ""]
    assert graph["nodes"][-1]["clerp"] == "Emb"
    path.write_text(json.dumps(graph))
    found = read_labels(LabelRequest(path=path, own_source="layers.0"))
    assert found.format == "circuit-tracer"
    assert found.source == "layers.0"
    assert {latent: label.text for latent, label in found.labels.items()} == {1: "label 1", 2: "a person's"}
    assert label_graph(graph, {(0, 2): "new"}, replace=True) == 1


def test_a_graph_of_many_layers_is_read_by_layer(tmp_path: Path) -> None:
    path = _graph(tmp_path / "g.json", _node(0, 1, clerp="zero"), _node(3, 1, clerp="three"))
    assert read_labels(LabelRequest(path=path, own_source="layers.3")).labels[1].text == "three"
    assert read_labels(LabelRequest(path=path, source="0", own_source="layers.3")).labels[1].text == "zero"
    with pytest.raises(ConfigError, match="labels of 2 sources"):
        read_labels(LabelRequest(path=path, own_source="mine"))
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    _graph(graphs / "a.json", _node(3, 1, clerp="first"))
    _graph(graphs / "b.json", _node(3, 1, clerp="second"), _node(3, 2, clerp="other"))
    found = read_labels(LabelRequest(path=graphs, format="circuit-tracer", own_source="layers.3"))
    assert {latent: label.text for latent, label in found.labels.items()} == {1: "first", 2: "other"}


@pytest.mark.parametrize("changed", [{"layer": "2"}, {"feature": -1}, {"feature": "7"}])
def test_nodes_that_contradict_themselves_are_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = _graph(tmp_path / "g.json", _node(3, 1, clerp="x") | changed)
    with pytest.raises(ConfigError, match="node 0 of"):
        read_labels(LabelRequest(path=path, own_source="layers.3"))
