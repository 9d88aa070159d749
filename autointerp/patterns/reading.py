"""Patterns written down for a person: ``"self" after "("; "cls" after "(" or ","; and 12 more patterns``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from autointerp.patterns.index import START
from autointerp.patterns.trie import WILDCARD, Pattern, PatternTrie
from sae_core.token_text import TokenText

_LONGEST_PIECE = 24
_MOST_ALTERNATIVES = 6


@dataclass(frozen=True, slots=True)
class _Phrase:
    """Patterns that one part of a label tells of: one without context, or several that share a side."""

    patterns: list[tuple[int, ...]]
    """Symbols of each, the one that explains most first."""
    hits: int
    """Firing tokens that they explain on the explain side."""
    by_context: bool = False
    """Whether what they share is the context (else the firing token)."""


def describe(trie: PatternTrie, pieces: TokenText, longest: int = 160) -> str:
    """A label of about ``longest`` characters at most: the phrases that explain most firing tokens, then how many
    patterns are left out; ``""`` for a trie without a pattern that fires."""
    firing = [pattern for pattern in trie.patterns if pattern.fires]
    if not firing:
        return ""
    by_symbols = {pattern.symbols: pattern for pattern in trie.patterns}
    # A longer pattern under one that fires already adds no words; its hits count for the shorter one.
    heads: dict[tuple[int, ...], int] = defaultdict(int)
    for pattern in firing:
        heads[_head(pattern, by_symbols)] += max(pattern.hits, 1)
    phrases = sorted(_phrases(heads), key=lambda phrase: (-phrase.hits, phrase.patterns))
    exceptions: dict[int, list[Pattern]] = defaultdict(list)
    for pattern in trie.patterns:
        if not pattern.fires and len(pattern.symbols) > 1 and pattern.support:
            exceptions[pattern.symbols[0]].append(pattern)
    shown: list[str] = []
    told = length = 0
    for phrase in phrases:
        text = _written(phrase, heads, exceptions, pieces)
        if shown and length + 2 + len(text) > longest - len(_rest(len(heads))):
            break
        shown.append(text)
        told += len(phrase.patterns)
        length += len(text) + 2
    total = len(heads)
    return "; ".join(shown) + (_rest(total - told) if told < total else "")


def _rest(number: int) -> str:
    return f"; and {number} more pattern{'s' if number != 1 else ''}"


def _head(pattern: Pattern, by_symbols: dict[tuple[int, ...], Pattern]) -> tuple[int, ...]:
    """Shortest firing pattern that ends like this one with only firing patterns between."""
    head = pattern.symbols
    for length in range(len(pattern.symbols) - 1, 0, -1):
        shorter = by_symbols.get(pattern.symbols[:length])
        if shorter is not None and not shorter.fires:
            break
        if shorter is not None:
            head = shorter.symbols
    any_token = by_symbols.get((WILDCARD, *head[1:]))
    return any_token.symbols if any_token is not None and any_token.fires else head


def _phrases(heads: dict[tuple[int, ...], int]) -> Iterable[_Phrase]:
    """Heads in groups: single tokens by themselves, and those with context by whichever side explains more."""
    after: dict[tuple[int, ...], list[tuple[int, ...]]] = defaultdict(list)
    of_token: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    order = sorted(heads, key=lambda h: (-heads[h], h))
    for head in order:
        if len(head) > 1:
            after[head[1:]].append(head)
            of_token[head[0]].append(head)
    done: set[tuple[int, ...]] = set()
    for head in order:
        if head in done:
            continue
        if len(head) == 1:
            yield _Phrase([head], heads[head])
            continue
        same_context = [h for h in after[head[1:]] if h not in done][:_MOST_ALTERNATIVES]
        same_token = [h for h in of_token[head[0]] if h not in done][:_MOST_ALTERNATIVES]
        by_context = sum(heads[h] for h in same_context) > sum(heads[h] for h in same_token)
        group = same_context if by_context else same_token
        done.update(group)
        yield _Phrase(group, sum(heads[h] for h in group), by_context)


def _written(
    phrase: _Phrase,
    heads: dict[tuple[int, ...], int],
    exceptions: dict[int, list[Pattern]],
    pieces: TokenText,
) -> str:
    """The words of one phrase."""
    head = phrase.patterns[0]
    if len(head) == 1:
        silent = sorted(exceptions[head[0]], key=lambda p: (p.hits - p.support, p.symbols))
        worth = [p for p in silent if p.support - p.hits >= 0.05 * heads[head]][:2]
        text = _quoted(head[0], pieces)
        if worth:
            text += " but not after " + _either([_context(p.symbols[1:], pieces) for p in worth])
        return text
    if phrase.by_context:
        firing = _either([_quoted(h[0], pieces) for h in phrase.patterns])
        return f"{firing} after {_context(head[1:], pieces)}"
    contexts = _either([_context(h[1:], pieces) for h in phrase.patterns])
    return f"{_quoted(head[0], pieces)} after {contexts}"


def _either(parts: list[str]) -> str:
    parts = list(dict.fromkeys(parts))
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " or " + parts[-1]


def _quoted(token: int, pieces: TokenText) -> str:
    """One firing token in quotes."""
    return "any token" if token == WILDCARD else _in_quotes(pieces.visible([token]))


def _context(symbols: tuple[int, ...], pieces: TokenText) -> str:
    """What stands before a firing token, given nearest first: runs of literals in quotes, ``_`` for any one token."""
    parts: list[str] = []
    run: list[int] = []
    for symbol in reversed(symbols):
        if symbol >= 0 and symbol not in pieces.special:
            run.append(symbol)
            continue
        if run:
            parts.append(_in_quotes(pieces.visible(run)))
            run = []
        if symbol == WILDCARD:
            parts.append("_")
        elif symbol == START or symbol in pieces.special:
            parts.append("(^)")
    if run:
        parts.append(_in_quotes(pieces.visible(run)))
    return " ".join(dict.fromkeys(parts) if parts.count("(^)") > 1 else parts)


def _in_quotes(text: str) -> str:
    if len(text) > _LONGEST_PIECE:
        text = "…" + text[1 - _LONGEST_PIECE :]
    return f"'{text}'" if '"' in text else f'"{text}"'
