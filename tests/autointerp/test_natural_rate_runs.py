"""Precision and recall at the natural rate from whole runs: labels of known errors, a judge over HTTP, truth by brute force.

The truth is counted here, window by window, over all windows of the score side that may be judged: in how many the label holds by
its words, in how many of these the latent fires. The judge says what the label says of each window, or errs at a stated rate, each
time anew. It is read the other way round than here: the judge from the label's sentence, the truth from what was planted.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from autointerp.evidence import LatentEvidence
from autointerp.llm.server import RunningServer
from autointerp.llm.server.faults import FaultRule
from autointerp.llm.server.ledger import Call
from autointerp.sampling.scorable import kept_windows
from sae_core.exemplar_store import ExemplarStore
from sae_core.records import Side
from tests import natural_world
from tests.cli_process import CliProcess, run_cli
from tests.natural_world import BROAD, LOOSE, NARROW, RIGHT, PlantedLabel
from tests.oracle import Oracle

pytestmark = pytest.mark.long

CONFIG = """
chunk_latents = 40
[subject]
model = "subject"
[[coders]]
path = "coder"
name = "planted"
[corpus]
path = "corpus.jsonl"
[extraction]
num_tokens = TOKENS
context_length = 64
window_length = 16
[labels]
from = "labels.jsonl"
[controls]
random_directions = 4
shuffled_latents = 40
[[endpoints]]
kind = "openai"
base_url = "URL"
model = "test"
usd_per_million_input_tokens = 1.0
usd_per_million_output_tokens = 2.0
timeout_s = 20.0
[[scorers]]
kind = "detection"
"""
SHOWN = 0.005
"""Half of the second decimal: no interval of a posterior holds 1 itself, and figures are shown with two decimals."""
ERROR_RATE = 0.02
SCREENED = '{"fits"'
"""Stands in the prompts of the screen alone."""


def auroc(better: Sequence[float], worse: Sequence[float]) -> float:
    """Share of the pairs in which the better one has the larger figure, ties halved."""
    one, other = np.asarray(better)[:, None], np.asarray(worse)[None, :]
    return float(np.mean((one > other) + 0.5 * (one == other)))


def brute_force(labels: Sequence[PlantedLabel], store: ExemplarStore) -> pd.DataFrame:
    """By latent: kind, and of all windows that may be judged the shares that fire, that hold, and that do both."""
    pool = store.pool(Side.SCORE)
    may = kept_windows(LatentEvidence(0, store), Side.SCORE)
    windows = []
    for row in np.flatnonzero(may):
        first = int(pool.first_token[row])
        tokens = pool.tokens[row, first:]
        words = [natural_world.VOCABULARY[token] for token in tokens[tokens >= 0]]
        assert natural_world.BOS not in words
        # the first place of a context is the BOS's
        windows.append((words, max(int(pool.position[row]), 1)))
    rows = []
    for label in labels:
        holds = np.array([label.holds(words) for words, _ in windows])
        fires = np.array([label.fires(words, first) for words, first in windows])
        rows.append((label.latent, label.kind, fires.mean(), holds.mean(), (holds & fires).mean()))
    return pd.DataFrame(rows, columns=["latent", "kind", "fires", "holds", "both"]).set_index("latent")


@dataclass
class Finished:
    """A run that has ended, and what the server saw of it."""

    out: Path
    calls: list[Call]
    seconds: float = 0.0

    @cached_property
    def table(self) -> pd.DataFrame:
        return pd.read_parquet(self.out / "dictionary").set_index("latent")

    def rows(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(self.out / "autointerp.db")) as connection:
            return connection.execute(query).fetchall()

    def fit(self, number: int) -> dict[str, Any]:
        """What an estimate says of all labels together."""
        ((value,),) = self.rows(f"SELECT value FROM artefact WHERE kind = 'estimate_{number}/planted'")
        found: dict[str, Any] = json.loads(value)
        return found


@dataclass
class World:
    """A corpus with its labels."""

    folder: Path
    labels: list[PlantedLabel]
    num_tokens: int

    def config(self, name: str, url: str) -> Path:
        path = self.folder / f"{name}.toml"
        path.write_text(CONFIG.replace("URL", url).replace("TOKENS", str(self.num_tokens)))
        return path

    def run(
        self,
        name: str,
        *sets: str,
        error_rate: float = 0.0,
        faults: Sequence[FaultRule] = (),
        flags: Sequence[str] = (),
        fault_point: str = "",
        ends: int = 0,
    ) -> Finished:
        """A run from its beginning, or from where it stood, to its end with the exit status ``ends``."""
        oracle = Oracle(natural_world.reader(), error_rate=error_rate, meaning=natural_world.meaning_of)
        with RunningServer(oracle, faults=faults) as server:
            done = run_cli(self.command(name, server.url, *sets, flags=flags), environment(fault_point))
            assert done.returncode == ends, done.stderr[-2000:]
            return Finished(self.folder / name, [call for call in server.calls if "DATA-" in call.prompt])

    def command(self, name: str, url: str, *sets: str, flags: Sequence[str] = ()) -> list[str]:
        more = [word for one in sets for word in ("--set", one)]
        return ["run", str(self.config(name, url)), "--out", str(self.folder / name), *flags, *more]


def environment(fault_point: str = "") -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"} | ({"AUTOINTERP_FAULT": fault_point} if fault_point else {})


# --- the whole world, with a judge that tells the truth and with one that errs


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("natural")
    return World(folder, natural_world.build(folder, 400_000), 400_000)


@pytest.fixture(scope="module")
def truthful(world: World) -> Finished:
    return world.run("truthful")


@pytest.fixture(scope="module")
def erring(world: World) -> Finished:
    return world.run("erring", error_rate=ERROR_RATE)


@pytest.fixture(scope="module")
def truth(world: World, truthful: Finished) -> pd.DataFrame:
    """Of the world's labels; both runs have the same windows."""
    return brute_force(world.labels, ExemplarStore.open(truthful.out / "sources" / "planted" / "exemplars"))


