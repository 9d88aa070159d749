"""What a plan says against numbers worked out by hand, and against the calls that components really make."""

from __future__ import annotations

import asyncio
import io
import json
import re
from dataclasses import replace
from math import ceil
from typing import Any, Literal

import numpy as np
import pytest
from rich.console import Console

from autointerp.components import known_components, parse_component
from autointerp.config import BudgetConfig, RunConfig, parse_config
from autointerp.evidence import LatentEvidence, ScreenedWindows
from autointerp.explainers.base import Explainer
from autointerp.explanation import Explanation
from autointerp.judging.screening import screen_windows
from autointerp.llm.protocol import CompletionRequest
from autointerp.llm.scripted import ScriptedLLMs
from autointerp.planning.expected_precision import RATES, expected_precision
from autointerp.planning.plan import plan_run
from autointerp.planning.planned import PlanSizes, num_calls, text_tokens
from autointerp.planning.second_asking import second_asking
from autointerp.planning.sizes import measured_sizes
from autointerp.prompting.prompt import load_prompt
from autointerp.report.plan import print_plan
from autointerp.sampling.window import Stratum, of_pool
from autointerp.scorers.base import Scorer
from autointerp.scorers.detection import DetectionScorer
from autointerp.scorers.fuzz import FuzzScorer
from autointerp.statistics.natural_rate import PlannedWindows, expected_widths
from sae_core.errors import ConfigError
from sae_core.intervention.text_evidence import SteeredTexts
from sae_core.lens_evidence import LensEvidence, TokenChangeEvidence
from sae_core.records import Side
from sae_core.tried_texts import TriedText
from tests.autointerp import steered_world
from tests.autointerp.pools import HandStore, Rule, letters, make_pool

WORDS = [
    "<bos>",
    " tree",
    " stone",
    " river",
    " cloud",
    " under",
    " about",
    " seven",
    " green",
    " paper",
    " music",
    " north",
    " light",
]
NEIGHBOURS = 5


def rule_of(token: int) -> Rule:
    return lambda context, at: float(context[at] == token) * (1 + at % 9)


@pytest.fixture(scope="module")
def evidence() -> LatentEvidence:
    """Latent 0 with four neighbours, on windows of 32 words of four to six characters."""
    pools = {}
    for side in Side:
        rng = np.random.default_rng(int(side))
        chance = np.array([0.012] * NEIGHBOURS + [1.0] * (len(WORDS) - 1 - NEIGHBOURS))
        texts = [[0, *(1 + rng.choice(len(WORDS) - 1, size=127, p=chance / chance.sum())).tolist()] for _ in range(700)]
        rules = [rule_of(token) for token in range(1, NEIGHBOURS + 1)]
        pools[side] = make_pool(side, texts, list(range(700)), rules, window=32, before=16)
    others = [[j for j in range(NEIGHBOURS) if j != i] for i in range(NEIGHBOURS)]
    tokens = np.tile(np.arange(1, 11, dtype=np.int32), (NEIGHBOURS, 1))
    logits = np.ones((NEIGHBOURS, 10), dtype=np.float32)
    lens = LensEvidence(
        neighbours=np.array(others, dtype=np.int32),
        cosines=np.ones((NEIGHBOURS, NEIGHBOURS - 1), dtype=np.float32),
        promoted=tokens,
        promoted_logits=logits,
        suppressed=tokens,
        suppressed_logits=logits,
    )
    change = TokenChangeEvidence(
        latents=np.arange(NEIGHBOURS, dtype=np.int32),
        strength=np.ones(NEIGHBOURS, dtype=np.float32),
        raised=tokens,
        raised_logits=logits,
        lowered=tokens,
        lowered_logits=logits,
        num_prompts=32,
    )
    store = HandStore(pools, letters(WORDS))
    steered = written_texts(store, tokens=8, targets=(1.0,), prompts=30)
    answers = written_texts(store, tokens=48, targets=(0.1, 0.33, 1.0), prompts=10)
    others = [LABEL.model_copy(update={"latent": 50 + i, "text": f"{LABEL.text} {i}"}) for i in range(70)]
    return LatentEvidence(
        0,
        store,
        lens=lens,
        token_change=change,
        in_text_sample=frozenset({"steered_texts", "steered_answers"}),
        steered_texts=steered,
        steered_answers=answers,
        other_labels=others,
    )


