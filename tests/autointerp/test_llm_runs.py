"""Whole runs against a real HTTP server: the oracle reads the prompts as they arrive, faults follow a script, a ledger counts.

What is checked is what the server saw and what the run left behind, never what the run says of itself.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest

from autointerp.llm.server import RunningServer
from autointerp.llm.server.faults import FaultRule
from autointerp.llm.server.ledger import Call, totals
from autointerp.prompting import load_prompt
from sae_core.exemplar_store import ExemplarStore
from tests import planted_world
from tests.cli_process import CliProcess, run_cli
from tests.oracle import Oracle
from tests.planted_text import SENTENCES, PlantedText

ROOT = Path(__file__).parents[2]
KEY = "sk-planted-9f3b1c77"
"""The key of the runs; it must not turn up anywhere."""
CONFIG = """
chunk_latents = 8
[subject]
model = "subject"
[[coders]]
path = "coder"
name = "planted"
[corpus]
path = "corpus.jsonl"
[extraction]
num_tokens = 15000
context_length = 64
window_length = 16
[controls]
random_directions = 4
[[endpoints]]
kind = "openai"
base_url = "URL"
model = "test"
api_key_env = "PLANTED_KEY"
usd_per_million_input_tokens = 1.0
usd_per_million_output_tokens = 2.0
timeout_s = 20.0
"""
LABELS = """
[[endpoints]]
kind = "openai"
name = "spare"  # nobody asks it, and nobody is there
base_url = "http://127.0.0.1:1/v1"
model = "test"
usd_per_million_input_tokens = 1.0
usd_per_million_output_tokens = 2.0
[[explainers]]
kind = "max_activating"
[[scorers]]
kind = "detection"
[[scorers]]
kind = "fuzz"
"""
BLOCK = re.compile(r"<(DATA-[0-9a-f]{8})>\n(.*?)\n</\1>", re.DOTALL)
LINE = re.compile(r'^\d+ ("(?:[^"\\]|\\.)*")', re.MULTILINE)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llm-world")
    planted_world.build(folder)
    return folder


def oracle(world: Path, **settings: float) -> Oracle:
    return Oracle(PlantedText.of_corpus(world / "corpus.jsonl", window_length=16), **settings)  # type: ignore[arg-type]


def write_config(world: Path, name: str, url: str, more: str = LABELS) -> Path:
    path = world / f"{name}.toml"
    path.write_text(CONFIG.replace("URL", url) + more)
    return path


def command(config: Path, out: Path, *more: str) -> list[str]:
    return ["run", str(config), "--out", str(out), *more]


def environment(key: str = KEY) -> dict[str, str]:
    return {**os.environ, "PLANTED_KEY": key, "OMP_NUM_THREADS": "1"}


def run(config: Path, out: Path, *more: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
    return run_cli(command(config, out, *more), environment(key))


def dictionary(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "dictionary").set_index("latent")


def budget_of(out: Path) -> tuple[int, int]:
    """(tokens, nano-dollars) that the run has entered as spent."""
    with sqlite3.connect(out / "autointerp.db") as connection:
        tokens, nano = connection.execute("SELECT spent_tokens, spent_nano_usd FROM llm_budget").fetchone()
        sums = connection.execute(
            "SELECT sum(input_tokens + output_tokens), sum(cost_nano_usd) FROM llm_call"
        ).fetchone()
    assert (tokens, nano) == tuple(sums)  # I4: what is spent is the sum of the calls
    return tokens, nano


def everything_below(folder: Path) -> Iterable[bytes]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.read_bytes()


def answered(calls: Iterable[Call]) -> list[Call]:
    return [call for call in calls if call.outcome == "ok" and call.path.endswith("/chat/completions")]


def windows_of(call: Call) -> list[str]:
    """The quoted windows of a prompt, marks taken off."""
    last = call.request["messages"][-1]["content"]
    texts = [json.loads(line) for _, block in BLOCK.findall(last) for line in LINE.findall(block)]
    return [text.replace("<<", "").replace(">>", "") for text in texts]


def is_explanation(call: Call) -> bool:
    return "label" in json.dumps(call.request.get("response_format", {}))


@pytest.fixture(scope="module")
def labelled(world: Path) -> tuple[Path, list[Call]]:
    """One run without faults, and what the server saw of it."""
    out = world / "labelled"
    with RunningServer(oracle(world)) as server:
        done = run(write_config(world, "labelled", server.url), out)
        assert done.returncode == 0, done.stderr
        calls = server.calls
        asked_before = len(calls)
        again = run(world / "labelled.toml", out)
        assert again.returncode == 0, again.stderr
        assert "nothing to do" in again.stdout
        assert len(server.calls) == asked_before  # a finished run asks nobody
    assert KEY not in done.stdout + done.stderr
    return out, calls


def test_labels_are_the_oracle_s_and_are_judged_right(labelled: tuple[Path, list[Call]]) -> None:
    out, _ = labelled
    table = dictionary(out)
    assert table.status[3] == "dead"
    assert pd.isna(table.label[3])
    alive = table[table.status == "labelled"]
    wrong = {latent: label for latent, label in alive.label.items() if label != SENTENCES[int(latent)]}
    assert set(wrong) <= {2}, wrong  # "self" after a bracket can be all of its exemplars' marks
    for latent in (1, 5, 6, 7, *range(9, 16)):
        assert table.detection_score[latent] > 0.9, (latent, table.detection_score[latent])
        assert table.fuzz_score[latent] > 0.9, (latent, table.fuzz_score[latent])
    judged = alive.drop(4)  # fires in too few windows to be judged
    assert (judged.judge_model == "test").all()
    assert judged.num_judged.gt(0).all()
    # a judge's balanced accuracy is no precision: what stands there is estimated from its verdicts, by its own method
    assert (judged.precision_method == "judged").all()
    resolved = judged[judged.precision_basis != "unresolved"]
    assert len(resolved) > 10
    assert resolved.precision.between(resolved.precision_low, resolved.precision_high).all()
    assert pd.isna(alive.precision[4])
    assert alive.precision_failure[4] == "too_few_windows"


def test_shuffled_labels_are_judged_wrong(labelled: tuple[Path, list[Call]]) -> None:
    out, _ = labelled
    judged = json.loads((out / "summary.json").read_text())["judged"]
    assert judged["detection"]["median"] > 0.9
    assert judged["detection"]["shuffled"]["mean"] < 0.65
    assert judged["fuzz"]["shuffled"]["mean"] < 0.65


def test_no_judged_window_was_shown_to_an_explainer(labelled: tuple[Path, list[Call]]) -> None:
    _, calls = labelled
    shown = {text for call in answered(calls) if is_explanation(call) for text in windows_of(call)}
    judged = {text for call in answered(calls) if not is_explanation(call) for text in windows_of(call)}
    assert len(shown) > 100
    assert len(judged) > 100
    # windows of a few tokens, at the end of a document, can be equal by chance
    assert not {text for text in shown & judged if len(text) > 24}


@pytest.mark.long
def test_calls_and_tokens_are_few(tmp_path: Path) -> None:
    """The bound: 8 calls and 9,000 prompt tokens a latent for label, detection and fuzz, with all that precision at the natural rate
    takes (screen, audit, further round), controls not counted.

    examples/llm.toml on 40 latents, windows of 32 tokens, the prompts as the server received them. The tokenizer is the
    quickstart subject's (4,096 pieces, of Python code), which cuts finer than those of large models: an upper bound. This server
    never says yes, so nothing is asked again and every label goes through both rounds, of which six to eight in ten do elsewhere
    (docs/precision.md); test_natural_rate_runs.py counts with a judge that says yes.
    """
    one, two = (_each(tmp_path / str(rounds), rounds) for rounds in (1, 2))
    for name, most in {"max_activating": 2_000, "detection": 3_000, "fuzz": 3_000, "screen": 1_000}.items():
        assert 500 < one[name][1] <= most, (name, one)
    assert one["max_activating"][0] == 1
    assert 1.8 <= one["fuzz"][0] <= 2.1
    assert 2.5 <= one["detection"][0] <= 3.1  # two for the score, one for the audit; some latents have too few windows
    assert 0.5 <= one["screen"][0] <= 0.6  # twenty calls of forty labels, and one for the audit
    assert two["detection"][0] - one["detection"][0] == pytest.approx(1, abs=0.1)
    # of so little text the second round's windows are mostly the first one's, which are not shown again: elsewhere it takes as much
    assert 0 < two["screen"][0] - one["screen"][0] <= 0.5
    calls, tokens, fresh = (
        sum(values[at] for values in one.values())
        + 0.7 * (two["detection"][at] - one["detection"][at] + one["screen"][at])
        for at in range(3)
    )
    assert calls <= 8
    assert tokens <= 9_000
    # A prefix cache with blocks of 16 tokens covers instructions and shots, and of judges' prompts the label too, but no window.
    assert fresh <= tokens - 0.9 * 240 * 5
    assert fresh <= 7_000


def _each(out: Path, rounds: int) -> dict[str, tuple[float, float, float]]:
    """(calls, prompt tokens, of these not in a prefix cache) a latent, by the prompt."""
    tokenizer = ROOT / "examples" / "quickstart" / "subject" / "tokenizer.json"
    with RunningServer(tokenizer=str(tokenizer)) as server:
        settings = {
            "latents": "0:40",
            "extraction.num_tokens": "100000",
            "controls.random_directions": "0",
            "controls.shuffled_latents": "2",  # the fewest; their calls are in the figures
            "controls.null_latents": "0",
            "precision.rounds": str(rounds),
            "endpoints.0.base_url": server.url,
            "endpoints.0.model": "test",
        }
        more = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        done = run(ROOT / "examples" / "llm.toml", out, *more)
        assert done.returncode == 0, done.stderr
        calls = [call for call in answered(server.calls) if BLOCK.search(call.prompt)]
    table = dictionary(out)
    assert set(table.status) == {"labelled"}
    assert ExemplarStore.open(out / "sources" / "quickstart" / "exemplars").settings.window_length == 32
    kinds = {load_prompt(name).system.strip(): name for name in ("max_activating", "detection", "fuzz", "screen")}
    of_kind: dict[str, list[Call]] = {name: [] for name in kinds.values()}
    for call in calls:
        of_kind[kinds[call.request["messages"][0]["content"]]].append(call)
    for own in of_kind.values():  # at least 240 tokens of each prompt but the first of its kind are in the cache
        assert sum(call.cached_tokens < 240 for call in own) <= 2
    return {
        name: (
            len(own) / len(table),
            sum(call.prompt_tokens for call in own) / len(table),
            sum(call.prompt_tokens - call.cached_tokens for call in own) / len(table),
        )
        for name, own in of_kind.items()
    }


def test_the_ledger_is_the_server_s(labelled: tuple[Path, list[Call]]) -> None:
    out, calls = labelled
    seen = totals(calls)
    probes = [call for call in calls if call.request and not BLOCK.search(call.prompt)]
    spent, _ = budget_of(out)
    assert spent == seen["prompt_tokens"] + seen["completion_tokens"]
    with sqlite3.connect(out / "autointerp.db") as connection:
        [(entered,)] = connection.execute("SELECT count(*) FROM llm_call WHERE purpose = 'probe'")
    assert 0 < entered <= len(probes) <= 12, "what a server can do is asked once, and in the books too"


def test_a_budget_below_one_call_is_refused_before_anything_is_asked(world: Path) -> None:
    with RunningServer(oracle(world)) as server:
        done = run(write_config(world, "tiny", server.url), world / "tiny", "--set", "budget.tokens=1")
        assert server.calls == []
    assert done.returncode == 2
    assert "the budget has no room" in done.stderr
    assert not (world / "tiny").exists()


@pytest.mark.long
def test_the_calls_of_a_run_proceed_together(world: Path) -> None:
    with RunningServer(oracle(world), latency_s=0.5) as server:
        done = run(write_config(world, "together", server.url), world / "together")
        assert done.returncode == 0, done.stderr
        assert server.server.most_in_flight > 16
        one_by_one = 0.5 * len(server.calls)
    spent = json.loads((world / "together" / "summary.json").read_text())["timings_s"]
    assert sum(spent[stage] for stage in ("explain", "score", "controls")) < one_by_one / 3


@pytest.mark.long
def test_transient_faults_change_nothing(world: Path, labelled: tuple[Path, list[Call]]) -> None:
    """429 with and without Retry-After, 500, resets, and garbage the first time: all rows as in the run without faults."""
    faults = [
        FaultRule("rate_limit", retry_after="1", at=(3, 4, 5)),
        FaultRule("rate_limit", retry_after="garbage", at=(20,)),
        FaultRule("rate_limit", retry_after="-5", at=(22,)),
        FaultRule("status", status=503, rate=0.1, seed=1, tries=2, containing="DATA-"),
        FaultRule("reset_before_headers", rate=0.05, seed=2, tries=1, containing="DATA-"),
        FaultRule("html", rate=0.05, seed=3, tries=1, containing="DATA-"),
    ]
    out = world / "transient"
    with RunningServer(oracle(world), faults=faults) as server:
        done = run(write_config(world, "transient", server.url), out)
        outcomes = Counter(call.outcome for call in server.calls)
    assert done.returncode == 0, done.stderr
    assert outcomes["rate_limit"] >= 3
    assert outcomes["status"] + outcomes["reset_before_headers"] + outcomes["html"] >= 5
    columns = ["status", "label", "detection_score", "fuzz_score", "num_judged", "num_failed"]
    before, after = dictionary(labelled[0])[columns], dictionary(out)[columns]
    pd.testing.assert_frame_equal(before, after)


@pytest.mark.long
def test_bad_answers_end_in_their_own_states(world: Path) -> None:
    """Whatever a model says about one latent is that latent's failure; the others are as ever, and nothing is a label of 0."""
    marked = {
        "w10": "refusal",
        "w11": "length",
        "w12": "broken_answer",
        "w13": "prose",
        "w14": "empty_answer",
        "w15": "html",
    }
    faults = [FaultRule(fault, containing=f"<<{word}>>") for word, fault in marked.items()]
    out = world / "bad"
    with RunningServer(oracle(world), faults=faults) as server:
        done = run(write_config(world, "bad", server.url), out)
    assert done.returncode == 0, done.stderr
    table = dictionary(out)
    failed = table[table.status == "failed"]
    assert {"refused", "truncated", "unparseable", "server_error"} == set(failed.failure)
    assert failed.label.isna().all()
    assert failed.detection_score.isna().all()
    assert table.label.dropna().str.contains("could not|pars|sorry", case=False).sum() == 0