def judged(run: Finished, truth: pd.DataFrame, error_rate: float) -> pd.DataFrame:
    """Labels with a precision, beside the truth of the label itself and as a judge reads it.

    The judge says yes where the label holds with chance 1 - e and elsewhere with chance e; on a silent window twice.
    """
    table = truth.join(run.table).dropna(subset=["precision"])
    e = error_rate
    right = (1 - e) * table.both + e * (table.fires - table.both)
    wrong = (1 - e) ** 2 * (table.holds - table.both) + e**2 * (1 - table.fires - table.holds + table.both)
    return table.assign(
        true_precision=table.both / table.holds,
        true_recall=table.both / table.fires,
        read_precision=right / (right + wrong),
        read_recall=right / table.fires,
    )


def covered(table: pd.DataFrame, figure: str, truth: str) -> pd.Series[bool]:
    low, high, true = table[f"{figure}_low"], table[f"{figure}_high"], table[f"{truth}_{figure}"]
    return (true >= low - SHOWN) & (true <= high + SHOWN)


def test_the_planted_labels_err_as_they_should(truth: pd.DataFrame) -> None:
    precision, recall = truth.both / truth.holds, truth.both / truth.fires
    assert truth.kind.value_counts().to_dict() == {RIGHT: 60, BROAD: 20, LOOSE: 20, NARROW: 20}
    of = {kind: truth.kind == kind for kind in (RIGHT, BROAD, LOOSE, NARROW)}
    assert (precision[of[RIGHT]] == 1).all()
    assert (recall[~of[NARROW]] == 1).all()
    assert (precision[of[NARROW]] == 1).all()
    assert 0.05 < precision[of[BROAD]].min() < 0.1
    assert precision[of[BROAD]].max() < 0.5
    assert precision[of[LOOSE]].min() > 0.15
    assert 0.75 < precision[of[LOOSE]].max() < 0.9
    assert recall[of[NARROW]].min() > 0.05
    assert 0.15 < recall[of[NARROW]].median() < 0.45
    assert recall[of[NARROW]].max() < 0.7
    assert truth.fires.max() > 0.15
    assert truth.fires[of[RIGHT]].min() < 0.002


