"""Damaged coders: what loads is well-formed, what does not is refused by an error that users can read."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_core.coder import SparseCoder
from sae_core.errors import AutointerpError
from tests.sae_core.test_refusals import BY_NAME, EXAMPLES, Copy, Example, read_tensors, write_tensors

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1, 5, 16, 47, 48, 49, 96, 2**31, 2**63, 10**400])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["relu", "topk", "jumprelu", "standard", "none", "layer_norm", "6.0.0", "5", "blocks.0.hook_mlp_out"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
WITH_CONFIG = [
    BY_NAME[name]
    for name in (
        "circuit_tracer/topk", "circuit_tracer_clt/jumprelu", "connor_rob/hook_z", "crosscoder/batchtopk",
        "crosscoder_ckkissane/hub", "dictionary_learning/AutoEncoderTopK", "gemma_scope_2/transcoder_affine",
        "gemma_scope_2/clt", "llama_scope/res", "llama_scope_r1/res", "qwen_scope/res", "sae_lens/gated",
        "sae_lens/matching_pursuit", "sae_lens/jumprelu_skip_transcoder", "sparsify/layers.0.groupmax",
    )
] + [Example("sae_lens/legacy_v5_topk"), Example("sae_lens/topk_rescale"), Example("sae_lens/standard_hook_z")]  # fmt: skip
by_name = {"ids": lambda e: e.name}
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


def well_formed(coder: SparseCoder) -> None:
    """It encodes and decodes, and everything it says of itself is text."""
    x = torch.randn(3, coder.num_hooks_in * coder.d_in)
    acts = coder.encode(x)
    assert acts.shape == (3, coder.num_latents)
    assert coder.decode(acts, x).numel() == 3 * coder.num_hooks_out * coder.d_out
    assert all(isinstance(part, str) for fact in coder.facts for part in fact)
    assert all(isinstance(name, str) for name in (*coder.hookpoints_in, *coder.hookpoints_out))
    assert len(coder.fingerprint) == 64


def loads_or_refuses(copy: Copy) -> None:
    try:
        coder = copy.load()
    except AutointerpError:
        return
    well_formed(coder)


@pytest.mark.parametrize("example", WITH_CONFIG, **by_name)
@settings(max_examples=20)
@given(data=st.data())
def test_any_value_in_a_config(example: Example, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = example.copy(Path(folder))
        path = copy.config()
        config: Any = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
        table = config
        while nested := [value for value in table.values() if isinstance(value, dict)]:
            if data.draw(st.booleans()):
                break
            table = nested[0]
        extra = [
            "metadata",
            "model_from_pretrained_kwargs",
            "hook_name",
            "transcoders",
            "activation_fn_kwargs",
            "num_latents",
            "d_sae",
            "d_out",
        ]
        for key in data.draw(st.lists(st.sampled_from([*table, *extra]), min_size=1, max_size=2)):
            if data.draw(st.integers(0, 5)):
                table[key] = data.draw(JSON)
            else:
                table.pop(key, None)
        path.write_text(json.dumps(config) if path.suffix == ".json" else yaml.safe_dump(config))
        loads_or_refuses(copy)


@pytest.mark.parametrize("example", EXAMPLES, **by_name)
@settings(max_examples=15)
@given(data=st.data())
def test_any_bytes_in_a_file(example: Example, data: st.DataObject) -> None:
    """Bytes flipped, cut out and put in, most of them where the file says what it holds."""
    with tempfile.TemporaryDirectory() as folder:
        copy = example.copy(Path(folder))
        path = data.draw(st.sampled_from([*copy.files, *([copy.config()] if example in WITH_CONFIG else [])]))
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            end = len(content) if data.draw(st.booleans()) else min(600, len(content))
            place = data.draw(st.integers(0, max(end - 1, 0)))
            if data.draw(st.booleans()):
                place = max(len(content) - 1 - place, 0)
            kind = data.draw(st.sampled_from(["flip", "flip", "cut", "insert", "truncate"]))
            if kind == "flip" and content:
                content[place] ^= data.draw(st.integers(1, 255))
            elif kind == "cut":
                del content[place : place + data.draw(st.integers(1, 64))]
            elif kind == "insert":
                content[place:place] = data.draw(st.binary(min_size=1, max_size=16))
            else:
                del content[place:]
        path.write_bytes(content)
        loads_or_refuses(copy)


@pytest.mark.parametrize(
    "example", [e for e in EXAMPLES if "dictionary" in e.name or "openai" in e.name or "qwen" in e.name], **by_name
)
@settings(max_examples=15)
@given(data=st.data())
def test_any_value_in_a_pickle(example: Example, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = example.copy(Path(folder))
        tensors = read_tensors(copy.files[0])
        extra = ["k", "threshold", "activation", "activation_state_dict"]
        for key in data.draw(st.lists(st.sampled_from([*tensors, *extra]), min_size=1, max_size=2)):
            shape = data.draw(st.lists(st.integers(0, 3), max_size=3))
            dtype = data.draw(
                st.sampled_from([torch.float32, torch.int64, torch.bool, torch.complex64, torch.float8_e5m2])
            )
            tensors[key] = data.draw(JSON | st.just(torch.ones(shape).to(dtype)))
        write_tensors(copy.files[0], tensors)
        loads_or_refuses(copy)
