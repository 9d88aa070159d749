"""What a plan says against numbers worked out by hand, and against the calls that components really make."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from math import ceil
from typing import Any, Literal

import numpy as np
import pytest
from rich.console import Console

from autointerp.components import known_components, parse_component
from autointerp.config import BudgetConfig, RunConfig, parse_config
from autointerp.evidence import LatentEvidence
from autointerp.explainers.base import Explainer
from autointerp.explanation import Explanation
from autointerp.llm.protocol import CompletionRequest
from autointerp.llm.scripted import ScriptedLLMs
from autointerp.planning.plan import plan_run
from autointerp.planning.planned import PlanSizes, num_calls, text_tokens
from autointerp.planning.sizes import measured_sizes
from autointerp.prompting.prompt import load_prompt
from autointerp.report.plan import print_plan
from autointerp.scorers.base import Scorer
from autointerp.scorers.detection import DetectionScorer
from autointerp.scorers.fuzz import FuzzScorer
from sae_core.errors import ConfigError
from sae_core.lens_evidence import LensEvidence, TokenChangeEvidence
from sae_core.records import Side
from sae_core.tried_texts import TriedText
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
    return LatentEvidence(0, HandStore(pools, letters(WORDS)), lens=lens, token_change=change)


def example(schema: dict[str, Any], sample: int) -> Any:
    """Something that follows a schema."""
    if "enum" in schema:
        return schema["enum"][0]
    if schema["type"] == "object":
        return {name: example(part, sample) for name, part in schema["properties"].items()}
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
        "scorers": [{"kind": "pattern"}, {"kind": "detection"}, {"kind": "intruder", "endpoint": "judge"}],
        "controls": {"random_directions": 3, "shuffled_latents": 10},
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
    priced: dict[str, Any] = {"scorers": [{"kind": "detection"}], "endpoints": list(config.endpoints[:1])}
    plan = plan_run(config_of(**priced, budget={"usd": 0.05}), sizes=SIZES)
    [sentence] = plan.over_budget
    assert "budget.usd is 0.05" in sentence
    assert plan_run(config_of(**priced, budget={"usd": 500.0})).over_budget == []
    tokens = plan_run(config_of(budget={"tokens": 1000}), sizes=SIZES)
    assert "budget.tokens is 1,000" in tokens.over_budget[0]


def printed(config: RunConfig, **given: Any) -> str:
    out = io.StringIO()
    print_plan(plan_run(config, **given), Console(file=out, width=140))
    return out.getvalue()


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