def written_texts(store: HandStore, *, tokens: int, targets: tuple[float, ...], prompts: int) -> SteeredTexts:
    """Texts of the store's words, as if latent 0 and two others had been steered."""
    made = steered_world.written(0, prompts=prompts, effects=dict.fromkeys(targets, 0.0), others=(1, 2), length=tokens)
    rng = np.random.default_rng(0)
    words = len(WORDS) - 1
    return replace(
        made,
        tokens=rng.integers(1, 1 + words, made.tokens.shape).astype(np.int32),
        prompt_tokens=rng.integers(1, 1 + words, made.prompt_tokens.shape).astype(np.int32),
    )


def example(schema: dict[str, Any], sample: int) -> Any:
    """Something that follows a schema."""
    if "enum" in schema:
        return schema["enum"][0]
    if schema["type"] == "object":
        # no text stands in two lists
        parts = enumerate(schema["properties"].items())
        return {name: example(part, sample + 50 * place) for place, (name, part) in parts}
    if schema["type"] == "array":
        return [example(schema["items"], sample + number) for number in range(schema.get("maxItems", 1))]
    if schema["type"] == "boolean":
        return sample % 2 == 0
    return f"names of things that stand in nature, number {sample}, as a text of some length that is much like others"


def answer(request: CompletionRequest) -> str:
    return (
        ""
        if request.json_schema is None
        else json.dumps(example(request.json_schema, 100 * (request.sample + len(request.messages))))
    )


LABEL = Explanation(
    latent=0, explainer="max_activating", text="names of things in nature, such as trees or rivers, in a list"
)


async def ask(component: Explainer | Scorer, evidence: LatentEvidence, llms: ScriptedLLMs) -> None:
    """All that the pipeline would ask of a component for one latent."""
    if isinstance(component, Scorer):
        if component.writes_texts:
            await component.write(LABEL, llms)
        await component.score(LABEL, evidence, llms)
        return
    explanation = await component.explain(evidence, llms)
    tried: list[TriedText] = []
    for number in range(1, component.rounds_of_tests + 1):
        for test in explanation.payload["tests"]:
            tokens = np.array([1, 6, 7, 8, 9], dtype=np.int32)
            tried.append(TriedText(0, number, test["text"], tokens, np.array([4.0, 0, 0, 0, 0], dtype=np.float32)))
        explanation = await component.revise(explanation, replace(evidence, tried=tuple(tried)), llms)


COMPONENTS: list[tuple[str, dict[str, Any]]] = [
    ("explainers", {"kind": "max_activating"}),
    ("explainers", {"kind": "max_activating", "exemplars": 40, "context_tokens": 16, "show_activations": False}),
    ("explainers", {"kind": "contrastive"}),
    ("explainers", {"kind": "output"}),
    ("explainers", {"kind": "output", "prompts": 0, "tokens": 5}),
    ("explainers", {"kind": "best_of_n", "n": 3}),
    ("explainers", {"kind": "revise"}),
    ("explainers", {"kind": "revise", "rounds": 1, "tests": 3}),
    ("scorers", {"kind": "detection"}),
    ("scorers", {"kind": "detection", "firing": 7, "silent": 6, "per_call": 5, "context_tokens": 16}),
    ("scorers", {"kind": "fuzz"}),
    ("scorers", {"kind": "fuzz", "firing": 11, "per_call": 5}),
    ("scorers", {"kind": "intruder"}),
    ("scorers", {"kind": "discrimination"}),
    ("scorers", {"kind": "saebench"}),
    ("scorers", {"kind": "simulation"}),
    ("scorers", {"kind": "simulation", "variant": "json"}),
    ("scorers", {"kind": "surprisal"}),
    ("scorers", {"kind": "written"}),
    ("scorers", {"kind": "written", "matching": 20, "near": 6}),
    ("scorers", {"kind": "steered_surprisal"}),
    ("scorers", {"kind": "steered_surprisal", "other_labels": 8, "context_tokens": 4}),
    ("scorers", {"kind": "steered_choice"}),
    ("scorers", {"kind": "steered_choice", "per_call": 7}),
    ("scorers", {"kind": "steered_rating"}),
]


