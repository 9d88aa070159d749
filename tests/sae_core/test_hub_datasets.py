"""Data sets of the hub: the real client against a small server on this machine that counts the bytes it gives."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.sae_core.corpus_world import TEXTS, json_lines, zstd

ROOT = Path(__file__).parents[2]
Files = dict[str, bytes]

# The client reads its environment as it is imported.
DRIVER = """
import json, sys, tempfile, urllib.request
from pathlib import Path
from sae_core.errors import AutointerpError
from sae_core.token_cache import TokenCache
from sae_core.tokens import CorpusSpec, build_corpus
from tests.sae_core.corpus_world import letters

url, cache, *_ = sys.argv[1:]
for number, (path, tokens, options) in enumerate(json.load(sys.stdin)):
    if url:
        urllib.request.urlopen(f"{url}/mark/{number}").read()
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    spec = CorpusSpec(path, tokens, 16, **{"text_field": "body", **options})
    try:
        with tempfile.TemporaryDirectory() as folder:
            corpus = build_corpus(spec, letters(), None, Path(folder), cache=TokenCache(Path(cache)) if cache else None)
            told = json.loads((Path(folder) / "corpus.json").read_text())
            documents = sorted({tuple(corpus.context(c).tolist()) for c in range(corpus.num_contexts)})
    except AutointerpError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
    else:
        print(json.dumps({"fingerprint": corpus.fingerprint, "commit": told["commit"], "rows": documents}))
"""


@dataclass
class Hub:
    """Data sets at commits, and what was asked of each."""

    repositories: dict[str, dict[str, Files]] = field(default_factory=dict)
    names: dict[str, dict[str, str]] = field(default_factory=dict)
    given: list[dict[str, int]] = field(default_factory=list)
    """Bytes of each file that each load was given."""
    commits_asked: set[str] = field(default_factory=set)
    ranges: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    """Files that the server fails on."""
    moving: dict[str, str] = field(default_factory=dict)
    """The commit that a data set's main branch moves to once it has been asked for."""
    url: str = ""

    def add(self, name: str, files: Files, branch: str = "main") -> str:
        commit = hashlib.sha1(f"{name} {branch} {sorted(files)}".encode()).hexdigest()
        self.repositories.setdefault(name, {})[commit] = files
        self.names.setdefault(name, {})[branch] = commit
        return commit


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Not on the terminal."""

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        self.answer(b"")

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

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

    def answer(self, body: bytes) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "mark":
            self.hub.given.append({})
            return self.send(b"")
        api = parts[0] == "api"
        parts = parts[1:] if api else parts
        name = "/".join(parts[1:3])
        if parts[0] != "datasets" or name not in self.hub.repositories:
            return self.send(b"", 404, X_Error_Code="RepoNotFound")
        what, revision = [*parts[3:5], "", ""][:2]
        commit = self.hub.names[name].get(revision or "main", revision)
        files = self.hub.repositories[name].get(commit)
        if files is None:
            return self.send(b"", 404, X_Error_Code="RevisionNotFound")
        entries = [
            {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for p, c in files.items()
        ]
        if api and what == "tree":
            return self.send_json(entries)
        if api and what == "paths-info":
            try:
                wanted = json.loads(body)["paths"]
            except ValueError:
                wanted = parse_qs(body.decode())["paths"]
            return self.send_json([entry for entry in entries if entry["path"] in wanted])
        if api:
            self.hub.names[name]["main"] = self.hub.moving.pop(name, self.hub.names[name].get("main", ""))
            return self.send_json({"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]})
        self.hub.commits_asked.add(revision)
        path = "/".join(parts[5:])
        if path not in files:
            return self.send(b"", 404, X_Error_Code="EntryNotFound")
        if path in self.hub.broken:
            return self.send(b"", 403)
        etag = hashlib.sha1(files[path]).hexdigest()
        content = files[path]
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and self.command == "GET":
            self.hub.ranges.append(path)
            content = content[int(asked[1]) : int(asked[2]) + 1]
        if self.command == "GET":
            given = self.hub.given[-1]
            given[path] = given.get(path, 0) + len(content)
        return self.send(content, 206 if asked else 200, ETag=f'"{etag}"', X_Repo_Commit=commit)


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


Load = tuple[str, int, dict[str, Any]]


def environment(cache: Path, url: str, *, offline: bool) -> dict[str, str]:
    kept = {n: v for n, v in os.environ.items() if not n.lower().endswith("_proxy") and not n.startswith("HF_")}
    return kept | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def run(home: Path, url: str, loads: list[Load], *, offline: bool = False, cache: Path | None = None) -> list[Any]:
    """What each load gives, in a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-c", DRIVER, "" if offline else url, str(cache or "")],
        input=json.dumps(loads),
        env=environment(home, url, offline=offline),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def parquet(rows: list[str], **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"n": list(range(len(rows))), "body": rows}), sink, **options)
    return sink.getvalue().to_pybytes()


