"""What a config says beside the fixtures: truth is the formula in numpy, written out from the format's description."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from sae_core.errors import CoderError
from sae_core.formats.trained_subject import place_of
from sae_core.hook_names import layer_in
from sae_core.loading import load_coder, reader_of, readers
from sae_core.parts.normalisation import Centring, NoNormalisation
from tests.sae_core.test_loading import FIXTURES, FOLDERS

X = np.random.default_rng(3).normal(size=(40, 16)).astype(np.float32)


def changed(source: Path, folder: Path, config: str, **changes: Any) -> Path:
    shutil.copytree(source, folder)
    path = folder / config
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_llama_scope_compares_pre_activations_times_decoder_norms(tmp_path: Path) -> None:
    """The publishers' code makes decoder rows unit length before the threshold (sparsity_include_decoder_norm)."""
    folder = "Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L8R-8x"
    place = changed(FIXTURES / "llama_scope" / "res" / folder, tmp_path / "sae", "hyperparams.json")
    stored = load_torch(place / "checkpoints" / "final.safetensors")
    stretch = torch.linspace(0.4, 2.0, 48)
    stored["decoder.weight"] = (stored["decoder.weight"].float() * stretch).contiguous()
    save_torch({k: v.float() for k, v in stored.items()}, place / "checkpoints" / "final.safetensors")
    facts = json.loads((place / "hyperparams.json").read_text())
    w = {k: v.float().numpy().astype(np.float64) for k, v in stored.items()}
    s = 4.0 / facts["dataset_average_activation_norm"]["in"]
    pre = (X * s) @ w["encoder.weight"].T + w["encoder.bias"]
    norms = np.sqrt((w["decoder.weight"] ** 2).sum(0))
    expected = np.where(pre * norms > facts["jump_relu_threshold"] * s, np.maximum(pre, 0), 0)
    acts = load_coder(place).encode(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(acts, expected, rtol=1e-4, atol=1e-5)
    without = np.where(pre > facts["jump_relu_threshold"] * s, np.maximum(pre, 0), 0)
    assert ((expected > 0) != (without > 0)).sum() > 20
    changed_facts = facts | {"sparsity_include_decoder_norm": False}
    (place / "hyperparams.json").write_text(json.dumps(changed_facts))
    np.testing.assert_allclose(load_coder(place).encode(torch.from_numpy(X)).numpy(), without, rtol=1e-4, atol=1e-5)


def test_sparsify_transcoders_of_early_versions_subtract_b_dec(tmp_path: Path) -> None:
    """Before pull request 49 a transcoder subtracted b_dec, and the run's config alone said that it was one."""
    place = changed(FIXTURES / "sparsify" / "layers.0.topk", tmp_path / "layers.0.mlp", "cfg.json")
    config = json.loads((place / "cfg.json").read_text())
    del config["transcode"], config["activation"]
    (place / "cfg.json").write_text(json.dumps(config))
    truth = np.load(place / "io.npz")
    x = torch.from_numpy(truth["x"])
    sae = load_coder(place)
    assert sae.hookpoints_in == ("layers.0.mlp",)
    (tmp_path / "config.json").write_text(json.dumps({"transcode": True, "sae": {}}))
    early = load_coder(place)
    assert (early.hookpoints_in, early.hookpoints_out) == (("layers.0.mlp:input",), ("layers.0.mlp",))
    np.testing.assert_allclose(early.encode(x).numpy(), truth["acts"], rtol=1e-5, atol=1e-5)
    (place / "cfg.json").write_text(json.dumps(config | {"transcode": True}))
    assert not np.allclose(load_coder(place).encode(x).numpy(), truth["acts"], atol=1e-3), (
        "later ones do not subtract it"
    )


def test_sparsify_settings_of_later_versions_are_refused(tmp_path: Path) -> None:
    place = changed(FIXTURES / "sparsify" / "layers.0.topk", tmp_path / "layers.0", "cfg.json", normalize_io=True)
    with pytest.raises(CoderError, match="normalize_io is set, which this reader does not know"):
        load_coder(place)


@pytest.mark.parametrize(
    ("model_name", "kwargs", "hook", "centred"),
    [
        ("gpt2-small", {"center_writing_weights": True}, "blocks.0.hook_resid_post", True),
        ("gpt2-small", {"center_writing_weights": False}, "blocks.0.hook_resid_post", False),
        ("gpt2-small", {}, "blocks.0.hook_resid_post", False),
        ("gpt2-small", {"center_writing_weights": True}, "blocks.0.attn.hook_z", False),
        ("gemma-2b", {"center_writing_weights": True}, "blocks.0.hook_resid_post", False),
    ],
)
def test_sae_lens_coders_of_centred_subjects(
    tmp_path: Path, model_name: str, kwargs: dict[str, bool], hook: str, centred: bool
) -> None:
    """Centred writing weights make a residual stream's mean 0 where norms are layer norms, and change nothing elsewhere."""
    place = changed(
        FIXTURES / "sae_lens" / "legacy_v5_standard", tmp_path / "sae", "cfg.json",
        model_name=model_name, hook_name=hook, model_from_pretrained_kwargs=kwargs,
    )  # fmt: skip
    w = load_file(place / "sae_weights.safetensors")
    x = X - X.mean(1, keepdims=True) if centred else X
    acts = np.maximum((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)
    coder = load_coder(place)
    np.testing.assert_allclose(coder.encode(torch.from_numpy(X)).numpy(), acts, rtol=1e-4, atol=1e-5)
    output = acts @ w["W_dec"] + w["b_dec"] + (X.mean(1, keepdims=True) if centred else 0)
    given = coder.decode(torch.from_numpy(acts.astype(np.float32)), torch.from_numpy(X))
    np.testing.assert_allclose(given.numpy(), output, rtol=1e-4, atol=1e-4)


def test_the_first_sae_lens_versions_do_not_say_whether_the_subject_was_centred(tmp_path: Path) -> None:
    place = changed(FIXTURES / "sae_lens" / "legacy_v5_standard", tmp_path / "sae", "cfg.json", model_name="gpt2-small")
    config = json.loads((place / "cfg.json").read_text())
    config["hook_point"] = config.pop("hook_name")
    (place / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(CoderError, match="set center_writing_weights to true"):
        load_coder(place)
    x = torch.from_numpy(X)
    plain, centred = (load_coder(place, center_writing_weights=value) for value in (False, True))
    torch.testing.assert_close(centred.encode(x + 7.0), plain.encode(x - x.mean(1, keepdim=True)), rtol=1e-4, atol=1e-4)
    assert plain.fingerprint != centred.fingerprint


def test_gemma_scope_transcoders_normalise_the_stream_themselves() -> None:
    folder = FIXTURES / "gemma_scope" / "transcoder"
    manifest = json.loads((folder / "manifest.json").read_text())
    coder = load_coder(folder / manifest["load"])
    assert coder.hookpoints_in == ("layers.3.pre_feedforward_layernorm:input",)
    assert coder.hookpoints_out == ("layers.3.post_feedforward_layernorm",)
    w = np.load(folder / manifest["load"] / "params.npz")
    x = X / np.sqrt((X.astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-6)
    pre = x @ w["W_enc"] + w["b_enc"]
    expected = np.where(pre > w["threshold"], np.maximum(pre, 0), 0)
    np.testing.assert_allclose(coder.encode(torch.from_numpy(X)).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_fingerprint_follows_weights_and_settings(tmp_path: Path) -> None:
    source = FIXTURES / "sparsify" / "layers.0.topk"
    same = changed(source, tmp_path / "layers.7", "cfg.json")
    first = load_coder(source).fingerprint
    assert load_coder(same).fingerprint == first, "where it lies does not count"
    other_k = changed(source, tmp_path / "k" / "layers.0", "cfg.json", k=5)
    assert load_coder(other_k).fingerprint != first
    weights = load_file(same / "sae.safetensors")
    weights["b_dec"][0] += 1e-3
    save_file(weights, same / "sae.safetensors")
    assert load_coder(same).fingerprint != first
    scaled = FIXTURES / "sae_lens" / "standard_expected_average_only_in"
    assert load_coder(scaled, input_scale=0.5).fingerprint != load_coder(scaled, input_scale="folded").fingerprint


def test_hookpoints_come_from_the_coder_or_the_caller(tmp_path: Path) -> None:
    assert load_coder(FIXTURES / "sparsify" / "layers.0.topk").hookpoints_in == ("layers.0.topk",)
    transcoder = load_coder(FIXTURES / "sparsify" / "layers.0.transcoder", hookpoint="layers.0.mlp")
    assert (transcoder.hookpoints_in, transcoder.hookpoints_out) == (("layers.0.mlp:input",), ("layers.0.mlp",))
    assert load_coder(FIXTURES / "sae_lens" / "legacy_v5_topk").hookpoints_in == ("blocks.1.hook_resid_post",)
    shutil.copytree(FIXTURES / "sparsify" / "layers.0.topk", tmp_path / "layers.0")
    assert load_coder(tmp_path, hookpoint="layers.0").hookpoints_in == ("layers.0",)
    openai = FIXTURES / "openai" / "v5_topk" / "gpt2-small" / "resid_post_mlp_v5_32k" / "autoencoders"
    chosen = load_coder(openai, hookpoint="layers.3", allow_pickle=True)
    assert chosen.hookpoints_in == ("blocks.3.hook_resid_post",)
    with pytest.raises(CoderError, match=r"holds 1 coder \(3\.pt\)"):
        load_coder(openai, hookpoint="layers.4", allow_pickle=True)
    with pytest.raises(CoderError, match=r"reads blocks\.1\.mlp\.hook_in and writes blocks\.1\.hook_mlp_out"):
        load_coder(
            FIXTURES / "circuit_tracer" / "mwhanna" / "qwen3-4b-transcoders" / "layer_1.safetensors",
            hookpoint="layers.2.mlp",
        )


def test_what_follows_a_top_k_and_a_threshold(tmp_path: Path) -> None:
    """Qwen Scope's top k passes a ReLU, circuit-tracer's neither does nor does its threshold: negative ones show it."""
    qwen = FIXTURES / "qwen_scope" / "res" / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_8"
    place = tmp_path / qwen.name
    shutil.copytree(qwen, place)
    weights = torch.load(place / "layer5.sae.pt", weights_only=True)
    weights["b_enc"] -= 100
    torch.save(weights, place / "layer5.sae.pt")
    assert not load_coder(place / "layer5.sae.pt", allow_pickle=True).encode(torch.from_numpy(X)).any()
    tracer = tmp_path / "coder"
    shutil.copytree(FIXTURES / "circuit_tracer" / "jumprelu" / "coder", tracer)
    w = load_file(tracer / "layer_1.safetensors")
    w["activation_function.threshold"] = w["activation_function.threshold"] - 3
    save_file(w, tracer / "layer_1.safetensors")
    pre = X @ w["W_enc"].T + w["b_enc"]
    expected = np.where(pre > w["activation_function.threshold"], pre, 0)
    assert (expected < 0).any()
    acts = load_coder(tracer, hookpoint="layers.1").encode(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(acts, expected, rtol=1e-4, atol=1e-5)


def test_circuit_tracer_lists_of_files(tmp_path: Path) -> None:
    folder = tmp_path / "coder"
    shutil.copytree(FIXTURES / "circuit_tracer" / "relu" / "coder", folder)
    with (folder / "config.yaml").open("a") as file:
        file.write(
            "transcoders:\n- hf://someone/somewhere/layer_1.safetensors\n- hf://someone/somewhere/layer_0.safetensors\n"
        )
    turned = load_coder(folder, hookpoint="layers.0")
    assert (
        turned.fingerprint
        == load_coder(FIXTURES / "circuit_tracer" / "relu" / "coder", hookpoint="layers.1").fingerprint
    )
    (folder / "layer_0.safetensors").unlink()
    with pytest.raises(CoderError, match="lists files that are not beside it"):
        load_coder(folder, hookpoint="layers.0")
    assert load_coder(folder / "layer_1.safetensors").hookpoints_in == ("blocks.1.hook_resid_mid",)


def test_an_attention_does_not_choose_a_transcoder() -> None:
    with pytest.raises(CoderError, match="is an attention"):
        load_coder(FIXTURES / "circuit_tracer" / "relu" / "coder", hookpoint="layers.1.self_attn")


def test_centring_of_transcoders_and_of_places_with_two_names(tmp_path: Path) -> None:
    """A transcoder's output gets no mean of its input; the Hugging Face name of a block is a stream as well."""
    kwargs = {"model_name": "gpt2", "model_from_pretrained_kwargs": {"center_writing_weights": True}}
    place = changed(
        FIXTURES / "sae_lens" / "transcoder", tmp_path / "transcoder", "cfg.json",
        metadata={"sae_lens_version": "6.0.0", "hook_name": "blocks.0.hook_resid_mid", "hook_name_out": "blocks.0.hook_mlp_out", **kwargs},
    )  # fmt: skip
    w = load_file(place / "sae_weights.safetensors")
    acts = np.maximum((X - X.mean(1, keepdims=True)) @ w["W_enc"] + w["b_enc"], 0)
    coder = load_coder(place)
    np.testing.assert_allclose(coder.encode(torch.from_numpy(X)).numpy(), acts, rtol=1e-4, atol=1e-5)
    given = coder.decode(torch.from_numpy(acts), torch.from_numpy(X))
    np.testing.assert_allclose(given.numpy(), acts @ w["W_dec"] + w["b_dec"], rtol=1e-4, atol=1e-4)
    metadata = {
        "sae_lens_version": "6.0.0",
        "hook_name": "blocks.8.hook_resid_post",
        "hf_hook_name": "transformer.h.8",
        **kwargs,
    }
    both = load_coder(changed(FIXTURES / "sae_lens" / "standard", tmp_path / "both", "cfg.json", metadata=metadata))
    assert isinstance(both.normalisation, Centring)
    assert both.hookpoints_in == ("transformer.h.8",)


def test_center_writing_weights_is_used_or_refused() -> None:
    plain = FIXTURES / "sae_lens" / "standard"
    centred = load_coder(plain, hookpoint="blocks.0.hook_resid_post", center_writing_weights=True)
    assert isinstance(centred.normalisation, Centring)
    for hookpoint in (None, "blocks.0.attn.hook_z", "blocks.0.mlp.hook_post"):
        with pytest.raises(CoderError, match="it changes nothing that this coder is known to read"):
            load_coder(plain, hookpoint=hookpoint, center_writing_weights=True)


def test_coders_whose_kind_only_a_lost_name_said_are_refused(tmp_path: Path) -> None:
    scope = FIXTURES / "gemma_scope_2" / "transcoder_affine"
    (weights,) = scope.rglob("params.safetensors")
    (tmp_path / "renamed").mkdir()
    shutil.copy(weights, tmp_path / "renamed")
    with pytest.raises(CoderError, match="has affine_skip_connection, as transcoders have"):
        load_coder(tmp_path / "renamed", hookpoint="layers.9.mlp")
    (first,) = (FIXTURES / "gemma_scope" / "transcoder").rglob("params.npz")
    (tmp_path / "layer_3").mkdir()
    shutil.copy(first, tmp_path / "layer_3")
    with pytest.raises(CoderError, match="does to its input depends on that"):
        load_coder(tmp_path / "layer_3", hookpoint="layers.3.mlp")
    skip = FIXTURES / "sparsify" / "layers.0.skip_connection"
    folder = tmp_path / "layers.3.mlp"
    shutil.copytree(skip, folder)
    config = json.loads((folder / "cfg.json").read_text())
    del config["transcode"]
    (folder / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(CoderError, match="skip_connection is set and transcode is not said"):
        load_coder(folder)


def test_each_fixture_is_of_one_format_only() -> None:
    for folder in FOLDERS:
        manifest = json.loads((folder / "manifest.json").read_text())
        path = folder / manifest.get("load", ".")
        assert len([reader.NAME for reader in readers() if reader.matches(path)]) == 1, folder
    both = FIXTURES / "sae_lens" / "standard"
    assert reader_of(both) is not None


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("blocks.3.hook_mlp_out", "stream"), ("hook_embed", "stream"), ("transformer.wte", "stream"), ("transformer.h.3", "stream"),
        ("gpt_neox.layers.3.mlp", "stream"), ("h.3.mlp:input", "other"), ("h.3.mlp.input", "other"), ("h.3.ln_2:input", "stream"),
        ("h.3.ln_2", "other"), ("h.3.attn.c_proj", "stream"), ("h.3.attn.c_proj.input", "z"), ("blocks.3.attn.hook_z", "z"),
        ("blocks.3.attn.hook_q", "other"), ("h.3.mlp.c_proj:input", "other"), ("blocks.3.ln2.hook_normalized", "normalised"),
        ("resid_post_layer_3", "stream"), ("layers.3.self_attn:input", "other"), ("somewhere.else", None),
    ],
)  # fmt: skip
def test_what_kind_of_place_a_name_means(name: str, place: str | None) -> None:
    assert place_of(name) == place


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({"sae_lens_training_version": "3.12.0", "model_name": "gpt2-small"}, "set center_writing_weights"),
        ({"sae_lens_training_version": "3.12.0", "model_name": "tiny-stories-1L-21M"}, "set center_writing_weights"),
        ({"sae_lens_training_version": "3.12.0", "model_name": "gemma-2b"}, ""),
        ({"sae_lens_training_version": "3.20.1", "model_name": "gpt2-small"}, ""),
        ({"sae_lens_training_version": "3.12.0", "model_name": "gpt2-small", "hook_name": "blocks.1.attn.hook_z"}, "folded"),
        (
            {"sae_lens_training_version": "3.12.0", "hook_name": "blocks.1.attn.hook_z",
             "model_from_pretrained_kwargs": {"center_writing_weights": False}}, "folded",
        ),
        ({"sae_lens_training_version": "4.1.0", "hook_name": "blocks.1.attn.hook_z"}, ""),
        ({"sae_lens_training_version": "3.12.0", "hook_name": "blocks.1.ln2.hook_normalized"}, "folded layer norms"),
    ],
)  # fmt: skip
def test_subjects_of_sae_lens_before_3_20(tmp_path: Path, changes: dict[str, Any], outcome: str) -> None:
    """Until then SAELens loaded subjects with TransformerLens' processing unless told otherwise."""
    place = changed(FIXTURES / "sae_lens" / "legacy_v5_standard", tmp_path / "sae", "cfg.json", **changes)
    if outcome in ("", "folded"):
        coder = load_coder(place)
        assert coder.value_biases_folded == (outcome == "folded")
        assert isinstance(coder.normalisation, NoNormalisation)
    else:
        with pytest.raises(CoderError, match=outcome):
            load_coder(place)


def test_lists_of_files_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "coder"
    shutil.copytree(FIXTURES / "circuit_tracer" / "relu" / "coder", folder)
    with (folder / "config.yaml").open("a") as file:
        file.write("transcoders: [l0/layer_0.safetensors, l1/layer_0.safetensors]\n")
    with pytest.raises(CoderError, match="two files of one name"):
        load_coder(folder, hookpoint="layers.1")


def test_a_run_config_answers_for_an_early_coder_with_a_skip_connection(tmp_path: Path) -> None:
    folder = tmp_path / "layers.3"
    shutil.copytree(FIXTURES / "sparsify" / "layers.0.skip_connection", folder)
    config = json.loads((folder / "cfg.json").read_text())
    del config["transcode"]
    (folder / "cfg.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"transcode": False}))
    assert load_coder(folder).hookpoints_in == ("layers.3",)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("layers.3.mlp", 3), ("blocks.12.hook_resid_post", 12), ("resid_post_layer_3", 3), ("resid_post_layer3", 3), ("12", 12), ("wte", None)],
)  # fmt: skip
def test_the_layer_in_a_name(name: str, layer: int | None) -> None:
    assert layer_in(name) == layer
