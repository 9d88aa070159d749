"""The oracle reads prompts rightly: against the activations of a real extraction of the planted world."""

from __future__ import annotations

import asyncio
import json
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from autointerp.evidence import LatentEvidence
from autointerp.explainers.max_activating import MaxActivatingExplainer
from autointerp.explanation import Explanation
from autointerp.judging.screening import screen_windows
from autointerp.llm.endpoints.request_body import request_body
from autointerp.llm.protocol import Capability, Completion, CompletionRequest
from autointerp.llm.scripted import ScriptedLLMs
from autointerp.llm.server.api import API, CHAT
from autointerp.llm.validation import read_reply
from autointerp.prompting.prompt import load_prompt
from autointerp.prompting.quoting import quote_lines, quote_windows, window_text
from autointerp.sampling.window import ShownWindow, Stratum, of_exemplar, of_pool
from autointerp.scorers.detection import DetectionScorer
from autointerp.scorers.fuzz import FuzzScorer
from autointerp.scorers.simulation import SimulationScorer
from autointerp.scorers.surprisal import SurprisalScorer
from sae_core.attachment import attach
from sae_core.exemplar_store import ExemplarStore
from sae_core.extraction import extract
from sae_core.loading import load_coder
from sae_core.merging import merge_partials
from sae_core.partial import ExtractionSettings
from sae_core.records import Origin, Side, Source
from sae_core.subject import SubjectModel
from sae_core.tokens import CorpusSpec, build_corpus
from tests import planted_world
from tests.oracle import Oracle
from tests.planted_text import SENTENCES, PlantedText, meaning_of, of_latent
from tests.planted_world import CONTEXT, NUM_LATENTS

