"""Backup, restore, retention, deletion and upgrade of a store, on both databases and by the command line."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text, update

from autointerp.operations import deleting, pruning
from autointerp.operations.backup import back_up, read_manifest, restore
from autointerp.operations.deleting import delete_run
from autointerp.operations.pruning import prunable, prune
from autointerp.pipeline.owner import Owner
from autointerp.store import LabelStore, open_store
from autointerp.store.calls import find_replies
from autointerp.store.dialects import migrating
from autointerp.store.ledger import spend
from autointerp.store.models import Chunk, LLMCall, NightRow, Run, ScheduleRow
from autointerp.store.opening import HEAD, MIGRATIONS, sqlite_url
from sae_core.errors import StoreError
from tests.autointerp.operated_store import REPLY, age_calls, contents, fill, make_run_folder
from tests.cli_process import run_cli
from tests.servers import PostgresServer

ROOT = Path(__file__).parents[2]


@dataclass
class Place:
    """A store that is there, and the URL of one that is not there yet."""

    url: str
    new_url: str
    store: LabelStore


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "sqlite":
        url, new_url, close = sqlite_url(tmp_path / "s.db"), sqlite_url(tmp_path / "new.db"), lambda: None
    else:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        url = request.getfixturevalue("postgres_url")
        new_url = server.new_database()

        def close() -> None:
            server.drop(new_url)

    store = open_store(url)
    yield Place(url, new_url, store)
    store.close()
    close()


def cli(*arguments: object, url: str = "") -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AUTOINTERP_")}
    return run_cli(
        [str(argument) for argument in arguments], {**clean, **({"AUTOINTERP_STORE__URL": url} if url else {})}
    )


# backup


def test_what_is_restored_has_the_same_rows(place: Place, tmp_path: Path) -> None:
    fill(place.store, "a-1", "/data/a")
    fill(place.store, "b-1", "/data/b", state="running")
    before = contents(place.store)
    done = cli("backup", tmp_path / "copy", url=place.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 runs" in done.stdout
    assert "/data/a" in done.stdout
    manifest = json.loads((tmp_path / "copy" / "manifest.json").read_text())
    assert [(run["id"], run["state"], run["folder"]) for run in manifest["runs"]] == [
        ("a-1", "done", "/data/a"), ("b-1", "running", "/data/b"),
    ]  # fmt: skip
    assert manifest["rows"]["score"] == len(before["score"]) == 14
    assert manifest["revision"] == HEAD
    done = cli("restore", tmp_path / "copy", "--store", place.new_url)
    assert (done.returncode, done.stderr) == (0, "")
    restored = open_store(place.new_url)
    assert contents(restored) == before
    fill(restored, "c-1")  # numbers of new rows go on above the restored ones
    restored.close()
    again = cli("restore", tmp_path / "copy", "--store", place.new_url)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1


def test_a_backup_is_of_one_moment_while_a_writer_works(place: Place, tmp_path: Path) -> None:
    """The writer adds an artefact and a timing in one transaction; a copy that is whole has as many of each."""
    fill(place.store, "a-1")
    code = f"""
        import itertools
        from sqlalchemy import insert
        from autointerp.store import open_store
        from autointerp.store.models import Artefact, Timing
        store = open_store({place.url!r})
        for n in itertools.count():
            with store.writing() as connection:
                connection.execute(insert(Artefact).values(run_id="a-1", kind=f"w{{n}}", value={{}}))
                connection.execute(insert(Timing).values(run_id="a-1", name=f"w{{n}}", seconds=1.0))
            print(n, flush=True)
    """
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    try:
        assert writer.stdout is not None
        rows = []
        for number in range(3):
            assert writer.stdout.readline(), "the writer died"
            manifest = back_up(place.url, tmp_path / f"copy{number}")
            assert manifest.rows["artefact"] == manifest.rows["timing"]
            rows.append(manifest.rows["timing"])
        before = int(writer.stdout.readline())
        end = time.monotonic() + 20
        while int(writer.stdout.readline()) <= before + 3:
            assert time.monotonic() < end, "the writer stands still"
    finally:
        writer.kill()
        writer.wait(10)
    assert rows[0] < rows[2], "the writer wrote nothing meanwhile, so this tested nothing"
    restore(tmp_path / "copy1", place.new_url)


def test_a_damaged_backup_is_refused(place: Place, tmp_path: Path) -> None:
    fill(place.store, "a-1")
    back_up(place.url, tmp_path / "copy")
    file = next(path for path in (tmp_path / "copy").iterdir() if path.name.startswith("store."))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match="sha256"):
        restore(tmp_path / "copy", place.new_url)
    with pytest.raises(StoreError, match="there already"):
        back_up(place.url, tmp_path / "copy")
    (tmp_path / "none").mkdir()
    with pytest.raises(StoreError, match="no backup"):
        read_manifest(tmp_path / "none")


def test_a_backup_goes_back_to_its_own_kind_of_database(tmp_path: Path, postgres_url: str) -> None:
    open_store(sqlite_url(tmp_path / "s.db")).close()
    back_up(sqlite_url(tmp_path / "s.db"), tmp_path / "copy")
    with pytest.raises(StoreError, match="backup of SQLite"):
        restore(tmp_path / "copy", postgres_url)


def test_a_failed_backup_leaves_nothing_and_tells_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    password = "hid den/pw@1"
    with PostgresServer(password=password) as server:
        url = server.new_database()
        open_store(url).close()
        back_up(url, tmp_path / "good")
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(StoreError, match="pg_dump is not on the PATH"):
            back_up(url, tmp_path / "copy")
        (tmp_path / "pg_dump").write_text('#!/bin/sh\necho "bad $*: password=$PGPASSWORD" | cut -c1-40 >&2\nexit 1\n')
        (tmp_path / "pg_dump").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        with pytest.raises(StoreError, match="pg_dump could not do it") as refused:
            back_up(url, tmp_path / "copy")
        assert "hid" not in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good", "pg_dump"]


def test_a_backup_of_older_tables_leaves_them_older(place: Place, tmp_path: Path) -> None:
    """So that one can be taken before an upgrade."""
    fill(place.store, "a-1")
    downgrade(place.store, "0003")
    manifest = back_up(place.url, tmp_path / "copy")
    assert manifest.revision == "0003"
    assert revision(place.store) == "0003"
    restore(tmp_path / "copy", place.new_url)
    upgraded = open_store(place.new_url, upgrade=True)
    assert len(upgraded.labels("a-1", "s")) == 7
    upgraded.close()


# retention


def test_old_replies_of_ended_runs_go_and_the_ledger_stays(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "ROWS_A_BATCH", 2)
    fill(place.store, "old-1", latents=7)
    fill(place.store, "on-1", state="running")
    fill(place.store, "new-1", state="cancelled")
    age_calls(place.store, 40, run_id="old-1")
    age_calls(place.store, 10, run_id="old-1", latent=3)
    age_calls(place.store, 40, run_id="on-1")
    before = contents(place.store)
    spent = spend(place.store, "old-1")
    limit = datetime.now(UTC) - timedelta(days=30)
    found = prunable(place.store, limit)
    assert [(one.run_id, one.replies) for one in found] == [("old-1", 6)]
    assert found[0].num_bytes > 0
    dry = cli("prune", "--older-than", 30, "--dry-run", url=place.url)
    assert dry.stdout.startswith("old-1: 6 replies")
    assert contents(place.store) == before
    batches: list[int] = []
    assert prune(place.store, found[0], limit, batches.append) == 6
    assert len(batches) >= 3
    assert max(batches) <= 2
    assert spend(place.store, "old-1") == spent
    after = contents(place.store)
    assert {name for name in before if before[name] != after[name]} == {"llm_call"}
    with place.store.reading() as connection:
        kept = connection.execute(select(LLMCall.run_id, LLMCall.latent).where(LLMCall.reply.is_not(None))).all()
        key = connection.execute(select(LLMCall.key).where(LLMCall.run_id == "old-1", LLMCall.latent == 3)).scalar_one()
        assert find_replies(connection, [key])[key].body == REPLY
    assert sorted(map(tuple, kept)) == sorted(
        [("old-1", 3), *((run, n) for run in ("on-1", "new-1") for n in range(7))]
    )
    assert prunable(place.store, limit) == []


def test_prune_by_the_command_line(place: Place) -> None:
    fill(place.store, "old-1")
    age_calls(place.store, 40)
    done = cli("prune", "--older-than", 30, url=place.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "7 replies" in done.stdout
    assert "VACUUM" in done.stdout
    assert "no run that has ended" in cli("prune", "--older-than", 30, url=place.url).stdout


def test_prune_removes_what_killed_exports_left_and_nothing_of_the_living(place: Place, tmp_path: Path) -> None:
    fill(place.store, "old-1", str(tmp_path / "old"))
    fill(place.store, "on-1", str(tmp_path / "on"), state="running")
    left = [
        tmp_path / run / f".dictionary.{16 * digit}.tmp" for run, digit in (("old", "a"), ("old", "b"), ("on", "c"))
    ]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "part-00000.parquet").write_bytes(b"x")
    held = os.open(left[1], os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)  # as its maker does for as long as it lives
    assert "exports" not in cli("prune", "--older-than", 30, "--dry-run", url=place.url).stdout
    assert all(folder.exists() for folder in left)
    done = cli("prune", "--older-than", 30, url=place.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 unfinished exports" in done.stdout
    assert [folder.exists() for folder in left] == [False, True, True]
    os.close(held)


# deletion


def test_a_deleted_run_leaves_no_row_and_no_file_and_others_stay(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deleting, "ROWS_A_BATCH", 3)
    folder = make_run_folder(tmp_path / "gone", "gone-1", place.url)
    fill(place.store, "gone-1", str(folder.root), state="running")
    fill(place.store, "kept-1")
    before = contents(place.store, "kept-1")
    everything = sum(len(rows) for rows in contents(place.store, "gone-1").values())
    assert all(contents(place.store, "gone-1")[name] for name in before), (
        "every table must have a row for this to test it"
    )
    assert delete_run(place.store, "gone-1") == everything
    assert not folder.root.exists()
    store = open_store(place.url)
    assert not any(contents(store, "gone-1").values())
    assert contents(store, "kept-1") == before
    store.close()


def test_delete_asks_first_and_keeps_files_where_told(place: Place, tmp_path: Path) -> None:
    folder = make_run_folder(tmp_path / "out", "gone-1", place.url)
    fill(place.store, "gone-1", str(folder.root))
    asked = cli("delete", "gone-1", "--store", place.url)
    assert asked.returncode == 2
    assert "--yes" in asked.stderr
    assert str(folder.root) in asked.stderr
    assert place.store.has_run("gone-1")
    done = cli("delete", "gone-1", "--store", place.url, "--yes", "--keep-files")
    assert (done.returncode, done.stderr) == (0, "")
    assert not place.store.has_run("gone-1")
    assert (folder.root / "sources" / "s" / "x.bin").is_file()


def test_a_folder_that_is_not_the_runs_is_left_alone(place: Place, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("x")
    another = make_run_folder(tmp_path / "another", "other-1", place.url)
    (tmp_path / "link").symlink_to(another.root)
    for number, folder in enumerate([precious, another.root, tmp_path / "link", precious / "thesis.txt"]):
        fill(place.store, f"gone-{number}", str(folder), state="running")
        with pytest.raises(StoreError, match="--keep-files"):
            delete_run(place.store, f"gone-{number}")
        assert place.store.run_state(f"gone-{number}") == "running"
    assert (precious / "thesis.txt").is_file()
    assert (another.root / "sources" / "s" / "x.bin").is_file()


def test_a_run_whose_folder_holds_its_store_goes_with_it_unless_others_need_it(tmp_path: Path) -> None:
    folder = make_run_folder(tmp_path / "out", "a-1")
    store = open_store(sqlite_url(folder.database))
    fill(store, "a-1", str(folder.root))
    fill(store, "b-1")
    with pytest.raises(StoreError, match="the store of 1 other runs"):
        delete_run(store, "a-1")
    delete_run(store, "b-1")
    delete_run(store, "a-1")
    assert not folder.root.exists()


def test_of_a_copied_and_a_moved_run_what_was_named_goes(tmp_path: Path) -> None:
    """The store in a copied folder remembers the folder that it was copied from, which must stay."""
    folder = make_run_folder(tmp_path / "out", "a-1")
    store = open_store(sqlite_url(folder.database))
    fill(store, "a-1", str(folder.root))
    store.close()
    shutil.copytree(folder.root, tmp_path / "copy")
    shutil.copytree(folder.root, tmp_path / "else" / "copy")
    asked = cli("delete", tmp_path / "copy")
    assert f"the folder '{tmp_path / 'copy'}'" in asked.stderr
    assert cli("delete", tmp_path / "copy", "--yes").returncode == 0
    delete_run(open_store(sqlite_url(tmp_path / "else" / "copy" / "autointerp.db")), "a-1")  # named by its id
    assert (folder.root / "sources" / "s" / "x.bin").is_file()
    assert not (tmp_path / "copy").exists()
    assert not (tmp_path / "else" / "copy").exists()
    folder.root.rename(tmp_path / "moved")
    assert cli("delete", tmp_path / "moved", "--yes").returncode == 0
    assert not (tmp_path / "moved").exists()


def test_a_copy_of_a_run_in_a_shared_store_is_no_name_for_it(place: Place, tmp_path: Path) -> None:
    folder = make_run_folder(tmp_path / "out", "gone-1", place.url)
    fill(place.store, "gone-1", str(folder.root))
    shutil.copytree(folder.root, tmp_path / "copy")
    refused = cli("delete", tmp_path / "copy", "--yes", url=place.url)
    assert refused.returncode == 2
    assert "is a copy of the run gone-1" in refused.stderr
    assert place.store.has_run("gone-1")
    assert cli("delete", folder.root, "--yes", url=place.url).returncode == 0
    assert not folder.root.exists()
    assert (tmp_path / "copy").is_dir()


@pytest.mark.parametrize(
    "by", ["reuse", "labels", "dictionary", "schedule id", "schedule name", "schedule folder", "night"]
)
def test_a_run_that_others_need_is_deleted_by_force_only(place: Place, tmp_path: Path, by: str) -> None:
    folder = make_run_folder(tmp_path / "base", "base-1", place.url)
    fill(place.store, "base-1", str(folder.root))
    root = str(folder.root)
    configs = {
        "reuse": {"extraction": {"reuse": root}},
        "labels": {"labels": {"from": root}},
        "dictionary": {"labels": {"from": f"{root}/dictionary"}},
    }
    named = {"schedule id": "base-1", "schedule name": "n", "schedule folder": root}
    with place.store.writing() as connection:
        if by in configs:
            fields = {"name": "m", "digest": "m", "ordinal": 1, "code_version": "0", "state": "done", "folder": "/m"}
            connection.execute(insert(Run).values(id="user-1", config=configs[by], **fields))
        else:
            connection.execute(insert(ScheduleRow).values(name="user-1", config={"run": named.get(by, "other")}))
            night = {"counts": {}, "anchors": {}, "report": {}, "ends_at": datetime.now(UTC), "date": "2026-01-31"}
            if by == "night":
                connection.execute(
                    insert(NightRow).values(schedule="user-1", state="running", run_id="base-1", **night)
                )
    before = contents(place.store)
    for more in ([], ["--yes"]):
        refused = cli("delete", root, *more, url=place.url)
        assert refused.returncode == 2
        assert "user-1" in refused.stderr
        assert "--force" in refused.stderr
    assert contents(place.store) == before
    assert cli("delete", root, "--yes", "--force", url=place.url).returncode == 0
    assert not folder.root.exists()
    assert not place.store.has_run("base-1")


def test_a_run_that_a_neighbour_with_a_store_of_its_own_needs_is_kept(tmp_path: Path) -> None:
    base, user = make_run_folder(tmp_path / "base", "base-1"), make_run_folder(tmp_path / "user", "user-1")
    for folder, run_id in ((base, "base-1"), (user, "user-1")):
        store = open_store(sqlite_url(folder.database))
        fill(store, run_id, str(folder.root))
        if run_id == "user-1":
            with store.writing() as connection:
                connection.execute(update(Run).values(config={"extraction": {"reuse": str(base.root)}}))
        store.close()
    refused = cli("delete", base.root, "--yes")
    assert (refused.returncode, "user-1 reads its exemplars" in refused.stderr) == (2, True)
    assert cli("delete", user.root, "--yes").returncode == 0
    assert cli("delete", base.root, "--yes").returncode == 0


def test_an_older_run_of_a_name_that_a_schedule_gives_is_not_needed(place: Place, tmp_path: Path) -> None:
    folder = make_run_folder(tmp_path / "base", "old-1", place.url)
    fill(place.store, "old-1", str(folder.root))
    time.sleep(0.01)
    fill(place.store, "young-1")
    with place.store.writing() as connection:
        connection.execute(insert(ScheduleRow).values(name="nights", config={"run": "n"}))
    with pytest.raises(StoreError, match="'nights' scores it every night"):
        delete_run(place.store, "young-1", keep_files=True)
    delete_run(place.store, "old-1")


@pytest.mark.parametrize("event", ["rows:1", "file:1", "file:2"])
@pytest.mark.parametrize("own", [False, True])
def test_a_deletion_that_was_killed_is_finished_by_the_next(
    place: Place, tmp_path: Path, event: str, own: bool
) -> None:
    folder = make_run_folder(tmp_path / "out", "gone-1", None if own else place.url)
    (folder.root / "notes.txt").write_text("x")
    store = open_store(sqlite_url(folder.database)) if own else place.store
    fill(store, "gone-1", str(folder.root))
    if own:
        store.close()
    around = {**os.environ, "AUTOINTERP_FAULT": f"delete:{event}", "AUTOINTERP_STORE__URL": "" if own else place.url}
    killed = run_cli(["delete", str(folder.root), "--yes"], around)
    assert killed.returncode == -signal.SIGKILL
    assert (folder.root / "run.json").is_file()
    url = "" if own else place.url
    asked = cli("delete", folder.root, url=url)
    assert (asked.returncode, "only the folder" in asked.stderr, "--yes" in asked.stderr) == (2, True, True)
    done = cli("delete", folder.root, "--yes", url=url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the folder is removed now" in done.stdout
    assert not folder.root.exists()


def test_a_folder_of_a_run_in_another_store_is_not_taken_for_a_leftover(place: Place, tmp_path: Path) -> None:
    folder = make_run_folder(tmp_path / "out", "gone-1", sqlite_url(tmp_path / "elsewhere.db"))
    for mark in ("", "gone-1"):
        if mark:
            (folder.root / ".deleting").write_text(mark)
        refused = cli("delete", folder.root, "--yes", url=place.url)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "gone-1" in refused.stderr
        assert (folder.root / "sources" / "s" / "x.bin").is_file()


def test_a_folder_whose_database_is_away_or_that_was_kept_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    folder = make_run_folder(tmp_path / "out", "gone-1")
    refused = cli("delete", folder.root, "--yes")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert (folder.root / "sources" / "s" / "x.bin").is_file()
    (folder.root / ".deleting").write_text("gone-1")
    done = cli("delete", folder.root, "--yes")
    assert (done.returncode, folder.root.exists()) == (0, False), done.stderr


def test_delete_waits_for_who_works_on_it(place: Place, tmp_path: Path) -> None:
    """A lease of a live process is waited for, that of a dead one is not."""
    fill(place.store, "gone-1", state="running")
    live = str(Owner.of_this_process())
    dead = subprocess.Popen([sys.executable, "-c", "import time; from autointerp.pipeline.owner import Owner; print(Owner.of_this_process(), flush=True); time.sleep(60)"], stdout=subprocess.PIPE, text=True, cwd=ROOT)  # fmt: skip
    assert dead.stdout is not None
    owner = dead.stdout.readline().strip()
    dead.send_signal(signal.SIGKILL)
    dead.wait(10)

    def hold(owner: str) -> None:
        with place.store.writing() as connection:
            held = {"state": "running", "owner": owner, "lease_until": time.time() + 1000}
            connection.execute(update(Chunk).where(Chunk.run_id == "gone-1", Chunk.ordinal == 0).values(**held))

    hold(live)
    with pytest.raises(StoreError, match="1 chunks of run gone-1 are still worked on"):
        delete_run(place.store, "gone-1", wait_s=0.2)
    assert place.store.run_state("gone-1") == "cancelled"
    assert len(place.store.labels("gone-1", "s")) == 7
    hold(owner)
    delete_run(place.store, "gone-1", wait_s=0.2)
    assert not place.store.has_run("gone-1")


# upgrade


def downgrade(store: LabelStore, to: str) -> None:
    from alembic import command
    from alembic.config import Config

    settings = Config()
    settings.set_main_option("script_location", str(MIGRATIONS))
    with migrating(store.engine) as connection:
        settings.attributes["connection"] = connection
        command.downgrade(settings, to)


def revision(store: LabelStore) -> str:
    with store.reading() as connection:
        return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one())


def test_an_older_store_is_upgraded_with_its_rows(place: Place) -> None:
    fill(place.store, "a-1")
    before = contents(place.store)
    downgrade(place.store, "0003")
    refused = cli("db", "check", url=place.url)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "revision 0003" in refused.stderr
    assert "0003" in cli("db", "current", url=place.url).stdout
    assert revision(place.store) == "0003", "looking must not upgrade"
    done = cli("db", "upgrade", url=place.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert cli("db", "check", url=place.url).returncode == 0
    after = contents(place.store)
    # what the older revision had no place for
    for name in ("event_count", "worker", "duty"):
        before.pop(name), after.pop(name)
    assert after == before


def test_an_older_program_refuses_a_newer_store_in_a_sentence(place: Place, tmp_path: Path) -> None:
    """The program of the revision before: the same code with the migrations up to there."""
    fill(place.store, "a-1")
    before = contents(place.store)
    migrations = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, migrations)
    for path in (migrations / "versions").glob(f"v{HEAD}_*.py"):
        path.unlink()
    older = f"{int(HEAD) - 1:04d}"
    code = f"""
        import sys
        from pathlib import Path
        from autointerp.store import opening
        opening.HEAD, opening.MIGRATIONS = {older!r}, Path({str(migrations)!r})
        from autointerp.cli import main
        sys.argv = ["autointerp", "status", {place.url!r}]
        main()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "newer autointerp" in done.stderr
    assert contents(place.store) == before