@pytest.mark.parametrize("name", ["truthful", "erring"])
def test_nine_in_ten_lie_in_their_intervals(name: str, truth: pd.DataFrame, request: pytest.FixtureRequest) -> None:
    run: Finished = request.getfixturevalue(name)
    error_rate = ERROR_RATE if name == "erring" else 0.0
    table = judged(run, truth, error_rate)
    assert len(table) >= 118, "one latent fires in too few windows"
    resolved = table[~table.precision_basis.isin(["unresolved", "judge_limited"])]
    assert len(resolved) >= 0.9 * len(table)
    # of what is promised: the label as this judge reads it
    assert covered(resolved, "precision", "read").mean() >= 0.9
    assert covered(resolved, "recall", "read").mean() >= 0.9
    # and of the label itself, where the latent fires far more often than the judge errs twice
    assert covered(resolved[resolved.fires > 10 * error_rate**2], "precision", "true").mean() >= 0.9
    # a judge that errs misses a yes in fifty where the latent fires, so that it sees no label to be whole
    if not error_rate:
        assert covered(resolved, "recall", "true").mean() >= 0.9
    # over-broad labels are not the ones that pay for it
    assert covered(resolved[resolved.kind.isin([BROAD, LOOSE])], "precision", "read").mean() >= 0.8
    # and it is not by intervals that say nothing: where the latent fires often enough, they are narrow
    often = resolved[(resolved.kind == RIGHT) & (resolved.fires > 0.03)]
    assert (often.precision_high - often.precision_low).median() < 0.5
    assert (resolved[resolved.kind == BROAD].eval("precision_high - precision_low")).median() < 0.25


@pytest.mark.parametrize("name", ["truthful", "erring"])
def test_too_broad_and_too_narrow_labels_are_told_apart(
    name: str, truth: pd.DataFrame, request: pytest.FixtureRequest
) -> None:
    table = judged(request.getfixturevalue(name), truth, 0.0)
    right, broad, loose, narrow = (table[table.kind == kind] for kind in (RIGHT, BROAD, LOOSE, NARROW))
    assert auroc(right.precision.tolist(), [*broad.precision, *loose.precision]) >= 0.95
    assert auroc(right.recall.tolist(), narrow.recall.tolist()) >= 0.95
    # the one error is not taken for the other
    assert abs(auroc(right.recall.tolist(), broad.recall.tolist()) - 0.5) < 0.1
    assert auroc(narrow.precision.tolist(), broad.precision.tolist()) >= 0.9
    assert (broad.precision_high < right.precision.median()).mean() >= 0.9
    assert (narrow.recall_high < right.recall.median()).all()
    # the usual figure hardly sees it
    assert broad.detection_score.median() > 0.9
    assert broad.true_precision.max() < 0.5
    f1 = table.f1.groupby(table.kind).median()
    assert f1[RIGHT] > max(f1[BROAD], f1[LOOSE], f1[NARROW])


def test_what_the_figures_rest_on_is_said(truthful: Finished, erring: Finished, truth: pd.DataFrame) -> None:
    for run in (truthful, erring):
        table = judged(run, truth, 0.0)
        assert (table.precision_method == "judged").all()
        assert set(table.precision_basis) == {"own", "borrowed"}
        assert table.prior_num_latents.eq(len(table)).all()
        assert table.prior_num_yes.min() > 100
        np.testing.assert_allclose(table.natural_rate, table.fires, rtol=1e-9)
        # what the own windows say is never narrower by much, and borrowed means that it is wider
        own = table.precision_own_high - table.precision_own_low
        width = table.precision_high - table.precision_low
        borrowed = table.precision_basis == "borrowed"
        assert (width[borrowed] < 0.8 * own[borrowed]).all()
        assert (width[~borrowed] >= 0.8 * own[~borrowed]).all()
        few = run.table[run.table.precision.isna()]
        assert set(few.precision_failure) <= {"too_few_windows"}
        assert few[["precision_low", "recall", "f1", "precision_basis", "precision_method"]].isna().all().all()
        assert run.table.precision_failure[~run.table.precision.isna()].isna().all()
        fit = run.fit(2)
        assert fit["audit_total"] == 60
        assert fit["audit_covered"] >= 54
        assert 0.3 < fit["audit_position"] < 0.7


