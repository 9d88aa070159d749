"""``autointerp doctor`` on real servers, as its own process: each planted fault is named on the line of its check, and nothing else is."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import text, update

from autointerp.llm.server import RunningServer
from autointerp.operations.broker_check import exposure
from autointerp.operations.findings import State
from autointerp.operations.gpu_check import GPUs, gpu_finding
from autointerp.operations.store_check import check_store
from autointerp.operations.worker_check import leave_mark
from autointerp.pipeline.code_version import code_version
from autointerp.store import LabelStore, open_store
from autointerp.store.models import Chunk, Duty, Run
from autointerp.store.opening import sqlite_url
from autointerp.store.presence import appear, end_duty, take_duty
from tests.cli_process import run_cli
from tests.servers import PostgresServer, RedisServer, free_port

KEY = "sk-planted-4f1d8c77"
PASSWORD = "pa:ss@wo/rd%41"
HERE = "here,aaaaaaaa,10,5"


@dataclass
class Report:
    """What doctor said."""

    code: int
    states: dict[str, tuple[str, str]]
    """State and sentence of each check; of several lines the worst."""
    printed: str

    def wrong(self) -> dict[str, str]:
        return {check: sentence for check, (state, sentence) in self.states.items() if state == "wrong"}

    def warnings(self) -> dict[str, str]:
        return {check: sentence for check, (state, sentence) in self.states.items() if state == "warning"}


@dataclass
class SetUp:
    """A healthy set-up, in which a test plants one fault."""

    folder: Path
    redis: RedisServer
    postgres: PostgresServer
    store_url: str
    environment: dict[str, str] = field(default_factory=dict)
    config: str = ""
    queues: str = "llm"

    def examine(self, *more: str) -> Report:
        path = self.folder / "run.toml"
        path.write_text(self.config)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AUTOINTERP_")},
            "AUTOINTERP_BROKER__URL": self.redis.url,
            "AUTOINTERP_STORE__URL": self.store_url,
            "JUDGE_KEY": KEY,
            **self.environment,
        }
        arguments = [
            "doctor",
            "--config",
            str(path),
            "--queues",
            self.queues,
            "--out",
            str(self.folder / "runs"),
            *more,
        ]
        done = run_cli([*arguments, "--json"], environment)
        assert done.stderr == "", done.stderr
        said = json.loads(done.stdout)
        states: dict[str, tuple[str, str]] = {}
        for finding in said["findings"]:
            worst = ["ok", "warning", "wrong"]
            before = states.get(finding["check"], ("ok", ""))
            if worst.index(finding["state"]) >= worst.index(before[0]):
                states[finding["check"]] = (finding["state"], finding["sentence"])
        assert said["ok"] == (done.returncode == 0)
        for secret in (KEY, PASSWORD, "pa%3Ass"):
            assert secret not in done.stdout
        return Report(done.returncode, states, done.stdout)


def config(folder: Path, url: str, *, model: str = "test", device: str = "cpu", more: str = "") -> str:
    return f"""