LIVE = sorted(SENTENCES)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> planted_world.PlantedWorld:
    return planted_world.build(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def store(world: planted_world.PlantedWorld, tmp_path_factory: pytest.TempPathFactory) -> ExemplarStore:
    folder = tmp_path_factory.mktemp("store")
    settings = ExtractionSettings(
        context_length=CONTEXT, window_length=16, context_tokens=16, top_exemplars=10, sampled_exemplars=60
    )
    subject = SubjectModel.load(str(world.subject), device="cpu")
    attached = attach(subject, load_coder(str(world.coder)))
    spec = CorpusSpec(path=str(world.corpus), num_tokens=15_000, context_length=CONTEXT)
    corpus = build_corpus(spec, subject.tokenizer, subject.bos_id, folder / "tokens")
    (partial,) = extract(subject, [attached], corpus, range(corpus.num_contexts), settings)
    partial.save(folder / "partial.safetensors")
    source = Source("planted", "subject", "rev", "h.0", "coder", attached.coder.fingerprint, NUM_LATENTS)
    return merge_partials([folder / "partial.safetensors"], source, settings, corpus, folder / "exemplars")


@pytest.fixture(scope="module")
def text(world: planted_world.PlantedWorld) -> PlantedText:
    return PlantedText.of_corpus(world.corpus, window_length=16)


def asked_of(oracle: Oracle, capabilities: frozenset[Capability] = frozenset(Capability)) -> ScriptedLLMs:
    """The oracle behind the test server's API, without the wire."""
    api = API(oracle, capabilities=capabilities)

    def answer(request: CompletionRequest) -> Completion:
        route, body = request_body(request, "test", bound=True)
        reply = api.reply(f"/v1{route}", json.loads(json.dumps(body))).body
        return read_reply(json.dumps(reply), request)

    return ScriptedLLMs(answer, capabilities)


def test_windows_are_read_as_the_tokens_that_they_are(store: ExemplarStore, text: PlantedText) -> None:
    """Firing places by the window's text alone, against the activations that the subject and coder gave."""
    greedy, checked = PlantedText(), 0
    wrong_greedily = 0
    for side in Side:
        pool = store.pool(side)
        for latent in LIVE:
            for row in range(0, pool.tokens.shape[0], 7):
                window = of_pool(pool, row, latent, Stratum.BULK)
                shown = window_text(window, store.pieces, marked=window.activations.__getitem__)
                passage = text.read(shown)
                want = {int(place) + passage.first for place in window.firing_positions}
                assert set(passage.marks) == want
                if len(window.token_ids) > 2:
                    assert passage.fires(of_latent(latent)) == want, (latent, shown)
                checked += 1
                plain = greedy.read(window_text(window, store.pieces))
                wrong_greedily += bool(plain.fires(of_latent(latent))) != window.fires
    assert checked > 500
    # without the corpus, w1 and 7 are read as w17, and what stands before a window is not known
    assert 0 < wrong_greedily / checked < 0.1


def test_labels_are_understood_and_no_two_mean_the_same() -> None:
    assert len(set(SENTENCES.values())) == len(SENTENCES)
    words = ["<s>", "(", "self", "7", "w0", "w9", "zzz"]
    fires = {latent: [meaning_of(s)(words, i) for i in range(1, len(words))] for latent, s in SENTENCES.items()}
    assert fires[0] == [False, False, True, False, False, False]
    assert fires[1] == [False, True, False, False, False, False]
    assert fires[9] == [False, False, False, True, True, False]
    named = meaning_of("texts with zzz or ( in them")
    assert [named(words, i) for i in range(1, len(words))] == [True, False, False, False, False, True]
    assert not any(meaning_of("something else")(words, i) for i in range(1, len(words)))


@pytest.mark.parametrize("known", [True, False], ids=["corpus", "text alone"])
def test_it_labels_every_latent_by_the_marks(store: ExemplarStore, text: PlantedText, known: bool) -> None:
    llms = asked_of(Oracle(text if known else None))
    for latent in LIVE:
        explained = asyncio.run(MaxActivatingExplainer().explain(LatentEvidence(latent, store), llms))
        assert explained.text == SENTENCES[latent]


def test_it_labels_wrongly_at_the_stated_rate(store: ExemplarStore, text: PlantedText) -> None:
    oracle = Oracle(text, label_error_rate=1.0)
    explained = asyncio.run(MaxActivatingExplainer().explain(LatentEvidence(5, store), asked_of(oracle)))
    assert explained.text in SENTENCES.values()
    assert explained.text != SENTENCES[5]


def label_of(latent: int) -> Explanation:
    return Explanation(latent=latent, explainer="hand", text=SENTENCES[latent])


@pytest.mark.parametrize("scorer", [DetectionScorer(neighbour_share=0.0), FuzzScorer()], ids=["detection", "fuzz"])
def test_it_judges_right_labels_right_and_wrong_ones_wrong(
    store: ExemplarStore, text: PlantedText, scorer: DetectionScorer | FuzzScorer
) -> None:
    llms = asked_of(Oracle(text))
    for latent in (0, 1, 2, 5, 9):
        score = asyncio.run(scorer.score(label_of(latent), LatentEvidence(latent, store), llms))
        assert score.failure is None, score.failure
        assert score.values[f"{scorer.kind}_score"] == 1.0
    wrong = label_of(6).model_copy(update={"latent": 5})
    score = asyncio.run(scorer.score(wrong, LatentEvidence(5, store), llms))
    assert float(score.values[f"{scorer.kind}_score"] or 0) < 0.8


def test_it_errs_at_the_stated_rate_and_always_in_the_same_way(store: ExemplarStore, text: PlantedText) -> None:
    pool = store.pool(Side.SCORE)
    windows = [of_pool(pool, row, 0, Stratum.BULK) for row in range(min(200, pool.tokens.shape[0]))]
    prompt = load_prompt("detection")

    def answers(oracle: Oracle) -> tuple[list[int], list[int]]:
        said, truth = [], []
        for at in range(0, len(windows), 20):
            part = windows[at : at + 20]
            block = quote_windows(part, store.pieces).block
            request = prompt.request({"label": json.dumps(SENTENCES[5]), "windows": block, "count": len(part)})
            _, body = request_body(request, "test", bound=True)
            said += json.loads(oracle.answer(body).text)["matches"]
            truth += [int(bool(text.read(window_text(w, store.pieces)).fires(of_latent(5)))) for w in part]
        return said, truth

    said, truth = answers(Oracle(text))
    assert said == truth
    assert 0 < sum(truth) < len(truth)
    wrong, _ = answers(Oracle(text, error_rate=0.2))
    # 200 draws at 0.2: 40, sd 5.7
    errors = int(np.sum(np.array(wrong) != np.array(truth)))
    assert 0.1 * len(truth) < errors < 0.3 * len(truth)
    assert answers(Oracle(text, error_rate=0.2))[0] == wrong
    assert answers(Oracle(text, error_rate=0.2, seed=1))[0] != wrong


def screened(
    oracle: Oracle, store: ExemplarStore, windows: list[ShownWindow], per_call: int
) -> tuple[NDArray[np.bool_], ScriptedLLMs]:
    """What the oracle says of every label of LIVE, [labels, windows], and whom was asked."""
    llms = asked_of(oracle)
    labels = [SENTENCES[latent] for latent in LIVE]
    prompt = load_prompt("screen")
    found = asyncio.run(screen_windows(llms.of("", "screen"), prompt, labels, windows, store.pieces, per_call=per_call))
    assert found.shown.all()
    return found.flagged, llms


def long_windows(store: ExemplarStore, count: int) -> list[ShownWindow]:
    """Windows of the scored side that are long enough to be found in the corpus."""
    pool = store.pool(Side.SCORE)
    windows = (of_pool(pool, row, 0, Stratum.BULK) for row in range(pool.tokens.shape[0]))
    return [window for window in windows if len(window.token_ids) > 2][:count]


def test_it_screens_windows_for_many_labels_as_the_latents_fire(store: ExemplarStore, text: PlantedText) -> None:
    pool = store.pool(Side.SCORE)
    rows = [row for row in range(pool.tokens.shape[0]) if len(of_pool(pool, row, 0, Stratum.BULK).token_ids) > 2][:90]
    fires = np.array([[of_pool(pool, row, latent, Stratum.BULK).fires for row in rows] for latent in LIVE])
    flagged, llms = screened(Oracle(text), store, [of_pool(pool, row, 0, Stratum.BULK) for row in rows], per_call=25)
    np.testing.assert_array_equal(flagged, fires)
    assert 0 < fires.mean() < 1
    assert len(llms.asked) == 4


def test_its_errors_in_a_screen_are_its_own_each_time(store: ExemplarStore, text: PlantedText) -> None:
    """Wrong twice about one pair as often as chance has it: in another call of the screen, and in detection."""
    windows = long_windows(store, 150)
    truth, _ = screened(Oracle(text), store, windows, per_call=25)
    oracle = Oracle(text, error_rate=0.2)
    first = screened(oracle, store, windows, per_call=25)[0] != truth
    again = screened(oracle, store, windows, per_call=24)[0] != truth
    np.testing.assert_array_equal(screened(oracle, store, windows, per_call=25)[0] != truth, first)
    detected = np.zeros((2, *truth.shape), dtype=np.bool_)
    for time, per_call in enumerate((20, 19)):
        for place, latent in enumerate(LIVE):
            for at in range(0, len(windows), per_call):
                block = quote_windows(windows[at : at + per_call], store.pieces).block
                values = {"label": json.dumps(SENTENCES[latent]), "windows": block}
                request = load_prompt("detection").request(values | {"count": len(windows[at : at + per_call])})
                said = json.loads(oracle.answer(request_body(request, "test", bound=True)[1]).text)["matches"]
                detected[time, place, at : at + per_call] = np.array(said) != truth[place, at : at + per_call]
    # 18 labels of 150 windows, 2,700 pairs: sd .008 and, of those in both, .004
    for errors in (first, again, *detected):
        assert errors.mean() == pytest.approx(0.2, abs=0.03)
    for one, other in combinations((first, again, *detected), 2):
        assert (one & other).mean() == pytest.approx(0.04, abs=0.016)


def test_its_log_probabilities_say_how_sure_it_is(store: ExemplarStore, text: PlantedText) -> None:
    llms = asked_of(Oracle(text, confidence=0.8))
    scorer = DetectionScorer(neighbour_share=0.0)
    score = asyncio.run(scorer.score(label_of(0), LatentEvidence(0, store), llms))
    assert score.values["detection_auroc"] == 1.0
    stored: Any = score.verdicts
    assert stored is not None
    assert all(request.top_logprobs for request in llms.asked)
    _, body = request_body(llms.asked[0], "test", bound=True)
    reply = API(Oracle(text, confidence=0.8)).reply(CHAT, body).body["choices"][0]
    digits = [t for t in reply["logprobs"]["content"] if t["token"] in ("0", "1")]
    assert len(digits) == len(json.loads(reply["message"]["content"])["matches"])
    for token in digits:
        share = {entry["token"]: np.exp(entry["logprob"]) for entry in token["top_logprobs"]}
        assert share[token["token"]] == pytest.approx(0.8)
        assert share["1"] + share["0"] == pytest.approx(1.0)


def test_it_finds_the_intruder_and_the_set_that_a_label_fits(store: ExemplarStore, text: PlantedText) -> None:
    oracle = Oracle(text)
    firing = [of_exemplar(e) for e in store.exemplars(4, Side.EXPLAIN, Origin.SAMPLED)][:4]
    pool = store.pool(Side.EXPLAIN)
    silent = [w for row in range(40) if not (w := of_pool(pool, row, 4, Stratum.BULK)).fires]
    assert len(firing) >= 2
    sets = []
    for place in range(5):
        windows = [firing[n % len(firing)] for n in range(4)]
        windows.insert(place, silent[place])
        sets.append(f"Set {place + 1}\n{quote_windows(windows, store.pieces).block}")
    request = load_prompt("intruder").request({"sets": "\n".join(sets), "count": 5})
    _, body = request_body(request, "test", bound=True)
    assert json.loads(oracle.answer(body).text) == {"intruders": [1, 2, 3, 4, 5]}

    blocks = [quote_windows(silent[3 * n : 3 * n + 3], store.pieces).block for n in range(3)]
    questions = []
    for question, right in enumerate((2, 0), 1):
        order = [*blocks]
        order.insert(right, quote_windows([*firing, *firing][:3], store.pieces).block)
        questions += [f"Question {question}, set {n}\n{block}" for n, block in enumerate(order, 1)]
    values = {"label": json.dumps(SENTENCES[4]), "questions": "\n".join(questions), "count": 2}
    _, body = request_body(load_prompt("discrimination").request(values), "test", bound=True)
    assert json.loads(oracle.answer(body).text) == {"sets": [3, 1]}


@pytest.mark.parametrize("variant", ["logprobs", "json"])
def test_it_simulates_the_activations_that_a_label_means(
    store: ExemplarStore, text: PlantedText, variant: Literal["logprobs", "json"]
) -> None:
    llms = asked_of(Oracle(text))
    for latent in (0, 2, 9):
        scorer = SimulationScorer(variant=variant)
        score = asyncio.run(scorer.score(label_of(latent), LatentEvidence(latent, store), llms))
        assert score.failure is None, score.failure
        # the JSON variant rounds 1.0, 1.1, ... of 1.9 to tenths
        assert float(score.values["simulation_score"] or 0) > (0.9999 if variant == "logprobs" else 0.99)
    wrong = label_of(6).model_copy(update={"latent": 5})
    score = asyncio.run(SimulationScorer(variant=variant).score(wrong, LatentEvidence(5, store), llms))
    assert float(score.values["simulation_score"] or 0) < 0.3


def test_it_finds_texts_likelier_that_a_description_fits(store: ExemplarStore, text: PlantedText) -> None:
    llms = asked_of(Oracle(text))
    for latent in (0, 1, 5, 9):
        score = asyncio.run(SurprisalScorer().score(label_of(latent), LatentEvidence(latent, store), llms))
        assert score.failure is None, score.failure
        assert score.values["surprisal_score"] == 1.0
    wrong = label_of(6).model_copy(update={"latent": 5})
    score = asyncio.run(SurprisalScorer().score(wrong, LatentEvidence(5, store), llms))
    assert float(score.values["surprisal_score"] or 0) < 0.8


def test_a_server_without_schemas_gets_the_same_answers(text: PlantedText) -> None:
    prompt = load_prompt("detection")
    values = {"label": json.dumps("decimal digits"), "windows": quote_lines(["w18 7", "w18 )"]).block, "count": 2}
    _, bound = request_body(prompt.request(values), "test", bound=True)
    _, free = request_body(prompt.request(values), "test", bound=False)
    assert "response_format" not in free
    assert Oracle().answer(free) == Oracle().answer(bound)
    assert json.loads(Oracle().answer(free).text) == {"matches": [1, 0]}
    windows = quote_lines(["w18 7", "w18 )", "def 3 w18"]).block
    several = {"labels": quote_lines(["decimal digits", "the keyword def"]).block, "windows": windows}
    _, free = request_body(load_prompt("screen").request(several | {"count": 3, "num_labels": 2}), "test", bound=False)
    assert json.loads(Oracle().answer(free).text) == {"fits": [[1], [], [1, 2]]}


def test_other_questions_get_a_plain_answer() -> None:
    reply = Oracle().answer({"model": "test", "messages": [{"role": "user", "content": "Say hello."}]})
    assert reply.text == "I know the planted world only."