@pytest.mark.parametrize(("group", "table"), COMPONENTS, ids=lambda value: str(value))
def test_a_plan_says_the_calls_that_are_made_and_their_length(
    evidence: LatentEvidence, group: Any, table: dict[str, Any]
) -> None:
    component = parse_component(group, table)
    planned = component.planned(measured_sizes(evidence.store))
    llms = ScriptedLLMs(answer)
    asyncio.run(ask(component, evidence, llms))
    assert sum(call.calls for call in planned) == len(llms.asked)
    assert {(call.endpoint, call.purpose) for call in planned} <= {("", component.kind)} == set(llms.purposes)
    # what decides a run's identity is what was sent
    sent = {load_prompt(name).hash for need in component.llm_needs() for name in need.prompts}
    assert {request.prompt_hash for request in llms.asked} <= sent
    said = sum(call.calls * call.prompt_tokens for call in planned)
    characters = sum(
        sum(len(message.content) for message in request.messages) + len(request.text or "") for request in llms.asked
    )
    assert said == pytest.approx(characters / 4, rel=0.25)
    # the static part really is the beginning of all calls with the same instructions
    firsts: dict[str, str] = {}
    for request in llms.asked:
        whole = "".join(message.content for message in request.messages) or (request.text or "")
        first = firsts.setdefault(whole[:100], whole)
        pairs = enumerate(zip(first, whole, strict=False))
        same = next((i for i, (one, other) in pairs if one != other), min(len(first), len(whole)))
        assert same >= 4 * min(call.static_tokens for call in planned) * 0.85
    room = [request.max_tokens for request in llms.asked if request.text is None]
    most = max(call.most_answer_tokens for call in planned)
    assert not room or 0.9 * most <= max(room) <= most


def test_every_component_that_asks_has_a_plan() -> None:
    covered = {table["kind"] for _, table in COMPONENTS}
    groups: tuple[Literal["explainers"], Literal["scorers"]] = ("explainers", "scorers")
    for group in groups:
        for kind in known_components(group):
            fields = {"path": "x"} if kind == "imported" else {}
            component = parse_component(group, {"kind": kind, **fields})
            assert bool(component.llm_needs()) == bool(component.planned(PlanSizes())) == (kind in covered)


SIZES = PlanSizes(window_length=10, window_tokens=10.0, label_tokens=20.0)


def by_hand(name: str) -> tuple[int, int]:
    """Static and question tokens of a prompt file: four characters a token, four tokens a message."""
    prompt = load_prompt(name)
    static = ceil(len(prompt.system.strip()) / 4) + 4
    for shot in prompt.shots:
        static += ceil(len(shot.user.strip()) / 4) + 4 + ceil(len(shot.answer.strip()) / 4) + 4
    return static, ceil(len(prompt.user.strip()) / 4) + 4


def test_detection_and_fuzz_by_hand() -> None:
    [detection] = DetectionScorer().planned(SIZES)
    static, question = by_hand("detection")
    assert (detection.calls, detection.static_tokens) == (2, static)
    # 20 windows of 10 tokens and 3 for number and quotes, 12 for the delimiters, 20 for the label
    assert detection.fresh_tokens == question + 20 + 12 + 20 * 13
    assert (detection.answer_tokens, detection.most_answer_tokens) == (20 * 2 + 6, 6 * 20 + 40)
    [fuzz] = FuzzScorer(firing=10, per_call=8, context_tokens=5).planned(SIZES)
    static, question = by_hand("fuzz")
    # 4 pairs a call: 3 calls of 20/3 windows, each with 5 tokens before it and 2 for its marks
    assert (fuzz.calls, fuzz.static_tokens) == (3, static)
    assert fuzz.fresh_tokens == pytest.approx(question + 20 + 12 + 20 / 3 * (10 + 5 + 3 + 2))
    assert [num_calls(*given) for given in ((1, 1, 20), (20, 1, 20), (21, 1, 20), (3, 2, 3), (3, 2, 2))] == [
        1,
        1,
        2,
        3,
        3,
    ]