@pytest.mark.long
def test_a_spent_budget_pauses_the_run_and_more_of_it_goes_on_without_asking_again(
    world: Path, labelled: tuple[Path, list[Call]]
) -> None:
    out = world / "budget"
    with RunningServer(oracle(world)) as server:
        config = write_config(world, "budget", server.url)
        cap = 20_000
        stopped = run(config, out, "--set", f"budget.tokens={cap}")
        assert stopped.returncode == 2
        assert "budget" in stopped.stderr
        assert "note: the plan takes about" in stopped.stderr, "said before anything is spent"
        assert "Traceback" not in stopped.stderr
        spent, _ = budget_of(out)
        assert 0 < spent <= cap
        asked = {json.dumps(call.request) for call in answered(server.calls) if BLOCK.search(call.prompt)}
        before = len(server.calls)
        done = run(config, out, "--set", "budget.tokens=5000000")
        assert done.returncode == 0, done.stderr
        repeated = [call for call in answered(server.calls[before:]) if json.dumps(call.request) in asked]
        assert not repeated
    columns = ["status", "label", "detection_score", "fuzz_score"]
    pd.testing.assert_frame_equal(dictionary(labelled[0])[columns], dictionary(out)[columns])


def test_a_killed_run_asks_only_what_was_under_way_again(world: Path, labelled: tuple[Path, list[Call]]) -> None:
    out = world / "killed"
    with RunningServer(oracle(world), latency_s=0.1) as server:
        config = write_config(world, "killed", server.url, LABELS)
        for wanted in (20, 60):
            child = CliProcess(command(config, out), environment())
            deadline = time.monotonic() + 120
            while len(answered(server.calls)) < wanted and child.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            child.send_signal(signal.SIGKILL)
            child.wait()
        done = run(config, out)
        assert done.returncode == 0, done.stderr
        counts = Counter(json.dumps(call.request) for call in server.calls if BLOCK.search(call.prompt))
        repeats = sum(count - 1 for count in counts.values())
        assert repeats <= 2 * 64  # kills x calls under way
    columns = ["status", "label", "detection_score", "fuzz_score"]
    pd.testing.assert_frame_equal(dictionary(labelled[0])[columns], dictionary(out)[columns])


