"""Patterns of one latent as a reversed trie: read from the firing token backwards, the longest match decides.

Letters in shapes: N counting positions of a pool, M those that some pattern matches, K patterns of one template.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp.patterns.index import Ints, PoolIndex, Template, pool_index
from autointerp.patterns.matching import match_literals
from sae_core.errors import InputError
from sae_core.records import WindowPool

WILDCARD = -3
"""Symbol of a pattern that matches any one token."""
_FORMAT = 1
_PASSING, _SILENT, _FIRING = 0, 1, 2


def priority(template: Template) -> tuple[int, tuple[int, ...]]:
    """Sort key of templates, the winner of two matches last: more literal tokens win, then nearer ones."""
    return len(template), tuple(-offset for offset in template)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A run of tokens that ends at the token it speaks about, and what it predicts there."""

    symbols: tuple[int, ...]
    """Token ids, :data:`WILDCARD` or :data:`~autointerp.patterns.index.START`, firing token first and then
    backwards; the last one is no wildcard."""
    fires: bool
    """Whether the latent is said to fire; a pattern that says no is an exception to a shorter one."""
    activation: float
    """Predicted activation: the mean over the matches, silent ones included."""
    support: int
    """Matches on the explain side that no longer pattern claims."""
    hits: int
    """How many of them fire."""

    @property
    def template(self) -> Template:
        """Offsets back from the firing token at which there is a literal."""
        return tuple(offset for offset, symbol in enumerate(self.symbols) if symbol != WILDCARD)

    @property
    def literals(self) -> tuple[int, ...]:
        """The literals at :attr:`template`."""
        return tuple(symbol for symbol in self.symbols if symbol != WILDCARD)


def symbols_of(template: Template, literals: Sequence[int]) -> tuple[int, ...]:
    """Symbols of a pattern with ``literals`` at the offsets of ``template`` and wildcards between."""
    symbols = [WILDCARD] * (template[-1] + 1)
    for offset, literal in zip(template, literals, strict=True):
        symbols[offset] = int(literal)
    return tuple(symbols)


class Prediction(NamedTuple):
    """What a trie says about a pool; at every position that is not named it predicts silence and activation 0."""

    ordinal: NDArray[np.int32]
    """[M] matched counting positions of the pool's index, ascending."""
    cell: Ints
    """[M] the same as flat cells of ``pool.tokens``."""
    activation: NDArray[np.float64]
    """[M] predicted activation."""
    fires: NDArray[np.bool_]
    """[M] whether the latent is said to fire."""


@dataclass
class _Node:
    """A node of the walking form of the trie."""

    children: dict[int, _Node]
    pattern: Pattern | None = None


