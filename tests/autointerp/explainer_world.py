"""A small store for explainers that ask: each side has words of its own, and only what an explainer may read can be read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autointerp.llm.protocol import CompletionRequest
from sae_core.lens_evidence import LensEvidence, TokenChangeEvidence
from sae_core.records import Exemplar, Origin, Side, WindowPool
from sae_core.token_text import TokenText
from tests.autointerp.pools import HandStore, Rule, make_pool

SIDE_WORDS = {Side.EXPLAIN: " xplain", Side.CHOOSE: " chz", Side.SCORE: " scr"}
WORDS = ["<s>", *SIDE_WORDS.values(), " self", " (", " def", " zig", *(f" {digit}" for digit in range(10)), " a", " b"]
SELF, OPEN, DEF, ZIG, A = (WORDS.index(word) for word in (" self", " (", " def", " zig", " a"))
DIGITS = range(WORDS.index(" 0"), WORDS.index(" 9") + 1)
WINDOW = 8
PIECES = TokenText(tuple(word.encode() for word in WORDS), frozenset({0}))

digit: Rule = lambda context, at: 1.0 + context[at] - DIGITS[0] if context[at] in DIGITS else 0.0  # noqa: E731
self_after_open: Rule = lambda context, at: 2.0 * (at > 0 and context[at] == SELF and context[at - 1] == OPEN)  # noqa: E731
never: Rule = lambda context, at: 0.0  # noqa: E731
any_self: Rule = lambda context, at: 1.0 * (context[at] == SELF)  # noqa: E731
signed: Rule = lambda context, at: {SELF: -4.0, DEF: 1.0, OPEN: 3.0}.get(context[at], 0.0)  # noqa: E731
RULES: list[Rule] = [digit, self_after_open, never, any_self, signed]
DIGIT, AFTER_OPEN, NEVER, ANY_SELF, SIGNED = range(len(RULES))


@dataclass
class SidedStore(HandStore):
    """Refuses to give exemplars of a side that may not be read."""

    readable: frozenset[Side] = frozenset({Side.EXPLAIN})

    def exemplars(self, latent: int, side: Side, origin: Origin) -> list[Exemplar]:
        if side not in self.readable:
            raise AssertionError(f"exemplars of the {side.name.lower()} side were read")
        return super().exemplars(latent, side, origin)

    def pool(self, side: Side) -> WindowPool:
        if side not in self.readable:
            raise AssertionError(f"the {side.name.lower()} side was read")
        return self.pools[side]


def make_store(*, readable: Sequence[Side] = (Side.EXPLAIN,), top: int = 10, sampled: int = 20) -> SidedStore:
    """Pools of three sides, in which every other token or so is a word of the side's own, and exemplars cut from them."""
    rng = np.random.default_rng(7)
    pools = {}
    stored: dict[tuple[int, Side, Origin], list[Exemplar]] = {}
    for side in Side:
        contexts = []
        for _ in range(40):
            body = rng.integers(min(SELF, OPEN), len(WORDS), 31)
            body[rng.random(31) < 0.4] = WORDS.index(SIDE_WORDS[side])
            for at in rng.integers(1, 31, 3):
                body[at], body[at - 1] = SELF, rng.choice([OPEN, A])
            contexts.append([0, *body.tolist()])
        pools[side] = make_pool(side, contexts, [100 * int(side) + i for i in range(40)], RULES, window=WINDOW)
        for latent in range(len(RULES)):
            found = firing_windows(pools[side], latent)
            strongest = sorted(found, key=lambda exemplar: -abs(exemplar.max_activation))
            stored[latent, side, Origin.TOP] = strongest[:top]
            stored[latent, side, Origin.SAMPLED] = [found[i] for i in rng.permutation(len(found))[:sampled]]
    return SidedStore(pools, PIECES, stored, frozenset(readable))


def firing_windows(pool: WindowPool, latent: int, before: int = 4) -> list[Exemplar]:
    """All windows of a pool in which the latent fires, as exemplars."""
    windows, columns, values = pool.activations(latent)
    found = []
    for row in np.unique(windows):
        tokens = pool.tokens[row]
        activations = np.zeros(len(tokens), np.float32)
        activations[columns[windows == row]] = values[windows == row]
        body = slice(before, before + int((tokens[before:] >= 0).sum()))
        found.append(
            Exemplar(
                latent=latent,
                side=pool.side,
                origin=Origin.SAMPLED,
                token_ids=tokens[body],
                activations=activations[body],
                context_ids=tokens[:before][tokens[:before] >= 0],
                document=int(pool.document[row]),
                context=int(pool.context[row]),
                position=int(pool.position[row]),
            )
        )
    return found


def plain_texts(pool: WindowPool, latent: int, *, fires: bool) -> set[str]:
    """Texts of the pool's windows in which the latent fires or is silent, by brute force."""
    firing = set(pool.activations(latent)[0].tolist())
    found = set()
    for row, tokens in enumerate(pool.tokens):
        body = tokens[int(pool.first_token[row]) :]
        if (row in firing) is fires:
            found.add("".join(WORDS[i] for i in body if i >= 0))
    return found


def lens_of(neighbours: dict[int, int], promoted: Sequence[int] = (), suppressed: Sequence[int] = ()) -> LensEvidence:
    """Lens evidence with at most one neighbour a latent and the same tokens for all."""
    size = len(RULES)
    near = np.array([[neighbours.get(latent, -1)] for latent in range(size)], np.int32)
    up, down = (np.tile(np.array(tokens, np.int32), (size, 1)) for tokens in (promoted, suppressed))
    return LensEvidence(near, np.zeros_like(near, np.float32), up, up * 1.0, down, down * -1.0)


def change_of(
    latents: Sequence[int], raised: Sequence[Sequence[int]], lowered: Sequence[Sequence[int]]
) -> TokenChangeEvidence:
    """Token change of some latents."""
    up, down = np.array(raised, np.int32), np.array(lowered, np.int32)
    strength = np.ones(len(latents), np.float32)
    return TokenChangeEvidence(np.array(latents, np.int32), strength, up, up * 1.0, down, down * -1.0, 32)


@dataclass(frozen=True)
class SeenLine:
    """One quoted line, as a reader of the prompt has it."""

    text: str
    """With its marks."""
    note: str
    """What is said after it."""

    @property
    def plain(self) -> str:
        """Without marks (the words of this world hold no such signs)."""
        return self.text.replace("<<", "").replace(">>", "")


def seen_blocks(request: CompletionRequest, message: int = -1) -> list[list[SeenLine]]:
    """The quoted blocks of one message."""
    blocks = []
    content = request.messages[message].content
    for found in re.finditer(r"^<(DATA-[0-9a-f]{8})>\n(.*?)\n?^</\1>$", content, re.DOTALL | re.MULTILINE):
        lines = []
        for line in found.group(2).splitlines():
            _, rest = line.split(" ", 1)
            text, end = json.JSONDecoder().raw_decode(rest)
            lines.append(SeenLine(text, rest[end:].removeprefix(" | ")))
        blocks.append(lines)
    return blocks