@pytest.mark.long
def test_a_server_that_dies_pauses_the_run_and_another_one_goes_on(
    world: Path, labelled: tuple[Path, list[Call]]
) -> None:
    out = world / "dying"
    with RunningServer(oracle(world), latency_s=0.1) as server:
        config = write_config(world, "dying", server.url)
        child = CliProcess(command(config, out, "--set", "endpoints.0.give_up_s=5.0"), environment())
        while len(answered(server.calls)) < 30 and child.poll() is None:
            time.sleep(0.02)
        server.die()
        _, stderr = child.communicate(timeout=120)
    assert child.returncode == 2, stderr
    assert "Traceback" not in stderr
    with sqlite3.connect(out / "autointerp.db") as connection:
        assert connection.execute("SELECT state FROM run").fetchone() == ("paused",)
    with RunningServer(oracle(world)) as server:
        done = run(write_config(world, "dying", server.url), out)  # at another address
        assert done.returncode == 0, done.stderr
    columns = ["status", "label", "detection_score", "fuzz_score"]
    pd.testing.assert_frame_equal(dictionary(labelled[0])[columns], dictionary(out)[columns])


def test_a_wrong_key_is_refused_before_anything_is_written(world: Path) -> None:
    with RunningServer(oracle(world), api_key=KEY) as server:
        done = run(write_config(world, "wrong", server.url), world / "wrong", key="sk-other-5512aa")
        calls = len(server.calls)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert calls <= 2
    assert not (world / "wrong").exists()
    assert "sk-other-5512aa" not in done.stdout + done.stderr


