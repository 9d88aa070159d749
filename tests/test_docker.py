"""docker/: what the files say of each other, real servers by their settings, and by `make test-long` the whole of it outside containers."""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import yaml

from tests import servers

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
TEXT = (DOCKER / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: given for name, given in SERVICES.items() if "build" in given}
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def _outside() -> ModuleType:
    spec = importlib.util.spec_from_file_location("try_outside", DOCKER / "try_outside.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["try_outside"] = module
    spec.loader.exec_module(module)
    return module


outside = _outside()


def _settings() -> dict[str, str]:
    lines = (DOCKER / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_the_dockerfile_passes_its_linter() -> None:
    for dockerfile in DOCKER.glob("*Dockerfile"):
        said = subprocess.run(
            [Path(sys.executable).parent / "hadolint", "--no-color", dockerfile],
            capture_output=True,
            text=True,
            check=False,
        )
        assert said.returncode == 0, said.stdout + said.stderr


def test_every_variable_is_in_the_example_with_the_value_that_holds_without_it() -> None:
    used = {name: default for name, default in VARIABLE.findall(TEXT)}
    assert used == _settings()


def test_secrets_are_files_that_services_name_and_use() -> None:
    asked = {name: set(given.get("secrets", ())) for name, given in SERVICES.items()}
    assert set().union(*asked.values()) == set(COMPOSE["secrets"])
    for given in COMPOSE["secrets"].values():
        assert given["file"].startswith("${SECRETS_FOLDER:-./secrets}/")
    for name, given in SERVICES.items():
        assert set(re.findall(r"/run/secrets/(\w+)", str(given))) <= asked[name], name
        for variable in given.get("environment", {}):
            assert not re.search("PASSWORD|KEY|TOKEN|SECRET", variable) or variable.endswith("_FILE"), (name, variable)
    example = (DOCKER / ".env.example").read_text()
    assert all(secret in example for secret in COMPOSE["secrets"])


def test_the_only_port_is_that_of_the_metrics_and_for_this_machine() -> None:
    published = {name: given["ports"] for name, given in SERVICES.items() if "ports" in given}
    assert list(published) == ["metrics"]
    assert all(port.startswith("127.0.0.1:") for port in published["metrics"])
    assert all(given.get("network_mode") is None for given in SERVICES.values())


def test_the_servers_are_on_the_inner_network_alone() -> None:
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    for name in ("redis", "postgres"):
        assert SERVICES[name]["networks"] == ["inside"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_can_be_watched_restarted_and_stopped(name: str) -> None:
    given = SERVICES[name]
    assert given["restart"] == "unless-stopped"
    assert given["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert outside.seconds(given["stop_grace_period"]) >= 30
    assert given["logging"]["options"]["max-size"]
    assert not given.get("privileged")
    image = VARIABLE.sub(lambda match: match[2], given["image"])
    assert not image.endswith(":latest")
    assert ":" in image
    if name in OURS:
        assert given["read_only"]
        assert given["cap_drop"] == ["ALL"]
        assert set(given["depends_on"]) == {"redis", "postgres"}
        assert all(on == {"condition": "service_healthy"} for on in given["depends_on"].values())


def test_workers_serve_every_queue_and_are_given_longer_than_they_take_to_end() -> None:
    from autointerp.pipeline.stage import Queue

    app = subprocess.run(
        [sys.executable, "-c", "from workers.app import app; print(app.conf.worker_soft_shutdown_timeout)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    served: set[str] = set()
    for name, given in OURS.items():
        words = shlex.split(given["command"])
        if "worker" in words:
            queue = words[words.index("-Q") + 1]
            assert f"{queue}@%h" in words
            assert f"{queue}@$$(hostname)" in given["healthcheck"]["test"][1]
            assert name == f"worker-{queue}"
            served.add(queue)
            assert outside.seconds(given["stop_grace_period"]) >= 60 + float(app.stdout)
    assert served == set(get_args(Queue))


def test_what_the_dockerfile_copies_reaches_the_builder_and_nothing_else() -> None:
    rules = [line for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line and line[0] != "#"]
    copied = {
        source
        for name, rest in outside.instructions(DOCKER / "Dockerfile")
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)
    assert any(fnmatch.fnmatch("a/__pycache__", rule) for rule in rules[1:])


def test_the_image_has_a_python_and_a_vllm_that_the_package_allows() -> None:
    from packaging.specifiers import SpecifierSet

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    images = [rest for name, rest in outside.instructions(DOCKER / "Dockerfile") if name == "ARG" and "python:" in rest]
    python = re.search(r"python:([\d.]+)-", images[0])
    assert python is not None
    assert python[1] in SpecifierSet(project["requires-python"])
    vllm = SERVICES["vllm"]["image"].removeprefix("vllm/vllm-openai:v")
    assert vllm in SpecifierSet(project["optional-dependencies"]["vllm"][0].removeprefix("vllm"))


def test_the_image_runs_as_nobody_special_and_passes_signals_on() -> None:
    last: dict[str, str] = {}
    for name, rest in outside.instructions(DOCKER / "Dockerfile"):
        last = {} if name == "FROM" else last | {name: rest}
    assert last["USER"] == "1000"
    assert last["ENTRYPOINT"] == '["tini", "--"]'
    assert last["CMD"].startswith('["celery", "-A", "workers.app"')
    assert "inspect ping" in last["HEALTHCHECK"]


# ---- real servers by these settings


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[tuple[int, str]]:
    """Port and password of a Redis that redis.sh started."""
    import redis

    password = "quite secret"
    (tmp_path / "password").write_text(password + "\n")
    port = servers.free_port()
    server = subprocess.Popen(
        [
            "sh",
            DOCKER / "redis.sh",
            DOCKER / "redis.conf",
            tmp_path / "password",
            "--port",
            str(port),
            "--bind",
            servers.HOST,
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{Path(servers._redis_binary()).parent}:{os.environ['PATH']}",
            "TMPDIR": str(tmp_path),
        },
        stdout=subprocess.DEVNULL,
    )
    try:
        client = redis.Redis(port=port, password=password)
        for _ in range(100):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                outside.time.sleep(0.1)
        assert password not in Path(f"/proc/{server.pid}/cmdline").read_text() if sys.platform == "linux" else True
        assert all(
            password.encode() not in path.read_bytes()
            for path in tmp_path.iterdir()
            if path.is_file() and path.name != "password"
        )
        yield port, password
    finally:
        server.terminate()
        server.wait(10)


def test_who_has_the_brokers_password_cannot_empty_or_change_it(broker: tuple[int, str]) -> None:
    import redis

    port, password = broker
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=port).ping()
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=port, password="guessed").ping()
    client = redis.Redis(port=port, password=password, decode_responses=True)
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert client.config_get("appendonly") == {"appendonly": "yes"}
    assert client.info()["redis_version"]
    for forbidden in (
        ["FLUSHALL"],
        ["FLUSHDB"],
        ["CONFIG", "SET", "dir", "/"],
        ["SHUTDOWN"],
        ["KEYS", "*"],
        ["DEBUG", "SLEEP", "0"],
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*forbidden)


def test_redis_without_a_password_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for password in ("empty", "missing"):
        said = subprocess.run(
            ["sh", DOCKER / "redis.sh", DOCKER / "redis.conf", tmp_path / password],
            capture_output=True,
            text=True,
            check=False,
        )
        assert said.returncode == 2
        assert "no password" in said.stderr


def test_both_servers_start_by_their_files_and_stop_in_time() -> None:
    said = subprocess.run(
        [sys.executable, DOCKER / "try_outside.py", "none"], capture_output=True, text=True, timeout=120, check=False
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert "2 services started, were healthy and stopped" in said.stdout


@pytest.mark.parametrize(
    ("command", "health", "told"),
    [
        ("sh -c 'exit 3'", "true", "ended by itself, exit code 3"),
        pytest.param("sh -c 'trap \"\" TERM; sleep 20'", "true", "still ran after 1 s", marks=pytest.mark.long),
        pytest.param(
            "sh -c 'trap \"exit 4\" TERM; while :; do sleep 0.1; done'",
            "sleep 0.5",
            "ended with exit code 4",
            marks=pytest.mark.long,
        ),
        pytest.param("sleep 20", "echo unwell; exit 1", "unwell", marks=pytest.mark.long),
        pytest.param("sh -c 'echo NOPERM; sleep 20'", "sleep 0.5", "has 'NOPERM'", marks=pytest.mark.long),
        ("sh -c 'cat \"$PASSWORD_FILE\"; sleep 20'", "sleep 0.5", "shows redis_password"),
    ],
)
def test_a_service_that_does_not_work_is_told(
    command: str, health: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outside, "_HEALTHY_S", 5.0)
    broken = {
        "command": command,
        "environment": {"PASSWORD_FILE": "/run/secrets/redis_password"},
        "secrets": ["redis_password"],
        "stop_grace_period": "1s",
        "healthcheck": {"test": ["CMD-SHELL", health], "timeout": "5s"},
    }
    compose = {**COMPOSE, "services": {**SERVICES, "broken": broken}}
    with pytest.raises(outside.Failed, match=told):
        outside.try_services(compose, ["broken"], tmp_path, tmp_path)


# ---- with what pip installs


@pytest.mark.long
def test_the_check_script_passes() -> None:
    said = subprocess.run(
        [DOCKER / "check.sh", sys.executable], capture_output=True, text=True, timeout=280, check=False
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert "a misspelt key is refused" in said.stdout


@pytest.mark.long
@pytest.mark.timeout(900)
def test_all_services_install_start_and_stop_outside_containers() -> None:
    environment = {**os.environ, "TORCH_INDEX": os.environ.get("TORCH_INDEX") or "https://pypi.org/simple"}
    said = subprocess.run(
        [sys.executable, DOCKER / "try_outside.py"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
    )
    assert said.returncode == 0, said.stdout[-4000:] + said.stderr
    assert f"{len(SERVICES) - 1} services started, were healthy and stopped" in said.stdout
