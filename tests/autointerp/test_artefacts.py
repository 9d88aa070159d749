"""Machines that share no folder do one run by a remote place: the result is that of one machine, whatever dies between."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from fsspec import register_implementation
from fsspec.implementations.memory import MemoryFileSystem
from sqlalchemy import insert

from autointerp.artefacts.catalogue import Catalogue, SharedFile, files_row
from autointerp.artefacts.exchange import Exchange
from autointerp.artefacts.remote import Remote
from autointerp.artefacts.settings import exchange_for
from autointerp.config import load_config
from autointerp.pipeline.driver import LocalDriver
from autointerp.pipeline.folder import RunFolder
from autointerp.pipeline.reconciler import Reconciler
from autointerp.pipeline.stage import ChunkSpec, Stage
from autointerp.pipeline.stages import STAGES
from autointerp.pipeline.starting import open_run, start_run
from autointerp.progress import SilentDisplay
from autointerp.store import LabelStore, open_store
from autointerp.store.models import Artefact, Run, utc_now
from autointerp.store.opening import sqlite_url
from sae_core.errors import ConfigError, StoreError, StoreUnavailableError
from tests import planted_world
from tests.autointerp.exchange_world import exchanging

ROOT = Path(__file__).parents[2]
CONFIG = """
chunk_latents = 6
[subject]
model = "subject"
[[coders]]
path = "coder"
name = "planted"
[corpus]
path = "corpus.jsonl"
[extraction]
num_tokens = 6000
context_length = 64
window_length = 16
shard_tokens = 1500
pool_windows = 150
[controls]
random_directions = 4
shuffled_latents = 1
[[explainers]]
kind = "pattern"
[[scorers]]
kind = "pattern"
skip_repeated = false
[[scorers]]
kind = "intervention"
"""
GPU = ",".join(stage.name for stage in STAGES if stage.queue == "gpu")
REST = ",".join(stage.name for stage in STAGES if stage.queue != "gpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    planted_world.build(folder)
    (folder / "run.toml").write_text(CONFIG)
    return folder


def do_alone(world: Path, out: Path, stages: Sequence[Stage]) -> Path:
    """The run's output folder after some stages on one machine."""
    context = start_run(load_config(world / "run.toml", ()), "x", out).context
    LocalDriver(context, stages, SilentDisplay()).run()
    context.store.close()
    return out