def test_a_key_that_is_withdrawn_pauses_the_run(world: Path) -> None:
    out = world / "withdrawn"
    with RunningServer(oracle(world), faults=[FaultRule("unauthorized", containing="Label: ")]) as server:
        done = run(write_config(world, "withdrawn", server.url), out)
        denied = [call for call in server.calls if call.outcome == "unauthorized"]
    assert done.returncode == 2
    assert "PLANTED_KEY" in done.stderr or "key" in done.stderr
    assert len(denied) <= 64  # what was under way when the first one was denied


def test_the_key_is_nowhere(world: Path, labelled: tuple[Path, list[Call]]) -> None:
    assert labelled
    for content in everything_below(world):
        assert KEY.encode() not in content


COLUMNS = ["status", "label", "detection_score", "fuzz_score", "num_judged", "num_failed"]


@pytest.mark.long
def test_a_page_of_maintenance_for_a_moment_changes_nothing_and_for_longer_pauses_the_run(
    world: Path, labelled: tuple[Path, list[Call]]
) -> None:
    out = world / "page"
    faults = [FaultRule("html", containing="DATA-", times=200)]  # the first 64 calls, and who asks for all
    with RunningServer(oracle(world), faults=faults) as server:
        config = write_config(world, "page", server.url)
        stopped = run(config, out, "--set", "endpoints.0.give_up_s=3.0")
        assert stopped.returncode == 2
        assert "no reply of the API" in stopped.stderr
        assert sum(call.outcome == "html" for call in server.calls) < 80
    with sqlite3.connect(out / "autointerp.db") as connection:
        assert connection.execute("SELECT state FROM run").fetchone() == ("paused",)
    faults = [FaultRule(fault, containing="DATA-", times=6) for fault in ("html", "error_object", "empty_body")]
    with RunningServer(oracle(world), faults=faults) as server:
        done = run(write_config(world, "page", server.url), out)
        outcomes = Counter(call.outcome for call in server.calls)
    assert done.returncode == 0, done.stderr
    assert (outcomes["html"], outcomes["error_object"], outcomes["empty_body"]) == (6, 6, 6)
    pd.testing.assert_frame_equal(dictionary(labelled[0])[COLUMNS], dictionary(out)[COLUMNS])