def ids_of(texts: list[str]) -> list[list[int]]:
    return sorted(
        {
            tuple(ids[i : i + 16])
            for t in texts
            for ids in [[ord(c) - 96 for c in t.split()]]
            for i in range(0, len(ids), 16)
        }
    )  # type: ignore[return-value]


def equal(result: dict[str, Any], texts: list[str]) -> bool:
    return [tuple(row) for row in result.get("rows", [])] == ids_of(texts)


def tokens_of(texts: list[str]) -> int:
    return sum(len(text.split()) for text in texts)


def random_rows(count: int, letters: int) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices("abcdefghijklmnopqrst", k=letters)) for _ in range(count)]


@pytest.fixture(scope="module")
def commits(hub: Hub) -> dict[str, str]:
    mixed = {
        "README.md": b"# not of the corpus",
        "data/train-00000.parquet": parquet(TEXTS[:8]),
        "data/train-00001.jsonl.zst": zstd(json_lines(TEXTS[8:12])),
        "data/test-00000.parquet": parquet(TEXTS[12:]),
        "en/more.txt": b"a b c",
    }
    configured = {
        "README.md": b"---\nconfigs:\n- config_name: one\n  data_files: one/*\n- config_name: two\n  data_files: two/*\n---\n",
        "one/a.parquet": parquet(TEXTS[:5]),
        "two/@odd #%41 name.parquet": parquet(TEXTS[5:]),
    }
    big = parquet(random_rows(6000, 4000), row_group_size=3000, compression="none", use_dictionary=False)
    lines = {f"part-{n}.jsonl": json_lines(random_rows(4000, 1000)) for n in range(3)}
    contents = {"org/mixed": mixed, "org/configured": configured, "org/big": {"big.parquet": big}, "org/lines": lines}
    contents["org/text"] = {"README.md": b"no", "a.txt": TEXTS[0].encode(), "b.txt": TEXTS[1].encode()}
    contents["org/none"] = {"README.md": b"no", "a.csv": b"1,2"}
    contents["org/broken"] = {"broken.parquet": parquet(TEXTS)}
    contents["org/short"] = {"a.parquet": parquet(TEXTS)[:-20]}
    hub.broken.add("broken.parquet")
    hub.add("org/mixed", {**mixed, "data/train-00000.parquet": parquet(TEXTS[3:8]), "changes.txt": b""}, "old")
    return {name: hub.add(name, files) for name, files in contents.items()}


def test_data_sets_are_streamed(hub: Hub, commits: dict[str, str], tmp_path: Path) -> None:
    train, test = TEXTS[:12], TEXTS[12:]
    loads: list[tuple[str, dict[str, Any], list[str]]] = [
        ("org/mixed", {}, train),
        ("org/mixed", {"split": "test"}, test),
        ("org/mixed", {"revision": "old"}, TEXTS[3:12]),
        ("org/mixed", {"revision": commits["org/mixed"]}, train),
        ("org/configured", {"subset": "one"}, TEXTS[:5]),
        ("org/configured", {"subset": "two"}, TEXTS[5:]),
        ("org/text", {}, TEXTS[:2]),
    ]
    results = run(tmp_path, hub.url, [(name, tokens_of(texts), options) for name, options, texts in loads])
    for (name, options, texts), result in zip(loads, results, strict=True):
        assert equal(result, texts), (name, options, result)
        if "revision" not in options:
            assert result["commit"] == commits[name]
    assert hub.given[0].keys() == {"README.md", "data/train-00000.parquet", "data/train-00001.jsonl.zst"}
    assert hub.given[1].keys() == {"README.md", "data/test-00000.parquet"}
    assert results[0]["fingerprint"] == results[3]["fingerprint"]
    known = {commit for commits_of in hub.repositories.values() for commit in commits_of}
    assert hub.commits_asked <= known, "every file is asked for at a commit, not at a branch that may move"


