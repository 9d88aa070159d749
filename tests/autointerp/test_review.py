"""What people say of labels: what is kept, what the label is then, and that edits are scored on unseen windows."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autointerp.config import parse_config
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.llm.asking import AskFailed
from autointerp.llm.protocol import CompletionRequest
from autointerp.llm.scripted import ScriptedLLMs
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.folder import RunFolder
from autointerp.review import Review, effective, effective_labels, record_review, reviews, seen_windows
from autointerp.review.recording import human_explainer
from autointerp.review.reviewing import review_latent
from autointerp.store import LabelStore, open_store
from autointerp.store.models import LabelRow, Run, VerdictRow
from autointerp.store.opening import sqlite_url
from autointerp.store.rows import explanation_row
from sae_core.errors import BudgetError, InputError, StoreError, UnknownNameError
from sae_core.records import Exemplar, Origin, Side, Source, WindowPool
from tests.autointerp.pools import HandStore, letters, make_pool

WORDS = ["<bos>", *"abcdefghijklmnopqrst"]
WINDOW, BEFORE = 8, 4
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def review_of(action: str, text: str | None = None, by: str = "ann", note: str | None = None) -> Review:
    return Review(1, 7, action, text, by, note, NOW)  # type: ignore[arg-type]


def label_of(status: str = "labelled", text: str | None = "machine") -> LabelRow:
    return LabelRow(
        run_id="r",
        source="s",
        latent=7,
        status=status,
        text=text,
        text_output=None,
        explainer="max_activating" if text else None,
        decided_by="configuration order",
        failure_kind=None if text else "unparseable",
        failure_message=None if text else "no JSON",
        created_at=NOW,
    )


EDIT, ACCEPT, REJECT = review_of("edit", "better"), review_of("accept"), review_of("reject", note="too broad")


@pytest.mark.parametrize(
    ("said", "status", "text", "explainer", "decided_by"),
    [
        ([], "labelled", "machine", "max_activating", "configuration order"),
        ([ACCEPT], "labelled", "machine", "max_activating", "accepted by ann"),
        ([REJECT], "failed", None, None, "rejected by ann"),
        ([EDIT], "labelled", "better", "human", "edited by ann"),
        ([REJECT, ACCEPT], "labelled", "machine", "max_activating", "accepted by ann"),
        ([EDIT, REJECT], "failed", None, None, "rejected by ann"),
        ([EDIT, REJECT, ACCEPT], "labelled", "better", "human", "accepted by ann"),
        ([EDIT, review_of("edit", "best", "bob")], "labelled", "best", "human.2", "edited by bob"),
    ],
)
def test_the_last_word_holds(
    said: list[Review], status: str, text: str | None, explainer: str | None, decided_by: str
) -> None:
    found = effective(said, label_of())
    assert (found.status, found.text, found.explainer, found.decided_by) == (status, text, explainer, decided_by)
    assert (found.failure_kind == "rejected") is (status == "failed")
    if status == "failed":
        assert found.failure_message is not None
        assert found.failure_message.startswith("rejected by ann on 2026-03-01")


def test_a_latent_without_a_label_stays_so_until_somebody_writes_one() -> None:
    row = label_of("failed", None)
    assert effective([], row).failure_kind == "unparseable"
    assert effective([ACCEPT], row).failure_kind == "unparseable"
    edited = effective([EDIT], row)
    assert (edited.status, edited.text, edited.failure_kind) == ("labelled", "better", None)


def pool_of(side: Side, contexts: int, seed: int) -> WindowPool:
    rng = np.random.default_rng(seed)
    texts = [[0, *rng.integers(1, 21, 31).tolist()] for _ in range(contexts)]
    return make_pool(
        side, texts, list(range(contexts)), [lambda c, at: float(c[at] == 1), lambda c, at: 0.0], WINDOW, BEFORE
    )


def exemplar_at(pool: WindowPool, row: int, latent: int, origin: Origin) -> Exemplar:
    tokens = pool.tokens[row, BEFORE:]
    values = np.zeros(pool.tokens.shape[1], dtype=np.float32)
    windows, columns, found = pool.activations(latent)
    values[columns[windows == row]] = found[windows == row]
    before = pool.tokens[row, :BEFORE]
    return Exemplar(
        latent,
        Side.SCORE,
        origin,
        tokens,
        values[BEFORE:],
        before[before >= 0],
        int(pool.document[row]),
        int(pool.context[row]),
        int(pool.position[row]),
    )


class Runtime:
    """Stands in for the runtime: a new loop for each coroutine."""

    def __init__(self, llms: ScriptedLLMs) -> None:
        self.scripted = llms

    def run(self, make: Callable[[], Coroutine[Any, Any, Any]], poll: Callable[[], None] = lambda: None) -> Any:
        poll()
        return asyncio.run(make())

    def llms(self, source: str, latent: int | None) -> ScriptedLLMs:
        return self.scripted


def judge(request: CompletionRequest) -> str:
    """Says truthfully of each quoted window whether it holds an a."""
    lines = re.findall(r'^\d+ (".*")$', request.messages[-1].content, re.MULTILINE)
    return json.dumps({"matches": [int("a" in json.loads(line)) for line in lines]})


class World:
    """A run with one labelled latent that fires on the token a, and one dead one; detection has judged the first."""

    def __init__(self, folder: Path, contexts: int = 60, scorers: int = 1, per_side: int = 10) -> None:
        self.store: LabelStore = open_store(sqlite_url(folder / "a.db"))
        self.store.create_run(
            Run(id="r1", name="n", digest="d", ordinal=1, config={}, state="done", folder=str(folder), code_version="0")
        )
        data = {
            "subject": {"model": "m/s"},
            "coders": [{"path": "m/c", "name": "s"}],
            "corpus": {"path": "m/t"},
            "explainers": [{"kind": "pattern"}],
            "scorers": [
                {"kind": "pattern"},
                {"kind": "detection", "firing": per_side, "silent": per_side, "min_windows": 1},
            ][: scorers + 1],
            "endpoints": [{"kind": "scripted", "model": "m", "replies": ["{}"]}],
        }
        if not scorers:
            del data["endpoints"]
        self.context = RunContext(parse_config(data, "test"), RunFolder(folder), self.store, "r1")
        pools = {side: pool_of(side, contexts if side is Side.SCORE else 20, int(side)) for side in Side}
        self.pool = pools[Side.SCORE]
        self.hand = HandStore(pools, letters(WORDS))
        self.firing = np.unique(self.pool.activations(0)[0]).tolist()
        for origin, rows in ((Origin.TOP, self.firing[:3]), (Origin.SAMPLED, self.firing[3:6])):
            found = [exemplar_at(self.pool, row, 0, origin) for row in rows]
            self.hand.exemplars_by_key[(0, Side.SCORE, origin)] = found
        self.store.add_sources("r1", [Source("s", "m/s", "0", "h", "m/c", "f" * 64, 2)])
        self.context._exemplars["s"] = self.hand  # type: ignore[assignment]
        self.llms = ScriptedLLMs(judge)
        self.context._llms = Runtime(self.llms)  # type: ignore[assignment]
        self.judged = [f"{self.pool.context[r]}:{self.pool.position[r]}" for r in self.firing[6:9]]
        rows = [
            explanation_row("r1", "s", Explanation(latent=0, explainer="pattern", text="machine")),
            LabelRow(
                run_id="r1",
                source="s",
                latent=0,
                status="labelled",
                text="machine",
                explainer="pattern",
                decided_by="configuration order",
            ),
            LabelRow(
                run_id="r1",
                source="s",
                latent=1,
                status="dead",
                decided_by="configuration order",
                failure_kind="dead",
                failure_message="never fires",
            ),
            VerdictRow(
                run_id="r1",
                source="s",
                latent=0,
                scorer="detection",
                explainer="pattern",
                items={"windows": self.judged},
            ),
        ]
        self.store._add(rows)

    def places(self, rows: list[int]) -> set[str]:
        return {f"{self.pool.context[row]}:{self.pool.position[row]}" for row in rows}

    def shown_to_judges(self, explainer: str) -> set[str]:
        rows = [row for row in self.store.verdicts("r1", "s", [0]) if row.explainer == explainer]
        return {name for row in rows for name in row.items["windows"]}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_an_edit_is_scored_on_windows_that_nobody_was_shown(tmp_path: Path) -> None:
    world = World(tmp_path, per_side=1000)  # more than there are, so that every window is taken that may be
    outcome = review_latent(world.context, "s", 0, "edit", "the letter a", "ann", "the machine's was odd")
    assert (outcome.label.text, outcome.label.explainer, outcome.label.decided_by) == (
        "the letter a",
        "human",
        "edited by ann",
    )
    assert [score.scorer for score in outcome.scores] == ["detection"]
    assert outcome.scores[0].values["detection_score"] == 1.0
    assert "detection 1.00" in outcome.sentence
    judged = world.shown_to_judges("human")
    assert len(judged) > 100
    assert not judged & (world.places(world.firing[:6]) | set(world.judged))
    # the window before an exemplar is printed as its context
    before = {
        f"{world.pool.context[r]}:{world.pool.position[r] - WINDOW}" for r in world.firing[:6] if world.pool.position[r]
    }
    assert not judged & before
    stored = [score for score in world.store.scores("r1", "s", [0]) if score.explainer == "human"]
    assert stored[0].values == outcome.scores[0].values
    assert all("the letter a" in request.messages[-1].content for request in world.llms.asked)


def test_what_an_edit_was_judged_on_is_seen_by_the_next_edit(world: World) -> None:
    review_latent(world.context, "s", 0, "edit", "the letter a", "ann")
    review_latent(world.context, "s", 0, "edit", "the first letter", "bob")
    first, second = world.shown_to_judges("human"), world.shown_to_judges("human.2")
    assert first
    assert second
    assert not first & second
    texts = {e.explainer: e.text for e in world.store.explanations("r1", "s", [0])}
    assert texts == {"pattern": "machine", "human": "the letter a", "human.2": "the first letter"}
    assert effective_labels(world.store, "r1", "s")[0].explainer == "human.2"


def test_without_an_unseen_window_the_score_fails_with_the_numbers(tmp_path: Path) -> None:
    world = World(tmp_path, contexts=60)
    seen = sorted(world.places(world.firing[6:]))
    world.store._add(
        [
            VerdictRow(
                run_id="r1",
                source="s",
                latent=0,
                scorer="fuzz",
                explainer="pattern",
                items={"windows": [], "company": [seen]},
            )
        ]
    )
    outcome = review_latent(world.context, "s", 0, "edit", "the letter a", "ann")
    failure = outcome.scores[0].failure
    assert failure is not None
    assert failure.kind is FailureKind.TOO_FEW_WINDOWS
    assert f"none of the {len(world.firing)} activating windows of the score side is unseen" in failure.message
    assert world.llms.asked == []
    assert outcome.label.text == "the letter a"


def test_a_judge_that_fails_leaves_a_typed_failure_and_a_stop_can_be_taken_up_again(world: World) -> None:
    def refuses(request: CompletionRequest) -> str:
        raise AskFailed(Failure(kind=FailureKind.REFUSED, message="it would not"))

    def stops(request: CompletionRequest) -> str:
        raise BudgetError("the budget is spent")

    world.llms._answer = stops
    with pytest.raises(BudgetError):
        review_latent(world.context, "s", 0, "edit", " the letter a\n", "ann")
    assert [r.text for r in reviews(world.store, "r1", "s")] == ["the letter a"]
    assert [s for s in world.store.scores("r1", "s", [0]) if s.explainer == "human"] == []
    world.llms._answer = refuses
    outcome = review_latent(world.context, "s", 0, "edit", "the letter a", "ann")
    assert len(reviews(world.store, "r1", "s")) == 1  # the same word, taken up
    failure = outcome.scores[0].failure
    assert failure is not None
    assert failure.kind is FailureKind.REFUSED
    asked = len(world.llms.asked)
    again = review_latent(world.context, "s", 0, "edit", "the letter a", "ann")
    assert len(world.llms.asked) == asked
    assert again.scores == tuple(s for s in world.store.scores("r1", "s", [0]) if s.explainer == "human")


def test_accepting_and_rejecting_ask_nobody(world: World) -> None:
    assert "keeps its label “machine”" in review_latent(world.context, "s", 0, "accept", None, "ann").sentence
    rejected = review_latent(world.context, "s", 0, "reject", None, "bob", "too broad")
    assert rejected.label.failure_kind == "rejected"
    assert re.search(r"rejected by bob on \d{4}-\d\d-\d\d: too broad", rejected.sentence)
    assert world.llms.asked == []
    assert [(r.action, r.by, r.note) for r in reviews(world.store, "r1", "s", [0])] == [
        ("accept", "ann", None),
        ("reject", "bob", "too broad"),
    ]
    assert effective_labels(world.store, "r1", "s", [0])[0].text is None
    assert world.store.labels("r1", "s", [0])[0].text == "machine"  # what the machine said stands


def test_a_run_without_judges_keeps_the_edit(tmp_path: Path) -> None:
    outcome = review_latent(World(tmp_path, scorers=0).context, "s", 0, "edit", "the letter a", "ann")
    assert outcome.scores == ()
    assert "no scorer that could judge it" in outcome.sentence


def test_what_cannot_be_reviewed_is_refused_in_a_sentence(world: World) -> None:
    cases: list[tuple[tuple[Any, ...], type[Exception], str]] = [
        ((0, "edit", "  ", "ann"), InputError, "the label has 0 characters"),
        ((0, "edit", "x" * 501, "ann"), InputError, "501 characters"),
        ((0, "edit", None, "ann"), InputError, "an edit has a text"),
        ((0, "accept", "x", "ann"), InputError, "only an edit has one"),
        ((0, "accept", None, " "), InputError, "say who reviews"),
        ((1, "edit", "x", "ann"), InputError, "never fires"),
        ((9, "accept", None, "ann"), StoreError, "latent 9 of 's' has no label row"),
    ]
    for given, error, message in cases:
        with pytest.raises(error, match=message):
            review_latent(world.context, "s", *given)
    with pytest.raises(UnknownNameError):
        review_latent(world.context, "other", 0, "accept", None, "ann")
    assert reviews(world.store, "r1", "s") == []


def test_names_and_texts_are_kept_without_what_terminals_obey(world: World) -> None:
    kept = record_review(world.store, "r1", "s", 0, "edit", "a\x1b[31m\nb\ud800", "ann\x00", "why\n\nnot")
    assert (kept.text, kept.by, kept.note) == ("a [31m b�", "ann", "why\n\nnot")


def test_edits_are_numbered() -> None:
    assert [human_explainer(n) for n in (1, 2, 3)] == ["human", "human.2", "human.3"]


def test_seen_windows_are_those_judged_and_those_displayed(world: World) -> None:
    from autointerp.evidence import LatentEvidence

    seen = seen_windows(LatentEvidence(0, world.hand), world.store.verdicts("r1", "s", [0]))
    assert {f"{c}:{p}" for c, p in seen.judged} == set(world.judged)
    assert {f"{c}:{p}" for c, p in seen.displayed} >= world.places(world.firing[:6])