def test_calls_and_tokens_stay_within_the_bound(truthful: Finished, erring: Finished) -> None:
    """At most 8 calls and 9,000 prompt tokens a label for all judging together, controls not counted, as the server saw it."""
    for run in (truthful, erring):
        controls = [json.loads(values) for (values,) in run.rows('SELECT "values" FROM control_row')]
        spent = [sum(values.get(f"detection_{what}", 0) for values in controls) for what in ("calls", "input_tokens")]
        labels = len(run.table)
        assert spent[0] > 0
        assert (len(run.calls) - spent[0]) / labels <= 8
        assert (sum(call.prompt_tokens for call in run.calls) - spent[1]) / labels <= 9_000
        screens = [call for call in run.calls if SCREENED in call.prompt]
        assert 0 < len(screens) / labels <= 2
        # the books agree with the server
        ((entered, tokens),) = run.rows("SELECT count(*), sum(input_tokens) FROM llm_call WHERE purpose != 'probe'")
        assert (entered, tokens) == (len(run.calls), sum(call.prompt_tokens for call in run.calls))


# --- a smaller one: what goes wrong, and what is switched off

SMALL = (
    'latents="0:48"',
    "chunk_latents=16",
    "precision.screen_windows=100",
    "precision.screen_labels=16",
    "precision.round_windows=100",
    "precision.audit_latents=12",
    "controls.shuffled_latents=8",
    "controls.null_latents=2",
)
FIRST_CHUNK = range(16)
SPENT = ["created_at", "input_tokens", "output_tokens", "cost_usd"]
"""Columns of when and for how much, which a second attempt changes."""
ESTIMATED = [
    *(f"{name}{end}" for name in ("precision", "recall", "f1") for end in ("", "_low", "_high")),
    *("precision_method", "precision_basis", "precision_own_low", "precision_own_high", "best_precision"),
    *("natural_rate", "prior_num_latents", "prior_num_yes"),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("small")
    return World(folder, natural_world.build(folder, 60_000, seed=1), 60_000)


@pytest.fixture(scope="module")
def whole(small: World) -> Finished:
    """A run in which nothing goes wrong."""
    return small.run("whole", *SMALL)


def screens(run: Finished, stage: str = "screen_1") -> dict[int, tuple[dict[str, Any], str | None]]:
    """Items and failure of the rows of a round by latent."""
    rows = run.rows(f"SELECT latent, items, failure_kind FROM screen WHERE stage = '{stage}'")
    return {latent: (json.loads(items), failure) for latent, items, failure in rows}


def estimates(run: Finished, number: int = 1) -> dict[int, dict[str, Any]]:
    """Values of a round's estimates by latent, of labels that have one."""
    query = f"SELECT latent, \"values\" FROM estimate WHERE stage = 'estimate_{number}' AND explainer = 'imported'"
    return {latent: json.loads(values) for latent, values in run.rows(query + " AND failure_kind IS NULL")}


def failures(run: Finished, number: int = 1) -> dict[int, str]:
    """Kinds of the failures of a round's estimates by latent."""
    query = f"SELECT latent, failure_kind FROM estimate WHERE stage = 'estimate_{number}' AND explainer = 'imported'"
    return dict(run.rows(query + " AND failure_kind IS NOT NULL"))


def assert_same(run: Finished, expected: Finished) -> None:
    """Dictionaries are equal, and what every stage left of screens and estimates."""
    pd.testing.assert_frame_equal(run.table.drop(columns=SPENT), expected.table.drop(columns=SPENT))
    for stage in ("screen_1", "audit", "screen_2"):
        assert screens(run, stage) == screens(expected, stage)
        assert screens(run, stage)
    for number in (1, 2):
        assert estimates(run, number) == estimates(expected, number)


def test_a_run_leaves_what_each_stage_found(whole: Finished, small: World) -> None:
    assert len(screens(whole)) == 48
    assert all(failure is None and items["screened"] > 0 for items, failure in screens(whole).values())
    assert len(screens(whole, "audit")) == 12
    wide = {n for n, row in estimates(whole).items() if row["precision_high"] - row["precision_low"] > 0.3}
    assert set(screens(whole, "screen_2")) == wide
    assert 0 < len(wide) < len(estimates(whole))
    assert (
        estimates(whole).keys() == estimates(whole, 2).keys() == set(whole.table.index[whole.table.precision.notna()])
    )
    assert set(failures(whole).values()) == {"too_few_windows"}
    # the last round is the one that counts
    for latent, row in estimates(whole, 2).items():
        assert whole.table.precision[latent] == row["precision"]


def test_a_run_that_is_killed_in_every_stage_ends_as_if_nothing_had_been(small: World, whole: Finished) -> None:
    faults = ["screen_1:before_write:2", "audit:after_claim:1", "audit:before_write:1", "estimate_1:before_write:1"]
    faults += ["screen_2:before_write:1", "estimate_2:after_write:1"]
    # once at any moment, while the screen waits for answers
    oracle = Oracle(natural_world.reader(), meaning=natural_world.meaning_of)
    with RunningServer(oracle, latency_s=0.3) as server:
        child = CliProcess(small.command("killed", server.url, *SMALL), environment())
        until = time.monotonic() + 100
        while not any(SCREENED in call.prompt for call in server.calls) and child.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        assert child.wait(20) == -signal.SIGKILL
    for fault in faults:
        small.run("killed", *SMALL, fault_point=fault, ends=-signal.SIGKILL)
    last = small.run("killed", *SMALL)
    assert_same(last, whole)
    assert last.calls == [], "all answers were there"


def test_without_a_screen_labels_are_estimated_from_detection_alone_until_it_is_asked_again(
    small: World, whole: Finished
) -> None:
    """Every call of the screen fails: typed rows, and a precision for all that have one otherwise."""
    faults = [FaultRule("too_long", containing=SCREENED)]
    run = small.run("no-screen", *SMALL, faults=faults)
    assert {(items["screened"], failure) for items, failure in screens(run).values()} == {(0, "server_error")}
    assert {failure for _, failure in screens(run, "audit").values()} == {"server_error"}
    assert estimates(run).keys() == estimates(whole).keys()
    for row in estimates(run).values():
        assert row["num_screened"] == 0
        assert 0 <= row["precision_low"] <= row["precision"] <= row["precision_high"] <= 1
    again = small.run("no-screen", *SMALL, flags=["--retry"])
    assert_same(again, whole)


def test_where_the_screen_or_the_judge_fails_for_some_the_others_have_theirs(small: World, whole: Finished) -> None:
    """The screen fails for the first 16 labels, detection for one of the others."""
    first, judged = small.labels[0].text, small.labels[20].text
    # the number under which the label stands in the screen's list, and where it stands alone
    faults = [
        FaultRule("too_long", containing=f"\n1 {json.dumps(first)}\n"),
        FaultRule("too_long", containing=f"Label: {json.dumps(judged)}\n"),
    ]
    run = small.run("some", *SMALL, faults=faults)
    found = screens(run)
    assert {latent for latent, (_, failure) in found.items() if failure is not None} == set(FIRST_CHUNK)
    assert failures(run) == failures(whole) | {20: "server_error"}
    row = run.table.loc[20]
    assert row.precision_failure == "server_error"
    assert row[ESTIMATED].isna().all()
    assert estimates(run).keys() == estimates(whole).keys() - {20}
    table = run.table.join(brute_force(small.labels, ExemplarStore.open(run.out / "sources/planted/exemplars")))
    unscreened = table[table.index.isin(FIRST_CHUNK) & table.precision.notna()]
    true = unscreened.both / unscreened.holds
    inside = (true >= unscreened.precision_low - SHOWN) & (true <= unscreened.precision_high + SHOWN)
    assert inside.mean() >= 0.85
    # a label without a screen is not taken for a broad one
    right = unscreened[(unscreened.kind == RIGHT) & (unscreened.fires > 0.02)]
    assert len(right) > 2
    assert right.precision.median() > 0.8
    assert right.precision_low.median() > 0.35
    assert_same(small.run("some", *SMALL, flags=["--retry"]), whole)


def test_no_screen_at_all(small: World, whole: Finished) -> None:
    run = small.run("unscreened", *SMALL, "precision.screen_windows=0")
    assert not any(SCREENED in call.prompt for call in run.calls)
    assert screens(run) == screens(run, "screen_2") == {}
    assert len(screens(run, "audit")) == 12
    for items, failure in screens(run, "audit").values():
        assert failure is None
        assert (items["screened"], items["flagged"]) == (0, 0)
        assert len(items["verdicts"]["answers"]) > 10
    assert estimates(run).keys() == estimates(whole).keys()
    assert estimates(run, 2) == {}
    table = run.table.join(brute_force(small.labels, ExemplarStore.open(run.out / "sources/planted/exemplars")))
    table = table[table.precision.notna()]
    true = table.both / table.holds
    assert ((true >= table.precision_low - SHOWN) & (true <= table.precision_high + SHOWN)).mean() >= 0.9
    assert auroc(table.precision[table.kind == RIGHT].tolist(), table.precision[table.kind == BROAD].tolist()) > 0.9
    # no window is judged twice
    for latent, (items, _) in screens(run, "audit").items():
        ((first,),) = run.rows(f"SELECT items FROM verdict WHERE scorer = 'detection' AND latent = {latent}")
        assert not set(json.loads(first)["windows"]) & set(items["verdicts"]["windows"])


def test_one_round(small: World, whole: Finished) -> None:
    run = small.run("one-round", *SMALL, "precision.rounds=1")
    assert screens(run) == screens(whole)
    assert estimates(run) == estimates(whole)
    assert screens(run, "screen_2") == estimates(run, 2) == {}
    for latent, row in estimates(run).items():
        assert run.table.precision[latent] == row["precision"]


def test_detection_that_may_see_what_the_explainer_saw_gives_no_precision(small: World) -> None:
    run = small.run("leaky", *SMALL, "scorers.0.leak_free=false")
    assert not any(SCREENED in call.prompt for call in run.calls)
    assert run.table.detection_score.notna().any()
    assert run.table[[*ESTIMATED, "precision_failure"]].isna().all().all()
    assert screens(run) == estimates(run) == failures(run) == {}


def test_with_few_labels_and_hardly_a_false_yes_nothing_is_resolved(small: World) -> None:
    right = [label.latent for label in small.labels if label.kind == RIGHT][:8]
    run = small.run("few", *SMALL[1:], f"latents={right}")
    table = run.table[run.table.precision_method == "judged"]
    assert len(table) > 4
    assert (table.prior_num_yes == 0).all()
    assert "unresolved" in set(table.precision_basis)
    assert set(table.precision_basis) <= {"unresolved", "own"}
    # the interval of its own windows is there, and no point of it is likelier than another
    unresolved = table[table.precision_basis == "unresolved"]
    assert unresolved.precision.isna().all()
    assert unresolved.f1.isna().all()
    assert (unresolved.precision_high - unresolved.precision_low > 0.5).all()
    assert unresolved.recall.notna().all()


def test_a_judge_that_errs_too_often_limits_what_rare_latents_can_show(small: World) -> None:
    """Wrong three times in ten, and so twice in .09 of all silent windows: a perfect label shows pi / (pi + (1 - pi) e)."""
    run = small.run("limited", *SMALL, "precision.rounds=1", "controls.null_latents=20", error_rate=0.3)
    table = run.table[run.table.precision.notna()]
    rows = run.rows("SELECT \"values\" FROM control_row WHERE kind = 'null_nothing'")
    values = [json.loads(value) for (value,) in rows]
    rate = sum(v["nothing_silent_yes"] for v in values) / sum(v["nothing_silent_judged"] for v in values)
    assert 0.03 < rate < 0.2
    pi = table.natural_rate
    np.testing.assert_allclose(table.best_precision, pi / (pi + (1 - pi) * rate))
    limited = table.precision_basis == "judge_limited"
    assert limited.tolist() == (table.best_precision < 0.5).tolist()
    assert 0 < limited.sum() < len(table)
