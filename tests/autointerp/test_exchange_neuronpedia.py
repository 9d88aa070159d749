"""Neuronpedia's bulk files, line by line against the corpus of a run whose every window is known."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autointerp.exchange import export_exchange, format_of, read_note
from autointerp.exchange.windows import ActivationCounts
from autointerp.export import RowFilter
from autointerp.imports import LabelRequest, read_labels
from autointerp.pipeline.context import RunContext
from sae_core.errors import InputError
from tests.autointerp.exchange_run import (
    DEAD,
    FAILED,
    HOSTILE,
    HOSTILE_LABEL,
    NEGATIVE,
    NUM_LATENTS,
    OUTPUT,
    RARE,
    firing,
    label_of,
    make_run,
    text_of,
)
from tests.made_up_world import OCCURRENCES, RUN_ID

FEATURE_KEYS = set(
    [
        "modelId",
        "layer",
        "index",
        "creatorId",
        "createdAt",
        "maxActApprox",
        "hasVector",
        "vector",
        "vectorLabel",
        "vectorDefaultSteerStrength",
        "hookName",
        "topkCosSimIndices",
        "topkCosSimValues",
        "neuron_alignment_indices",
        "neuron_alignment_values",
        "neuron_alignment_l1",
        "correlated_neurons_indices",
        "correlated_neurons_pearson",
        "correlated_neurons_l1",
        "correlated_features_indices",
        "correlated_features_pearson",
        "correlated_features_l1",
        "neg_str",
        "neg_values",
        "pos_str",
        "pos_values",
        "frac_nonzero",
        "freq_hist_data_bar_heights",
        "freq_hist_data_bar_values",
        "logits_hist_data_bar_heights",
        "logits_hist_data_bar_values",
        "decoder_weights_dist",
        "sourceSetName",
    ]
)
ACTIVATION_KEYS = set(
    [
        "id",
        "modelId",
        "layer",
        "index",
        "creatorId",
        "createdAt",
        "tokens",
        "values",
        "maxValue",
        "maxValueTokenIndex",
        "minValue",
        "dataIndex",
        "dataSource",
        "binMin",
        "binMax",
        "binContains",
        "qualifyingTokenIndex",
        "dfaValues",
        "dfaTargetIndex",
        "dfaMaxValue",
        "lossValues",
        "logitContributions",
    ]
)
WITHIN = "v1/made-up-subject/0-res-12"
TOKENS = 2 * 1024 * sum(OCCURRENCES.values())
"""Of the corpus, BOS left out."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    return make_run(tmp_path_factory.mktemp("exchange") / "run")


