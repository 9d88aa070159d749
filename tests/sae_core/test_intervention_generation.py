"""Text under steering against a plain loop: no cache, one row at a time, a hook written out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats

from sae_core.attachment import AttachedCoder, attach
from sae_core.errors import InputError
from sae_core.intervention.edits import Edit, EditKind, Where
from sae_core.intervention.generation import Generated, GenerationRow, generate, gumbel_noise
from sae_core.subject import SubjectModel
from tests.sae_core.edited_by_hand import LATENTS, SPECIAL, edited_logits, places, random_coder
from tests.sae_core.tiny_families import VOCAB, tiny_family

NEW = 6


def plain_loop(
    subject: SubjectModel,
    attached: AttachedCoder,
    prompts: Sequence[np.ndarray],
    rows: Sequence[GenerationRow],
    *,
    prompt_only: bool = False,
) -> Generated:
    """Greedy, token by token from the start each time."""
    tokens, own, clean = (np.zeros((len(rows), NEW)) for _ in range(3))
    for r, row in enumerate(rows):
        text = prompts[row.prompt].tolist()
        until = len(text) if prompt_only else None
        for step in range(NEW):
            chances = edited_logits(subject, attached, text, row.edit, until)[-1].double().log_softmax(-1)
            unedited = edited_logits(subject, attached, text, None)[-1].double().log_softmax(-1)
            token = int(chances.argmax())
            tokens[r, step], own[r, step], clean[r, step] = token, chances[token], unedited[token]
            text.append(token)
    return Generated(tokens.astype(np.int32), own, clean)


@pytest.fixture(autouse=True)
def special_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in ("gpt2", "neox_parallel", "neox_sequential", "llama", "gemma2"):
        monkeypatch.setattr(tiny_family(family), "special_ids", frozenset({SPECIAL}))


def prompts_of(seed: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.append(SPECIAL, rng.integers(1, VOCAB, size)) for size in (7, 3, 12, 12)]


def rows_of(kind: EditKind, where: Where) -> list[GenerationRow]:
    edits = [Edit(latent, kind, 0.0 if kind is EditKind.ABLATE else 3.0, where) for latent in range(LATENTS)]
    return [GenerationRow(i % 4, edit, seed=i) for i, edit in enumerate([*edits, None])]


CASES = [
    *[("llama", "sae", kind, where) for kind in EditKind for where in Where],
    *[
        (family, kind, EditKind.STEER, Where.FROM_FIRING)
        for family in ("gpt2", "neox_parallel", "neox_sequential", "llama")
        for kind in ("sae", "transcoder", "crosscoder")
    ],
    *[("gpt2", "crosscoder", kind, where) for kind in EditKind for where in (Where.FIRING, Where.EVERYWHERE)],
    ("neox_sequential", "transcoder", EditKind.SET, Where.FIRING),
    ("gemma2", "sae", EditKind.STEER, Where.FROM_FIRING),
]


@pytest.mark.parametrize(("family", "coder", "kind", "where"), CASES)
def test_text_is_that_of_a_loop_without_a_cache(family: str, coder: str, kind: EditKind, where: Where) -> None:
    subject = tiny_family(family)
    attached = attach(subject, random_coder(*places(family, coder)))
    prompts, rows = prompts_of(), rows_of(kind, where)
    found = generate(subject, attached, prompts, rows, new_tokens=NEW, temperature=0)
    expected = plain_loop(subject, attached, prompts, rows)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-4)
    np.testing.assert_allclose(found.clean_log_probs, expected.clean_log_probs, atol=1e-4)
    edited = expected.log_probs - expected.clean_log_probs
    assert (np.abs(edited[:LATENTS]) > 1e-2).any(), "the edits move something"
    np.testing.assert_array_equal(found.log_probs[LATENTS:], found.clean_log_probs[LATENTS:])


def test_every_generated_token_is_edited() -> None:
    """Truth: a loop that edits the prompt alone writes something else, and its first token is the same."""
    subject = tiny_family("llama")
    attached = attach(subject, random_coder(*places("llama", "sae")))
    prompts, rows = prompts_of(), rows_of(EditKind.STEER, Where.FROM_FIRING)
    found = generate(subject, attached, prompts, rows, new_tokens=NEW, temperature=0)
    forgetful = plain_loop(subject, attached, prompts, rows, prompt_only=True)
    np.testing.assert_array_equal(found.tokens[:, 0], forgetful.tokens[:, 0])
    apart = np.abs(found.log_probs[:, 1] - forgetful.log_probs[:, 1])
    started = np.abs(found.log_probs[:, 0] - found.clean_log_probs[:, 0]) > 1e-3
    assert started.sum() >= 3
    assert (apart[started] > 1e-2).all()


def test_latents_that_first_fire_in_the_text_are_edited_from_there_on() -> None:
    """A prompt on which the latent is silent; the loop without a cache sees where it begins."""
    subject = tiny_family("llama")
    attached = attach(subject, random_coder(*places("llama", "sae")))
    rng = np.random.default_rng(5)
    prompts = [np.append(SPECIAL, rng.integers(1, VOCAB, 2)) for _ in range(30)]
    rows = [GenerationRow(p, Edit(1, EditKind.STEER, 4.0, Where.FROM_FIRING), 0) for p in range(30)]
    found = generate(subject, attached, prompts, rows, new_tokens=NEW, temperature=0)
    expected = plain_loop(subject, attached, prompts, rows)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-4)
    moved = np.abs(expected.log_probs - expected.clean_log_probs) > 1e-3
    late = ~moved[:, 0] & moved.any(axis=1)
    assert late.sum() >= 2


def test_edits_may_begin_late() -> None:
    """At the prompt's last token, and behind it, however often the latent fires before."""
    subject = tiny_family("llama")
    attached = attach(subject, random_coder(*places("llama", "sae")))
    prompts = prompts_of()
    rows = [
        GenerationRow(p, Edit(latent, EditKind.STEER, 3.0, where, first=len(prompts[p]) - 1 + late), 0)
        for p in range(4)
        for latent in range(2)
        for where in Where
        for late in (0, 2)
    ]
    found = generate(subject, attached, prompts, rows, new_tokens=NEW, temperature=0)
    expected = plain_loop(subject, attached, prompts, rows)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-4)
    np.testing.assert_allclose(found.log_probs[1::2, :2], found.clean_log_probs[1::2, :2], atol=1e-5)
    assert (np.abs(found.log_probs[4::6, 0] - found.clean_log_probs[4::6, 0]) > 1e-2).all()


