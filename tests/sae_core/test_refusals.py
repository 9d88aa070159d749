"""What cannot be read without guessing is refused in one sentence, before anything runs or is allocated for it."""

from __future__ import annotations

import json
import math
import pickle
import resource
import shutil
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_core.attachment import attach
from sae_core.coder import SparseCoder
from sae_core.errors import AutointerpError, CoderError, MissingFileError, UnknownNameError
from sae_core.loading import load_coder, reader_of, readers
from sae_core.weights.pickle_file import pickles_forbidden
from tests.sae_core.test_intervention_resume import WIDTH, tiny_subject

FIXTURES = Path(__file__).parents[1] / "fixtures" / "coders"
SUFFIXES = (".safetensors", ".npz", ".pt", ".pth")


@dataclass(frozen=True)
class Example:
    """A fixture, and what its copies are loaded with."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    files: str = "*"
    """Which of its files of weights the load reads."""
    unread: frozenset[str] = frozenset()
    """Tensors that may be anything: only training needs them."""

    def copy(self, folder: Path) -> Copy:
        source = FIXTURES / self.name
        manifest = json.loads((source / "manifest.json").read_text())
        target = folder / source.name
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("io*.npz", "manifest.json"), dirs_exist_ok=True)
        files = sorted(p for p in target.rglob(self.files) if p.suffix in SUFFIXES)
        return Copy(
            self, target / manifest.get("load", "."), files, {**(manifest.get("options") or {}), **self.options}
        )


@dataclass(frozen=True)
class Copy:
    """A copy of a fixture that a test may damage."""

    example: Example
    path: Path
    files: list[Path]
    options: dict[str, Any]

    def load(self, **more: Any) -> SparseCoder:
        return load_coder(self.path, **{**self.options, **more})

    def config(self) -> Path:
        folder = self.path if self.path.is_dir() else self.path.parent
        return next(p for p in sorted(folder.rglob("*")) if p.suffix in (".json", ".yaml"))

    def edit_config(self, **changes: Any) -> None:
        content = json.loads(self.config().read_text())
        self.config().write_text(json.dumps({**content, **changes}))


PICKLE = {"allow_pickle": True}
STATISTICS = frozenset({"activation_std", "target_rms", "code_normalization_id", "k", "threshold"})
EXAMPLES = [
    Example("circuit_tracer/jumprelu", files="layer_1.safetensors"),
    Example("circuit_tracer/skip", files="layer_1.safetensors"),
    Example("circuit_tracer/topk", files="layer_1.safetensors", unread=frozenset({"k"})),
    Example("circuit_tracer_clt/jumprelu", files="W_*_1.safetensors"),
    Example("connor_rob/hook_z"),
    Example("crosscoder/batchtopk", unread=STATISTICS | {"activation_mean", "activation_global_scale"}),
    Example("crosscoder_ckkissane/hub"),
    Example("deepseek_r1/layer"),
    Example("dictionary_learning/AutoEncoder", PICKLE),
    Example("dictionary_learning/AutoEncoderTopK", PICKLE, unread=frozenset({"k", "threshold"})),
    Example("dictionary_learning/GatedAutoEncoder", PICKLE),
    Example("dictionary_learning/MatryoshkaBatchTopKSAE", PICKLE, unread=frozenset({"k", "threshold", "group_sizes"})),
    Example("gemma_scope/res"),
    Example("gemma_scope_2/transcoder_affine"),
    Example("gemma_scope_2/clt", {"hookpoint": "layers.1"}, files="params_layer_1.safetensors"),
    Example("goodfire/layer"),
    Example("llama_scope/res"),
    Example("llama_scope_r1/res", unread=frozenset({"dataset_average_activation_norm.blocks.15.hook_resid_post"})),
    Example(
        "openai/v5_topk",
        unread=frozenset({"stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"}),
    ),
    Example("qwen_scope/res"),
    Example("sae_lens/gated"),
    Example("sae_lens/jumprelu_skip_transcoder"),
    Example("sae_lens/matching_pursuit"),
    Example("sparsify/layers.0.skip_connection"),
    Example("sparsify/layers.0.groupmax"),
]
BY_NAME = {example.name: example for example in EXAMPLES}
each_format = pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)


def read_tensors(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    if path.suffix == ".npz":
        return {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    return dict(torch.load(path, weights_only=True))


def write_tensors(path: Path, tensors: dict[str, Any]) -> None:
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in tensors.items()})
    else:
        torch.save(tensors, path)


def changed(copy: Copy, change: Callable[[Tensor], Tensor]) -> Iterator[str]:
    """Each of a copy's tensors changed, one at a time; the file is as before in the end."""
    for path in copy.files:
        tensors, before = read_tensors(path), path.read_bytes()
        for name, value in tensors.items():
            if isinstance(value, Tensor) and name not in copy.example.unread:
                write_tensors(path, {**tensors, name: change(value)})
                yield f"{path.name}: {name}"
        path.write_bytes(before)


def one_sentence(error: BaseException) -> str:
    message = str(error)
    assert message.endswith((".", "?")), message
    assert "\n" not in message.replace("\n\n", "") or len(message) < 3000, message
    return message


def refused(load: Callable[[], object], match: str | None = None) -> str:
    with pytest.raises((CoderError, MissingFileError), match=match) as caught:
        load()
    return one_sentence(caught.value)


def test_every_reader_has_an_example(tmp_path: Path) -> None:
    copies = [example.copy(tmp_path / str(i)) for i, example in enumerate(EXAMPLES)]
    found = {reader.NAME for copy in copies if (reader := reader_of(copy.path)) is not None}
    inside = {copy.load().format for copy in copies}
    assert found | inside == {reader.NAME for reader in readers()}


# shapes, dtypes and values of every tensor of every format

SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "one shorter": lambda t: t[tuple(slice(0, n - 1) for n in t.shape)].clone(),
    "flat": lambda t: t.reshape(-1).clone() if t.ndim > 1 else t.reshape(1, -1).clone(),
    "scalar": lambda t: torch.tensor(1.0),
    "one more axis": lambda t: t.unsqueeze(0).clone(),
    "nothing in it": lambda t: t[..., :0].clone(),
}
DTYPES: dict[str, Callable[[Tensor], Tensor]] = {
    "int": lambda t: t.to(torch.int32),
    "bool": lambda t: t > 0,
    "float8": lambda t: t.to(torch.float8_e4m3fn),
}


def with_first(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        out = tensor.clone(memory_format=torch.contiguous_format)
        out.view(-1)[0] = value
        return out

    return change


@each_format
def test_another_shape_is_refused(example: Example, tmp_path: Path) -> None:
    copy = example.copy(tmp_path)
    for change in SHAPES.values():
        for _ in changed(copy, change):
            refused(copy.load, "shape|axes|holds the tensors|layers|input_scale")
    copy.load()


@each_format
def test_another_dtype_is_refused(example: Example, tmp_path: Path) -> None:
    copy = example.copy(tmp_path)
    for name, change in DTYPES.items():
        if copy.files[0].suffix == ".npz" and name == "float8":
            continue
        for _ in changed(copy, change):
            refused(copy.load, "dtype")


@each_format
def test_nan_and_infinity_are_refused(example: Example, tmp_path: Path) -> None:
    copy = example.copy(tmp_path)
    for value in (math.nan, math.inf, -math.inf):
        for _ in changed(copy, with_first(value)):
            refused(copy.load, "NaN or infinite")


@each_format
def test_what_float16_cannot_hold_is_refused(example: Example, tmp_path: Path) -> None:
    copy = example.copy(tmp_path)
    for _ in changed(copy, with_first(1e9)):
        refused(lambda: copy.load(dtype=torch.float16), "float16")
    copy.load(dtype=torch.float16)


@each_format
def test_other_tensors_than_the_formats_are_refused(example: Example, tmp_path: Path) -> None:
    copy = example.copy(tmp_path)
    for path in copy.files:
        tensors, before = read_tensors(path), path.read_bytes()
        write_tensors(path, {**tensors, "surprise": torch.ones(3)})
        refused(copy.load, "surprise")
        for name in tensors:
            if isinstance(tensors[name], Tensor) and name not in example.unread:
                write_tensors(path, {n: t for n, t in tensors.items() if n != name})
                if example.name == "openai/v5_topk" and name == "decoder.weight":
                    assert "tied" in copy.load().architecture
                elif name == "activation_function.threshold" or name == "threshold_1":
                    assert copy.load().architecture == "relu"  # which of the two it is, the threshold says
                elif name == "b_dec_1":
                    copy.load()  # it is not one layer's
                elif name == "W_skip" and example.name == "circuit_tracer/skip":
                    assert copy.load().architecture == "relu"
                else:
                    refused(copy.load)
        path.write_bytes(before)


@each_format
def test_options_that_a_format_has_no_use_for_are_refused(example: Example, tmp_path: Path) -> None:
    copy = example.copy(tmp_path)
    given: dict[str, Any] = {"input_scale": 2.0, "k": 3, "center_writing_weights": True}
    for name, value in given.items():
        if (name == "input_scale" and "ckkissane" in example.name) or (name == "k" and "qwen" in example.name):
            continue
        if name == "center_writing_weights" and example.name.startswith("sae_lens"):
            continue
        refused(lambda option={name: value}: copy.load(**option), f"{name} ")  # type: ignore[misc]
    for scale in (
        0.0,
        -1.0,
        math.nan,
        math.inf,
        True,
        "twice",
        [1.0, "x"],
        [True],
        [],
        10**400,
        {"a": 1},
        torch.ones(1),
    ):
        refused(lambda s=scale: copy.load(input_scale=s), "input_scale")  # type: ignore[misc]
    for k in (0, -1, True, 10**30):
        refused(lambda k=k: copy.load(k=k), "k is")  # type: ignore[misc]


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_weights_are_loaded_as_floats_only(dtype: torch.dtype) -> None:
    refused(lambda: load_coder(FIXTURES / "sae_lens" / "standard", dtype=dtype), "dtype")


def test_a_device_that_is_not_there_is_refused() -> None:
    device = "xpu" if torch.cuda.is_available() else "cuda"
    refused(lambda: load_coder(FIXTURES / "sae_lens" / "standard", device=device), "device")


@pytest.mark.parametrize("name", ["gemma_scope/res", "goodfire/layer", "deepseek_r1/layer"])
def test_no_latents_at_all_are_refused(name: str, tmp_path: Path) -> None:
    copy = BY_NAME[name].copy(tmp_path)
    tensors = read_tensors(copy.files[0])
    write_tensors(copy.files[0], {n: t.new_zeros([0 if a == 48 else a for a in t.shape]) for n, t in tensors.items()})
    refused(copy.load, "holds nothing")


# pickles

PICKLES = [e for e in EXAMPLES if any(p.suffix in (".pt", ".pth") for p in (FIXTURES / e.name).rglob("*"))]
each_pickle = pytest.mark.parametrize("example", PICKLES, ids=lambda e: e.name)


class Runs:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@each_pickle
def test_a_pickle_needs_the_opt_in(example: Example, tmp_path: Path) -> None:
    copy = example.copy(tmp_path)
    refused(lambda: copy.load(allow_pickle=False), "set allow_pickle")


@each_pickle
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_does_not_run(example: Example, zipped: bool, tmp_path: Path) -> None:
    copy, trace = example.copy(tmp_path), tmp_path / "ran"
    tensors = read_tensors(copy.files[0])
    torch.save({**tensors, "more": Runs(trace)}, copy.files[0], _use_new_zipfile_serialization=zipped)
    for allowed in (False, True):
        refused(lambda a=allowed: copy.load(allow_pickle=a))  # type: ignore[misc]
        assert not trace.exists()
    torch.load(copy.files[0], weights_only=False)
    assert trace.exists(), "the pickle would have run"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@each_pickle
def test_a_plain_pickle_with_code_does_not_run(example: Example, tmp_path: Path) -> None:
    copy, trace = example.copy(tmp_path), tmp_path / "ran"
    copy.files[0].write_bytes(pickle.dumps({"encoder.weight": Runs(trace)}))
    refused(lambda: copy.load(allow_pickle=True))
    assert not trace.exists()


@each_pickle
def test_an_old_pickle_of_tensors_is_read(example: Example, tmp_path: Path) -> None:
    copy = example.copy(tmp_path)
    expected, x = copy.load(), torch.randn(7, 32)
    torch.save(read_tensors(copy.files[0]), copy.files[0], _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(copy.files[0])
    refused(lambda: copy.load(allow_pickle=False), "set allow_pickle")
    coder = copy.load()
    x = x[:, : coder.num_hooks_in * coder.d_in]
    assert torch.equal(coder.encode(x), expected.encode(x))
    assert coder.fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    "content",
    [
        {"ae": {"encoder.weight": torch.ones(2, 2)}},
        [torch.ones(3)],
        torch.ones(3),
        {1: torch.ones(3)},
        {"encoder.weight": torch.ones(48, 16).to_sparse()},
        {"encoder.weight": torch.ones(48, 16, device="meta")},
        {"encoder.weight": None, "bias": "x"},
        {},
    ],
)
def test_other_things_in_a_pickle_are_refused(content: Any, tmp_path: Path) -> None:
    copy = BY_NAME["dictionary_learning/AutoEncoder"].copy(tmp_path)
    torch.save(content, copy.files[0])
    refused(copy.load)
    if isinstance(content, dict) and "ae" in content:
        refused(copy.load, "backup from the middle of training")


def test_one_stored_number_is_no_matrix(tmp_path: Path) -> None:
    """A view that repeats a number is small on disk and as large in memory as it says."""
    copy = BY_NAME["qwen_scope/res"].copy(tmp_path)
    num, d = 1 << 24, 1 << 12
    one = torch.ones(1)
    shapes = {"W_enc": (num, d), "W_dec": (d, num), "b_enc": (num,), "b_dec": (d,)}
    torch.save({name: one.expand(shape) for name, shape in shapes.items()}, copy.files[0])
    refused(copy.load, "dtype unknown")


# files

CUTS = (0, 1, 7, 8, 9, 100, 0.5, 0.99, -1)


@each_format
def test_truncated_files_are_refused(example: Example, tmp_path: Path) -> None:
    copy = example.copy(tmp_path)
    for path in copy.files:
        whole = path.read_bytes()
        for cut in CUTS:
            path.write_bytes(whole[: int(cut * len(whole)) if isinstance(cut, float) else cut])
            refused(copy.load)
        path.write_bytes(b"\x00" * 200)
        refused(copy.load)
        path.unlink()
        path.mkdir()
        refused(copy.load)
        path.rmdir()
        path.write_bytes(whole)
    copy.load()


def safetensors_file(header: object, payload: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + payload


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        safetensors_file({}, length=1 << 62),
        safetensors_file({}, length=(1 << 64) - 1),
        safetensors_file({}, b"x" * 400, length=200_000_000),
        safetensors_file({"W_enc": entry(0, 16, [4]), "W_dec": entry(8, 24, [4])}, bytes(24)),
        safetensors_file({"W_enc": entry(0, 16, [4]), "W_dec": entry(20, 36, [4])}, bytes(36)),
        safetensors_file({"W_enc": entry(0, 16, [5])}, bytes(16)),
        safetensors_file({"W_enc": entry(0, 16, [-4])}, bytes(16)),
        safetensors_file({"W_enc": entry(0, 0, [1 << 62, 1 << 62])}),
        safetensors_file({"W_enc": entry(0, 16, [4], "F33")}, bytes(16)),
        safetensors_file({"W_enc": entry(0, 16, [4]), "rest": 5}, bytes(16)),
        safetensors_file(b'{"W_enc":' + json.dumps(entry(0, 16, [4])).encode() + b',"W_enc":' + json.dumps(entry(16, 32, [4])).encode() + b"}", bytes(32)),
        safetensors_file(b'{"W_enc": "\xff"}'),
        safetensors_file(b"[" * 100_000),
        safetensors_file([1, 2]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["sae_lens/gated", "gemma_scope_2/transcoder_affine", "crosscoder/batchtopk"])
def test_bad_safetensors_headers_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    copy = BY_NAME[name].copy(tmp_path)
    copy.files[0].write_bytes(content)
    refused(copy.load)


def test_a_large_file_of_another_shape_is_refused_without_being_read(tmp_path: Path) -> None:
    copy = BY_NAME["sae_lens/jumprelu_skip_transcoder"].copy(tmp_path)
    size, offset, header = 8 << 30, 0, {}
    shapes = {"W_dec": [48, 20], "W_skip": [20, 16], "b_dec": [20], "b_enc": [48], "threshold": [48]}
    for name, shape in shapes.items():
        header[name] = entry(offset, end := offset + 4 * math.prod(shape), shape)
        offset = end
    header["W_enc"] = entry(offset, offset + size, [1 << 15, 1 << 16])
    copy.files[0].write_bytes(content := safetensors_file(header))
    with copy.files[0].open("r+b") as file:
        file.truncate(len(content) + offset + size)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    refused(copy.load, r"W_enc has shape \[32768, 65536\], the config says \[16, 48\]")
    assert time.monotonic() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


class RunsInNumpy:
    """Creates a file when numpy unpickles it."""

    path = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


def gemma(tmp_path: Path) -> tuple[Copy, dict[str, np.ndarray[Any, Any]]]:
    copy = BY_NAME["gemma_scope/res"].copy(tmp_path)
    return copy, dict(np.load(copy.files[0]).items())


def test_objects_in_an_npz_do_not_run(tmp_path: Path) -> None:
    copy, arrays = gemma(tmp_path)
    payload = RunsInNumpy()
    payload.path = str(tmp_path / "ran")
    np.savez(copy.files[0], **{**arrays, "b_dec": np.array([payload], dtype=object)})
    refused(lambda: copy.load(allow_pickle=True), "Python objects")
    assert not (tmp_path / "ran").exists()


def test_a_compressed_npz_is_read(tmp_path: Path) -> None:
    copy, arrays = gemma(tmp_path)
    expected, x = copy.load(), torch.randn(5, 16)
    np.savez_compressed(copy.files[0], **arrays)
    assert torch.equal(copy.load().encode(x), expected.encode(x))
    whole = copy.files[0].read_bytes()
    for place in range(40, len(whole), 97):
        copy.files[0].write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        try:
            coder = copy.load()
        except AutointerpError as error:
            one_sentence(error)
        else:  # bytes that mean nothing: dates and the like
            assert torch.equal(coder.encode(x), expected.encode(x))


def test_columns_first_in_an_npz_are_refused(tmp_path: Path) -> None:
    copy, arrays = gemma(tmp_path)
    np.savez(copy.files[0], **{**arrays, "W_enc": np.asfortranarray(arrays["W_enc"])})
    refused(copy.load, "stored by columns")


def npy(header: str, payload: bytes) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + payload


def npz_with(path: Path, arrays: dict[str, np.ndarray[Any, Any]], **members: bytes) -> None:
    np.savez(path, **{name: value for name, value in arrays.items() if name not in members})
    with zipfile.ZipFile(path, "a") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (17, 48)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-16, -48)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 768}",
        "{'descr': '>f4', 'fortran_order': False, 'shape': (16, 48)}",
        "{'descr': '<U1', 'fortran_order': False, 'shape': (16, 48)}",
        "{'descr': '<M8[D]', 'fortran_order': False, 'shape': (16, 24)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (16, 24)}",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (16, 48)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (16, 48)",
        "(" * 5000,
        "'''",
        "{'descr': 5, 'fortran_order': 'x', 'shape': None}",
        "import os",
    ],
)
def test_an_npz_whose_headers_lie_is_refused(header: str, tmp_path: Path) -> None:
    copy, arrays = gemma(tmp_path)
    npz_with(copy.files[0], arrays, W_enc=npy(header, arrays["W_enc"].tobytes()))
    refused(copy.load)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_npz_with_one_name_twice_is_refused(tmp_path: Path) -> None:
    copy, arrays = gemma(tmp_path)
    with zipfile.ZipFile(copy.files[0], "a") as archive:
        archive.writestr("W_enc.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (16, 48)}", bytes(3072)))
    refused(copy.load, "twice")
    assert arrays