@pytest.fixture(scope="module")
def folder(run: RunContext, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("neuronpedia") / "out"
    export_exchange(run, out, format_of("neuronpedia", ["source_set=res-12"]))
    return out


def no_constants(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


def imported(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Lines as Neuronpedia's import takes them: split at line feeds, escaped NULs blanked wherever their six characters stand."""
    text = gzip.decompress((folder / WITHIN / kind / "batch-0.jsonl.gz").read_bytes()).decode("ascii")
    assert text.endswith("\n")
    lines = text[:-1].replace("\\u0000", " ").split("\n") if text else []
    return [json.loads(line, parse_constant=no_constants) for line in lines]


def same(value: float, expected: float) -> bool:
    return bool(np.isclose(value, expected, rtol=1e-6, atol=0))


def test_features_have_the_figures_of_the_corpus(run: RunContext, folder: Path) -> None:
    lines = imported(folder, "features")
    assert [line["index"] for line in lines] == [str(n) for n in range(NUM_LATENTS)], "a text each, controls left out"
    for latent, line in enumerate(lines):
        assert line.keys() == FEATURE_KEYS
        assert (line["modelId"], line["layer"], line["sourceSetName"]) == ("made-up-subject", "0-res-12", "res-12")
        windows = firing(run.folder.root, latent)
        activations = [value for _, _, _, values in windows for value in values if value]
        assert same(line["maxActApprox"], max([0.0, *activations]))
        assert same(line["frac_nonzero"], len(activations) / TOKENS)
        assert (line["pos_str"], line["pos_values"]) == ([text_of(11), text_of(1).replace("\x00", "␀")], [3.5, 1.25])
        assert (line["neg_str"], line["neg_values"]) == ([text_of(12), text_of(13)], [-2.5, -0.125])
        assert (line["topkCosSimIndices"], line["topkCosSimValues"]) == ([1, 2], [0.5, 0.25])
        heights, middles = line["freq_hist_data_bar_heights"], line["freq_hist_data_bar_values"]
        assert len(heights) == len(middles), "the page reads them side by side"
        assert sum(heights) == len(activations)
        if not activations:
            assert latent == DEAD
            assert heights == []
            continue
        low, high = min([0.0, *activations]), max([0.0, *activations])
        counts, edges = np.histogram(activations, 50, (low, high))
        # an activation on an edge may fall to either side of it: the figures are of 32 bits
        assert np.abs(np.cumsum(heights) - np.cumsum(counts)).max() <= 1
        assert np.allclose(middles, (edges[1:] + edges[:-1]) / 2, rtol=1e-5)
        assert line["hasVector"] is False
        assert line["vector"] == []


def test_activations_are_windows_of_the_corpus_with_what_the_latent_did_in_them(run: RunContext, folder: Path) -> None:
    lines = imported(folder, "activations")
    assert len({line["id"] for line in lines}) == len(lines)
    assert all(re.fullmatch("c[0-9a-z]{24}", line["id"]) for line in lines)
    for latent in range(NUM_LATENTS):
        own = [line for line in lines if line["index"] == str(latent)]
        windows = firing(run.folder.root, latent)
        truth = sorted(([text_of(t).replace("\x00", "␀") for t in tokens], values) for _, _, tokens, values in windows)
        found = sorted((line["tokens"], line["values"]) for line in own)
        assert len(found) == len(truth), "each window once, none for a dead latent"
        for (tokens, values), (true_tokens, true_values) in zip(found, truth, strict=True):
            assert tokens == true_tokens
            assert np.allclose(values, true_values, rtol=1e-6)
        activations = [value for _, _, _, values in windows for value in values if value]
        for line in own:
            assert line.keys() == ACTIVATION_KEYS
            values = line["values"]
            assert line["maxValue"] == max(values) == values[line["maxValueTokenIndex"]]
            assert line["minValue"] == min(values)
            assert abs(values[line["qualifyingTokenIndex"]]) == max(map(abs, values))
            assert not any(v for v, token in zip(values, line["tokens"], strict=True) if token == "<s>")
            if line["binMin"] == -1:
                assert line["binContains"] == -1
                assert same(line["binMax"], max([0.0, *activations]))
            else:
                inside = sum(line["binMin"] - 1e-5 <= v <= line["binMax"] + 1e-5 for v in activations)
                silent = TOKENS - len(activations) if line["binMin"] <= 0 <= line["binMax"] else 0
                assert same(line["binContains"], (inside + silent) / TOKENS)
                assert line["binMin"] - 1e-5 <= values[line["qualifyingTokenIndex"]] <= line["binMax"] + 1e-5
    negative = [line for line in lines if line["index"] == str(NEGATIVE)]
    assert all(line["maxValue"] == 0 > line["minValue"] for line in negative)


def test_the_strongest_windows_come_first(run: RunContext, folder: Path) -> None:
    lines = [line for line in imported(folder, "activations") if line["index"] == "1"]
    top = [line["maxValue"] for line in lines if line["binMin"] == -1]
    strong = sorted((max(values) for _, kind, _, values in firing(run.folder.root, 1) if kind == 0), reverse=True)
    assert np.allclose(top, strong), "those that the store keeps as the strongest"
    assert len(lines) > len(top)


def test_only_labels_become_explanations(folder: Path) -> None:
    lines = imported(folder, "explanations")
    by_latent: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        by_latent.setdefault(int(line["index"]), []).append(line)
    assert set(by_latent) == set(range(NUM_LATENTS)) - {DEAD, RARE, FAILED}
    assert [line["typeName"] for line in by_latent[OUTPUT]] == ["autointerp_contrastive", "autointerp_output"]
    assert by_latent[OUTPUT][1]["description"] == "does something"
    for latent, own in by_latent.items():
        expected = label_of(latent)
        assert expected is not None
        # its six characters of an escaped NUL are text, and must still be there after the import blanked such
        assert own[0]["description"] == expected
        assert isinstance(own[0]["index"], str)
        assert own[0]["authorId"] == "autointerp"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", own[0]["createdAt"])
    assert by_latent[HOSTILE][0]["description"] == HOSTILE_LABEL
    assert by_latent[1][0]["explanationModelName"] == "model"
    assert by_latent[1][0]["notes"] == f"autointerp run {RUN_ID}"
    assert "precision 0.750 [0.500, 0.900]; recall 0.250 (counted" in by_latent[0][0]["notes"]
    assert "F1 0.375" in by_latent[0][0]["notes"]


def test_what_explanations_name_is_told_to_the_import(folder: Path) -> None:
    lines = imported(folder, "explanations")
    for name, key in (("explanation_type", "typeName"), ("explanation_model_type", "explanationModelName")):
        told = [json.loads(line)["name"] for line in (folder / f"v1/config/{name}.jsonl").read_text().splitlines()]
        assert set(told) == {line[key] for line in lines if line[key] is not None}
        assert len(set(told)) == len(told)
    meta = {
        name: json.loads((folder / WITHIN / f"{name}.jsonl").read_text())
        for name in ("release", "model", "sourceset", "source")
    }
    assert meta["source"]["id"] == "0-res-12"
    assert meta["source"]["modelId"] == meta["model"]["id"] == meta["sourceset"]["modelId"] == "made-up-subject"
    assert meta["source"]["setName"] == meta["sourceset"]["name"] == "res-12"
    assert meta["sourceset"]["releaseName"] == meta["release"]["name"]
    assert {"layers", "neuronsPerLayer", "owner"} <= meta["model"].keys(), "columns without a default"


def test_our_own_import_reads_the_labels_back(folder: Path) -> None:
    found = read_labels(LabelRequest(path=folder, type_name="autointerp_contrastive"))
    assert found.format == "neuronpedia"
    for latent in set(range(NUM_LATENTS)) - {DEAD, RARE, FAILED, HOSTILE}:
        assert found.labels[latent].text == label_of(latent)
    assert {DEAD, RARE, FAILED}.isdisjoint(found.labels)


def test_a_filter_chooses_latents(run: RunContext, tmp_path: Path) -> None:
    wanted = RowFilter.of(bounds=["precision_low>=0.5"])
    note = export_exchange(run, tmp_path / "out", format_of("neuronpedia", ["source_set=res-12"]), wanted)
    assert note.counts["latents"] == note.counts["labels"] == 1
    assert [line["index"] for line in imported(tmp_path / "out", "features")] == ["0"]
    assert {line["index"] for line in imported(tmp_path / "out", "activations")} == {"0"}
    kept = read_note(tmp_path / "out")
    assert kept is not None
    assert kept.filter == {"where": ["precision_low>=0.5"]}
    nobody = export_exchange(run, tmp_path / "out", format_of("neuronpedia"), RowFilter.of(bounds=["precision_low>2"]))
    assert not [file.name for file in nobody.files if "batch" in file.name], "a batch without latents has no file"


def test_shares_and_histograms_count_tokens_of_the_whole_corpus() -> None:
    # a pool that holds every second window: each activation stands for two tokens
    counts = ActivationCounts(-2.0, 8.0, np.array([-2.0, 1.0, 1.0, 8.0], np.float32), np.full(4, 2.0), 100)
    assert counts.share(-2.0, 0.0) == 0.94, "92 silent tokens, and two at -2"
    assert counts.share(0.0, 2.0) == 0.96
    assert counts.share(2.0, 8.0) == 0.02
    heights, middles = counts.histogram(5)
    assert heights == [2, 4, 0, 0, 2]
    assert middles == [-1, 1, 3, 5, 7]
    nothing = ActivationCounts(0.0, 0.0, np.zeros(0, np.float32), np.zeros(0), 0)
    assert nothing.share(0.0, 1.0) is None
    assert nothing.histogram(5) == ([], [])


def test_sources_need_a_layer(run: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    changed = [replace(source, hookpoint="embed_tokens") for source in run.sources]
    monkeypatch.setitem(run.__dict__, "sources", changed)
    with pytest.raises(InputError, match="names no layer"):
        export_exchange(run, tmp_path / "out", format_of("neuronpedia"))
    assert not (tmp_path / "out").exists()
