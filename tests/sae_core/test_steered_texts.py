"""Texts written under steering: where it begins, what stands beside what, and what is kept of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sae_core.attachment import attach
from sae_core.intervention.edits import Edit, EditKind, Where
from sae_core.intervention.steered_texts import TextPrompt, steer_texts
from sae_core.intervention.text_evidence import CLEAN, SteeredTexts, TextState
from tests.sae_core.edited_by_hand import LATENTS, SPECIAL, edited_logits, places, random_coder
from tests.sae_core.tiny_families import VOCAB, tiny_family

NEW = 6
STRENGTHS = {latent: {0.1: 1.0 + latent, 1.0: 6.0} for latent in range(LATENTS)}


@pytest.fixture(autouse=True)
def special_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in ("gpt2", "llama"):
        monkeypatch.setattr(tiny_family(family), "special_ids", frozenset({SPECIAL}))


def prompts() -> list[TextPrompt]:
    rng = np.random.default_rng(3)
    sizes = (7, 3, 12)
    return [
        TextPrompt(np.append(SPECIAL, rng.integers(1, VOCAB, size)).astype(np.int32), context=i)
        for i, size in enumerate(sizes)
    ]


def written(family: str = "llama", kind: str = "sae", *, strengths: dict[int, dict[float, float]] = STRENGTHS) -> SteeredTexts:  # fmt: skip
    subject = tiny_family(family)
    attached = attach(subject, random_coder(*places(family, kind)))
    states = {0: TextState.TEXTS, 1: TextState.UNREACHABLE, 2: TextState.TEXTS}
    return steer_texts(
        subject,
        attached,
        states,
        {0: prompts(), 2: prompts()[:2]},
        strengths,
        others={0: [0, 3, 4], 2: [0, 3, 4]},
        num_others=2,
        new_tokens=NEW,
        seed=5,
    )


@pytest.mark.parametrize(("family", "kind"), [("llama", "sae"), ("gpt2", "transcoder"), ("gpt2", "crosscoder")])
def test_steering_begins_at_the_prompt_s_last_token_and_goes_on(family: str, kind: str) -> None:
    """Both log-probabilities of every token by plain passes over the whole text, with hooks written by hand."""
    texts = written(family, kind)
    subject = tiny_family(family)
    attached = attach(subject, random_coder(*places(family, kind)))
    moved = 0.0
    for row in range(len(texts.latent)):
        prompt, text = texts.prompt_ids(int(texts.prompt[row])).tolist(), texts.text_ids(row).tolist()
        steered, begins = int(texts.steered[row]), len(prompt) - 1
        edit = None if steered == CLEAN else Edit(steered, EditKind.STEER, float(texts.alpha[row]), Where.EVERYWHERE)
        for given, kept in ((edit, texts.logprob_own), (None, texts.logprob_clean)):
            logits = edited_logits(subject, attached, prompt + text, given, edited_from=begins)
            expected = logits.double().log_softmax(-1)[begins:-1]
            by_hand = expected[torch.arange(len(text)), torch.tensor(text, dtype=torch.long)].tolist()
            assert kept[row][: len(text)] == pytest.approx(by_hand, abs=1e-4)
            assert not kept[row][len(text) :].any()
        moved = max(moved, float(np.abs(texts.logprob_own[row] - texts.logprob_clean[row]).max()))
    assert moved > 0.5


def test_each_prompt_has_a_clean_text_and_for_each_strength_an_own_one_and_two_others() -> None:
    texts = written()
    assert texts.latents.tolist() == [0, 1, 2]
    assert [texts.state_of(latent) for latent in (0, 1, 2, 3)] == [
        TextState.TEXTS,
        TextState.UNREACHABLE,
        TextState.TEXTS,
        None,
    ]
    assert not len(texts.rows_of(1))
    for latent, count in ((0, 3), (2, 2)):
        rows = texts.rows_of(latent)
        numbers = np.unique(texts.prompt[rows])
        assert len(numbers) == count
        for number in numbers:
            mine = rows[texts.prompt[rows] == number]
            assert (texts.steered[mine] == CLEAN).sum() == 1
            for target in (0.1, 1.0):
                at = mine[texts.target[mine] == target]
                assert len(at) == 3
                steered = texts.steered[at].tolist()
                assert steered[0] == latent
                assert len(set(steered)) == 3
                assert set(steered[1:]) <= {0, 3, 4}
                assert texts.alpha[at].tolist() == [STRENGTHS[one][target] for one in steered]


def test_texts_of_one_prompt_meet_the_same_chances() -> None:
    nothing = {latent: {1.0: 0.0} for latent in range(LATENTS)}
    texts = written(strengths=nothing)
    for number in np.unique(texts.prompt):
        rows = np.flatnonzero(texts.prompt == number)
        assert (texts.tokens[rows] == texts.tokens[rows[0]]).all()
        assert (texts.logprob_own[rows] == texts.logprob_clean[rows]).all()
    assert len(np.unique(texts.tokens, axis=0)) > 1
    steered = written()
    clean = steered.steered == CLEAN
    assert (steered.tokens[clean] == texts.tokens[texts.steered == CLEAN]).all()
    assert (steered.tokens[~clean] != texts.tokens[0]).any()


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    texts = written()
    texts.save(tmp_path / "texts.safetensors")
    found = SteeredTexts.load(tmp_path / "texts.safetensors")
    assert found.instructions == []
    assert found.temperature == 1.0
    for name in ("tokens", "prompt_tokens", "target", "steered", "logprob_clean", "state"):
        np.testing.assert_array_equal(getattr(found, name), getattr(texts, name))


def test_nobody_with_texts_is_a_whole_file_too(tmp_path: Path) -> None:
    subject = tiny_family("llama")
    attached = attach(subject, random_coder(*places("llama", "sae")))
    told: list[int] = []
    texts = steer_texts(subject, attached, {4: TextState.TOO_FEW_WINDOWS}, {}, {}, progress=told.append)
    texts.save(tmp_path / "none.safetensors")
    found = SteeredTexts.load(tmp_path / "none.safetensors")
    assert found.state_of(4) is TextState.TOO_FEW_WINDOWS
    assert not len(found.collapse(20))
    assert told == [1]