def exemplars(root: Path) -> dict[str, str]:
    """sha256 of the files of all exemplar stores."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.glob("sources/*/exemplars/*"))
    }


class Cluster:
    """A run in a store, and processes that do it with folders of their own."""

    def __init__(self, world: Path, folder: Path, stages: Sequence[Stage]) -> None:
        self.folder, self.remote = folder, f"file://{folder / 'remote'}"
        started = start_run(load_config(world / "run.toml", ()), "x", folder / "out").context
        self.context = open_run(started.store, started.run_id, folder / "control")
        exchange = Exchange(Remote(self.remote), started.store, started.run_id, folder / "control")
        self.stages = [exchanging(stage, exchange, started.store, started.run_id) for stage in stages]
        self.url = sqlite_url(folder / "out" / "autointerp.db")
        self.started: list[subprocess.Popen[bytes]] = []

    def start(
        self, name: str, stages: str, fault: str | None = None, remote: str | None = None
    ) -> subprocess.Popen[bytes]:
        """A machine."""
        given = [
            self.url,
            self.context.run_id,
            str(self.folder / name),
            self.remote if remote is None else remote,
            stages,
        ]
        environment = os.environ | ({"AUTOINTERP_FAULT": fault} if fault else {})
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.autointerp.exchange_world", *given],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
            )
        self.started.append(process)

    def reconcile(self, patience_s: float = 300.0) -> None:
        """Look after the run until it is done."""
        reconciler = Reconciler(self.context, self.stages)
        self._look_after(lambda: reconciler.release().finished, patience_s)
        self.context.store.set_run_state(self.context.run_id, "done")
        for process in self.started:
            assert process.wait(60) in (0, -signal.SIGKILL), self.logs()

    def reconcile_until_killed(self, patience_s: float = 300.0) -> None:
        """Look after the run until the machine that was started last is dead."""
        reconciler, last = Reconciler(self.context, self.stages), self.started[-1]
        self._look_after(lambda: not reconciler.release().finished and last.poll() is not None, patience_s)
        assert last.returncode == -signal.SIGKILL

    def _look_after(self, ended: Callable[[], bool], patience_s: float) -> None:
        end = time.monotonic() + patience_s
        while not ended():
            for process in self.started:
                assert process.poll() in (None, -signal.SIGKILL), self.logs()
            assert time.monotonic() < end, self.logs()
            time.sleep(0.1)

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in self.folder.glob("*.log"))

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.wait()
        self.context.store.close()


@contextmanager
def cluster(world: Path, folder: Path, stages: Sequence[Stage]) -> Iterator[Cluster]:
    made = Cluster(world, folder, stages)
    try:
        yield made
    finally:
        made.close()


def check_catalogued(of: Cluster, *names: str) -> None:
    """Everything that these machines have is told of."""
    catalogue = Catalogue(of.context.store, of.context.run_id).read()
    roots = [of.folder / name for name in names]
    there = {str(path.relative_to(root)) for root in roots for path in root.rglob("*") if path.is_file()}
    assert there <= set(catalogue)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_shards_of_two_machines_merge_to_the_stores_of_one(world: Path, tmp_path: Path) -> None:
    stages = STAGES[:4]
    assert [stage.name for stage in stages] == ["tokenize", "directions", "extract", "merge"]
    alone = do_alone(world, tmp_path / "alone", stages)
    with cluster(world, tmp_path, stages) as machines:
        # the first dies with its second shard uploaded and not told of; the second merges
        machines.start("first", "tokenize,directions,extract", fault="extract:before_write:2")
        machines.reconcile_until_killed()
        machines.start("second", "extract,merge,directions")
        machines.reconcile()
        first = machines.folder / "first"
        assert (first / "corpus" / "corpus.json").exists()
        assert list(first.glob("sources/planted/partials/*.safetensors"))
        assert exemplars(machines.folder / "second") == exemplars(alone)
        check_catalogued(machines, "second")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_machines_of_all_queues_give_the_dictionary_of_one(world: Path, tmp_path: Path) -> None:
    alone = do_alone(world, tmp_path / "alone", STAGES)
    with cluster(world, tmp_path, STAGES) as machines:
        machines.start("first", GPU)
        machines.start("second", GPU)
        machines.start("third", REST)
        machines.reconcile(600)
        third = machines.folder / "third"
        given = [
            pd.read_parquet(folder / "dictionary").drop(columns=["run_id", "created_at"]) for folder in (third, alone)
        ]
        pd.testing.assert_frame_equal(*given)
        assert exemplars(third) == exemplars(alone)
        assert not (third / "corpus").exists()
        assert not list(third.glob("sources/*/partials/*"))
        check_catalogued(machines, "first", "second", "third")


# ---- one process, made-up files


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    made = open_store(sqlite_url(tmp_path / "store.db"))
    made.create_run(
        Run(id="r", name="r", digest="d", ordinal=1, config={}, folder=str(tmp_path / "nowhere"), code_version="0")
    )
    return made


def _stage(name: str) -> object:
    return next(stage for stage in STAGES if stage.name == name)


def _publish(exchange: Exchange, store: LabelStore, stage: str, spec: ChunkSpec, fence: int = 1) -> int:
    rows = exchange.publish(_stage(stage), spec, fence)  # type: ignore[arg-type]
    store._add(rows)
    return len(rows)


def _write(root: Path, path: str, content: bytes) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(content)


@pytest.fixture
def pair(store: LabelStore, tmp_path: Path) -> tuple[Exchange, Exchange]:
    remote = Remote(str(tmp_path / "remote"))
    return Exchange(remote, store, "r", tmp_path / "a"), Exchange(remote, store, "r", tmp_path / "b")


PROBE = ChunkSpec(3, "s")
SUFFIX = "sources/s/evidence/suffix-000003.safetensors"


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + b"x", None])
def test_what_is_not_whole_is_never_taken(
    pair: tuple[Exchange, Exchange], store: LabelStore, tmp_path: Path, damage: object
) -> None:
    here, there = pair
    _write(tmp_path / "a", SUFFIX, b"content")
    assert _publish(here, store, "probe", PROBE) == 1
    (stored,) = (path for path in (tmp_path / "remote").rglob("*") if path.is_file())
    if damage is None:
        stored.unlink()
    else:
        stored.write_bytes(damage(stored.read_bytes()))  # type: ignore[operator]
    with pytest.raises(StoreError, match="suffix-000003"):
        there.fetch(_stage("explain"), PROBE)  # type: ignore[arg-type]
    assert [path for path in (tmp_path / "b").rglob("*") if path.is_file()] == []


def test_what_is_not_told_is_not_there(pair: tuple[Exchange, Exchange], store: LabelStore, tmp_path: Path) -> None:
    here, there = pair
    _write(tmp_path / "a", SUFFIX, b"content")
    here.publish(_stage("probe"), PROBE, 1)  # type: ignore[arg-type]  # and it died before the chunk's end
    assert there.fetch(_stage("explain"), PROBE) == 0  # type: ignore[arg-type]
    assert _publish(here, store, "probe", PROBE, fence=2) == 1
    assert there.fetch(_stage("explain"), PROBE) == 1  # type: ignore[arg-type]
    assert (tmp_path / "b" / SUFFIX).read_bytes() == b"content"
    assert there.fetch(_stage("explain"), PROBE) == 0  # type: ignore[arg-type]


def test_a_chunk_done_again_replaces_what_it_left_before(
    pair: tuple[Exchange, Exchange], store: LabelStore, tmp_path: Path
) -> None:
    here, there = pair
    _write(tmp_path / "a", SUFFIX, b"first")
    _publish(here, store, "probe", PROBE)
    there.fetch(_stage("explain"), PROBE)  # type: ignore[arg-type]
    _write(tmp_path / "a", SUFFIX, b"second")
    _publish(here, store, "probe", PROBE, fence=2)
    assert there.fetch(_stage("explain"), PROBE) == 1  # type: ignore[arg-type]
    assert (tmp_path / "b" / SUFFIX).read_bytes() == b"second"


def test_chunks_tell_of_their_own_files_alone(
    pair: tuple[Exchange, Exchange], store: LabelStore, tmp_path: Path
) -> None:
    here, _ = pair
    _write(tmp_path / "a", SUFFIX, b"of the third chunk")
    _write(tmp_path / "a", "sources/s/evidence/suffix-000004.safetensors", b"of the fourth")
    _write(tmp_path / "a", "sources/other/evidence/suffix-000003.safetensors", b"of another source")
    _write(tmp_path / "a", "sources/s/evidence/.suffix-000003.safetensors.tmp~x~00000000", b"half")
    _write(tmp_path / "a", "corpus/tokens.bin", b"while it grows")
    _publish(here, store, "probe", PROBE)
    assert set(Catalogue(store, "r").read()) == {SUFFIX}
    # explain leaves nothing here, and does not tell again of what probe left
    assert _publish(here, store, "explain", PROBE) == 0


def test_a_row_that_is_committed_late_is_seen(store: LabelStore) -> None:
    catalogue = Catalogue(store, "r")
    for number in (11, 10):
        file = SharedFile(f"sources/s/evidence/suffix-{number:06d}.safetensors", 1, "0" * 64)
        row = files_row("r", "probe", "s", number, 1, [file])
        with store.writing() as connection:
            values = {"run_id": row.run_id, "kind": row.kind, "version": row.version, "value": row.value}
            connection.execute(insert(Artefact).values(id=number, created_at=utc_now(), **values))
        assert file.path in catalogue.read()
    assert len(catalogue.read()) == 2


def test_paths_out_of_the_folder_are_refused(store: LabelStore) -> None:
    store._add([files_row("r", "probe", "s", 0, 1, [SharedFile("../../etc/passwd", 1, "0" * 64)])])
    with pytest.raises(StoreError, match="not below a run's folder"):
        Catalogue(store, "r").read()


def test_object_stores_work_too(store: LabelStore, tmp_path: Path) -> None:
    remote = Remote("memory://bucket/prefix")
    here, there = Exchange(remote, store, "r", tmp_path / "a"), Exchange(remote, store, "r", tmp_path / "b")
    _write(tmp_path / "a", SUFFIX, b"content")
    _publish(here, store, "probe", PROBE)
    there.fetch(_stage("explain"), PROBE)  # type: ignore[arg-type]
    assert (tmp_path / "b" / SUFFIX).read_bytes() == b"content"


def test_a_place_that_cannot_be_reached_or_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        Remote(str(tmp_path / "file")).put(tmp_path / "file", "key", 0)
    with pytest.raises(ConfigError, match="no place for files") as raised:
        Remote("nonsense://user:secret@host/x")
    assert "secret" not in str(raised.value)


def test_the_environment_says_whether_files_are_exchanged(
    store: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "shared")
    monkeypatch.delenv("AUTOINTERP_ARTEFACTS__URL", raising=False)
    assert exchange_for(store, "r", folder, 0) == (folder, None)
    monkeypatch.setenv("AUTOINTERP_ARTEFACTS__URL", str(tmp_path / "remote"))
    monkeypatch.setenv("AUTOINTERP_ARTEFACTS__CACHE", str(tmp_path / "cache"))
    places = [exchange_for(store, "r", folder, retried) for retried in (0, 1)]
    assert [place.root for place, _ in places] == [tmp_path / "cache" / "r", tmp_path / "cache" / "r-1"]
    assert all(exchange is not None for _, exchange in places)


# ---- many chunks


class _Counted(MemoryFileSystem):  # type: ignore[misc]
    """An object store that counts what it is asked."""

    protocol = ("memory", "counted")
    calls = 0

    def __getattribute__(self, name: str) -> object:
        if name in ("ls", "info", "_open", "mkdir", "makedirs", "cp_file", "rm_file", "cat_file", "pipe_file"):
            _Counted.calls += 1
        return super().__getattribute__(name)


def _asked_for(chunks: int, store: LabelStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Questions to the remote place, and to the local file system, while one machine makes so many chunks and another reads them."""
    remote, other = Remote("counted://bucket/prefix"), _stage("explain")
    here, there = Exchange(remote, store, "r", folder / "a"), Exchange(remote, store, "r", folder / "b")
    looks, look = 0, Path.stat

    def counted(path: Path, **settings: bool) -> os.stat_result:
        nonlocal looks
        looks += 1
        return look(path, **settings)

    _Counted.calls = 0
    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", counted)
        for number in range(chunks):
            spec = ChunkSpec(number, "s")
            _write(folder / "a", f"sources/s/evidence/suffix-{number:06d}.safetensors", b"%d" % number)
            assert _publish(here, store, "probe", spec) == 1
            assert there.fetch(other, spec) == 1  # type: ignore[arg-type]
            assert there.fetch(other, spec) == 0  # type: ignore[arg-type]
            assert here.fetch(other, spec) == 0  # type: ignore[arg-type]
    return _Counted.calls, looks


