"""Pages of a dictionary of a million latents, asked over HTTP of a real server: a reader alone, then fifty beside a run at work.

python -m benchmarks.serve_million [--latents 1000000] [--stores sqlite,postgresql] [--readers 50] [--seconds 60]

Exemplars of tests/made_up_world.py under rows of tests/autointerp/export_world.py, exported once. Times are those of whole requests on the
loopback, each on a kept connection, so the server's own time is less. Alone: latents at random, the table in every order by every figure with two random filters at
random quantiles, words, and pages far down. Fifty readers wait a second of think time (exponential) between clicks, drawn from the same
pages, beside a labelling run that takes what it can get of the processor.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil

from tests.made_up_world import make_base, run_settings, write_config
from tests.server.served_world import RUN_ID, SOURCE, make_served
from tests.servers import PostgresServer

ROOT = Path(__file__).parents[1]
RUN = f"/runs/{RUN_ID}"
SCRIPT = {"kind": "scripted", "replies": [json.dumps({"label": "a word"})]}


@contextmanager
def serving(home: Path, run: Path, env: dict[str, str]) -> Iterator[tuple[str, psutil.Process]]:
    """The server as a process of its own."""
    command = [sys.executable, "-m", "autointerp.cli", "serve", str(run), "--home", str(home), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env) as server:
        assert server.stdout is not None
        found = re.search(r"http://\S+?(?=/ )", server.stdout.readline())
        assert found is not None
        try:
            yield found[0], psutil.Process(server.pid)
        finally:
            server.terminate()


def timed(client: httpx2.Client, path: str) -> float:
    """Milliseconds of one request."""
    began = time.perf_counter()
    answer = client.get(path)
    took = 1000 * (time.perf_counter() - began)
    assert answer.status_code == 200, f"{answer.status_code} {path}: {answer.text[:300]}"
    return took


def pages(client: httpx2.Client, rng: random.Random, num_latents: int) -> dict[str, Callable[[], str]]:
    """Ways to draw an address, by kind of page."""
    view = client.get(f"/api{RUN}/latents", params={"limit": 200}).json()
    figures = [figure["name"] for figure in view["figures"]]
    samples: dict[str, list[float]] = {name: [] for name in figures}
    for name in figures:
        rows = client.get(f"/api{RUN}/latents", params={"sort": name, "limit": 1}).json()["rows"]
        top = client.get(f"/api{RUN}/latents", params={"sort": name, "limit": 1, "descending": True}).json()["rows"]
        samples[name] = [rows[0]["figures"][name]["value"], top[0]["figures"][name]["value"]]

    def bound() -> str:
        name = rng.choice(figures)
        low, high = samples[name]
        return f"&where={name}{rng.choice(['%3E%3D', '%3C%3D'])}{low + (high - low) * rng.random():.6g}"

    def filters(count: int) -> str:
        kinds = [
            bound,
            bound,
            lambda: "&status=labelled",
            lambda: f"&words=number+{rng.randrange(num_latents)}",
            lambda: "&words=word",
        ]
        return "".join(draw() for draw in rng.sample(kinds, count))

    def table(sort: str | None = None) -> str:
        order = sort or rng.choice(figures)
        return f"{RUN}/latents?sort={order}{rng.choice(['', '&descending=true'])}{filters(2)}"

    def deep() -> str:
        path = f"/api{table()}"
        for _ in range(3):
            following = client.get(path).json()["next"]
            if following is None:
                break
            path = re.sub(r"&after=[^&]*", "", path) + f"&after={following}"
        return path.removeprefix("/api")

    return {
        "latent": lambda: f"{RUN}/latents/{SOURCE}/{rng.randrange(num_latents)}",
        "table, any sort and two filters": table,
        "words": lambda: (
            f"{RUN}/latents?words={rng.choice(['the+word+number', 'colon', 'also+aft', f'{rng.randrange(num_latents)}'])}"
        ),
        "further pages": deep,
        "run": lambda: RUN,
        "picture": lambda: f"{RUN}/pictures/{rng.choice(['precision-recall', 'f1-rate'])}",
    }


def alone(client: httpx2.Client, ways: dict[str, Callable[[], str]], rounds: int) -> dict[str, dict[str, float]]:
    """Median, 95th percentile and largest time in milliseconds of each kind of page, and which was slowest."""
    found = {}
    for name, draw in ways.items():
        count = rounds if name not in ("run", "picture") else 20
        asked = [draw() for _ in range(count)]
        times = [timed(client, path) for path in asked]
        found[name] = {"median": float(np.median(times)), "p95": float(np.quantile(times, 0.95)), "max": max(times)}
        print(
            f"  {name:34s} median {found[name]['median']:6.0f}  95% {found[name]['p95']:6.0f}  most {max(times):6.0f} ms   {asked[int(np.argmax(times))]}",
            flush=True,
        )
    return found


async def crowd(base: str, draw: Callable[[], str], readers: int, seconds: float, seed: int) -> list[float]:
    """Milliseconds of all requests of readers who look a second at each page."""
    times: list[float] = []
    until = time.monotonic() + seconds

    async def read(number: int) -> None:
        rng = random.Random(seed + number)
        async with httpx2.AsyncClient(base_url=base, timeout=60) as client:
            await asyncio.sleep(rng.random())
            while time.monotonic() < until:
                path, began = draw(), time.perf_counter()
                answer = await client.get(path)
                assert answer.status_code == 200, answer.text[:300]
                times.append(1000 * (time.perf_counter() - began))
                await asyncio.sleep(rng.expovariate(1.0))

    await asyncio.gather(*(read(number) for number in range(readers)))
    return times


@contextmanager
def a_run_at_work(folder: Path) -> Iterator[None]:
    """A labelling run of a process of its own that goes on until it is stopped."""
    base = make_base(folder / "busy-base", 200_000)
    config = write_config(folder / "busy.toml", run_settings(base, SCRIPT))
    command = [sys.executable, "-m", "autointerp.cli", "run", str(config), "--out", str(folder / "busy")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT) as run:
        time.sleep(20)
        assert run.poll() is None, "the run beside the readers has ended too early"
        try:
            yield
        finally:
            assert run.poll() is None, "the run beside the readers has ended too early"
            run.send_signal(signal.SIGTERM)


def measure(folder: Path, num_latents: int, url: str | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything of one store."""
    began = time.monotonic()
    if arguments.run is None:
        run = make_served(folder, num_latents, url)
        print(f"  made and exported in {time.monotonic() - began:.0f} s", flush=True)
    else:
        run = arguments.run
    env = os.environ | ({"AUTOINTERP_STORE__URL": url} if url else {})
    rng = random.Random(0)
    with serving(folder / "home", run, env) as (base, process), httpx2.Client(base_url=base, timeout=600) as client:
        first = timed(client, f"{RUN}/latents") / 1000
        print(f"  the first look at the dictionary: {first:.1f} s", flush=True)
        ways = pages(client, rng, num_latents)
        found: dict[str, Any] = {"first_look_s": first, "alone": alone(client, ways, arguments.rounds)}
        kinds = [ways["latent"], ways["latent"], ways["table, any sort and two filters"], ways["words"]]
        with a_run_at_work(folder):
            before = process.cpu_times()
            times = asyncio.run(crowd(base, lambda: rng.choice(kinds)(), arguments.readers, arguments.seconds, 1))
            after = process.cpu_times()
        cpu = after.user + after.system - before.user - before.system
        found["crowd"] = {
            "requests": len(times), "median": float(np.median(times)), "p95": float(np.quantile(times, 0.95)),
            "p99": float(np.quantile(times, 0.99)), "max": max(times), "cpu_ms": 1000 * cpu / len(times),
        }  # fmt: skip
        found["rss_bytes"] = process.memory_info().rss
        found["private_bytes"] = process.memory_info().rss - process.memory_info().shared
    print(
        f"  {arguments.readers} readers beside a run: {len(times)} requests, median {found['crowd']['median']:.0f}, 95% {found['crowd']['p95']:.0f}, "
        f"99% {found['crowd']['p99']:.0f}, most {max(times):.0f} ms; {found['crowd']['cpu_ms']:.0f} ms of CPU each; "
        f"memory {found['private_bytes'] / 1e6:.0f} MB and mapped files",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=1_000_000)
    parser.add_argument("--stores", default="sqlite,postgresql")
    parser.add_argument("--readers", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--run", type=Path, help="One that was made before, whose store the environment names.")
    parser.add_argument("--folder", type=Path, help="Where to work; a temporary folder by default.")
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        for store in arguments.stores.split(","):
            print(f"{store}, {arguments.latents:,} latents:", flush=True)
            folder = Path(place) / store
            folder.mkdir()
            if arguments.run is not None:
                results[store] = measure(folder, arguments.latents, os.environ.get("AUTOINTERP_STORE__URL"), arguments)
            elif store == "postgresql":
                with PostgresServer(settings={"fsync": "on", "full_page_writes": "on"}) as server:
                    results[store] = measure(folder, arguments.latents, server.url, arguments)
            else:
                results[store] = measure(folder, arguments.latents, None, arguments)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
