"""How long a coder takes to load, and how much memory, beside reading its file and nothing else.

    python benchmarks/load_coder.py [--latents 131072] [--width 2304] [--folder DIR]

Writes one coder in each kind of file (safetensors, npz, torch pickle; float32 and bfloat16), then loads each in a process
of its own, with the file's pages dropped from the cache first (cold) and with them there (warm). The floors of the same run: cold,
reading the file and nothing else; warm, reading and hashing it with sha256, since a fingerprint needs every byte. Memory is
the process's anonymous pages: what the load holds, without the file cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

_CHILD = """
import json, sys, threading, time
import torch
from sae_core.loading import load_coder

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

path, dtype = sys.argv[1], getattr(torch, sys.argv[2])
before, peak, done = anonymous(), 0, False

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)

thread = threading.Thread(target=watch)
thread.start()
began = time.perf_counter()
coder = load_coder(path, dtype=dtype, allow_pickle=True, hookpoint="layers.1")
seconds = time.perf_counter() - began
done = True
thread.join()
weights = sum(t.numel() * t.element_size() for t in (coder.encoder.weight, coder.decoder_weight))
print(json.dumps({"seconds": seconds, "peak": peak - before, "weights": weights}))
"""
_FLOOR = """
import hashlib, json, sys, time
began = time.perf_counter()
digest, buffer = hashlib.sha256(), bytearray(1 << 23)
with open(sys.argv[1], "rb", buffering=0) as file:
    while n := file.readinto(buffer):
        if sys.argv[2] == "warm":
            digest.update(memoryview(buffer)[:n])
print(json.dumps({"seconds": time.perf_counter() - began}))
"""


def write(folder: Path, latents: int, width: int) -> dict[str, Path]:
    """One coder as each kind of file; the file whose bytes count, by a name for the table."""
    import numpy as np
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weights = torch.randn(latents, width).mul_(width**-0.5)
    small = {"b_enc": torch.zeros(latents), "threshold": torch.ones(latents), "b_dec": torch.zeros(width)}
    paths: dict[str, Path] = {}
    for name, dtype in (("safetensors, float32", torch.float32), ("safetensors, bfloat16", torch.bfloat16)):
        place = folder / name.replace(", ", "-")
        place.mkdir()
        cast = {"W_enc": weights.T.contiguous(), "W_dec": weights, **small}
        save_file({key: value.to(dtype) for key, value in cast.items()}, place / "sae_weights.safetensors")
        config = {
            "architecture": "jumprelu",
            "d_in": width,
            "d_sae": latents,
            "metadata": {"sae_lens_version": "6.0.0"},
        }
        (place / "cfg.json").write_text(json.dumps(config))
        paths[name] = place / "sae_weights.safetensors"
    place = folder / "npz"
    place.mkdir()
    arrays = {"W_enc": weights.T.contiguous(), "W_dec": weights, **small}
    np.savez(place / "params.npz", **{key: value.numpy() for key, value in arrays.items()})
    paths["npz, float32"] = place / "params.npz"
    place = folder / "pickle"
    place.mkdir()
    linear = {"encoder.weight": weights, "encoder.bias": small["b_enc"], "decoder.weight": weights.T.contiguous()}
    torch.save(
        linear | {"b_dec": small["b_dec"], "k": torch.tensor(32), "threshold": torch.tensor(0.1)}, place / "ae.pt"
    )
    trainer = {"dict_class": "BatchTopKSAE", "activation_dim": width, "dict_size": latents}
    (place / "config.json").write_text(json.dumps({"trainer": trainer}))
    paths["torch pickle, float32"] = place / "ae.pt"
    return paths


def forget(path: Path) -> None:
    """Drop the file's pages from the cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def child(code: str, *args: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=131_072)
    parser.add_argument("--width", type=int, default=2304)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the files are written; a temporary folder by default"
    )
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        print(f"{args.latents:,} latents, width {args.width:,}; seconds, medians of {args.repeats}")
        heads = ("cold", "disk", "ratio", "warm", "sha256", "ratio", "peak / weights")
        print(f"{'file':<24}{'GB':>6}{'as':>10}{''.join(f'{head:>9}' for head in heads)}")
        for name, path in write(folder, args.latents, args.width).items():
            for dtype in ("float32", "bfloat16"):
                loads: dict[str, list[float]] = {"cold": [], "warm": []}
                floors: dict[str, list[float]] = {"cold": [], "warm": []}
                peak = 0.0
                for _ in range(args.repeats):
                    for state in ("cold", "warm"):
                        forget(path) if state == "cold" else None
                        floors[state].append(child(_FLOOR, str(path), state)["seconds"])
                        forget(path) if state == "cold" else None
                        load = child(_CHILD, str(path.parent), dtype)
                        loads[state].append(load["seconds"])
                        peak = max(peak, load["peak"] / load["weights"])
                figures = []
                for state in ("cold", "warm"):
                    seconds, floor = statistics.median(loads[state]), statistics.median(floors[state])
                    figures += [seconds, floor, seconds / floor]
                cells = "".join(f"{figure:>9.2f}" for figure in (*figures, peak))
                print(f"{name:<24}{path.stat().st_size / 1e9:>6.2f}{dtype:>10}{cells}", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
