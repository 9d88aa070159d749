"""Coders from the hub: the real client against a small server on this machine that knows what the client asks for."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from safetensors.torch import load, save

from sae_core.loading import load_coder

FIXTURES = Path(__file__).parents[1] / "fixtures" / "coders"
ROOT = Path(__file__).parents[2]
Files = dict[str, bytes]

# One process for many loads: the client reads its environment as it is imported.
DRIVER = """
import json, sys, urllib.request
from sae_core.errors import AutointerpError
from sae_core.loading import load_coder

for number, (path, options) in enumerate(json.load(sys.stdin)):
    if sys.argv[1]:
        urllib.request.urlopen(f"{sys.argv[1]}/mark/{number}").read()
    try:
        coder = load_coder(path, **options)
    except AutointerpError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
    else:
        facts = {fact.name: [fact.value, fact.origin] for fact in coder.facts}
        print(json.dumps({"fingerprint": coder.fingerprint, "hooks": coder.hookpoints_in, "facts": facts}))
"""


@dataclass
class Repository:
    """Files at commits, and the names of commits."""

    commits: dict[str, Files]
    names: dict[str, str]


@dataclass
class Hub:
    """What the server holds, and what it was asked for."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    fetched: list[list[str]] = field(default_factory=list)
    """Files that each load fetched."""
    url: str = ""

    def add(self, name: str, files: Files, **branches: Files) -> str:
        """A repository of these files, and of others on other branches; the commit of its main one."""
        states = {"main": files, **branches}
        commits = {branch: hashlib.sha1(f"{name} {branch}".encode()).hexdigest() for branch in states}
        self.repositories[name] = Repository({commits[b]: f for b, f in states.items()}, commits)
        return commits["main"]


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Not on the terminal."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, content: object) -> None:
        self.send(json.dumps(content).encode(), Content_Type="application/json")

    def answer(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "mark":
            self.hub.fetched.append([])
            return self.send(b"")
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        name = "/".join(parts[:2])
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self.send(b"", 404, X_Error_Code="RepoNotFound")
        what, revision = [*parts[2:4], "", ""][:2]
        commit = repository.names.get(revision or "main", revision)
        files = repository.commits.get(commit)
        if files is None:
            return self.send(b"", 404, X_Error_Code="RevisionNotFound")
        if api and what == "tree":
            return self.send_json(
                [
                    {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for p, c in files.items()
                ]
            )
        if api:
            return self.send_json({"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]})
        path = "/".join(parts[4:])
        if path not in files:
            return self.send(b"", 404, X_Error_Code="EntryNotFound")
        if self.command == "GET":
            self.hub.fetched[-1].append(path)
        etag = hashlib.sha1(files[path]).hexdigest()
        return self.send(files[path], ETag=f'"{etag}"', X_Repo_Commit=commit)


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HandlerOfHub", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def run(cache: Path, url: str, loads: list[tuple[str, dict[str, Any]]], *, offline: bool) -> list[dict[str, Any]]:
    """What each load gives, in a process of its own."""
    environment = {n: v for n, v in os.environ.items() if not n.lower().endswith("_proxy") and not n.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": url,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    ended = subprocess.run(
        [sys.executable, "-c", DRIVER, "" if offline else url],
        input=json.dumps(loads),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def files_of(folder: str, below: str = "") -> Files:
    """A fixture's files, as a repository has them."""
    source = FIXTURES / folder
    kept = (
        p
        for p in sorted(source.rglob("*"))
        if p.is_file() and p.name != "manifest.json" and not p.name.startswith("io")
    )
    return {below + p.relative_to(source).as_posix(): p.read_bytes() for p in kept}


def altered(files: Files) -> Files:
    """The same coder with other weights."""
    changed = dict(files)
    for name, content in files.items():
        if name.endswith(".safetensors"):
            changed[name] = save({n: (t * 1.5).contiguous() for n, t in load(content).items()})
    return changed


def fingerprint(folder: str, **options: Any) -> str:
    return load_coder(FIXTURES / folder, **options).fingerprint


def fill(hub: Hub) -> dict[str, str]:
    """The repositories, and the commits of their main branches."""
    gated = {f"layer_{i}/width_48/{name}": c for i in range(3) for name, c in files_of("sae_lens/gated").items()}
    gemma = files_of("gemma_scope/res/gemma-scope-2b-pt-res") | files_of("gemma_scope/embedding/gemma-scope-2b-pt-res")
    other = altered(files_of("sae_lens/topk"))
    contents: dict[str, Files] = {
        "org/many": {**gated, "README.md": b"# many", "model.bin": b"unrelated"},
        "org/single": files_of("sae_lens/topk") | {"README.md": b"# one", "plot.png": b"png"},
        "org/set": files_of("circuit_tracer/topk/coder"),
        "org/layers": {
            **files_of("sparsify/layers.0.topk", "layers.0/"),
            **files_of("sparsify/layers.0.groupmax", "layers.1.mlp/"),
            "config.json": b"{}",
        },
        "org/SAE-Res-Qwen3-1.7B-Base-W32K-L0_8": files_of("qwen_scope/res/SAE-Res-Qwen3-1.7B-Base-W32K-L0_8")
        | {"layer6.sae.pt": b"another"},
        "google/gemma-scope-2b-pt-res": gemma,
        "org/odd": files_of("sae_lens/topk", "a[b]*c?d e/") | {f"abXcYd e/{n}": c for n, c in other.items()},
    }
    return {name: hub.add(name, files, old=altered(files)) for name, files in contents.items()}


QWEN = "org/SAE-Res-Qwen3-1.7B-Base-W32K-L0_8"
GEMMA = "google/gemma-scope-2b-pt-res"
LOADS: dict[str, tuple[str, dict[str, Any]]] = {
    "folder": ("org/many/layer_1/width_48", {}),
    "branch": ("org/many/layer_1/width_48", {"revision": "old"}),
    "many": ("org/many", {}),
    "many below": ("org/many/", {}),
    "root": ("org/single", {}),
    "layer": ("org/set", {"hookpoint": "layers.1"}),
    "no layer": ("org/set", {"hookpoint": "layers.7"}),
    "hookpoint": ("org/layers", {"hookpoint": "layers.1.mlp"}),
    "file": (f"{QWEN}/layer5.sae.pt", {"allow_pickle": True}),
    "embedding": (f"{GEMMA}/embedding/width_4k/average_l0_6", {}),
    "npz": (f"{GEMMA}/layer_3/width_16k/average_l0_59/params.npz", {}),
    "odd": ("org/odd/a[b]*c?d e", {}),
    "no repository": ("org/absent/folder", {}),
    "no folder": ("org/many/layer_9", {}),
    "no revision": ("org/many/layer_1/width_48", {"revision": "absent"}),
    "no id": ("org/--bad..name--", {}),
    "climbing": ("org/many/../../secret", {}),
}
MISSING = ("no repository", "no folder", "no revision", "no id", "climbing")


@pytest.fixture(scope="module")
def online(
    hub: Hub, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str], dict[str, dict[str, Any]]]:
    """``(cache, commits, results)`` of every load, with the server there."""
    cache, commits = tmp_path_factory.mktemp("cache"), fill(hub)
    loads = {**LOADS, "commit": ("org/single", {"revision": commits["org/single"]})}
    return cache, commits, dict(zip(loads, run(cache, hub.url, list(loads.values()), offline=False), strict=True))


Online = tuple[Path, dict[str, str], dict[str, dict[str, Any]]]


def test_what_is_loaded(online: Online) -> None:
    _, commits, results = online
    expected = {
        "folder": fingerprint("sae_lens/gated"),
        "root": fingerprint("sae_lens/topk"),
        "commit": fingerprint("sae_lens/topk"),
        "layer": fingerprint("circuit_tracer/topk/coder", hookpoint="layers.1"),
        "hookpoint": fingerprint("sparsify/layers.0.groupmax"),
        "file": fingerprint("qwen_scope/res/SAE-Res-Qwen3-1.7B-Base-W32K-L0_8/layer5.sae.pt", allow_pickle=True),
        "embedding": fingerprint("gemma_scope/embedding/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"),
        "npz": fingerprint("gemma_scope/res/gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_59"),
        "odd": fingerprint("sae_lens/topk"),
    }
    assert {name: results[name].get("fingerprint", results[name]) for name in expected} == expected
    assert results["branch"]["fingerprint"] != results["folder"]["fingerprint"]
    assert results["hookpoint"]["hooks"] == ["layers.1.mlp"]
    assert results["embedding"]["hooks"] == ["embed_tokens"]
    assert results["npz"]["hooks"] == ["layers.3"]
    for name, repository in (("folder", "org/many"), ("root", "org/single"), ("commit", "org/single"), ("file", QWEN)):
        assert results[name]["facts"]["revision"] == [commits[repository], "the hub"]


def test_only_the_files_of_the_coder_are_fetched(online: Online, hub: Hub) -> None:
    assert online
    fetched = dict(zip([*LOADS, "commit"], map(sorted, hub.fetched), strict=True))
    assert fetched["folder"] == ["layer_1/width_48/cfg.json", "layer_1/width_48/sae_weights.safetensors"]
    assert "layer_1/width_48/sae_weights.safetensors" in fetched["branch"]
    assert fetched["root"] == ["cfg.json", "sae_weights.safetensors"]
    assert fetched["layer"] == ["config.yaml", "layer_1.safetensors"]
    assert fetched["hookpoint"] == ["config.json", "layers.1.mlp/cfg.json", "layers.1.mlp/sae.safetensors"]
    assert fetched["file"] == ["config.json", "layer5.sae.pt"]
    assert fetched["embedding"] == ["embedding/width_4k/average_l0_6/params.npz"]
    assert fetched["npz"] == ["layer_3/width_16k/average_l0_59/params.npz"]
    assert fetched["odd"] == ["a[b]*c?d e/cfg.json", "a[b]*c?d e/sae_weights.safetensors"]
    assert fetched["many"] == fetched["commit"] == []
    assert not any(fetched[name] for name in MISSING)


def test_what_is_not_there_is_one_sentence(online: Online) -> None:
    results = online[2]
    for name in MISSING:
        assert results[name].get("error") == "MissingFileError", (name, results[name])
        assert "\n" not in results[name]["message"]
    assert "has no folder or file 'layer_9'" in results["no folder"]["message"]
    for name in ("many", "many below"):
        assert results[name]["error"] == "CoderError"
        assert "holds 3 coders (layer_0/width_48, layer_1/width_48, layer_2/width_48)" in results[name]["message"]
    assert results["no layer"]["error"] == "CoderError"


def test_the_cache_serves_when_nothing_is_reached(online: Online) -> None:
    """Offline by the setting, and with the server gone; by the branch's name, by the commit, and without either."""
    cache, commits, results = online
    nowhere = "http://127.0.0.1:9"
    found = [name for name, result in results.items() if "fingerprint" in result and name != "commit"]
    loads = [LOADS[name] for name in found]
    pinned = [("org/many/layer_1/width_48", {"revision": r}) for r in ("main", "old", commits["org/many"])]
    refused = [LOADS[name] for name in MISSING]
    beyond = [("org/many/layer_0/width_48", {}), ("org/many", {})]
    given = run(cache, nowhere, [*loads, *pinned, *refused, *beyond], offline=True)
    assert given[: len(found)] == [results[name] for name in found]
    assert given[len(found) : len(found) + 3] == [results["folder"], results["branch"], results["folder"]]
    for result in given[len(found) + 3 : -1]:
        assert result.get("error") == "MissingFileError", result
        assert "\n" not in result["message"]
    assert given[-1] == results["many"], "as online, not the one that happens to be in the cache"


def test_a_server_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    code = DRIVER.replace("if sys.argv[1]:", "if False:")
    environment = {n: v for n, v in os.environ.items() if not n.lower().endswith("_proxy") and not n.startswith("HF_")}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    loads = json.dumps([("org/single", {}), ("org/single/x", {"revision": "main"})])
    ended = subprocess.run(
        [sys.executable, "-c", code, ""],
        input=loads,
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    for line in ended.stdout.splitlines():
        result = json.loads(line)
        assert result["error"] == "MissingFileError"
        assert "\n" not in result["message"]