def test_an_open_store_of_the_version_before_goes_on_after_the_upgrade(place: Place) -> None:
    """Expand, then contract: what a process of revision 0003 writes is taken by the tables of this one.

    Its statements are those of its own columns: what came later must have defaults or be left out.
    """
    fill(place.store, "a-1", state="running")
    with place.store.writing() as connection:
        connection.execute(
            text("UPDATE chunk SET state = 'running', fence = fence + 1, attempts = attempts + 1 WHERE run_id = 'a-1'")
        )
        connection.execute(text("UPDATE chunk SET state = 'done', lease_until = 0, owner = '' WHERE run_id = 'a-1'"))
        columns = 'run_id, source, latent, scorer, explainer, "values", created_at'
        connection.execute(
            text(
                f"INSERT INTO score ({columns}) VALUES ('a-1', 's', 99, 'fuzz', 'x', '{{}}', '2026-01-01T00:00:00+00:00')"
            )
        )
    assert len(place.store.scores("a-1", "s")) == 8


def test_a_command_without_a_store_says_how_to_name_one(tmp_path: Path) -> None:
    for command in (["backup", tmp_path / "x"], ["restore", tmp_path / "x"], ["prune", "--older-than", "1"], ["db", "check"], ["metrics"]):  # fmt: skip
        done = cli(*command)
        assert done.returncode == 2
        assert "AUTOINTERP_STORE__URL" in done.stderr
        assert done.stderr.count("\n") == 1


