"""Coders against the outputs of the libraries that wrote them, and the refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_core.errors import AutointerpError, CoderError, MissingFileError
from sae_core.loading import load_coder

FIXTURES = Path(__file__).parents[1] / "fixtures" / "coders"
CODERS = sorted(p.parent for p in FIXTURES.glob("*/*/cfg.json"))


@pytest.mark.parametrize("folder", CODERS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_equals_the_library_that_wrote_it(folder: Path) -> None:
    coder = load_coder(str(folder))
    truth = np.load(folder / "io.npz")
    x = torch.from_numpy(truth["x"])
    acts = coder.encode(x)
    np.testing.assert_allclose(acts.numpy(), truth["acts"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(acts.numpy() != 0, truth["acts"] != 0)
    np.testing.assert_allclose(coder.decode(acts).numpy(), truth["recon"], rtol=1e-5, atol=1e-5)
    sparse = coder.encode_sparse(x)
    rebuilt = torch.zeros_like(acts)
    rebuilt[sparse.token, sparse.latent] = sparse.value
    torch.testing.assert_close(rebuilt, acts)
    assert bool((sparse.value != 0).all())


def test_hookpoints_come_from_the_coder_or_the_caller() -> None:
    assert load_coder(str(FIXTURES / "sparsify" / "layers.0.topk")).hookpoint_in == "layers.0.topk"
    transcoder = load_coder(str(FIXTURES / "sparsify" / "layers.0.transcoder"), hookpoint="layers.0.mlp")
    assert (transcoder.hookpoint_in, transcoder.hookpoint_out) == ("layers.0.mlp:input", "layers.0.mlp")
    assert load_coder(str(FIXTURES / "sae_lens" / "legacy_v5_topk")).hookpoint_in == "blocks.1.hook_resid_post"


def test_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    source = FIXTURES / "sparsify" / "layers.0.topk"
    folder = tmp_path / "layers.0"
    shutil.copytree(source, folder)
    assert load_coder(str(folder)).fingerprint == load_coder(str(source)).fingerprint
    tensors = load_file(folder / "sae.safetensors")
    tensors["b_dec"][0] += 1e-3
    save_file(tensors, folder / "sae.safetensors")
    assert load_coder(str(folder)).fingerprint != load_coder(str(source)).fingerprint


def broken(tmp_path: Path, **changes: object) -> str:
    folder = tmp_path / "layers.0"
    shutil.copytree(FIXTURES / "sparsify" / "layers.0.topk", folder)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | changes))
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"activation": "groupmax"}, "activation is 'groupmax'"),
        ({"skip_connection": True}, "skip_connection is set"),
        ({"signed": True}, "signed is set"),
        ({"d_in": 17}, r"encoder.weight has shape \[48, 16\], the config says \[48, 17\]"),
        ({"k": 0}, "k is 0; it must be a positive integer"),
        ({"k": 49}, "more than the 48 latents"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(CoderError, match=sentence):
        load_coder(broken(tmp_path, **changes))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused_by_name(tmp_path: Path, value: float) -> None:
    folder = Path(broken(tmp_path))
    tensors = load_file(folder / "sae.safetensors")
    tensors["W_dec"][3, 1] = value
    save_file(tensors, folder / "sae.safetensors")
    with pytest.raises(CoderError, match="tensor W_dec holds NaN or infinite values"):
        load_coder(str(folder))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    folder = Path(broken(tmp_path))
    weights = folder / "sae.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CoderError, match="truncated or not safetensors"):
        load_coder(str(folder))


def test_unknown_layouts_say_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(CoderError, match=r"holds weights\.bin; a coder is cfg\.json \+ sae\.safetensors"):
        load_coder(str(tmp_path))
    shutil.copytree(FIXTURES / "sparsify" / "layers.0.topk", tmp_path / "layers.0")
    with pytest.raises(CoderError, match=r"one coder a hookpoint \(layers\.0\)"):
        load_coder(str(tmp_path))
    assert load_coder(str(tmp_path), hookpoint="layers.0").hookpoint_in == "layers.0"


def test_a_missing_folder_is_one_sentence() -> None:
    with pytest.raises(MissingFileError, match="there is no such file or folder"):
        load_coder("./nowhere")


@pytest.mark.parametrize("architecture", ["gated", "temporal", "nonsense"])
def test_sae_lens_architectures_not_read_are_named(tmp_path: Path, architecture: str) -> None:
    folder = tmp_path / "sae"
    shutil.copytree(FIXTURES / "sae_lens" / "standard", folder)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"architecture": architecture}))
    with pytest.raises(CoderError, match=f"architecture is '{architecture}'"):
        load_coder(str(folder))
    (folder / "cfg.json").write_text(json.dumps(config | {"normalize_activations": "expected_average_only_in"}))
    with pytest.raises(AutointerpError, match="normalize_activations is 'expected_average_only_in'"):
        load_coder(str(folder))


def test_sae_lens_coders_of_other_activations_are_refused(tmp_path: Path) -> None:
    """What would load with wrong numbers: another function, a centred subject, fine-tuned scales, k beyond the width."""
    source = FIXTURES / "sae_lens" / "legacy_v5_standard"
    truth = np.load(source / "io.npz")
    config = json.loads((source / "cfg.json").read_text())

    def changed(scaling: float | None = None, **changes: object) -> str:
        folder = tmp_path / f"sae-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(source, folder)
        (folder / "cfg.json").write_text(json.dumps(config | changes))
        if scaling is not None:
            tensors = load_file(folder / "sae_weights.safetensors")
            save_file(tensors | {"scaling_factor": torch.full((48,), scaling)}, folder / "sae_weights.safetensors")
        return str(folder)

    with pytest.raises(CoderError, match="activation_fn is 'tanh-relu'"):
        load_coder(changed(activation_fn_str="tanh-relu"))
    with pytest.raises(CoderError, match="center_writing_weights"):
        load_coder(changed(model_from_pretrained_kwargs={"center_writing_weights": True}))
    with pytest.raises(CoderError, match="k is 49, more than the 48 latents"):
        load_coder(changed(activation_fn_str="topk", activation_fn_kwargs={"k": 49}))
    with pytest.raises(CoderError, match="scaling_factor is not all ones"):
        load_coder(changed(scaling=2.0))
    plain = load_coder(changed(scaling=1.0))
    np.testing.assert_allclose(plain.encode(torch.from_numpy(truth["x"])).numpy(), truth["acts"], rtol=1e-5, atol=1e-5)