def test_an_npz_cannot_hold_more_than_its_size_allows(tmp_path: Path) -> None:
    """Sizes in an archive are only said: a file of some bytes must not make room for a terabyte."""
    copy, arrays = gemma(tmp_path)
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (16777216, 48)}"
    content = npy(header, b"")
    npz_with(copy.files[0], arrays, W_enc=content)
    whole = bytearray(copy.files[0].read_bytes())
    size = struct.pack("<I", 16777216 * 48 * 4 + len(content))
    at = whole.rindex(b"PK\x01\x02" + whole[whole.rindex(b"PK\x01\x02") + 4 :][:0]) + 24
    whole[at : at + 4] = size
    copy.files[0].write_bytes(bytes(whole))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(copy.load, "cannot hold W_enc")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


# configs

CONFIGURED = [BY_NAME[n] for n in ("sae_lens/gated", "sparsify/layers.0.groupmax", "llama_scope/res", "llama_scope_r1/res",
    "dictionary_learning/AutoEncoder", "connor_rob/hook_z", "crosscoder/batchtopk", "crosscoder_ckkissane/hub",
    "qwen_scope/res", "gemma_scope_2/transcoder_affine")]  # fmt: skip


@pytest.mark.parametrize("example", CONFIGURED, ids=lambda e: e.name)
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1, 2]", b'"text"', b"null", b"\xff\xfe{}", b'{"a": ' + b"9" * 5000 + b"}", b"[" * 200_000, b'{"k": 1, "k": 2}'],
    ids=range(9),
)  # fmt: skip
def test_configs_that_are_no_json_objects_are_refused(example: Example, content: bytes, tmp_path: Path) -> None:
    copy = example.copy(tmp_path)
    copy.config().write_bytes(content)
    refused(copy.load, "JSON")


