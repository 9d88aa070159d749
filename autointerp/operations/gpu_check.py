"""Checks of the GPU: torch sees the one that is asked for, and it has room. A child process asks, so that this one loads no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autointerp.operations.findings import Finding, ok, warning, wrong

_ASK = """
import json, torch
there = torch.cuda.is_available()
memory = [torch.cuda.mem_get_info(number) for number in range(torch.cuda.device_count())] if there else []
print(json.dumps({"torch": torch.__version__, "built_for": torch.version.cuda, "free": [free for free, _ in memory]}))
"""
_TIMEOUT_S = 120
_ROOM = 1.3
"""Memory that weights and a batch need, as a multiple of the weights' files."""


@dataclass(frozen=True, slots=True)
class GPUs:
    """What torch sees."""

    torch: str
    built_for: str | None
    """CUDA version that torch was built for, None for a build without."""
    free_bytes: tuple[int, ...]
    """Free memory of each GPU."""


def check_gpu(device: str, weights: Sequence[str] = ()) -> Iterator[Finding]:
    """What is wrong with ``device`` (as ``subject.device``); ``weights``: folders of what must fit on it together."""
    if device == "cpu":
        yield ok("GPU", "none is asked for.")
        return
    asked = subprocess.run(
        [sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if asked.returncode != 0:
        said = asked.stderr.strip().splitlines()
        yield wrong(
            "GPU", f"torch cannot be loaded ({said[-1][:160] if said else 'it said nothing'}): install it anew."
        )
        return
    seen = json.loads(asked.stdout.strip().splitlines()[-1])
    yield gpu_finding(GPUs(seen["torch"], seen["built_for"], tuple(seen["free"])), device, size_of(weights))


def size_of(folders: Sequence[str]) -> int:
    """Bytes of the weight files in folders, as far as these are there."""
    endings = (".safetensors", ".bin", ".pt", ".npz")
    paths = [path for folder in map(Path, folders) if folder.is_dir() for path in folder.rglob("*")]
    return sum(path.stat().st_size for path in paths if path.suffix in endings and path.is_file())


def gpu_finding(seen: GPUs, device: str, weight_bytes: int) -> Finding:
    """What it means for ``device`` that torch sees these GPUs."""
    count = len(seen.free_bytes)
    if not count:
        if device == "auto":
            return ok("GPU", "torch sees none, and the subject will run on the CPU.")
        built = (
            f"torch {seen.torch} is built without CUDA: install its CUDA build"
            if seen.built_for is None
            else "see whether nvidia-smi lists one, and whether the container was given it"
        )
        return wrong(
            "GPU", f'subject.device is "{device}" and torch sees no GPU: {built}, or set subject.device = "cpu".'
        )
    number = int(device.partition(":")[2] or 0) if device.partition(":")[2].isdecimal() or ":" not in device else -1
    if not 0 <= number < count:
        return wrong(
            "GPU", f'subject.device is "{device}" and torch sees {count} GPUs: give cuda:0 to cuda:{count - 1}.'
        )
    free, needed = seen.free_bytes[number], int(weight_bytes * _ROOM)
    if needed > free:
        return wrong(
            "GPU",
            f"GPU {number} has {free / 2**30:.1f} GiB free and the weights with a batch need about {needed / 2**30:.1f}: end what "
            "else runs on it, or take another device.",
        )
    if count and free < 2 * 2**30:
        return warning("GPU", f"GPU {number} has {free / 2**30:.1f} GiB free only: see what else runs on it.")
    return ok("GPU", f"torch {seen.torch} sees {count}, and GPU {number} has {free / 2**30:.1f} GiB free.")
