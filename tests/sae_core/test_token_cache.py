"""A finished corpus is taken from the cache, never a half or a changed one, and the cache stops no run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_core.errors import ConfigError
from sae_core.readers import jsonl
from sae_core.token_cache import DEFAULT_LIMIT_BYTES, TokenCache
from sae_core.tokens import CorpusSpec, TokenCorpus, build_corpus
from tests.sae_core.corpus_world import TEXTS, json_lines, letters

ROOT = Path(__file__).parents[2]
SPEC = {"num_tokens": 200, "context_length": 8, "text_field": "body"}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(TEXTS))
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files of rows that were read."""
    calls: list[str] = []
    read = jsonl.read

    def counted(file: Any, field: Any) -> Iterator[Any]:
        calls.append(file.name)
        return read(file, field)

    monkeypatch.setattr(jsonl, "read", counted)
    return calls


def build(text: Path, out: Path, cache: TokenCache, **changes: Any) -> TokenCorpus:
    return build_corpus(CorpusSpec(str(text), **{**SPEC, **changes}), letters(), None, out, cache=cache)


def same(a: TokenCorpus, b: TokenCorpus) -> bool:
    arrays = ("tokens", "context_start", "context_document", "context_side", "context_uid")
    return a.fingerprint == b.fingerprint and all(
        np.array_equal(np.asarray(getattr(a, n)), np.asarray(getattr(b, n))) for n in arrays
    )


def test_a_second_run_reads_no_text(tmp_path: Path, text: Path, reads: list[str]) -> None:
    cache = TokenCache(tmp_path / "cache")
    first = build(text, tmp_path / "1", cache)
    assert reads == ["a.jsonl"]
    told: list[int] = []
    second = build_corpus(CorpusSpec(str(text), **SPEC), letters(), None, tmp_path / "2", told.append, cache=cache)
    assert reads == ["a.jsonl"], "the text was read again"
    assert same(first, second)
    assert told == [200]
    assert (tmp_path / "1" / "tokens.bin").samefile(tmp_path / "2" / "tokens.bin")
    assert sorted(p.name for p in (tmp_path / "2").iterdir()) == sorted(
        p.name for p in (tmp_path / "1").iterdir() if p.name != "journal.json"
    )


@pytest.mark.parametrize(
    "change", [{"num_tokens": 199}, {"context_length": 9}, {"seed": 1}, {"tokens_per_document": 20}, {"bos_id": 3}]
)
def test_another_cut_is_another_entry(tmp_path: Path, text: Path, reads: list[str], change: dict[str, Any]) -> None:
    cache = TokenCache(tmp_path / "cache")
    build(text, tmp_path / "1", cache)
    bos_id = change.pop("bos_id", None)
    build_corpus(CorpusSpec(str(text), **{**SPEC, **change}), letters(), bos_id, tmp_path / "2", cache=cache)
    assert len(reads) == 2


def test_a_changed_file_is_read_again(tmp_path: Path, text: Path, reads: list[str]) -> None:
    cache = TokenCache(tmp_path / "cache")
    first = build(text, tmp_path / "1", cache)
    os.utime(text, ns=(0, text.stat().st_mtime_ns + 1))
    build(text, tmp_path / "2", cache)
    text.write_bytes(json_lines(TEXTS[::-1]))
    third = build(text, tmp_path / "3", cache)
    assert len(reads) == 3
    assert not same(first, third)
    other = letters()
    other.add_tokens(["new"])
    build_corpus(CorpusSpec(str(text), **SPEC), other, None, tmp_path / "4", cache=cache)
    assert len(reads) == 4


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path: Path, text: Path) -> None:
    cache = TokenCache(tmp_path / "cache")

    def touch(done: int) -> None:
        os.utime(text, ns=(0, 5))

    build_corpus(CorpusSpec(str(text), **SPEC), letters(), None, tmp_path / "1", touch, cache=cache)
    assert not cache.folder.exists()


