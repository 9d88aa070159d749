#!/usr/bin/env python3
"""Try outside a container what the Dockerfile installs and what compose.yaml starts.

The instructions and commands are read from these two files. The Dockerfile's first stage is done in a temporary folder: its
COPY lines copy, its RUN lines run, so the environment has what the image will have. Then each service of compose.yaml starts by its
own command, with its own environment, secrets and configuration files; paths of the container are mapped to the temporary
folder, the names ``redis`` and ``postgres`` to 127.0.0.1 and free ports. Each must become healthy by its own healthcheck, and
end within its grace period when it is told to stop. Not tried: Debian packages, users, limits, networks, GPUs, vLLM.

usage: docker/try_outside.py [--environment FOLDER] [SERVICE ...]    (run by a Python that has autointerp's test extra)
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))
from tests import servers  # noqa: E402

SERVERS = ("redis", "postgres")
NOT_OURS = ("vllm",)
TERMINATED = (0, -signal.SIGTERM, 128 + signal.SIGTERM)
_HEALTHY_S = 180.0


class Failed(Exception):
    """What was tried does not work."""


# ---- the Dockerfile


def instructions(dockerfile: Path) -> Iterator[tuple[str, str]]:
    """Each instruction's name and the rest of it, continued lines joined and comments left out."""
    text = "\n".join(line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            yield name.upper(), rest.strip()


def install(dockerfile: Path, venv: Path, work: Path) -> None:
    """Do the first stage with /opt/venv at ``venv``. The environment may give values for its ARGs. Errors: Failed."""
    environment = {**os.environ, "PATH": os.environ["PATH"]}
    folder = work / "stage"
    folder.mkdir()
    stages = 0
    for name, rest in instructions(dockerfile):
        stages += name == "FROM"
        if stages != 1 or name in ("FROM", "WORKDIR"):
            continue
        rest = rest.replace("/opt/venv", str(venv))
        if name == "ARG":
            key, _, default = rest.partition("=")
            environment.setdefault(key, default)
        elif name == "ENV":
            for key, value in (word.split("=", 1) for word in shlex.split(rest)):
                environment[key] = value.replace("$PATH", environment["PATH"])
        elif name == "COPY":
            *given, target = rest.split()
            for source in given:
                _copy(ROOT / source, folder / target / (source if (ROOT / source).is_file() else ""))
        elif name == "RUN":
            print(f"RUN {rest}", flush=True)
            # python before there is an environment: the one of the base image
            command = rest.replace("python -m venv", f"{shlex.quote(sys.executable)} -m venv")
            if subprocess.run(["/bin/sh", "-c", command], cwd=folder, env=environment, check=False).returncode:
                raise Failed(f"the Dockerfile's line failed: RUN {rest}")
        else:
            raise Failed(f"the Dockerfile's first stage has an instruction that cannot be tried: {name} {rest}")
    shutil.rmtree(folder)


def _copy(source: Path, target: Path) -> None:
    if not source.exists():
        raise Failed(f"the Dockerfile copies {source.name!r}, which is not there")
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def runtime_environment(dockerfile: Path, venv: Path) -> dict[str, str]:
    """What ENV of the last stage sets."""
    values: dict[str, str] = {}
    for name, rest in instructions(dockerfile):
        if name == "FROM":
            values = {}
        elif name == "ENV":
            words = (word.partition("=") for word in shlex.split(rest.replace("/opt/venv", str(venv))))
            values.update((key, value) for key, _, value in words)
    return values


# ---- the compose file


@dataclass(frozen=True)
class Place:
    """Where a service finds what compose.yaml gives it, outside a container."""

    variables: Mapping[str, str]
    """What stands for ${NAME}; other names have their defaults."""
    paths: dict[str, Path]
    """Paths of the container."""
    hosts: Mapping[str, str]
    """host:port of the compose network."""

    def of(self, text: str) -> str:
        """A value of compose.yaml as it holds here."""
        text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: self.variables.get(m[1], m[2]), text).replace("$$", "$")
        for path in sorted(self.paths, key=len, reverse=True):
            text = re.sub(rf"(?<![\w./-]){re.escape(path)}(?=[/\s\"';)]|$)", str(self.paths[path]), text)
        text = text.replace("0.0.0.0", servers.HOST)
        for host, here in self.hosts.items():
            text = re.sub(rf"(?<=[/@]){re.escape(host)}(?=/|$)", here, text)
        return text

    def words(self, given: str | list[str]) -> list[str]:
        """A command as compose reads it: a list, or a line that is split as a shell would."""
        if isinstance(given, str):
            return shlex.split(self.of(given))
        return [self.of(str(word)) for word in given]


def seconds(duration: str) -> float:
    """Of a duration such as ``1m30s``."""
    units = {"h": 3600, "m": 60, "s": 1}
    return float(sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration)))