def test_runs_in_a_deletion_are_rows_of_every_table_that_names_a_run() -> None:
    """A table that comes later must not be forgotten: it refers to run.id, or its rows outlive runs on purpose."""
    from autointerp.store.models import Base

    # a job outlives its run, so that a request sent again with the same key is not begun anew
    outlive = {"night", "latest_score", "job"}
    for table in Base.metadata.sorted_tables:
        if "run_id" in table.c and table.name not in outlive:
            assert any(key.target_fullname == "run.id" for key in table.foreign_keys), table.name


def test_the_sizing_table_in_the_docs_is_what_the_script_prints() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/sizing.py", "table", "benchmarks/sizing.json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout in (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert done.stdout.count("\n") == 17


# status


def test_status_shows_the_last_runs_and_says_how_many_more_there_are(place: Place) -> None:
    for number in range(23):
        fill(place.store, f"run{number:02d}-1", latents=2)
    begun = datetime.now(UTC)
    with place.store.writing() as connection:
        for number in range(23):  # the last by id began first
            moment = begun - timedelta(hours=number)
            connection.execute(update(Run).where(Run.id == f"run{number:02d}-1").values(created_at=moment))

    def shown(*arguments: str) -> tuple[list[str], str]:
        done = cli("status", *arguments, url=place.url)
        assert (done.returncode, done.stderr) == (0, "")
        return [line.split()[1] for line in done.stdout.splitlines() if line.startswith("run run")], done.stdout

    newest = [f"run{number:02d}-1" for number in reversed(range(23))]
    runs, said = shown()
    assert runs == newest[3:]
    assert "3 earlier runs are not shown: add --all" in said
    runs, said = shown("--follow")  # all have ended
    assert runs == newest[3:]
    assert "3 earlier runs are not shown" in said
    runs, said = shown("--all")
    assert runs == newest
    assert "not shown" not in said
    assert len(json.loads(cli("status", "--json", url=place.url).stdout)) == 23
    assert shown("run22-1")[0] == ["run22-1"]