def config_of(**changes: Any) -> RunConfig:
    data: dict[str, Any] = {
        "subject": {"model": "m/s"},
        "coders": [{"path": "m/c", "name": "a"}, {"path": "m/d", "name": "b"}],
        "corpus": {"path": "m/t"},
        "explainers": [{"kind": "pattern"}, {"kind": "max_activating"}],
        "scorers": [
            {"kind": "pattern"},
            {"kind": "detection", "confirm": False},
            {"kind": "intruder", "endpoint": "judge"},
        ],
        "controls": {"random_directions": 3, "shuffled_latents": 10, "null_latents": 0},
        "precision": {"by": ""},
        "endpoints": [
            {
                "kind": "scripted",
                "name": "writer",
                "model": "m",
                "replies": ["x"],
                "usd_per_million_input_tokens": 2.0,
                "usd_per_million_output_tokens": 10.0,
                "usd_per_million_cached_tokens": 0.5,
            },
            {"kind": "openai", "name": "judge", "model": "m"},
        ],
        "latents": "0:50",
    }
    return parse_config(data | changes, "test")


def test_what_a_run_asks_is_the_sum_over_latents_labels_and_controls() -> None:
    plan = plan_run(config_of(), sizes=SIZES)
    assert plan.latents == 100
    counts = {line.what: (line.texts, line.latents, line.calls) for line in plan.lines}
    # detection judges the pattern's label too: two texts of two calls for each latent
    assert counts == {
        "max_activating": (1, 100, 100),
        "detection": (2, 100, 400),
        "intruder": (1, 100, 200),
        "detection, shuffled": (2, 20, 80),
        "max_activating, directions": (1, 6, 6),
        "detection, directions": (2, 6, 24),
        "intruder, directions": (1, 6, 12),
    }
    mean = plan.per_latent()
    assert mean.calls == 1 + 4 + 2
    assert plan.endpoints == ["writer", "judge"]
    total = plan.total()
    assert total is not None
    assert total.calls == 822
    assert total.usage.cost_usd is None  # the judge's price is not known

    static, question = by_hand("detection")
    one = static + question + 20 + 12 + 20 * 13
    [line] = [line for line in plan.lines if line.what == "detection"]
    known = plan.total([line])
    assert known is not None
    assert (known.usage.input_tokens, known.usage.output_tokens) == (400 * one, 400 * 46)
    assert known.usage.cost_usd == pytest.approx((400 * one * 2 + 400 * 46 * 10) / 1e6)
    # all but the first call find the static part in the cache, at a quarter of the price
    assert known.cached_cost_usd == pytest.approx((400 * one * 2 - 399 * static * 1.5 + 400 * 46 * 10) / 1e6)


def test_where_a_label_is_chosen_the_texts_are_judged_on_the_choose_side_too() -> None:
    plan = plan_run(config_of(labels={"choose": "best", "by": "detection"}), sizes=SIZES)
    [line] = [line for line in plan.lines if line.what == "detection, to choose"]
    assert (line.texts, line.latents, line.calls) == (2, 100, 400)


def test_the_number_of_latents_is_given_or_listed_or_not_known() -> None:
    assert plan_run(config_of(latents="all")).latents is None
    assert plan_run(config_of(latents="all")).total() is None
    assert plan_run(config_of(latents="all"), num_latents=[5, 7]).latents == 12
    assert plan_run(config_of(latents="all"), num_latents=6).latents == 12
    assert plan_run(config_of(latents=[3, 4, 5])).latents == 6
    assert plan_run(config_of(latents="10:")).latents is None
    assert plan_run(config_of(latents="10:"), num_latents=30).latents == 40
    assert (
        plan_run(config_of(latents="all"), num_latents=4).lines[3].latents == 8
    )  # no more shuffled ones than there are


def test_a_dollar_budget_needs_every_price() -> None:
    config = config_of()
    with_budget = config.model_copy(update={"budget": BudgetConfig(usd=5.0)})
    with pytest.raises(ConfigError, match="the price of the endpoint 'judge' is not known"):
        plan_run(with_budget)
    priced: dict[str, Any] = {
        "scorers": [{"kind": "detection", "confirm": False}],
        "endpoints": list(config.endpoints[:1]),
    }
    plan = plan_run(config_of(**priced, budget={"usd": 0.05}), sizes=SIZES)
    [sentence] = plan.over_budget
    assert "budget.usd is 0.05" in sentence
    assert plan_run(config_of(**priced, budget={"usd": 500.0})).over_budget == []
    tokens = plan_run(config_of(budget={"tokens": 1000}), sizes=SIZES)
    assert "budget.tokens is 1,000" in tokens.over_budget[0]


