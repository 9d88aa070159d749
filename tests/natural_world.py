"""A planted world for precision and recall: 120 latents of known firing rates, and labels of known errors for them.

Words are ``w000`` to ``w119``, one a latent, and the common ``w200`` to ``w219``. The chance of a latent's word in a window falls
evenly in log from .2 to .0015, in an order that latents' numbers do not show. Of six latents that follow each other in that order

* three fire on their word, and the label says so (``right``);
* one has a label that names two more words, of a like or a larger rate (``broad``);
* one has a label that holds in more windows than it fires in, in one of two ways: five rarer words are named too, or it
  fires on its word in the first part of a context only (``loose``);
* one has a label that asks for more than it does: a word before its own, or another one in the same window (``narrow``).

Text is drawn word by word, so that nothing else tells the words apart. Four latents each point in like directions.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from autointerp.judging.null_labels import EVERYTHING
from sae_core.coder import SparseCoder
from sae_core.parts.activation import JumpReLU
from sae_core.parts.encoder import AffineEncoder
from tests.planted_text import Fires, PlantedText
from tests.planted_world import write_jumprelu

BOS = "<s>"
NUM_LATENTS, NUM_COMMON = 120, 20
COMMON = [f"w{200 + i}" for i in range(NUM_COMMON)]
WORDS = [f"w{latent:03d}" for latent in range(NUM_LATENTS)] + COMMON
VOCABULARY = [BOS, *WORDS]
CONTEXT, WINDOW = 64, 16
PLACES = (16, 32, 48)
"""Positions before which the latents fire that fire in a part of their contexts only."""
WORD = re.compile(r"w\d{3}")
_D = 64
RIGHT, BROAD, LOOSE, NARROW = "right", "broad", "loose", "narrow"
_KINDS = (RIGHT, BROAD, RIGHT, LOOSE, RIGHT, NARROW)
_HIGHEST, _LOWEST = 0.2, 0.0015


@dataclass(frozen=True)
class PlantedLabel:
    """A latent and its label: what both mean, in words."""

    latent: int
    kind: str
    """Which way the label errs."""
    words: tuple[str, ...]
    """Those that the label names; the first one is the latent's."""
    after: frozenset[str] = frozenset()
    """Words one of which must stand right before it."""
    beside: str = ""
    """A word that the window must hold as well."""
    before: int = CONTEXT
    """The latent fires at positions below this one."""
    text: str = field(init=False, default="")

    def __post_init__(self) -> None:
        text = f"the word {self.words[0]}" if len(self.words) == 1 else f"one of the words {', '.join(self.words)}"
        if self.after:
            text += f" right after one of {', '.join(sorted(self.after))}"
        if self.beside:
            text += f" in a window that holds {self.beside}"
        object.__setattr__(self, "text", text)

    def holds(self, words: list[str]) -> bool:
        """Whether the label holds in a window."""
        if self.beside and self.beside not in words:
            return False
        return any(
            word in self.words and (not self.after or (place > 0 and words[place - 1] in self.after))
            for place, word in enumerate(words)
        )

    def fires(self, words: list[str], first: int) -> bool:
        """Whether the latent fires in a window whose first word stands at position ``first`` of its context."""
        return any(word == self.words[0] and first + place < self.before for place, word in enumerate(words))


def chances() -> dict[str, float]:
    """Chance of each word at any place: of latents by their rank, the rest of it for the common ones."""
    order = np.random.default_rng(7).permutation(NUM_LATENTS)
    of_window = np.geomspace(_HIGHEST, _LOWEST, NUM_LATENTS)
    found = dict.fromkeys(WORDS, 0.0)
    for latent, rate in zip(order, of_window, strict=True):
        found[WORDS[latent]] = float(1 - (1 - rate) ** (1 / WINDOW))
    rest = 1 - sum(found.values())
    return {word: found[word] or rest / NUM_COMMON for word in WORDS}


