"""Files are whole or not there, whoever is killed; owners are told dead only when they are."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autointerp.pipeline.atomic_files import atomic_write, sweep
from autointerp.pipeline.folder import RunFolder, RunNote
from autointerp.pipeline.owner import Owner, is_dead
from sae_core.errors import DiskFullError, StoreError

ROOT = Path(__file__).parents[2]


def test_a_file_is_replaced_whole_or_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("old")
        assert not path.exists()
    with pytest.raises(IsADirectoryError), atomic_write(path) as temporary:
        temporary.write_text("half") and tmp_path.read_text()
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_sentence(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(DiskFullError, match=r"no room left to write .*x\.txt.*free some space"),
        atomic_write(tmp_path / "x.txt"),
    ):
        raise OSError(number, os.strerror(number))
    with pytest.raises(PermissionError), atomic_write(tmp_path / "x.txt"):
        raise PermissionError(errno.EACCES, "no")
    assert not list(tmp_path.iterdir())


def test_a_real_full_disk(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(DiskFullError), atomic_write(tmp_path / "x.txt"):
        Path("/dev/full").write_text("x")


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from autointerp.pipeline.atomic_files import atomic_write\n"
        "root = Path(sys.argv[1])\n"
        "with atomic_write(root / 'sub' / 'x') as t:\n"
        "    t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    (tmp_path / ".hidden").write_text("mine")
    with atomic_write(tmp_path / "live") as temporary:
        temporary.write_text("whole")
        assert sweep(tmp_path) == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".hidden", "live", "sub"]


def test_owners() -> None:
    me = Owner.of_this_process()
    assert Owner.parse(str(me)) == me
    assert not is_dead(str(me))
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    stat = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
    other = Owner(me.host, me.boot, child.pid, int(stat[19]))
    assert not is_dead(str(other))
    assert is_dead(str(Owner(me.host, me.boot, child.pid, int(stat[19]) + 1))), "the number was used again"
    child.kill()
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        pass
    assert is_dead(str(other)), "a zombie does no work"
    child.wait()
    assert child.stdin is not None
    child.stdin.close()
    assert is_dead(str(other))
    assert is_dead(str(Owner(me.host, "other", me.pid, me.started))), "the machine was started anew"
    assert not is_dead(str(Owner("elsewhere", me.boot, 1, 1))), "another host's processes cannot be seen"
    assert not is_dead("nonsense")


def test_an_output_folder_belongs_to_one_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out")
    assert folder.check_free_for("d") is None
    folder.write_note(RunNote("r-1", "d", None))
    assert folder.check_free_for("d") == RunNote("r-1", "d", None)
    with pytest.raises(StoreError, match=r"belongs to another run, r-1 .*choose another --out, or delete"):
        folder.check_free_for("e")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(StoreError, match=r"holds 'thesis\.tex'"):
        RunFolder(tmp_path / "full").check_free_for("d")
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="is a file"):
        RunFolder(tmp_path / "file").check_free_for("d")
    (tmp_path / "early").mkdir()
    for name in ("autointerp.db", "autointerp.db-journal", ".run.json.tmp~x~00000000"):
        (tmp_path / "early" / name).touch()
    assert RunFolder(tmp_path / "early").check_free_for("d") is None
    (folder.root / "run.json").write_text("{")
    with pytest.raises(StoreError, match="not the note of a run"):
        folder.check_free_for("d")