@pytest.mark.parametrize("name", ["tokens.bin", "context_uid.bin", "context_side.bin", "corpus.json", "tokenizer.json"])
@pytest.mark.parametrize("how", ["shorter", "changed", "gone"])
def test_a_damaged_entry_is_built_again(tmp_path: Path, text: Path, reads: list[str], name: str, how: str) -> None:
    cache = TokenCache(tmp_path / "cache")
    first = build(text, tmp_path / "1", cache)
    truth = [first.context(c).tolist() for c in range(first.num_contexts)]
    (entry,) = cache.folder.iterdir()
    content = (entry / name).read_bytes()
    (entry / name).unlink()
    if how != "gone":
        (entry / name).write_bytes(content[:-3] if how == "shorter" else bytes([content[0] ^ 1]) + content[1:])
    second = build(text, tmp_path / "2", cache)
    assert len(reads) == 2
    assert [second.context(c).tolist() for c in range(second.num_contexts)] == truth
    build(text, tmp_path / "3", cache)
    assert len(reads) == 2, "the entry was not mended"


def test_a_run_built_anew_leaves_the_entry_as_it_is(tmp_path: Path, text: Path, reads: list[str]) -> None:
    """The folder's files are those of the cache by hard links: they must not be written into."""
    cache = TokenCache(tmp_path / "cache")
    first = build(text, tmp_path / "1", cache)
    build(text, tmp_path / "1", cache, num_tokens=50)
    second = build(text, tmp_path / "2", cache)
    assert len(reads) == 2
    assert second.num_tokens == first.num_tokens == 200