[subject]
model = "{folder}"
device = "{device}"
[[coders]]
path = "{folder}"
name = "c"
[corpus]
path = "{folder}"
[[endpoints]]
kind = "openai"
name = "judge"
base_url = "{url}"
model = "{model}"
api_key_env = "JUDGE_KEY"
[[explainers]]
kind = "max_activating"
[[scorers]]
kind = "detection"
{more}
"""


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[RedisServer, PostgresServer, RunningServer]]:
    with (
        RedisServer(appendonly=True, password=PASSWORD) as redis,
        PostgresServer(password=PASSWORD) as postgres,
        RunningServer(api_key=KEY) as judge,
    ):
        yield redis, postgres, judge


@pytest.fixture
def set_up(tmp_path: Path, servers: tuple[RedisServer, PostgresServer, RunningServer]) -> Iterator[SetUp]:
    redis, postgres, judge = servers
    url = postgres.new_database()
    store = open_store(url)
    live(store)
    store.close()
    yield SetUp(tmp_path, redis, postgres, url, config=config(tmp_path, judge.url))
    postgres.drop(url)


def live(store: LabelStore, owner: str = HERE, version: str | None = None, queues: tuple[str, ...] = ("llm",)) -> None:
    with store.writing() as connection:
        appear(connection, owner, owner.split(",")[0], queues, version or code_version(), 2**28)
        take_duty(connection, "reconcile", owner, 30)
        end_duty(connection, "reconcile", owner)


def new_run(store: LabelStore, folder: Path, run_id: str = "abc-1") -> None:
    store.create_run(
        Run(
            id=run_id,
            name="n",
            digest=run_id,
            ordinal=1,
            config={},
            state="running",
            folder=str(folder),
            code_version="0",
        )
    )


def add_ready_chunk(store: LabelStore, queue: str) -> None:
    with store.writing() as connection:
        connection.execute(
            Chunk.__table__.insert(),  # type: ignore[attr-defined]
            [
                {
                    "run_id": "abc-1", "stage": "extract", "queue": queue, "ordinal": 0, "source": "", "spec": {}, "planned_units": 1,
                    "state": "ready", "owner": "", "lease_until": 0.0, "fence": 0, "attempts": 0, "seconds": 0.0, "units": 0,
                    "priority": 0, "not_before": 0.0,
                }
            ],
        )  # fmt: skip


def test_a_healthy_set_up_is_all_ok(set_up: SetUp) -> None:
    report = set_up.examine()
    assert report.code == 0
    assert {check for check, (state, _) in report.states.items() if state != "ok"} == set()
    assert {
        "broker", "broker version", "broker permissions", "broker memory", "broker persistence", "broker password", "database",
        "database tables", "database clock", "database writes", "database connections", "workers llm", "versions",
        "endpoint judge", "GPU", "output folder", "disk", "time zones",
    } <= set(report.states)  # fmt: skip


def test_it_prints_a_line_a_check(set_up: SetUp) -> None:
    environment = {
        **os.environ,
        "AUTOINTERP_BROKER__URL": set_up.redis.url,
        "AUTOINTERP_STORE__URL": set_up.store_url + "x",
    }
    done = run_cli(["doctor"], environment)
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    assert all(line.split(" ")[0] in ("ok", "warning", "wrong") for line in lines[:-1])
    assert next(line for line in lines if line.startswith("wrong")).startswith("wrong    database: ")
    assert lines[-1].startswith("1 of ")


def test_nothing_given_is_one_machine_and_ok(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AUTOINTERP_")}
    done = run_cli(["doctor", "--out", str(tmp_path)], clean)
    assert done.returncode == 0, done.stdout
    assert "wrong" not in done.stdout


# the broker


def test_a_stopped_broker(set_up: SetUp) -> None:
    set_up.environment["AUTOINTERP_BROKER__URL"] = f"redis://127.0.0.1:{free_port()}/0"
    assert "nobody answers" in set_up.examine().wrong()["broker"]


def test_no_password_and_a_wrong_one_for_the_broker(set_up: SetUp) -> None:
    bare = f"127.0.0.1:{set_up.redis.port}/0"
    set_up.environment["AUTOINTERP_BROKER__URL"] = f"redis://{bare}"
    assert "with no password" in set_up.examine().wrong()["broker"]
    set_up.environment["AUTOINTERP_BROKER__URL"] = f"redis://:another@{bare}"
    report = set_up.examine()
    assert "with this password" in report.wrong()["broker"]
    assert "another" not in report.printed


def test_an_account_of_the_broker_that_may_not_write(set_up: SetUp) -> None:
    with set_up.redis.client() as client:
        client.execute_command("ACL", "SETUSER", "reader", "on", ">readpw", "~*", "&*", "+@read", "+ping", "+info")
    set_up.environment["AUTOINTERP_BROKER__URL"] = f"redis://reader:readpw@127.0.0.1:{set_up.redis.port}/0"
    report = set_up.examine()
    assert list(report.wrong()) == ["broker permissions"]
    assert "may not do what queues need" in report.wrong()["broker permissions"]


def test_the_account_that_doctor_advises_is_enough(set_up: SetUp) -> None:
    rights = ["~*", "&*", "+@all", "-@admin", "-@dangerous", "+info", "+keys"]
    with set_up.redis.client() as client:
        client.execute_command("ACL", "SETUSER", "queues", "on", ">queuepw", *rights)
    set_up.environment["AUTOINTERP_BROKER__URL"] = f"redis://queues:queuepw@127.0.0.1:{set_up.redis.port}/0"
    report = set_up.examine()
    assert (report.code, report.warnings()) == (0, {})


def test_a_broker_that_evicts_and_does_not_keep(set_up: SetUp) -> None:
    with RedisServer(options=("--maxmemory-policy", "allkeys-lru")) as redis:
        set_up.redis = redis
        report = set_up.examine()
    assert list(report.wrong()) == ["broker memory"]
    assert "'allkeys-lru'" in report.wrong()["broker memory"]
    assert list(report.warnings()) == ["broker persistence"]


def test_what_is_no_redis_at_the_brokers_address(set_up: SetUp) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def answer() -> None:
            connection, _ = listening.accept()
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        set_up.environment["AUTOINTERP_BROKER__URL"] = f"redis://127.0.0.1:{listening.getsockname()[1]}/0"
        assert "broker" in set_up.examine().wrong()
    set_up.environment["AUTOINTERP_BROKER__URL"] = "amqp://127.0.0.1/0"
    assert "no address of a Redis" in set_up.examine().wrong()["broker"]


@pytest.mark.parametrize(
    ("host", "authenticated", "settings", "exposed"),
    [
        ("127.0.0.1", False, {}, False),
        ("10.0.0.5", True, {}, False),
        ("10.0.0.5", False, {}, True),
        ("redis", False, {}, True),
        ("localhost", False, {"bind": "127.0.0.1 -::1", "protected-mode": "yes"}, False),
        ("localhost", False, {"bind": "127.0.0.1 10.0.0.5", "protected-mode": "no"}, True),
        ("localhost", False, {"bind": "127.0.0.1 10.0.0.5", "protected-mode": "yes"}, False),
        ("localhost", False, {"bind": "* -::*", "protected-mode": "no"}, True),
        ("localhost", False, {"bind": "", "protected-mode": "no"}, True),
    ],
)
def test_a_broker_that_others_reach_without_a_password(
    host: str, authenticated: bool, settings: dict[str, str], exposed: bool
) -> None:
    assert (exposure(host, authenticated, settings).state is State.WRONG) == exposed


# the database


def test_a_wrong_password_of_the_database(set_up: SetUp) -> None:
    set_up.store_url = set_up.store_url.replace("pa%3Ass", "other")
    assert "does not accept the password of 'postgres'" in set_up.examine().wrong()["database"]


def test_a_database_that_is_not_there(set_up: SetUp) -> None:
    set_up.store_url += "_missing"
    report = set_up.examine()
    assert "has no database" in report.wrong()["database"]
    assert "createdb" in report.wrong()["database"]


def test_a_stopped_database(set_up: SetUp) -> None:
    set_up.store_url = f"postgresql+psycopg://postgres@127.0.0.1:{free_port()}/x"
    assert "nobody answers" in set_up.examine().wrong()["database"]


@pytest.mark.parametrize(("revision", "said"), [("0002", "autointerp db upgrade"), ("9999", "upgrade autointerp here")])
def test_tables_of_another_revision(set_up: SetUp, revision: str, said: str) -> None:
    set_up.postgres.execute(
        f"UPDATE alembic_version SET version_num = '{revision}'", set_up.store_url.rsplit("/", 1)[1]
    )
    report = set_up.examine()
    assert said in report.wrong()["database tables"]
    kept = set_up.postgres.execute("SELECT version_num FROM alembic_version", set_up.store_url.rsplit("/", 1)[1])
    assert kept == [(revision,)], "doctor must change nothing"


def test_a_database_that_only_lets_itself_be_read(set_up: SetUp) -> None:
    name = set_up.store_url.rsplit("/", 1)[1]
    set_up.postgres.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    assert list(set_up.examine().wrong()) == ["database writes"]


def test_a_clock_that_differs_is_a_warning(set_up: SetUp) -> None:
    import time

    found = {finding.check: finding for finding in check_store(set_up.store_url, clock=lambda: time.time() + 600)}
    assert found["database clock"].state is State.WARNING
    assert "600 s ahead" in found["database clock"].sentence


def test_an_sqlite_file_shared_by_machines_is_a_warning(set_up: SetUp) -> None:
    set_up.store_url = sqlite_url(set_up.folder / "s.db")
    store = open_store(set_up.store_url)
    live(store)
    live(store, "there,bbbbbbbb,11,6")
    store.close()
    assert "workers of 2 machines" in set_up.examine().warnings()["SQLite hosts"]


# the workers


def test_a_queue_without_a_worker(set_up: SetUp) -> None:
    set_up.queues = "llm,export"
    assert list(set_up.examine().wrong()) == ["workers export"]


def test_queues_are_missed_in_a_store_that_no_worker_has_opened_yet(set_up: SetUp) -> None:
    set_up.store_url, set_up.queues = sqlite_url(set_up.folder / "new.db"), "llm,gqu"
    found = set_up.examine().wrong()
    assert list(found) == ["workers gqu", "workers llm"]
    assert "did you mean 'gpu'" in found["workers gqu"]
    assert "no worker was ever heard of" in found["workers llm"]


def test_ready_work_that_nobody_takes_and_nobody_reconciles(set_up: SetUp) -> None:
    store = open_store(set_up.store_url)
    new_run(store, set_up.folder)
    add_ready_chunk(store, "gpu")
    with store.writing() as connection:
        connection.execute(update(Duty).values(until=Duty.until - 500))
    store.close()
    report = set_up.examine()
    assert set(report.wrong()) == {"workers gpu", "reconciler"}
    assert "1 chunks are ready" in report.wrong()["workers gpu"]


def test_workers_that_were_heard_of_long_ago_are_gone(set_up: SetUp) -> None:
    set_up.postgres.execute("UPDATE worker SET seen_at = seen_at - 120", set_up.store_url.rsplit("/", 1)[1])
    assert list(set_up.examine().wrong()) == ["workers llm"]


def test_a_worker_of_another_version_is_a_warning(set_up: SetUp) -> None:
    store = open_store(set_up.store_url)
    live(store, "there,bbbbbbbb,11,6", version="0.0.7")
    store.close()
    report = set_up.examine()
    assert report.code == 0
    assert "0.0.7 (there)" in report.warnings()["versions"]


def test_a_folder_that_a_workers_machine_does_not_share(set_up: SetUp) -> None:
    store = open_store(set_up.store_url)
    shared = set_up.folder / "run"
    shared.mkdir()
    new_run(store, shared)
    live(store, "there,bbbbbbbb,11,6")
    store.close()
    leave_mark(shared, HERE)
    assert "there" in set_up.examine().wrong()["shared folder"]
    leave_mark(shared, "there,bbbbbbbb,11,6")
    assert set_up.examine().wrong() == {}


# endpoints, GPU, disk


def test_a_key_that_is_not_set(set_up: SetUp) -> None:
    set_up.environment["JUDGE_KEY"] = ""
    assert "JUDGE_KEY, which is not set" in set_up.examine().wrong()["endpoint judge"]


def test_a_key_that_is_not_accepted(set_up: SetUp) -> None:
    set_up.environment["JUDGE_KEY"] = "sk-other"
    report = set_up.examine()
    assert "HTTP 401" in report.wrong()["endpoint judge"]
    assert "sk-other" not in report.printed


def test_a_model_that_the_server_does_not_have(set_up: SetUp) -> None:
    set_up.config = set_up.config.replace('model = "test"', 'model = "other"')
    assert "does not know the model" in set_up.examine().wrong()["endpoint judge"]


def test_an_endpoint_where_nobody_answers(set_up: SetUp) -> None:
    set_up.config = config(set_up.folder, f"http://127.0.0.1:{free_port()}/v1")
    assert "does not answer" in set_up.examine().wrong()["endpoint judge"]


def test_a_budget_in_dollars_without_prices(set_up: SetUp) -> None:
    set_up.config += "[budget]\nusd = 5.0\n"
    assert "usd_per_million_input_tokens" in set_up.examine().wrong()["config"]


def test_a_gpu_that_torch_does_not_see(set_up: SetUp) -> None:
    set_up.environment["CUDA_VISIBLE_DEVICES"] = ""  # of whatever machine runs this
    set_up.config = set_up.config.replace('device = "cpu"', 'device = "cuda"')
    assert "torch sees no GPU" in set_up.examine().wrong()["GPU"]


@pytest.mark.parametrize(
    ("device", "free", "weights", "state", "said"),
    [
        ("cuda", (40 * 2**30,), 2**30, State.OK, "sees 1"),
        ("auto", (40 * 2**30,), 2**30, State.OK, "sees 1"),
        ("cuda:1", (40 * 2**30,), 0, State.WRONG, "give cuda:0 to cuda:0"),
        ("cuda", (4 * 2**30,), 16 * 2**30, State.WRONG, "4.0 GiB free"),
        ("cuda:1", (40 * 2**30, 2**30), 0, State.WARNING, "1.0 GiB free"),
        ("auto", (), 0, State.OK, "on the CPU"),
        ("cuda", (), 0, State.WRONG, "nvidia-smi"),
    ],
)
def test_what_a_gpu_means_for_a_device(
    device: str, free: tuple[int, ...], weights: int, state: State, said: str
) -> None:
    finding = gpu_finding(GPUs("2.12", "12.8", free), device, weights)
    assert finding.state is state
    assert said in finding.sentence


def test_an_output_folder_with_a_file_in_its_way(set_up: SetUp) -> None:
    (set_up.folder / "runs").write_text("in the way")
    assert "is a file" in set_up.examine().wrong()["output folder"]


def test_a_config_that_is_none(set_up: SetUp) -> None:
    set_up.config = "[subject]\nmodle = 'x'\n"
    assert "modle" in set_up.examine().wrong()["config"]


def test_doctor_loads_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from autointerp.operations.doctor import Examined, examine;"
        f"list(examine(Examined(queues=('gpu',), out=Path({str(tmp_path)!r}))));"
        "print(sorted({'torch', 'celery', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_planted_fault_leaves_the_store_alone(set_up: SetUp) -> None:
    """Doctor opens no store in the way that upgrades it, and makes no file."""
    set_up.store_url = sqlite_url(set_up.folder / "new.db")
    set_up.queues = ""
    assert "not there yet" in set_up.examine().states["database"][1]
    assert not (set_up.folder / "new.db").exists()
    empty = open_store(set_up.store_url)
    with empty.writing() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    empty.close()
    assert "database tables" in set_up.examine().warnings()