@pytest.mark.long
def test_what_a_server_failed_is_given_back_by_retry(world: Path, labelled: tuple[Path, list[Call]]) -> None:
    """A label lost to replies that were cut off, which are kept; a judge's calls lost to a request that it cannot work."""
    faults = [
        FaultRule("broken_json", containing="<<w10>>"),
        FaultRule("too_long", containing=f"Label: {json.dumps(SENTENCES[12])}"),
    ]
    out = world / "retry"
    with RunningServer(oracle(world), faults=faults) as server:
        done = run(write_config(world, "retry", server.url), out)
        before = {json.dumps(call.request) for call in answered(server.calls)}
    assert done.returncode == 0, done.stderr
    table = dictionary(out)
    assert "server_error" in set(table.failure.dropna())
    assert pd.isna(table.detection_score[12])
    with RunningServer(oracle(world)) as server:
        config = write_config(world, "retry", server.url)
        again = run(config, out)
        assert "nothing to do" in again.stdout
        assert server.calls == []
        edited = run_cli(["review", str(out), "9", "--by", "ann", "--edit", SENTENCES[9]], environment())
        assert edited.returncode == 0, edited.stderr
        before |= {json.dumps(call.request) for call in answered(server.calls)}
        seen = len(server.calls)
        retried = run(config, out, "--retry")
        assert retried.returncode == 0, retried.stderr
        asked = len(server.calls)
        assert asked > seen
        assert before.isdisjoint(json.dumps(call.request) for call in server.calls[seen:])
        nothing = run(config, out, "--retry")
        assert "nothing to do" in nothing.stdout
        assert len(server.calls) == asked
    expected, found = dictionary(labelled[0])[COLUMNS], dictionary(out)[COLUMNS]
    pd.testing.assert_frame_equal(expected.drop(9), found.drop(9))
    with sqlite3.connect(out / "autointerp.db") as connection:
        human = connection.execute("SELECT count(*) FROM score WHERE explainer = 'human'").fetchone()
    assert human == (2,), "what a person wrote is judged once, on windows of its own"