def test_without_hard_links_files_are_copied(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    cache = TokenCache(tmp_path / "cache")
    first = build(text, tmp_path / "1", cache)
    second = build(text, tmp_path / "2", cache)
    assert same(first, second)
    assert not (tmp_path / "1" / "tokens.bin").samefile(tmp_path / "2" / "tokens.bin")


def test_a_cache_that_cannot_be_written_stops_no_run(tmp_path: Path, text: Path, reads: list[str]) -> None:
    (tmp_path / "file").write_text("")
    cache = TokenCache(tmp_path / "file" / "cache")
    first = build(text, tmp_path / "1", cache)
    assert same(first, build(text, tmp_path / "2", cache))
    assert len(reads) == 2
    none = TokenCache(tmp_path / "none", limit_bytes=0)
    build(text, tmp_path / "3", none)
    assert not none.folder.exists()


def test_what_was_not_used_for_the_longest_time_goes_first(tmp_path: Path, text: Path, reads: list[str]) -> None:
    cache = TokenCache(tmp_path / "cache")
    for number in (1, 2, 3):
        build(text, tmp_path / str(number), cache, seed=number)
        used = [p / "used" for p in cache.folder.iterdir()]
        for file in used:
            os.utime(file, (time.time() - 50, file.stat().st_mtime - 100))
    size = sum(f.stat().st_size for p in cache.folder.iterdir() for f in p.iterdir()) / 3
    build(text, tmp_path / "again", cache, seed=1)
    assert len(reads) == 3
    smaller = TokenCache(cache.folder, int(3.5 * size))
    build(text, tmp_path / "4", smaller, seed=4)
    assert len(list(cache.folder.iterdir())) == 3
    assert len(reads) == 4
    build(text, tmp_path / "5", cache, seed=1)
    build(text, tmp_path / "6", cache, seed=3)
    assert len(reads) == 4
    build(text, tmp_path / "7", cache, seed=2)
    assert len(reads) == 5, "the one used longest ago should have gone"


def test_what_a_killed_process_left_goes_after_a_day(tmp_path: Path, text: Path) -> None:
    cache = TokenCache(tmp_path / "cache")
    for name, age_s in ((".old", 2 * 86400), (".new", 60)):
        (cache.folder / name).mkdir(parents=True)
        os.utime(cache.folder / name, (time.time() - age_s,) * 2)
    build(text, tmp_path / "1", cache)
    assert {p.name for p in cache.folder.iterdir() if p.name.startswith(".")} == {".new"}


def test_where_the_cache_lies(tmp_path: Path) -> None:
    of = TokenCache.of
    assert of({"AUTOINTERP_CACHE": "/c"}).folder == Path("/c/corpora")
    assert of({"AUTOINTERP_CACHE": "", "XDG_CACHE_HOME": "/x"}).folder == Path("/x/autointerp/corpora")
    assert of({}).limit_bytes == DEFAULT_LIMIT_BYTES == 20 * 2**30
    assert of({"AUTOINTERP_CACHE_GIB": "0.5"}).limit_bytes == 2**29
    for bad in ("much", "nan", "inf"):
        with pytest.raises(ConfigError, match=r"AUTOINTERP_CACHE_GIB is .*: give a number of GiB, 0 for no cache"):
            of({"AUTOINTERP_CACHE_GIB": bad})
    assert not TokenCache.of(os.environ).folder.is_relative_to(Path.home() / ".cache"), "tests use the user's cache"


BUILDER = """
import os, sys, time
from pathlib import Path
from sae_core.token_cache import TokenCache
from sae_core.tokens import CorpusSpec, build_corpus
from tests.sae_core.corpus_world import letters

text, out, cache, kill_at = sys.argv[1:]

def progress(done):
    if int(kill_at) and done >= int(kill_at):
        os.kill(os.getpid(), 9)

corpus = build_corpus(CorpusSpec(text, 200, 8, "body"), letters(), None, Path(out), progress, cache=TokenCache(Path(cache)))
print(corpus.fingerprint)
"""


def child(text: Path, out: Path, cache: TokenCache, kill_at: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(text), str(out), str(cache.folder), str(kill_at)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_several_processes_build_the_same_at_once(tmp_path: Path, text: Path, reads: list[str]) -> None:
    cache = TokenCache(tmp_path / "cache")
    started = [child(text, tmp_path / str(n), cache) for n in range(4)]
    fingerprints = {process.communicate(timeout=100)[0] for process in started}
    assert [process.returncode for process in started] == [0] * 4
    assert len(fingerprints) == 1
    assert len(list(cache.folder.iterdir())) == 1, "something unfinished was left"
    corpora = [TokenCorpus.open(tmp_path / str(n)) for n in range(4)]
    assert all(same(corpora[0], corpus) for corpus in corpora)
    build(text, tmp_path / "again", cache)
    assert not reads


def test_a_killed_builder_leaves_nothing_half(tmp_path: Path, text: Path, reads: list[str]) -> None:
    cache = TokenCache(tmp_path / "cache")
    killed = child(text, tmp_path / "1", cache, kill_at=100)
    killed.communicate(timeout=100)
    assert killed.returncode == -signal.SIGKILL
    assert not cache.folder.exists()
    assert not TokenCorpus.exists(tmp_path / "1")
    again = build(text, tmp_path / "1", cache)
    assert same(again, build(text, tmp_path / "2", cache))
    assert len(reads) == 1


def test_the_entry_is_whole_whenever_the_keeper_dies(
    tmp_path: Path, text: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Die at each file operation of keeping: an entry is there whole or not at all."""

    class Died(BaseException):
        pass

    for number in range(12):
        cache, left = TokenCache(tmp_path / f"cache-{number}"), number

        def step(original: Any) -> Any:
            def stepped(*args: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Died
                return original(*args, **options)

            return stepped

        with monkeypatch.context() as patched:
            patched.setattr(os, "link", step(os.link))
            patched.setattr(Path, "rename", step(Path.rename))
            patched.setattr("shutil.rmtree", lambda *args, **options: None)
            with suppress(Died):
                build(text, tmp_path / f"out-{number}", cache)
        for entry in cache.folder.iterdir() if cache.folder.exists() else ():
            if not entry.name.startswith("."):
                told = json.loads((entry / "corpus.json").read_text())
                assert all((entry / name).stat().st_size == f["bytes"] for name, f in told["files"].items())
        again = build(text, tmp_path / f"again-{number}", cache)
        assert again.num_tokens == 200
    assert len(reads) > 12