def test_only_what_is_needed_is_read(hub: Hub, commits: dict[str, str], tmp_path: Path) -> None:
    assert commits
    size = len(hub.repositories["org/big"][commits["org/big"]]["big.parquet"])
    assert size > 40 << 20
    run(tmp_path, hub.url, [("org/big", 20_000, {})])
    read = hub.given[-1]["big.parquet"]
    assert "big.parquet" in hub.ranges
    assert read < size // 4, f"{read:,} of {size:,} bytes were read for 20,000 tokens"
    run(tmp_path, hub.url, [("org/lines", 20_000, {})])
    assert len(hub.given[-1]) == 1, "one file is enough"
    (read,) = hub.given[-1].values()
    assert read < 4 << 20


def test_a_branch_that_moves_meanwhile(hub: Hub, tmp_path: Path) -> None:
    """All is read at the commit that was there at first."""
    hub.add("org/moving", {"b.parquet": parquet(TEXTS[4:]), "c.parquet": parquet(TEXTS[:2])}, "next")
    first = hub.add("org/moving", {"a.parquet": parquet(TEXTS[:4]), "b.parquet": parquet(TEXTS[4:8])})
    hub.moving["org/moving"] = hub.names["org/moving"]["next"]
    (result,) = run(tmp_path, hub.url, [("org/moving", tokens_of(TEXTS[:8]), {})])
    assert equal(result, TEXTS[:8]), result
    assert result["commit"] == first
    assert hub.names["org/moving"]["main"] != first


def test_what_the_hub_does_not_give_is_one_sentence(hub: Hub, commits: dict[str, str], tmp_path: Path) -> None:
    assert commits
    results = run(
        tmp_path,
        hub.url,
        [
            ("org/absent", 10, {}),
            ("org/mixed", 10, {"revision": "absent"}),
            ("org/configured", 10, {}),
            ("org/mixed", 10, {"split": "dev"}),
            ("org/none", 10, {}),
            ("org/broken", 10, {}),
            ("org/mixed", 10, {"text_field": "nowhere"}),
        ],
    )
    expected = [
        ("MissingFileError", "does not give it"),
        ("MissingFileError", "does not give it"),
        (
            "CorpusError",
            "the hub data set 'org/configured' has 2 subsets ('one', 'two'): set corpus.subset to one of them",
        ),
        (
            "CorpusError",
            "corpus.split is 'dev', and the hub data set 'org/mixed' has no such split (it has 'test', 'train')",
        ),
        ("CorpusError", "no file in it ends in"),
        ("MissingFileError", "the hub does not give org/broken/broken.parquet"),
        ("CorpusError", "has no text under 'nowhere' (it has 'n', 'body'): set corpus.text_field"),
    ]
    for (kind, message), result in zip(expected, results, strict=True):
        assert result.get("error") == kind, result
        assert message in result["message"]
        assert "\n" not in result["message"]


def test_a_second_run_reads_nothing_of_the_hub(hub: Hub, commits: dict[str, str], tmp_path: Path) -> None:
    assert commits
    load: Load = ("org/mixed", tokens_of(TEXTS[:12]), {})
    first = run(tmp_path, hub.url, [load], cache=tmp_path / "cache")
    assert len(hub.given[-1]) == 3
    again = run(tmp_path, hub.url, [load], cache=tmp_path / "cache")
    assert first == again
    assert hub.given[-1].keys() <= {"README.md"}


def test_offline_the_local_cache_serves(hub: Hub, commits: dict[str, str], tmp_path: Path) -> None:
    fetch = "import sys; from huggingface_hub import snapshot_download as s; s('org/mixed', repo_type='dataset')"
    subprocess.run([sys.executable, "-c", fetch], env=environment(tmp_path, hub.url, offline=False), check=True)
    load: Load = ("org/mixed", tokens_of(TEXTS[:12]), {})
    offline, absent = run(tmp_path, "http://127.0.0.1:9", [load, ("org/big", 5, {})], offline=True)
    assert equal(offline, TEXTS[:12])
    assert offline["commit"] == commits["org/mixed"]
    assert absent["error"] == "MissingFileError"
    online = run(tmp_path, hub.url, [load])
    assert online == [offline]
    assert not hub.given[-1], "what the local cache has is read there"