@pytest.mark.long
def test_one_prompt_that_moderation_refuses_is_one_latent_s_state(world: Path) -> None:
    faults = [
        FaultRule("status", status=403, message="Your input was refused: prompt flagged", containing="<<w10>>"),
        FaultRule("forbidden", containing="<<w11>>"),
    ]
    out = world / "moderated"
    with RunningServer(oracle(world), faults=faults) as server:
        done = run(write_config(world, "moderated", server.url), out)
        assert done.returncode == 0, done.stderr
    failed = dictionary(out).query("status == 'failed'")
    assert {"refused", "server_error"} == set(failed.failure)


@pytest.mark.long
def test_ctrl_c_keeps_what_is_under_way(world: Path, labelled: tuple[Path, list[Call]]) -> None:
    out = world / "interrupted"
    with RunningServer(oracle(world), latency_s=1.0) as server:
        config = write_config(world, "interrupted", server.url)
        child = CliProcess(command(config, out), environment())
        deadline = time.monotonic() + 120
        while child.poll() is None and time.monotonic() < deadline:
            seen = [call for call in server.calls if BLOCK.search(call.prompt)]
            if seen and server.server.most_in_flight > 8:
                break
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        _, stderr = child.communicate(timeout=60)
        assert child.returncode == 130, stderr
        done = run(config, out)
        assert done.returncode == 0, done.stderr
        counts = Counter(json.dumps(call.request) for call in server.calls if BLOCK.search(call.prompt))
        assert set(counts.values()) == {1}
    with sqlite3.connect(out / "autointerp.db") as connection:
        assert connection.execute("SELECT count(*) FROM llm_call WHERE outcome = 'lost'").fetchone() == (0,)
    pd.testing.assert_frame_equal(dictionary(labelled[0])[COLUMNS], dictionary(out)[COLUMNS])


