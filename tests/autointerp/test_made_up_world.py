"""The made-up world is what it says, runs go on from it, and a label is there as soon as its own chunk is scored."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from autointerp.config import parse_config
from autointerp.llm.server import RunningServer
from autointerp.pipeline.execution import Outcome, execute
from autointerp.pipeline.folder import RunFolder
from autointerp.pipeline.reconciler import Reconciler
from autointerp.pipeline.stages import STAGES
from autointerp.pipeline.starting import start_run
from autointerp.store import ChunkState
from sae_core.exemplar_store import ExemplarStore
from sae_core.records import Origin, Side
from tests.cli_process import run_cli
from tests.made_up_world import (
    SOURCE,
    MadeUpAnswerer,
    endpoint_of,
    make_base,
    run_settings,
    words_of,
    write_config,
)

LATENTS = 3000


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("made-up") / "base", LATENTS)


@pytest.mark.parametrize("latent", [0, 1, 1023, 1024, 2048, LATENTS - 1])
def test_a_latent_fires_where_its_words_stand_and_nowhere_else(base: Path, latent: int) -> None:
    store = ExemplarStore.open(RunFolder(base).exemplars(SOURCE))
    strong, weak = (f" {word}" for word in words_of(latent))
    for side, windows in ((Side.EXPLAIN, 6), (Side.CHOOSE, 4), (Side.SCORE, 6)):
        pool = store.pool(side)
        text = [[store.pieces.piece(int(token)) if token >= 0 else "" for token in row] for row in pool.tokens]
        # of the tokens that count, not of those that stand before the window
        expected = {
            (row, column): piece == strong
            for row, pieces in enumerate(text)
            for column, piece in enumerate(pieces)
            if piece in (strong, weak) and column >= pool.first_token[row]
        }
        rows, columns, values = pool.activations(latent)
        assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == sorted(expected)
        assert [value > 5 for value in values] == [expected[key] for key in sorted(expected)]
        assert store.statistics.num_windows_firing[side, latent] == windows == len(expected)
        assert store.statistics.max_activation[side, latent] == values.max()
        assert pool.is_census
        top, sampled = (store.exemplars(latent, side, origin) for origin in (Origin.TOP, Origin.SAMPLED))
        assert [store.pieces.piece(int(e.token_ids[e.peak])) for e in top] == [strong] * (windows // 2)
        assert [store.pieces.piece(int(e.token_ids[e.peak])) for e in sampled] == [weak] * (windows // 2)
        kept = {(e.context, e.position) for e in (*top, *sampled)}
        assert kept == {(int(pool.context[row]), int(pool.position[row])) for row, _ in expected}


def test_a_run_on_it_asks_once_a_latent_and_labels_by_the_strong_word(base: Path, tmp_path: Path) -> None:
    with RunningServer(MadeUpAnswerer()) as server:
        settings = run_settings(base, endpoint_of(server.url), latents=40, chunk_latents=16, judged=True)
        config = write_config(tmp_path / "run.toml", settings)
        done = run_cli(["run", str(config), "--out", str(tmp_path / "out")], {**os.environ, "OMP_NUM_THREADS": "1"})
        asked = [call.prompt for call in server.calls if "Give the label." in call.prompt]
    assert done.returncode == 0, done.stderr
    found = pd.read_parquet(tmp_path / "out" / "dictionary").set_index("latent")
    assert found.label.to_dict() == {latent: f"the word {words_of(latent)[0]}" for latent in range(40)}
    assert len(asked) == len(set(asked)) == 40
    # of six firing windows it finds the three with that word, and no silent one
    assert np.allclose(found.detection_score, 0.75)


def test_a_chunk_is_labelled_before_the_next_one_is_explained(base: Path, tmp_path: Path) -> None:
    config = parse_config(run_settings(base, latents=48, chunk_latents=16, judged=True), "test")
    context = start_run(config, "test", tmp_path / "out").context
    store, run_id = context.store, context.run_id
    try:
        for _ in range(2):
            Reconciler(context, STAGES).release()

        def ready(stage: str) -> list[tuple[int, int]]:
            return [(c.ordinal, c.id) for c in store.chunks(run_id, ChunkState.READY) if c.stage == stage]

        for stage in ("explain", "score", "label"):
            (ordinal, chunk), *_ = ready(stage)
            assert ordinal == 0
            assert execute(chunk, context, STAGES) is Outcome.DONE
        assert [label.latent for label in store.labels(run_id, SOURCE)] == list(range(16))
        assert [ordinal for ordinal, _ in ready("explain")] == [1, 2]
        assert ready("label") == []
    finally:
        context.close()
        store.close()


def test_an_open_store_keeps_little_of_a_slice_of_latents(tmp_path: Path) -> None:
    """A worker passes through all slices of a run: where each row begins would be eight megabytes of each of these."""
    store = ExemplarStore.open(RunFolder(make_base(tmp_path / "base", 3 * 32_768)).exemplars(SOURCE))
    store.exemplars(0, Side.EXPLAIN, Origin.TOP)
    tracemalloc.start()
    try:
        for number in (1, 2):
            assert store.exemplars(number * 32_768, Side.EXPLAIN, Origin.TOP)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2 * 1.5e6