def test_what_a_chunk_asks_does_not_grow_with_the_run(
    store: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_implementation("counted", _Counted, clobber=True)
    calls, looks = _asked_for(150, store, tmp_path, monkeypatch)
    assert calls <= 150 * 10
    assert looks <= 150 * 40  # each looking at all files at every chunk would be 3 * 150 * 150 / 2 and more
    assert len({path.name for path in (tmp_path / "b").rglob("*.safetensors")}) == 150


def test_what_has_gone_from_here_comes_again(
    pair: tuple[Exchange, Exchange], store: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair
    for number in range(3):
        _write(tmp_path / "a", f"sources/s/evidence/suffix-{number:06d}.safetensors", b"content")
        _publish(here, store, "probe", ChunkSpec(number, "s"))
    fetch: Callable[[], int] = lambda: there.fetch(_stage("explain"), PROBE)  # type: ignore[arg-type]  # noqa: E731
    assert (fetch(), fetch()) == (3, 0)
    shutil.rmtree(tmp_path / "b" / "sources")
    assert (fetch(), fetch()) == (3, 0)
    monkeypatch.setattr("autointerp.artefacts.exchange._AGAIN_S", 0.0)
    (tmp_path / "b" / "sources/s/evidence/suffix-000001.safetensors").unlink()
    assert (fetch(), fetch()) == (1, 0)


def test_stages_get_what_they_read_and_later_ones_the_rest(
    pair: tuple[Exchange, Exchange], store: LabelStore, tmp_path: Path
) -> None:
    here, there = pair
    _write(tmp_path / "a", "sources/s/partials/000000.safetensors", b"partial")
    _write(tmp_path / "a", "corpus/corpus.json", b"{}")
    _publish(here, store, "extract", ChunkSpec(0, "s"))
    _publish(here, store, "tokenize", ChunkSpec(0))
    assert there.fetch(_stage("explain"), PROBE) == 0  # type: ignore[arg-type]
    assert there.fetch(_stage("probe"), PROBE) == 1  # type: ignore[arg-type]
    assert there.fetch(_stage("merge"), ChunkSpec(0, "other")) == 0  # type: ignore[arg-type]
    assert there.fetch(_stage("merge"), ChunkSpec(0, "s")) == 1  # type: ignore[arg-type]