@pytest.mark.parametrize("coder", ["sae", "transcoder", "crosscoder"])
def test_no_strength_changes_no_bit(coder: str) -> None:
    subject = tiny_family("gpt2")
    attached = attach(subject, random_coder(*places("gpt2", coder)))
    prompts = prompts_of()
    steered, clean = (
        [GenerationRow(i % 4, edit, seed=i // 4) for i in range(12)]
        for edit in (Edit(1, EditKind.STEER, 0.0, Where.EVERYWHERE), None)
    )
    one, other = (generate(subject, attached, prompts, rows, new_tokens=NEW) for rows in (steered, clean))
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.log_probs, other.log_probs)
    np.testing.assert_array_equal(one.clean_log_probs, other.clean_log_probs)


def test_a_row_does_not_depend_on_what_stands_beside_it() -> None:
    subject = tiny_family("neox_parallel")
    attached = attach(subject, random_coder(*places("neox_parallel", "sae")))
    prompts, rows = prompts_of(), [r for where in Where for r in rows_of(EditKind.STEER, where)]
    together = generate(subject, attached, prompts, rows, new_tokens=NEW)
    for number, row in enumerate(rows):
        alone = generate(subject, attached, prompts, [row], new_tokens=NEW)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[number])
        np.testing.assert_allclose(alone.log_probs[0], together.log_probs[number], atol=1e-5)
    small = generate(subject, attached, prompts, rows, new_tokens=NEW, batch_tokens=40)
    np.testing.assert_array_equal(small.tokens, together.tokens)