@pytest.mark.long
def test_answers_with_spoiled_log_probabilities_count_without_a_probability(
    world: Path, labelled: tuple[Path, list[Call]]
) -> None:
    out = world / "logprobs"
    more = LABELS.replace('kind = "fuzz"', 'kind = "fuzz"\nlogprobs = "always"')
    with RunningServer(oracle(world), faults=[FaultRule("nan_logprobs", containing="DATA-")]) as server:
        done = run(write_config(world, "logprobs", server.url, more), out)
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(labelled[0] / "autointerp.db") as connection:
        known = connection.execute("SELECT \"values\" FROM score WHERE scorer = 'detection' AND latent = 5").fetchone()
    assert json.loads(known[0])["detection_auroc"] is not None
    with sqlite3.connect(out / "autointerp.db") as connection:
        rows = connection.execute('SELECT scorer, "values", failure_kind FROM score WHERE latent = 5').fetchall()
    found = {scorer: (json.loads(values), failure) for scorer, values, failure in rows}
    assert found["detection"][1] is None
    assert found["detection"][0].get("detection_auroc") is None
    assert found["fuzz"][1] == "server_error"
    pd.testing.assert_series_equal(dictionary(labelled[0]).detection_score, dictionary(out).detection_score)


@pytest.mark.long
def test_an_edited_label_gets_a_precision_of_its_own(world: Path) -> None:
    out = world / "edited"
    more = LABELS.replace('[[scorers]]\nkind = "fuzz"\n', "")
    with RunningServer(oracle(world)) as server:
        done = run(write_config(world, "edited", server.url, more), out)
        assert done.returncode == 0, done.stderr
        for latent, text in ((7, SENTENCES[6]), (6, SENTENCES[6])):
            said = run_cli(["review", str(out), str(latent), "--by", "somebody", "--edit", text], environment())
            assert said.returncode == 0, said.stderr
    with sqlite3.connect(out / "autointerp.db") as connection:
        rows = connection.execute(
            "SELECT latent, \"values\", failure_kind FROM estimate WHERE explainer LIKE 'human%' AND source = 'planted'"
        ).fetchall()
    found = {latent: (json.loads(values), failure) for latent, values, failure in rows}
    assert [failure for _, failure in found.values()] == [None, None]
    assert found[6][0]["precision_method"] == "judged"
    # another latent's label holds where this one fires no more often than anywhere
    right, wrong = found[6][0], found[7][0]
    assert wrong["precision_high"] < right["precision"]
    assert wrong["recall_high"] < right["recall_low"]
    shown = run_cli(["show", str(out), "7"], environment()).stdout
    assert SENTENCES[6] in shown
    assert "as test reads the label" in " ".join(shown.split())