def estimating(latents: str = "0:50", **changes: Any) -> RunConfig:
    """A run of two sources whose only judge is detection, for the estimate of which everything is asked."""
    return config_of(
        latents=latents,
        explainers=[{"kind": "max_activating"}],
        scorers=[{"kind": "detection"}],
        controls={"random_directions": 0, "shuffled_latents": 2, "null_latents": 4},
        **({"precision": {}} | changes),
    )


def test_what_an_estimate_asks_by_hand() -> None:
    config = estimating(precision={"verified": 20})
    lines = {line.what: line for line in plan_run(config, sizes=SIZES).lines}
    counts = {what: (line.texts, line.latents, line.beside) for what, line in lines.items()}
    assert counts == {
        "max_activating": (1, 100, False),
        "detection": (1, 100, False),
        "detection, again": (1, 100, False),
        "screen": (1, 100, False),
        "detection, flagged": (1, 100, False),
        "detection, audit": (1, 100, True),
        "screen, audit": (1, 100, True),
        "screen, more rounds": (1, 100, False),
        "detection, more rounds": (1, 100, False),
        "detection, null labels": (3, 8, True),
        "detection, null labels, again": (1, 8, True),
        "detection, shuffled": (1, 4, True),
        "detection, shuffled, again": (1, 4, True),
    }
    # 50 labels of either source: 40 and 10, each with 500 windows in calls of 25; then as many
    screen = lines["screen"]
    assert screen.calls == pytest.approx(2 * 2 * 20)
    assert lines["screen, more rounds"].calls == pytest.approx(2 * 2 * 20)
    static, question = by_hand("screen")
    assert screen.planned.static_tokens == static
    # 25 labels of 20 tokens and 3 in a call, and 25 windows of 10 tokens and 3, each in a block of 12
    assert screen.planned.fresh_tokens == pytest.approx(question + 12 + 25 * 23 + 12 + 25 * 13)
    # 50 labels of 40 windows, half of which are 1,000: 20 for each of the 50 in the audit, one call
    audit = lines["detection, audit"]
    static, question = by_hand("detection")
    assert audit.planned.joined_tokens == pytest.approx(20 * 13, rel=0.05)
    assert audit.planned.calls == pytest.approx(1, abs=0.05)
    assert audit.planned.prompt_tokens == static + question + 20 + 12
    # a judge that says yes to everything is asked about all 20 silent windows again, beside 20 others
    assert lines["detection, again"].at_most.calls == 100 * 2
    assert lines["detection, null labels, again"].calls == 8 * 2
    # one call more for the flagged ones; 20 + 20 + 20 doubtful windows or 60 in all then
    assert lines["detection, flagged"].at_most.calls == 100 * (1 + 1)
    # in a further round one full call a label, and at most all of it again
    assert lines["detection, more rounds"].at_most.calls == 100 * 2
    together = plan_run(config, sizes=SIZES).per_latent()
    assert together.calls == pytest.approx(sum(line.calls_per_latent for line in lines.values() if not line.beside))


@pytest.mark.parametrize(
    ("latents", "groups"), [("0:1", 1), ("0:20", 1), ("0:21", 2), ("0:40", 2)], ids=lambda value: str(value)
)
def test_few_labels_share_the_calls_of_a_screen_among_them(latents: str, groups: int) -> None:
    explainers = [{"kind": "max_activating"}, {"kind": "contrastive"}]
    config = estimating(latents).model_copy(update={"explainers": tuple(explainers)})
    [line] = [line for line in plan_run(config, sizes=SIZES).lines if line.what == "screen"]
    assert (line.texts, line.calls) == (2, pytest.approx(2 * groups * 20))  # two sources