class Service:
    """A service of compose.yaml as a process of this machine."""

    def __init__(
        self, name: str, given: Mapping[str, Any], place: Place, work: Path, environment: Mapping[str, str]
    ) -> None:
        self.name, self._given = name, given
        paths = dict(place.paths)
        for volume in given.get("volumes", ()):
            source, target = place.of(volume).split(":")[:2]
            paths[target] = (
                (HERE / source) if source.startswith("./") and (HERE / source).is_file() else work / Path(source).name
            )
        for tmpfs in given.get("tmpfs", ()):
            if (target := tmpfs.split(":")[0]) != "/tmp":
                paths[target] = work / name / target.strip("/")
        for secret in given.get("secrets", ()):
            paths[f"/run/secrets/{secret}"] = work / "secrets" / secret
        for path in paths.values():
            if not path.exists():
                path.mkdir(parents=True)
        self.place = Place(place.variables, paths, place.hosts)
        self.folder = paths.get(given.get("working_dir", ""), work)
        self.environment = {key: self.place.of(value) for key, value in environment.items()}
        self.environment |= {key: self.place.of(str(value)) for key, value in given.get("environment", {}).items()}
        self.log = work / f"{name}.log"
        self.grace_s = seconds(given["stop_grace_period"])
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, extra: list[str], **settings: Any) -> None:
        """Start its command with some more arguments."""
        command = [*self.place.words(self._given["command"]), *extra]
        print(f"{self.name}: {shlex.join(command)}", flush=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **settings,
            )

    def wait(self) -> None:
        """Until it is healthy by its own check. Errors: Failed."""
        assert self.process is not None
        kind, *test = self._given["healthcheck"]["test"]
        command = ["/bin/sh", "-c", self.place.of(test[0])] if kind == "CMD-SHELL" else self.place.words(test)
        limit_s = seconds(self._given["healthcheck"]["timeout"])
        began = time.monotonic()
        said = "nothing"
        while time.monotonic() < began + _HEALTHY_S:
            if self.process.poll() is not None:
                raise Failed(f"{self.name} ended by itself, exit code {self.process.returncode}:\n{self.tail()}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = subprocess.run(
                    command, env=self.environment, cwd=self.folder, capture_output=True, timeout=limit_s, check=False
                )
                if done.returncode == 0:
                    print(f"{self.name}: healthy after {time.monotonic() - began:.1f} s", flush=True)
                    return
                said = (done.stdout + done.stderr).decode(errors="replace")
            time.sleep(1)
        raise Failed(f"{self.name} is not healthy after {_HEALTHY_S:.0f} s; its check said {said!r}:\n{self.tail()}")

    def stop(self) -> None:
        """As compose stops it. Errors: Failed where it takes longer than its grace period, or ends by an error."""
        if self.process is None or self.process.poll() is not None:
            return
        began = time.monotonic()
        self.process.send_signal(signal.Signals[self._given.get("stop_signal", "SIGTERM")])
        try:
            code = self.process.wait(self.grace_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(
                f"{self.name} was told to stop and still ran after {self.grace_s:.0f} s:\n{self.tail()}"
            ) from None
        if code not in TERMINATED:
            raise Failed(f"{self.name} was told to stop and ended with exit code {code}:\n{self.tail()}")
        print(f"{self.name}: stopped after {time.monotonic() - began:.1f} s, exit code {code}", flush=True)

    def kill(self) -> None:
        """Whatever it does, it ends."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def tail(self) -> str:
        """What it said last."""
        return self.log.read_text(errors="replace")[-4000:]


def make_cluster(postgres: Service, binaries: Path, as_user: Mapping[str, Any], password: Path) -> None:
    """What the image's entrypoint does before the first start: a cluster with one user and their password."""
    data = Path(postgres.environment["PGDATA"])
    data.parent.mkdir(parents=True, exist_ok=True)
    own_copy = data.parent / "password"
    own_copy.write_text(password.read_text())
    if as_user:
        for path in (data.parent, own_copy):
            os.chown(path, as_user["user"], as_user["group"])
    options = ["-U", postgres.environment["POSTGRES_USER"], "-E", "UTF8", "--no-locale", "-A", "scram-sha-256"]
    made = subprocess.run(
        [binaries / "initdb", "-D", data, *options, "--pwfile", own_copy],
        capture_output=True,
        cwd=data.parent,
        check=False,
        **as_user,
    )
    own_copy.unlink()
    if made.returncode:
        raise Failed(f"initdb failed: {made.stderr.decode(errors='replace')}")


def make_database(postgres: Service, port: int, password: Path) -> None:
    """The database of POSTGRES_DB, made by the user over the network."""
    import psycopg

    with psycopg.connect(
        host=servers.HOST,
        port=port,
        user=postgres.environment["POSTGRES_USER"],
        password=password.read_text().strip(),
        dbname="postgres",
        autocommit=True,
    ) as connection:
        connection.execute(f'CREATE DATABASE "{postgres.environment["POSTGRES_DB"]}"')


def try_services(compose: Mapping[str, Any], wanted: list[str], venv: Path, work: Path) -> None:
    """Start Redis, PostgreSQL and the services wanted, see all healthy, and stop them. Errors: Failed."""
    (work / "secrets").mkdir()
    for secret in compose["secrets"]:
        (work / "secrets" / secret).write_text(secrets.token_urlsafe(24) + "\n")
    ports = {name: servers.free_port() for name in (*SERVERS, "metrics")}
    place = Place(
        {f"{name.upper()}_PORT": str(port) for name, port in ports.items()} | {"LLM_PROCESSES": "1"},
        {},
        {f"{name}:{ports[name]}": f"{servers.HOST}:{ports[name]}" for name in SERVERS},
    )
    image = runtime_environment(HERE / "Dockerfile", venv)
    base = {key: value for key, value in os.environ.items() if not key.startswith("AUTOINTERP_")}
    inside = base | image | {"PATH": f"{venv}/bin:{os.environ['PATH']}", "HOME": str(work), "C_FORCE_ROOT": "1"}
    stub = servers.PostgresServer()
    binaries = servers._postgres_binaries(stub.folder)
    as_user = stub._as_user()
    redis_folder = Path(servers._redis_binary()).parent
    cli_folder = next(
        (str(Path(found).parent) for found in [shutil.which("redis-cli")] if found), str(Path(sys.executable).parent)
    )
    own = {
        "redis": {"PATH": f"{redis_folder}:{cli_folder}:{os.environ['PATH']}"},
        "postgres": {"PATH": f"{binaries}:{os.environ['PATH']}", "PGDATA": str(stub.folder / "cluster" / "data")},
    }
    started: list[Service] = []
    try:
        for name in (*SERVERS, *wanted):
            service = Service(name, compose["services"][name], place, work, own.get(name, inside))
            extra: list[str] = []
            if name == "redis":
                extra = ["--bind", servers.HOST]
            elif name == "postgres":
                make_cluster(service, binaries, as_user, work / "secrets" / "postgres_password")
                service.folder = stub.folder
                extra = ["-c", f"listen_addresses={servers.HOST}", "-c", f"unix_socket_directories={stub.folder}"]
                for path, here in service.place.paths.items():  # the server's user may not reach the repository
                    if here.is_file() and here.parent == HERE:
                        service.place.paths[path] = Path(shutil.copy(here, stub.folder))
            started.append(service)
            service.start(extra, **(as_user if name == "postgres" else {}))
            if name in SERVERS:
                service.wait()
            if name == "postgres":
                make_database(service, ports[name], work / "secrets" / "postgres_password")
        for service in started:
            service.wait()
        for service in reversed(started):
            service.stop()
        _no_trouble_told(work, started)
    finally:
        for service in reversed(started):
            service.kill()
        stub.close()


def _no_trouble_told(work: Path, started: list[Service]) -> None:
    """Errors: Failed where a log shows a password, a traceback or a command that the broker forbids."""
    for service in started:
        text = service.log.read_text(errors="replace")
        for trouble in ("Traceback (most recent call last)", "NoPermissionError", "NOPERM"):
            if trouble in text:
                raise Failed(f"the log of {service.name} has {trouble!r}:\n{service.tail()}")
        for secret in (work / "secrets").iterdir():
            if secret.read_text().strip() in text:
                raise Failed(f"the log of {service.name} shows {secret.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--environment", type=Path, help="an environment made by an earlier call, or where to make one and keep it"
    )
    parser.add_argument("services", nargs="*", help="default: all but vllm")
    arguments = parser.parse_args()
    compose = yaml.safe_load((HERE / "compose.yaml").read_text())
    known = [name for name in compose["services"] if name not in (*SERVERS, *NOT_OURS)]
    for name in set(arguments.services) - {*known, "none"}:
        sys.exit(f"there is no service {name!r} to try: choose from {', '.join(known)}, or none")
    wanted = [name for name in known if not arguments.services or name in arguments.services]
    work = Path(tempfile.mkdtemp(prefix="autointerp-outside-"))
    venv = (arguments.environment or work / "venv").absolute()
    try:
        if not (venv / "bin" / "autointerp").exists() and wanted:
            install(HERE / "Dockerfile", venv, work)
        try_services(compose, wanted, venv, work)
    except Failed as error:
        sys.exit(str(error))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{len(wanted) + len(SERVERS)} services started, were healthy and stopped")


if __name__ == "__main__":
    main()