@dataclass(frozen=True)
class PatternTrie:
    """All patterns of one latent. Of the patterns that match a token the longest one decides: that with most
    literal tokens, among equals the one whose literals stand nearest the firing token."""

    patterns: tuple[Pattern, ...]
    """In no particular order, each sequence of symbols at most once."""

    @cached_property
    def _root(self) -> _Node:
        root = _Node({})
        for pattern in self.patterns:
            node = root
            for symbol in pattern.symbols:
                node = node.children.setdefault(symbol, _Node({}))
            node.pattern = pattern
        return root

    def longest_match(self, tokens: Sequence[int]) -> Pattern | None:
        """The pattern that decides about the last of ``tokens``, a sequence from its start; None where none matches."""
        best: tuple[tuple[int, tuple[int, ...]], Pattern] | None = None
        frontier = [self._root]
        for symbol in [*reversed(tokens), *(-1 for _ in range(1 + self._depth))]:
            frontier = [n for node in frontier for key in (symbol, WILDCARD) if (n := node.children.get(key))]
            if not frontier:
                break
            for node in frontier:
                if node.pattern is not None:
                    rank = priority(node.pattern.template)
                    if best is None or rank > best[0]:
                        best = rank, node.pattern
        return best[1] if best else None

    @property
    def _depth(self) -> int:
        return max((len(pattern.symbols) for pattern in self.patterns), default=0)

    def by_template(self) -> list[tuple[Template, list[Pattern]]]:
        """Patterns by template, the winner of two matches last."""
        groups: dict[Template, list[Pattern]] = defaultdict(list)
        for pattern in self.patterns:
            groups[pattern.template].append(pattern)
        return sorted(groups.items(), key=lambda item: priority(item[0]))

    def predict(self, pool: WindowPool) -> Prediction:
        """What the trie says about every counting position of a pool; only candidate positions are looked at."""
        return self.predict_indexed(pool_index(pool))

    def predict_indexed(self, index: PoolIndex) -> Prediction:
        """:meth:`predict` on a pool's index."""
        owner = np.full(index.num_positions, -1, dtype=np.int32)
        activation: list[float] = []
        fires: list[bool] = []
        for template, patterns in self.by_template():
            literals = np.array([pattern.literals for pattern in patterns], dtype=np.int64)
            ordinals, which = match_literals(index, template, literals)
            owner[ordinals] = which + len(fires)
            activation += [pattern.activation for pattern in patterns]
            fires += [pattern.fires for pattern in patterns]
        matched = np.flatnonzero(owner >= 0).astype(np.int32)
        node = owner[matched]
        return Prediction(
            matched,
            index.cell[matched],
            np.array(activation, dtype=np.float64)[node],
            np.array(fires, dtype=np.bool_)[node],
        )

    def to_payload(self) -> dict[str, Any]:
        """The whole trie as compact JSON: its nodes in preorder, as columns.

        ``depth`` and ``symbol`` of each node give the tree; ``state`` is 0 for a node that only leads on, 1 for an
        exception, 2 for one that fires; ``activation``, ``support`` and ``hits`` are there for the nodes of
        states 1 and 2, in order.
        """
        payload: dict[str, Any] = {"format": _FORMAT, "depth": [], "symbol": [], "state": []}
        columns: dict[str, list[float]] = {"activation": [], "support": [], "hits": []}
        for depth, symbol, node in _preorder(self._root, 0):
            payload["depth"].append(depth)
            payload["symbol"].append(symbol)
            pattern = node.pattern
            payload["state"].append(_PASSING if pattern is None else _FIRING if pattern.fires else _SILENT)
            if pattern is not None:
                columns["activation"].append(pattern.activation)
                columns["support"].append(pattern.support)
                columns["hits"].append(pattern.hits)
        return payload | columns

    @staticmethod
    def reads(payload: Mapping[str, Any]) -> bool:
        """Whether a payload claims to be that of a trie, in whatever format."""
        return "depth" in payload and "symbol" in payload

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> PatternTrie:
        """The trie that :meth:`to_payload` wrote.

        Raises:
            InputError: the payload is of another explainer, of another format or damaged.
        """
        if payload.get("format") != _FORMAT:
            raise InputError(
                f"a pattern payload of format {payload.get('format')!r} was given, format {_FORMAT} is read: "
                f"explain the latent again with the pattern explainer"
            )
        try:
            predicted = zip(payload["activation"], payload["support"], payload["hits"], strict=True)
            path: list[int] = []
            patterns: list[Pattern] = []
            for depth, symbol, state in zip(payload["depth"], payload["symbol"], payload["state"], strict=True):
                path[depth:] = [int(symbol)]
                if state != _PASSING:
                    activation, support, hits = next(predicted)
                    patterns.append(Pattern(tuple(path), state == _FIRING, float(activation), int(support), int(hits)))
        except (KeyError, TypeError, ValueError, StopIteration) as error:
            raise InputError(
                f"a pattern payload is damaged ({error!r}): explain the latent again with the pattern explainer"
            ) from error
        return cls(tuple(patterns))


def _preorder(node: _Node, depth: int) -> Iterator[tuple[int, int, _Node]]:
    for symbol in sorted(node.children):
        child = node.children[symbol]
        yield depth, symbol, child
        yield from _preorder(child, depth + 1)