def test_without_the_number_of_latents_the_calls_of_a_screen_are_full() -> None:
    [line] = [line for line in plan_run(estimating("all"), sizes=SIZES).lines if line.what == "screen"]
    assert (line.calls, line.calls_per_latent) == (None, pytest.approx(20 / 40))


@pytest.mark.parametrize(
    ("precision", "gone"),
    [
        ({"by": ""}, {"screen", "flagged", "audit", "rounds"}),
        ({"screen_windows": 0}, {"screen", "flagged", "rounds"}),
        ({"audit_latents": 0}, {"audit"}),
        ({"rounds": 1}, {"rounds"}),
        ({"verified": 0}, {"flagged"}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "-",  # sets have no order of their own
)
def test_what_is_not_wanted_is_not_planned(precision: dict[str, Any], gone: set[str]) -> None:
    said = " ".join(line.what for line in plan_run(estimating(precision=precision), sizes=SIZES).lines)
    words = {"screen", "flagged", "audit", "rounds"}
    assert {word for word in words if word not in said} == gone


def test_a_screen_asks_what_is_planned(evidence: LatentEvidence) -> None:
    pool = evidence.store.pool(Side.SCORE)
    windows = [of_pool(pool, row, 0, Stratum.BULK) for row in range(500)]
    llms = ScriptedLLMs(lambda request: json.dumps({"fits": [[]] * 25}))
    labels = [LABEL.text] * 50
    for part in (labels[:40], labels[40:]):
        asyncio.run(screen_windows(llms.of("", "screen"), load_prompt("screen"), part, windows, evidence.store.pieces))
    sizes = replace(measured_sizes(evidence.store), label_tokens=len(LABEL.text) / 4)
    line = next(line for line in plan_run(estimating(), sizes=sizes).lines if line.what == "screen")
    assert line.latents == 100
    assert line.calls == pytest.approx(2 * len(llms.asked))  # of two such sources
    characters = sum(sum(len(message.content) for message in request.messages) for request in llms.asked)
    assert line.prompt_per_latent * 50 == pytest.approx(characters / 4, rel=0.1)
    assert line.planned.most_answer_tokens == max(request.max_tokens for request in llms.asked)


def texts_of(request: CompletionRequest) -> list[str]:
    """The windows that are shown."""
    return [json.loads(text) for text in re.findall(r'^\d+ (".*")$', request.messages[-1].content, re.MULTILINE)]


@pytest.mark.parametrize("doubtful", [0, 1, 2, 9, 20])
def test_a_second_asking_takes_the_calls_that_are_planned(evidence: LatentEvidence, doubtful: int) -> None:
    """What a judge is really asked that says yes to so many silent windows, some of them flagged by a screen."""
    pool = evidence.store.pool(Side.SCORE)
    silent = [row for row in range(600) if not of_pool(pool, row, 0, Stratum.BULK).fires]
    scorer = DetectionScorer(neighbour_share=0.0, token_share=0.0, per_call=20)
    for screened in ({}, {LABEL.explainer: ScreenedWindows(tuple(silent[:300]), tuple(silent[300:400]), 7)}):
        known = replace(evidence, screened=screened)
        shown: list[str] = []

        def deny(request: CompletionRequest, shown: list[str] = shown) -> str:
            shown += texts_of(request)
            return json.dumps({"matches": [0] * len(texts_of(request))})

        asyncio.run(scorer.score(LABEL, known, ScriptedLLMs(deny)))
        judged = len(shown)
        assert judged == 40 + (7 if screened else 0)
        # the latent fires on " tree"
        chosen = [text for text in shown if " tree" not in text][:doubtful]
        assert len(set(chosen)) == doubtful

        def affirm(request: CompletionRequest, chosen: list[str] = chosen) -> str:
            return json.dumps({"matches": [int(text in chosen) for text in texts_of(request)]})

        llms = ScriptedLLMs(affirm)
        asyncio.run(scorer.score(LABEL, known, llms))
        calls, windows = second_asking([doubtful], judged, 20)
        assert len(llms.asked) == ceil(judged / 20) + calls
        assert sum(len(texts_of(request)) for request in llms.asked) == judged + windows
    assert [call.most.calls for call in scorer.planned_again(SIZES) if call.most] == [second_asking([20], 40, 20)[0]]


@pytest.mark.long
def test_an_estimate_is_expected_as_the_run_will_make_it() -> None:
    config = estimating("all", extraction={"num_tokens": 4_000_000})
    found = expected_precision(config, num_latents=[5_000, 250])
    assert found is not None
    assert found.labels == 250
    # twice 500 windows, of which 94% are bulk; the audit: half of 250 * 40 for 60, in whole calls of 25; 40% of 125,000 windows are
    # scored, 30,000 kept
    by_hand = PlannedWindows(
        firing=20, silent=(5, 5, 0, 10), audit_latents=60, audit=75, screened=940, verified=20, pool=30_000
    )
    assert found.planned == by_hand
    four = [expected_widths(RATES, by_hand, seed, num_latents=250).median for seed in range(4)]
    np.testing.assert_allclose(found.widths.median, np.mean(four, axis=0))
    assert expected_precision(estimating("all", precision={"by": ""}), 50) is None
    unknown = expected_precision(estimating("all", precision={"rounds": 1, "screen_windows": 0}))
    assert unknown is not None
    assert (unknown.labels, unknown.planned.screened, unknown.planned.verified) == (None, 0, 10)
    # more judging makes the interval narrower, where it is not narrow as it is
    assert np.all(found.widths.median[:3] < unknown.widths.median[:3])


def printed(config: RunConfig, **given: Any) -> str:
    out = io.StringIO()
    print_plan(plan_run(config, **given), Console(file=out, width=140))
    return out.getvalue()


def test_the_expected_interval_is_printed_with_what_it_supposes() -> None:
    config, out = estimating("0:20"), io.StringIO()
    print_plan(plan_run(config), Console(file=out, width=140), expected_precision(config))
    text = " ".join(out.getvalue().split())
    for words in (
        "at most",
        "fires in 95% interval of precision: width 10% 1% 0.1% 0.01%",
        "median label .",
        "says yes on .8 of the firing windows and, in the median, on 2% of the silent ones where a neighbour fires, 1% of",
        "0.03% of all others",
        "flags 80% of what the judge says yes to and 0.5% of the rest",
        "20 labels borrow less from each other than the 80 that are simulated",
    ):
        assert words in text
    assert "interval of precision" not in printed(config_of())


def test_a_budget_between_what_is_expected_and_the_most_may_not_suffice() -> None:
    plan = plan_run(estimating(), sizes=SIZES)
    expected, most = plan.total(), plan.at_most.total()
    assert expected is not None
    assert most is not None
    tokens, most_tokens = (all_.usage.input_tokens + all_.usage.output_tokens for all_ in (expected, most))
    assert tokens < most_tokens
    for budget, said in ((tokens - 1, "would pause"), (tokens + 1, "might pause"), (most_tokens, None)):
        sentences = plan_run(estimating(budget={"tokens": budget}), sizes=SIZES).over_budget
        assert [said in sentence for sentence in sentences] == ([] if said is None else [True]), sentences


def test_a_plan_is_printed_with_its_sums_and_what_is_wrong_with_it() -> None:
    text = printed(config_of(budget={"tokens": 1000}), sizes=SIZES)
    for words in (
        "detection, shuffled",
        "writer",
        "822",
        "Over budget: the plan takes about",
        "price of an endpoint",
    ):
        assert words in " ".join(text.split())
    cheap = printed(config_of(scorers=[{"kind": "detection"}]), sizes=SIZES)
    assert "With the static parts in a prefix cache it costs $" in " ".join(cheap.split())
    unknown = printed(config_of(latents="all"))
    assert "not known before it is read" in " ".join(unknown.split())
    none = printed(config_of(explainers=[{"kind": "pattern"}], scorers=[{"kind": "pattern"}]))
    assert none.strip() == "This run asks no language model: it takes no tokens and costs nothing."


def test_windows_are_measured_by_their_characters(evidence: LatentEvidence) -> None:
    sizes = measured_sizes(evidence.store)
    assert sizes.window_length == 32
    lengths = [len(word) for word in WORDS[1:]]
    assert 32 * min(lengths) / 4 < sizes.window_tokens < 32 * max(lengths) / 4
    assert text_tokens("12345") == 2