def test_a_config_of_many_megabytes_is_not_read(tmp_path: Path) -> None:
    copy = BY_NAME["sae_lens/gated"].copy(tmp_path)
    with copy.config().open("wb") as file:
        file.truncate(1 << 33)
    refused(copy.load, "bytes")


WRONG: list[Any] = ["48", -1, 0, 10**400, True, 4.5, [48], {"a": 1}, math.nan]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("sae_lens/gated", ["d_in", "d_sae"]),
        ("sparsify/layers.0.groupmax", ["d_in", "k"]),
        ("llama_scope/res", ["d_model", "d_sae"]),
        ("llama_scope_r1/res", ["d_model", "expansion_factor"]),
        ("connor_rob/hook_z", ["act_size", "dict_size"]),
        ("qwen_scope/res", ["k"]),
    ],
)
def test_numbers_of_other_types_are_refused(name: str, fields: list[str], tmp_path: Path) -> None:
    copy = BY_NAME[name].copy(tmp_path)
    before = copy.config().read_text()
    for key in fields:
        for value in [*WRONG, None]:
            if value is None and name == "qwen_scope/res":
                continue
            copy.edit_config(**{key: value})
            refused(copy.load, key)
            copy.config().write_text(before)


@pytest.mark.parametrize(
    ("name", "changes", "match"),
    [
        ("sae_lens/gated", {"architecture": "geted"}, "architecture is 'geted'; did you mean 'gated'"),
        ("sae_lens/gated", {"architecture": 5}, "architecture is 5; it must be text"),
        ("sae_lens/gated", {"normalize_activations": "covariance_whitening"}, "normalize_activations is 'covariance_wh"),
        ("sae_lens/gated", {"normalize_activations": "sideways"}, "known are 'none'"),
        ("sae_lens/gated", {"normalize_activations": ["none"]}, "known are 'none'"),
        ("sae_lens/gated", {"reshape_activations": "heads"}, "known are 'none', 'hook_z'"),
        ("sae_lens/gated", {"apply_b_dec_to_input": "false"}, "must be true or false"),
        ("sae_lens/gated", {"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm is set"),
        ("sae_lens/gated", {"rescale_acts_by_decoder_norm": 1}, "must be true or false"),
        ("sae_lens/gated", {"sae_lens_version": "dev"}, "sae_lens_version is 'dev'"),
        ("sae_lens/gated", {"sae_lens_version": 6}, "sae_lens_version is 6"),
        ("sae_lens/gated", {"metadata": {"sae_lens_version": "6.0", "hook_name": [1]}}, "hook_name is .1.; it must be text"),
        ("sae_lens/gated", {"metadata": {"sae_lens_version": "6.0", "model_from_pretrained_kwargs": [1]}}, "must be a mapping"),
        ("sae_lens/gated", {"metadata": {"sae_lens_version": "6.0", "hook_head_index": 3}}, "head 3 alone"),
        ("sae_lens/matching_pursuit", {"residual_threshold": "x"}, "residual_threshold"),
        ("sae_lens/matching_pursuit", {"residual_threshold": -1}, "residual_threshold"),
        ("sae_lens/matching_pursuit", {"max_iterations": 0}, "max_iterations"),
        ("sae_lens/jumprelu_skip_transcoder", {"apply_b_dec_to_input": True}, "belongs to its output"),
        ("sparsify/layers.0.groupmax", {"k": 49}, "k is 49, more than the 48 latents"),
        ("sparsify/layers.0.groupmax", {"k": 7}, "7 does not divide 48"),
        ("sparsify/layers.0.groupmax", {"activation": "gelu"}, "activation is 'gelu'; known are 'topk', 'groupmax'"),
        ("sparsify/layers.0.groupmax", {"signed": True}, "signed"),
        ("sparsify/layers.0.groupmax", {"transcode": "no"}, "must be true or false"),
        ("llama_scope/res", {"act_fn": "gelu"}, "act_fn is 'gelu'; known are 'jumprelu'"),
        ("llama_scope/res", {"norm_activation": "inference"}, "norm_activation is 'inference'"),
        ("llama_scope/res", {"dataset_average_activation_norm": 3}, "must say the norm 'in'"),
        ("llama_scope/res", {"dataset_average_activation_norm": {"in": 0}}, "positive number"),
        ("llama_scope/res", {"jump_relu_threshold": "0.2"}, "positive number"),
        ("llama_scope/res", {"jump_relu_threshold": 10**400}, "positive number"),
        ("llama_scope/res", {"hook_point_out": "blocks.9.hook_resid_post"}, "transcoders are refused"),
        ("llama_scope/res", {"use_glu_encoder": True}, "use_glu_encoder"),
        ("llama_scope_r1/res", {"act_fn": "topk"}, "known are 'jumprelu'"),
        ("qwen_scope/res", {"k": 9}, "they must agree"),
        ("gemma_scope_2/transcoder_affine", {"architecture": "topk"}, "known are 'jump_relu'"),
        ("gemma_scope_2/transcoder_affine", {"type": "crosscoder"}, "crosscoders are refused"),
        ("gemma_scope_2/transcoder_affine", {"affine_connection": False}, "another coder's"),
        ("gemma_scope_2/transcoder_affine", {"affine_connection": "yes"}, "must be true or false"),
        ("gemma_scope_2/transcoder_affine", {"hf_hook_point_in": 5}, "must be text"),
        ("dictionary_learning/AutoEncoder", {"trainer": {"dict_class": "NewAutoEncoder"}}, "trainer.dict_class is 'NewA"),
        ("dictionary_learning/AutoEncoder", {"trainer": None}, "no table 'trainer'"),
        ("crosscoder/batchtopk", {"encoder_layers": [0]}, "encoder_layers is set"),
        ("crosscoder/batchtopk", {"keep_relative_variance": False}, "keep_relative_variance"),
        ("crosscoder/batchtopk", {"code_normalization": "DECOUPLED"}, "only 'CROSSCODER' is read"),
        ("sae_lens/gated", {"architecture": None}, "architecture is ''"),
        ("sae_lens/gated", {"sae_lens_version": "6.0.0", "metadata": [1]}, "metadata is .1.; it must be a mapping"),
        ("crosscoder_ckkissane/hub", {"hook_point": ["a", "b"]}, "hook_point is"),
    ],
)  # fmt: skip
def test_what_a_config_may_not_say(name: str, changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    copy = BY_NAME[name].copy(tmp_path)
    copy.edit_config(**changes)
    assert len(refused(copy.load, match)) < 500 + len(str(tmp_path)) * 2


def test_numbers_in_a_pickle_are_checked(tmp_path: Path) -> None:
    copy = BY_NAME["dictionary_learning/AutoEncoderTopK"].copy(tmp_path)
    tensors = read_tensors(copy.files[0])
    for k in (0, -3, 49, 5.5, math.nan, math.inf, 10**400, "5", None, True, [5], torch.tensor([5, 6])):
        torch.save({**tensors, "k": k}, copy.files[0])
        refused(copy.load)
    torch.save({**tensors, "k": 6, "threshold": torch.tensor(-1.0)}, copy.files[0])
    assert copy.load().encode(torch.randn(3, 16)).shape == (3, 48), "top-k coders have no use for the threshold"


@pytest.mark.parametrize("threshold", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "name", ["dictionary_learning/BatchTopKSAE", "dictionary_learning/MatryoshkaBatchTopKSAE", "crosscoder/batchtopk"]
)
def test_a_threshold_that_training_did_not_set_is_refused(name: str, threshold: float, tmp_path: Path) -> None:
    copy = Example(name, PICKLE).copy(tmp_path)
    tensors = read_tensors(copy.files[0])
    write_tensors(copy.files[0], {**tensors, "threshold": torch.tensor(threshold)})
    refused(copy.load, "threshold")


def test_an_unknown_activation_of_openais_is_refused(tmp_path: Path) -> None:
    copy = BY_NAME["openai/v5_topk"].copy(tmp_path)
    tensors = read_tensors(copy.files[0])
    for change, match in (
        ({"activation": "Identity"}, "activation is 'Identity'"),
        ({"activation_state_dict": {"k": 0}}, "k is 0"),
        ({"activation_state_dict": {"k": 5, "postact_fn": "Tanh"}}, "postact_fn ReLU"),
        ({"activation_state_dict": None}, "activation_state_dict is None"),
    ):
        torch.save({**tensors, **change}, copy.files[0])
        refused(copy.load, match)


def test_a_top_k_coder_of_openais_without_its_activation_is_refused(tmp_path: Path) -> None:
    copy = BY_NAME["openai/v5_topk"].copy(tmp_path)
    tensors = read_tensors(copy.files[0])
    del tensors["activation"]
    torch.save(tensors, copy.files[0])
    refused(copy.load, "not by which activation")
    del tensors["activation_state_dict"]
    torch.save({**tensors, "activation.k": torch.tensor(5)}, copy.files[0])
    refused(copy.load, "not by which activation")


def test_a_top_k_crosscoder_without_its_threshold_is_refused(tmp_path: Path) -> None:
    copy = BY_NAME["crosscoder/batchtopk"].copy(tmp_path)
    tensors = read_tensors(copy.files[0])
    for missing in (("threshold",), ("threshold", "k")):
        write_tensors(copy.files[0], {n: t for n, t in tensors.items() if n not in missing})
        refused(copy.load, "has no threshold")


def test_crosscoders_of_unknown_scales_are_refused(tmp_path: Path) -> None:
    copy = BY_NAME["crosscoder/batchtopk"].copy(tmp_path)
    tensors = read_tensors(copy.files[0])
    mean = torch.zeros(2, 16)
    half = torch.full((2, 16), math.nan)
    half[0] = 0.0
    for change, match in (
        ({"code_normalization_id": torch.tensor(2)}, "code_normalization_id is 2"),
        ({"code_normalization_id": torch.tensor(math.nan)}, "whole number"),
        ({"activation_mean": mean, "activation_global_scale": torch.tensor([1.0, 0.0])}, "positive numbers"),
        ({"activation_mean": mean, "activation_global_scale": torch.ones(3)}, "shape"),
        ({"activation_mean": half, "activation_global_scale": torch.ones(2)}, "NaN throughout"),
        ({"activation_mean": torch.zeros(1 << 12), "activation_global_scale": torch.ones(2)}, "shape"),
    ):
        write_tensors(copy.files[0], {**tensors, **change})
        refused(copy.load, match)


# SAELens' input scale


def test_the_input_scale_of_sae_lens(tmp_path: Path) -> None:
    folder = FIXTURES / "sae_lens" / "standard_expected_average_only_in"
    refused(lambda: load_coder(folder), 'set input_scale to the factor, or to "folded"')
    w = {name: value.double().numpy() for name, value in load_file(folder / "sae_weights.safetensors").items()}
    config = json.loads((folder / "cfg.json").read_text())
    truth = np.load(folder / "io.npz")
    x = truth["x"]
    for given, scale in (("folded", 1.0), (1.0, 1.0), (1, 1.0), (np.float64(0.37), 0.37), ([np.float32(2.5)], 2.5)):
        coder = load_coder(folder, input_scale=given)  # type: ignore[arg-type]
        read = scale * x - (w["b_dec"] if config["apply_b_dec_to_input"] else 0)
        acts = np.maximum(read @ w["W_enc"] + w["b_enc"], 0)
        recon = (acts @ w["W_dec"] + w["b_dec"]) / scale
        got = coder.encode(torch.from_numpy(x))
        np.testing.assert_allclose(got.numpy(), acts, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(coder.decode(got).numpy(), recon, rtol=1e-4, atol=1e-4)
    refused(lambda: load_coder(folder, input_scale=[1.0, 2.0]), "give 1 positive factor")
    refused(lambda: load_coder(folder, input_scale=1e30, dtype=torch.float16), "float16")


# sets and folders


def test_a_circuit_tracer_set_needs_a_layer_that_it_has(tmp_path: Path) -> None:
    for name in ("circuit_tracer/jumprelu", "circuit_tracer_clt/jumprelu", "gemma_scope_2/clt"):
        copy = Example(name).copy(tmp_path)
        refused(lambda c=copy: load_coder(c.path), "none is chosen: set the hookpoint")  # type: ignore[misc]
        refused(lambda c=copy: load_coder(c.path, hookpoint="layers.7"), "'layers.7' is none of them")  # type: ignore[misc]
        refused(lambda c=copy: load_coder(c.path, hookpoint="embed"), "'embed' is none of them")  # type: ignore[misc]


LAUGHS = (
    "a0: &a0 [x, x]\n"
    + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    + "feature_input_hook: *a39\n"
)
"""A few lines that would fill the memory where they were written out."""


def test_circuit_tracer_configs(tmp_path: Path) -> None:
    copy = BY_NAME["circuit_tracer/topk"].copy(tmp_path)
    config = copy.path / "config.yaml"
    text = config.read_text()
    for added, match in (
        ("transcoders: [elsewhere/layer_0]\n", "transcoders lists files that are not beside it"),
        ("activation: gelu\n", "activation is 'gelu'"),
        ("activation: relu\n", "does not say activation: topk"),
        ("k: 4\n", "config.yaml another"),
        ("feature_input_hook: [a]\n", "must be text"),
        ("model_name: {a: b}\n", "must be text"),
        ("extra: !!python/object/apply:pathlib.Path.touch [ran]\n", "not valid YAML"),
        ("extra: !!python/name:os.system\n", "not valid YAML"),
        ("extra: !!timestamp x\n", "not valid YAML"),
        ("extra: !!bool x\n", "not valid YAML"),
        ("extra: {\n", "not valid YAML"),
        (LAUGHS, "must be text"),
    ):
        config.write_text(text + added)
        refused(copy.load, match)
    config.write_text("\n".join(line for line in text.splitlines() if not line.startswith("model_kind")))
    refused(copy.load, "A coder is one of")


def test_a_circuit_tracer_topk_with_a_threshold_is_refused(tmp_path: Path) -> None:
    copy = BY_NAME["circuit_tracer/topk"].copy(tmp_path)
    write_tensors(copy.files[0], {**read_tensors(copy.files[0]), "activation_function.threshold": torch.ones(48)})
    refused(copy.load, "one of them is wrong")
    tensors = read_tensors(copy.files[0])
    write_tensors(copy.files[0], {n: t for n, t in tensors.items() if "thres" not in n} | {"k": torch.tensor(4.5)})
    refused(copy.load, "whole number")


def test_a_cross_layer_transcoder_without_its_decoder_is_refused(tmp_path: Path) -> None:
    copy = BY_NAME["circuit_tracer_clt/jumprelu"].copy(tmp_path)
    (copy.path / "W_dec_1.safetensors").unlink()
    refused(copy.load, "W_dec_1.safetensors is missing")


def test_a_layer_beyond_those_it_writes_to_is_refused(tmp_path: Path) -> None:
    copy = BY_NAME["gemma_scope_2/clt"].copy(tmp_path)
    copy.files[0].rename(copy.files[0].with_name("params_layer_9.safetensors"))
    refused(lambda: load_coder(copy.path, hookpoint="layers.9"), "layer 9 is none of them")


def test_gemma_scope_without_its_repositorys_name_is_refused(tmp_path: Path) -> None:
    copy = BY_NAME["gemma_scope/res"].copy(tmp_path)
    moved = tmp_path / "layer_3"
    moved.mkdir()
    shutil.copy(copy.files[0], moved / "params.npz")
    refused(lambda: load_coder(moved), "keep the repository's name in the path")


def test_the_last_names_in_a_path_say_what_gemma_scope_reads(tmp_path: Path) -> None:
    one = BY_NAME["gemma_scope/res"].copy(tmp_path / "gemma-scope-2b-pt-mlp" / "layer_7" / "width_16k")
    assert one.load().hookpoints_in == ("layers.3",)
    two = BY_NAME["gemma_scope_2/transcoder_affine"].copy(tmp_path / "clt" / "layer_7_x")
    two.config().unlink()
    assert two.load().hookpoints_in == ("model.layers.13.pre_feedforward_layernorm.output",)


def test_gemma_scope_in_a_cache_of_links_keeps_its_names(tmp_path: Path) -> None:
    """The hub's cache names files by their content; what the coder reads is in the names of the folders."""
    copy = Example("gemma_scope/embedding").copy(tmp_path)
    blob = tmp_path / "gemma-scope-2b-pt-res" / "blobs" / "0123abcd"
    blob.parent.mkdir(parents=True)
    expected, x = copy.load(), torch.randn(3, 16)
    copy.files[0].rename(blob)
    copy.files[0].symlink_to(blob)
    coder = copy.load()
    assert (coder.architecture, coder.hookpoints_in) == (expected.architecture, expected.hookpoints_in)
    assert torch.equal(coder.encode(x), expected.encode(x))


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("with space", "[brackets]*?", "ünï", "a" * 200):
        copy = BY_NAME["sae_lens/gated"].copy(tmp_path / folder)
        assert copy.load().num_latents == 48
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "round").mkdir()
    (tmp_path / "round" / "again").symlink_to(tmp_path / "round")
    (tmp_path / "coder.xyz").write_text("hello")
    (tmp_path / "nothing").mkdir()
    for path, match in (
        (tmp_path / "loop", "no such file or folder"),
        (tmp_path / "loop" / "cfg.json", "no such file or folder"),
        (tmp_path / "round", "A coder is one of"),
        (tmp_path / "coder.xyz", "a file of no format that is known"),
        (FIXTURES / "sae_lens" / "gated" / "sae_weights.safetensors", "one file of a sae_lens coder: give its folder"),
        (tmp_path / "nothing", "holds nothing"),
        (tmp_path / "absent", "no such file or folder"),
        ("a" * 5000, "no such file or folder"),
        ("~nobody-has-this-name/x", "no such file or folder"),
        ("with\0null", "no such file or folder"),
        ("", "A coder is one of|holds"),
        (".", "A coder is one of|holds"),
    ):
        refused(lambda p=path: load_coder(p), match)  # type: ignore[misc]


def test_a_folder_of_many_coders_names_them(tmp_path: Path) -> None:
    for i in range(12):
        BY_NAME["sae_lens/gated"].copy(tmp_path / f"layer_{i}")
    message = refused(lambda: load_coder(tmp_path), "holds 12 coders .* and 4 more.: give one")
    assert "layer_0/gated" in message


def test_hookpoints_that_are_no_names_are_refused() -> None:
    for hookpoint in (["a", 5], [" "], "  ", "../..", "/", "a\0", "a" * 300, "layers." + "9" * 5000):
        refused(lambda h=hookpoint: load_coder(FIXTURES / "sae_lens" / "gated", hookpoint=h), "hookpoint is")  # type: ignore[misc]
    refused(lambda: load_coder(FIXTURES / "sae_lens" / "gated", hookpoint=["a", "b"]), "2 hookpoints are given")
    transcoder = FIXTURES / "sparsify" / "layers.0.transcoder"
    assert load_coder(transcoder, hookpoint="layers.1.mlp").hookpoints_in == ("layers.1.mlp:input",)


def test_one_hookpoint_does_not_say_where_a_transcoder_reads_and_writes(tmp_path: Path) -> None:
    copy = BY_NAME["circuit_tracer/skip"].copy(tmp_path)
    config = copy.path / "config.yaml"
    config.write_text("\n".join(line for line in config.read_text().splitlines() if not line.startswith("feature_")))
    assert load_coder(copy.path / "layer_1.safetensors").hookpoints_in == ()
    refused(
        lambda: load_coder(copy.path / "layer_1.safetensors", hookpoint="layers.1.mlp"),
        "writes elsewhere than it reads",
    )


def test_a_file_that_a_layers_number_chose_must_be_of_that_layer(tmp_path: Path) -> None:
    copy = BY_NAME["connor_rob/hook_z"].copy(tmp_path)
    for number in (5, 6):
        for path in (copy.files[0], copy.config()):
            shutil.copy(path, path.with_name(path.name.replace("gpt2-small_L10_Hcat_z_v9", f"run_{number}")))
    assert load_coder(copy.path.parent / "run_5.pt", allow_pickle=True).hookpoints_in == ("blocks.10.attn.hook_z",)
    refused(lambda: load_coder(copy.path.parent, hookpoint="layers.5", allow_pickle=True), "give one coder")


def test_no_tokens_at_all() -> None:
    for name in ("sae_lens/gated", "crosscoder/batchtopk/coder", "sparsify/layers.0.topk"):
        coder = load_coder(FIXTURES / name)
        empty = torch.empty(0, coder.num_hooks_in, coder.d_in)
        assert coder.encode(empty).shape == (0, coder.num_latents)
        assert coder.decode(coder.encode(empty), empty).numel() == 0
        assert len(coder.encode_sparse(empty).value) == 0


# attaching


def crosscoder(folder: Path, width: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "encoder.weight": torch.randn(2, width, 24),
        "encoder.bias": torch.zeros(24),
        "decoder.weight": torch.randn(2, 24, width),
        "decoder.bias": torch.zeros(2, width),
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def test_attaching(tmp_path: Path) -> None:
    subject = tiny_subject("llama")
    path = crosscoder(tmp_path / "cross", WIDTH)
    refused(lambda: attach(subject, load_coder(path)), "which 2 hookpoints it reads")
    refused(lambda: load_coder(path, hookpoint="layers.0"), "1 hookpoint is given, and the coder reads 2")
    refused(lambda: attach(subject, load_coder(path, hookpoint=["layers.0", "layers.0"])), "name one place twice")
    refused(lambda: attach(subject, load_coder(path, hookpoint=["layers.0", "model.layers.0"])), "name one place twice")
    attached = attach(subject, load_coder(path, hookpoint=["layers.0", "layers.1"]))
    assert [str(place) for place in attached.read] == ["layers.0", "layers.1"]
    with pytest.raises(UnknownNameError, match=r"layers\.9"):
        attach(subject, load_coder(path, hookpoint=["layers.0", "layers.9"]))
    with pytest.raises(UnknownNameError, match="not a place"):
        attach(subject, load_coder(path, hookpoint=["layers.0", "nowhere"]))
    wide = crosscoder(tmp_path / "wide", WIDTH + 1)
    refused(
        lambda: attach(subject, load_coder(wide, hookpoint=["layers.0", "layers.1"])),
        f"reads {WIDTH + 1} dimensions and hookpoint layers.0 of the subject carries {WIDTH}",
    )


def test_a_coder_of_two_models_is_not_attached(tmp_path: Path) -> None:
    copy = BY_NAME["crosscoder_ckkissane/hub"].copy(tmp_path)
    refused(lambda: attach(tiny_subject("llama"), copy.load()), "compares 2 models")
    refused(lambda: load_coder(copy.path, allow_pickle=True), "set input_scale to the 2 factors")
    refused(lambda: copy.load(input_scale=1.5), "give 2 positive factors")


def test_a_transcoder_must_fit_where_it_writes(tmp_path: Path) -> None:
    tensors = {
        "W_enc": torch.randn(24, WIDTH), "W_dec": torch.randn(24, WIDTH + 3), "b_enc": torch.zeros(24), "b_dec": torch.zeros(WIDTH + 3),
    }  # fmt: skip
    save_file(tensors, tmp_path / "layer_0.safetensors")
    (tmp_path / "config.yaml").write_text(
        "model_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n"
    )
    coder = load_coder(tmp_path / "layer_0.safetensors")
    refused(lambda: attach(tiny_subject("llama"), coder), f"writes {WIDTH + 3} dimensions")


def test_a_service_opens_no_pickle_whatever_it_is_asked() -> None:
    """The opt-in belongs to whoever runs the program; a request cannot give it."""
    folder = FIXTURES / "dictionary_learning" / "BatchTopKSAE"
    with pickles_forbidden(), ThreadPoolExecutor(1) as pool:
        for ask in (load_coder, lambda path, **options: pool.submit(load_coder, path, **options).result()):
            with pytest.raises(CoderError, match="a service never opens one"):
                ask(folder, allow_pickle=True)
    assert load_coder(folder, allow_pickle=True).num_latents == 48