def planted_labels() -> list[PlantedLabel]:
    """One a latent, by its number."""
    chance = chances()
    ranked = sorted(range(NUM_LATENTS), key=lambda latent: -chance[WORDS[latent]])
    step = math.log(_HIGHEST / _LOWEST) / (NUM_LATENTS - 1)
    labels = []
    for rank, latent in enumerate(ranked):
        kind, turn, word = _KINDS[rank % len(_KINDS)], rank // len(_KINDS), WORDS[latent]

        def ranks_away(ratio: float, rank: int = rank) -> str:
            """A word so many times as frequent; a common one where none of a latent is."""
            place = rank - round(math.log(ratio) / step)
            return WORDS[ranked[place]] if place >= 0 else COMMON[rank % NUM_COMMON]

        if kind == BROAD:
            near = WORDS[ranked[rank - 1]]
            label = PlantedLabel(latent, kind, (word, near, ranks_away((1.5, 3.0, 6.0, 12.0)[turn % 4])))
        elif kind == LOOSE and turn % 2:
            label = PlantedLabel(latent, kind, (word,), before=PLACES[turn // 2 % len(PLACES)])
        elif kind == LOOSE:
            rarer = [WORDS[ranked[min(rank + 5 * n + 8, NUM_LATENTS - 6 + n)]] for n in range(5)]
            label = PlantedLabel(latent, kind, (word, *dict.fromkeys(w for w in rarer if w != word)))
        elif kind == NARROW and turn % 2:
            label = PlantedLabel(latent, kind, (word,), after=frozenset(COMMON[: 6 + turn % 3 * 5]))
        elif kind == NARROW:
            label = PlantedLabel(latent, kind, (word,), beside=COMMON[turn])
        else:
            label = PlantedLabel(latent, kind, (word,))
        labels.append(label)
    return sorted(labels, key=lambda label: label.latent)


def meaning_of(text: str) -> Fires:
    """What a label says to a reader of its words, and of the window's alone; what names no word fits nothing, or everything."""
    if text == EVERYTHING:
        return lambda words, i: True
    head, _, beside = text.partition(" in a window that holds ")
    named, _, after = (set(WORD.findall(part)) for part in head.partition(" right after "))
    also = set(WORD.findall(beside))

    def fires(words: list[str], i: int) -> bool:
        return words[i] in named and (not after or words[i - 1] in after) and (not also or not also.isdisjoint(words))

    return fires


def reader() -> PlantedText:
    """Cuts windows into words, which all have four signs, and knows nothing of what stands before them."""
    return PlantedText(word=WORD)


def _directions() -> NDArray[np.float32]:
    """Of each word, [words, _D], of length 1."""
    drawn = np.random.default_rng(3).standard_normal((len(WORDS), _D))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def _build_subject() -> GPT2LMHeadModel:
    """One block that changes nothing: the residual stream holds the word and which of PLACES are still to come."""
    config = GPT2Config(
        vocab_size=len(VOCABULARY),
        n_positions=CONTEXT,
        n_embd=_D + len(PLACES) + 1,
        n_layer=1,
        n_head=1,
        n_inner=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        parameter.data.zero_()
    model.transformer.wte.weight.data[1:, :_D] = torch.from_numpy(_directions())
    for slot, place in enumerate(PLACES):
        model.transformer.wpe.weight.data[:place, _D + slot] = 1.0
    model.transformer.ln_f.weight.data.fill_(1.0)
    return model


def _build_coder(labels: list[PlantedLabel]) -> SparseCoder:
    """JumpReLU coder on ``h.0``: 1 where a latent fires; words are at most .6 alike."""
    words, width = torch.from_numpy(_directions()), _D + len(PLACES) + 1
    encoder, bias = torch.zeros(NUM_LATENTS, width), torch.zeros(NUM_LATENTS)
    decoder = torch.zeros(NUM_LATENTS, width)
    groups = torch.from_numpy(np.random.default_rng(5).standard_normal((NUM_LATENTS // 4, _D)).astype(np.float32)) / 8
    chance = chances()
    for rank, label in enumerate(sorted(labels, key=lambda label: -chance[label.words[0]])):
        latent = label.latent
        encoder[latent, :_D] = words[latent]
        if label.before < CONTEXT:
            encoder[latent, _D + PLACES.index(label.before)] = 1.0
            bias[latent] = -1.0
        decoder[latent, :_D] = words[latent] + groups[rank // 4]
    return SparseCoder(
        encoder=AffineEncoder(encoder, bias, JumpReLU(torch.full((NUM_LATENTS,), 0.8))),
        decoder_weight=decoder,
        decoder_bias=torch.zeros(width),
        hookpoints_in=("h.0",),
        hookpoints_out=("h.0",),
        format="planted",
        architecture="jumprelu",
        fingerprint="natural",
    )


def build(folder: Path, num_tokens: int, seed: int = 0) -> list[PlantedLabel]:
    """Write subject, coder, corpus.jsonl and labels.jsonl below ``folder``; the labels."""
    _build_subject().save_pretrained(folder / "subject")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="w200"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([BOS])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, model_max_length=CONTEXT).save_pretrained(
        folder / "subject"
    )
    labels = planted_labels()
    write_jumprelu(folder / "coder", _build_coder(labels))
    with (folder / "labels.jsonl").open("w", encoding="utf-8") as out:
        for label in labels:
            out.write(json.dumps({"latent": label.latent, "label": label.text}) + "\n")
    generator, left = np.random.default_rng(seed), num_tokens
    chance = np.array([chances()[word] for word in WORDS])
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as out:
        while left > 0:
            drawn = generator.choice(len(WORDS), int(generator.integers(40, 160)), p=chance / chance.sum())
            out.write(json.dumps({"text": " ".join(WORDS[i] for i in drawn)}) + "\n")
            left -= len(drawn)
    return labels
