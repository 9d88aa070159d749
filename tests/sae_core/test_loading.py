"""Coders against the outputs of the libraries that wrote them, or of an encode written from the format's description."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_core.coder import SparseCoder
from sae_core.errors import CoderError
from sae_core.loading import load_coder
from sae_core.parts.normalisation import NoNormalisation

FIXTURES = Path(__file__).parents[1] / "fixtures" / "coders"
REFUSED = {"sae_lens/temporal": "architecture is 'temporal', which is refused: .* whole sequence"}
OPTIONS: dict[str, dict[str, Any]] = {
    "sae_lens/standard_expected_average_only_in": {"input_scale": "folded"},
    "gemma_scope_2/clt": {"hookpoint": "layers.1"},
    "circuit_tracer_clt/mntss": {"hookpoint": "layers.1"},
}
FOLDERS = sorted(path.parent for path in FIXTURES.glob("*/*/io.npz"))


def name_of(folder: Path) -> str:
    return folder.relative_to(FIXTURES).as_posix()


def load_fixture(folder: Path) -> SparseCoder:
    manifest = json.loads((folder / "manifest.json").read_text())
    options = {**(manifest.get("options") or {}), **OPTIONS.get(name_of(folder), {})}
    if folder.parent.name == "dictionary_learning":
        options["allow_pickle"] = True
    return load_coder(folder / manifest.get("load", "."), **options)


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_equals_its_reference(folder: Path) -> None:
    if sentence := REFUSED.get(name_of(folder)):
        with pytest.raises(CoderError, match=sentence):
            load_fixture(folder)
        return
    coder = load_fixture(folder)
    if name_of(folder) == "gemma_scope/transcoder":  # its reference is given inputs that are normalised already
        coder = replace(coder, normalisation=NoNormalisation())
    truth = np.load(folder / "io.npz")
    x = torch.from_numpy(truth["x"])
    acts = coder.encode(x)
    assert acts.shape == (len(x), coder.num_latents)
    np.testing.assert_array_equal(acts.numpy() != 0, truth["acts"] != 0)
    assert truth["acts"].any()
    scale = float(np.abs(truth["acts"]).max())
    np.testing.assert_allclose(acts.numpy(), truth["acts"], rtol=1e-5, atol=1e-6 * max(scale, 1))
    # the libraries' decode() leaves a skip connection out; sparsify's forward() with multi_topk is not its reconstruction
    whole = "forward" if coder.skip is not None and "forward" in truth else "recon"
    output = truth.get(whole, None)
    if output is not None and name_of(folder) == "gemma_scope/embedding":
        # the converter brings the decoder's rows to the scale of Gemma's embeddings, and forgets its bias
        output = output + coder.decoder_bias.numpy() * (1 - 16**-0.5)
    if output is not None:
        given = coder.decode(acts, x).reshape(output.shape)
        np.testing.assert_allclose(given.numpy(), output, rtol=1e-5, atol=1e-5 * max(float(np.abs(output).max()), 1))
    sparse = coder.encode_sparse(x)
    rebuilt = torch.zeros_like(acts)
    rebuilt[sparse.token, sparse.latent] = sparse.value
    torch.testing.assert_close(rebuilt, acts)
    assert bool((sparse.value != 0).all())