def test_draws_follow_the_distribution_and_their_seeds() -> None:
    """Truth: frequencies against the softmax of a plain pass; one seed and prompt, one text."""
    subject = tiny_family("llama")
    attached = attach(subject, random_coder(*places("llama", "sae")))
    prompts = prompts_of()[:1]
    temperature, count = 1.5, 4000
    rows = [GenerationRow(0, None, seed) for seed in range(count)]
    found = generate(subject, attached, prompts, rows, new_tokens=1, temperature=temperature)
    with torch.no_grad():
        logits = subject.model(input_ids=torch.from_numpy(prompts[0])[None]).logits[0, -1].double()
    chances = (logits / temperature).softmax(-1).numpy()
    assert chances.min() > 5 / count
    assert chances.max() < 0.5
    observed = np.bincount(found.tokens[:, 0], minlength=VOCAB)
    assert stats.chisquare(observed, chances * count).pvalue > 1e-4
    again = generate(subject, attached, prompts, rows[:50], new_tokens=1, temperature=temperature)
    np.testing.assert_array_equal(again.tokens, found.tokens[:50])


def test_prompts_of_one_seed_draw_apart() -> None:
    """Or the texts of one latent's prompts would not be independent."""
    subject = tiny_family("llama")
    attached = attach(subject, random_coder(*places("llama", "sae")))
    prompts = [np.array([SPECIAL, 5, 7]), np.array([SPECIAL, 7, 5])]
    model = subject.model
    with pytest.MonkeyPatch.context() as patch:  # a subject that knows nothing: what is drawn is the noise alone
        patch.setattr(model.lm_head.weight, "data", torch.zeros_like(model.lm_head.weight))
        rows = [GenerationRow(p, None, seed) for p in range(2) for seed in range(200)]
        tokens = generate(subject, attached, prompts, rows, new_tokens=2).tokens
    assert (tokens[:200] == tokens[200:]).mean() < 0.1
    assert (tokens[:, 0] == tokens[:, 1]).mean() < 0.1


def test_noise_is_gumbels_by_splitmix() -> None:
    """Truth: the published algorithm in numpy's unsigned numbers, and the distribution's own test."""

    def mixed(x: np.ndarray) -> np.ndarray:
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    golden = np.uint64(0x9E3779B97F4A7C15)
    seeds, step, vocabulary = np.array([0, 7, 2**62 + 5]), 3, 5000
    with np.errstate(over="ignore"):
        key = mixed(mixed(seeds.astype(np.uint64)) + np.uint64(step + 1) * golden)
        bits = mixed(key[:, None] + np.arange(1, vocabulary + 1, dtype=np.uint64) * golden)
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52
    found = gumbel_noise(torch.from_numpy(seeds), step, vocabulary).numpy()
    np.testing.assert_allclose(found, -np.log(-np.log(uniform)), rtol=1e-12)
    assert stats.kstest(found.ravel(), "gumbel_r").pvalue > 1e-3
    assert abs(np.corrcoef(found[0], found[1])[0, 1]) < 0.05


def test_a_text_ends_where_it_ends() -> None:
    subject = tiny_family("llama")
    attached = attach(subject, random_coder(*places("llama", "sae")))
    prompts, rows = prompts_of(), rows_of(EditKind.STEER, Where.EVERYWHERE)
    whole = generate(subject, attached, prompts, rows, new_tokens=NEW, temperature=0, ends=frozenset())
    end = int(whole.tokens[0, 2])
    found = generate(subject, attached, prompts, rows, new_tokens=NEW, temperature=0, ends=frozenset({end}))
    for row, tokens in enumerate(whole.tokens.tolist()):
        stop = tokens.index(end) + 1 if end in tokens else NEW
        assert found.tokens[row].tolist() == tokens[:stop] + [-1] * (NEW - stop)
        assert found.lengths[row] == stop
        assert np.isfinite(found.clean_log_probs[row, :stop]).all()
        assert np.isnan(found.log_probs[row, stop:]).all()
        assert np.isnan(found.clean_log_probs[row, stop:]).all()
        surprisal = -whole.clean_log_probs[row, :stop].mean()
        assert found.clean_perplexity[row] == pytest.approx(np.exp(surprisal), rel=1e-4)
    assert found.lengths[0] == 3


def test_what_cannot_be_written_is_refused() -> None:
    subject = tiny_family("llama")
    attached = attach(subject, random_coder(*places("llama", "sae")))
    row = [GenerationRow(0, None, 0)]
    with pytest.raises(InputError, match="30 tokens; between 1 and 24"):
        generate(subject, attached, [np.arange(30)], row)
    with pytest.raises(InputError, match="names prompt 0 and there are 0"):
        generate(subject, attached, [], row)
    with pytest.raises(InputError, match="temperature of 0 or more"):
        generate(subject, attached, [np.arange(3)], row, temperature=-1)
