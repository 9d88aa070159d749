"""A finished run with exemplars, every kind of row and a dictionary, which no model made: what a server shows of it is known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from autointerp.pipeline.exporting import export_run
from autointerp.pipeline.folder import RunFolder
from sae_core.exemplar_store import ExemplarStore
from sae_core.records import HISTOGRAM_EDGES, Side
from tests.autointerp.export_world import RUN_ID, make_world, open_world
from tests.made_up_world import SOURCE, make_base

__all__ = ["RUN_ID", "SOURCE", "make_served"]
_WITH_HISTOGRAM = 4_096
"""Latents whose histogram is filled in; the made-up world leaves it empty, since it would be 800 bytes of each."""


def make_served(folder: Path, num_latents: int, url: str | None = None) -> Path:
    """Make the run in ``folder``/run and return that: exemplars of tests/made_up_world.py under rows of export_world.py."""
    base, run = folder / "base", folder / "run"
    make_base(base, num_latents)
    make_world(run, num_latents, url=url, sources=(SOURCE,))
    place = RunFolder(run).exemplars(SOURCE)
    shutil.rmtree(place)
    shutil.move(RunFolder(base).exemplars(SOURCE), place)
    shutil.rmtree(base)
    _fill_histogram(place, min(num_latents, _WITH_HISTOGRAM))
    context = open_world(run, url)
    export_run(context, RunFolder(run).dictionary)
    context.store.close()
    return run


def _fill_histogram(folder: Path, num_latents: int) -> None:
    """Every window by its only activation."""
    store = ExemplarStore.open(folder)
    path = folder / "statistics.safetensors"
    data = path.open("rb").read(2**20)
    size = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + size])["histogram"]
    cells = np.memmap(path, np.int64, "r+", 8 + size + entry["data_offsets"][0], tuple(entry["shape"]))
    for side in Side:
        pool = store.pool(side)
        for latent in range(num_latents):
            peaks = pool.activations(latent)[2]
            at = np.searchsorted(HISTOGRAM_EDGES, np.abs(peaks), side="right")
            np.add.at(cells[side, latent], at, 1)
    cells.flush()
