"""Windows as data in a prompt: what stands in them is untrusted, whoever wrote the corpus (RELIABILITY 4.2, 5).

Each window is one JSON string on a line with its number, in which invisible characters and the spellings of chat templates' control
tokens are written as escapes. The block stands between delimiters that no text in it holds. Marked tokens stand between << and >>;
see ``marked_text`` for why a text's own << cannot be taken for a mark.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autointerp.sampling.window import ShownWindow
from sae_core.token_text import TokenText

OPEN, CLOSE = "<<", ">>"
"""Around marked tokens."""

_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
"""Letters and marks that show nothing: variation selectors, fillers (Unicode's default ignorable ones that are no formats)."""
_CONTROL_TOKEN = re.compile(
    r"<(?=[|｜]|[^<>\s]{1,40}[|｜]>"
    r"|/?(?:s|bos|eos|pad|unk|mask|think|tool_call|tool_response|(?:start|end)_of_(?:turn|image)|system|user|assistant"
    r"|image|video|audio|fim_\w+|file_sep|repo_name)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|gMASK|sMASK|MASK|sop|eop)\])"
)
"""First character of what chat models read as the end of a turn; servers turn such text into control tokens wherever it stands."""
_BETWEEN_OPENS, _BETWEEN_CLOSES = re.compile("< *(?=<)"), re.compile("> *(?=>)")


@dataclass(frozen=True, slots=True)
class Quoted:
    """Windows ready for a prompt."""

    block: str
    """Delimiter, numbered lines, delimiter."""
    delimiter: str
    """The word between which the windows stand; an answer that repeats it is suspect."""


def window_text(
    window: ShownWindow,
    pieces: TokenText,
    *,
    context_tokens: int = 0,
    marked: Callable[[int], bool] | None = None,
) -> str:
    """The window's text, up to ``context_tokens`` before it first, with runs of marked tokens between << and >>.

    ``marked`` says of the index of a token in the window whether it is marked. A token that is but the rest of a character marks
    the character, at the token that it begins in. Without ``marked`` the text is given as it is.
    """
    context = _context(window, pieces, context_tokens)
    parts = pieces.pieces([*context, *(int(i) for i in window.token_ids)])
    if marked is None:
        return "".join(parts)
    segments: list[tuple[str, bool]] = []
    for index, part in enumerate(parts):
        at = index - len(context)
        mark = at >= 0 and marked(at)
        if part or not segments:
            segments.append((part, mark))
        elif mark:
            # the rest of a character that stands at the token before
            segments[-1] = (segments[-1][0], True)
    return marked_text(segments)


def _context(window: ShownWindow, pieces: TokenText, context_tokens: int) -> list[int]:
    """The last ``context_tokens`` tokens before the window, special ones left out."""
    tokens = [int(i) for i in window.context_ids if int(i) not in pieces.special]
    return tokens[max(0, len(tokens) - context_tokens) :] if context_tokens else []


def marked_text(segments: Sequence[tuple[str, bool]]) -> str:
    """Texts, each marked or not, as one text with << and >> around the marked runs.

    Where two < of the text (or one of it and one of a mark) have nothing but spaces between them, they get one space more;
    the same for >. So two < that touch are a mark, and taking the space away again gives the text back.
    """
    runs: list[tuple[str, bool]] = []
    for text, mark in segments:
        if text and runs and runs[-1][1] == mark:
            runs[-1] = (runs[-1][0] + text, mark)
        elif text:
            runs.append((text, mark))
    out: list[str] = []
    for index, (text, mark) in enumerate(runs):
        before = OPEN if mark else CLOSE if index else ""
        after = CLOSE if mark else OPEN if index + 1 < len(runs) else ""
        text = _BETWEEN_CLOSES.sub(r"\g<0> ", _BETWEEN_OPENS.sub(r"\g<0> ", text))
        if before and text.lstrip(" ").startswith(before[0]):
            text = " " + text
        if after and text.rstrip(" ").endswith(after[0]):
            text += " "
        out.append(OPEN + text + CLOSE if mark else text)
    return "".join(out)


def json_text(text: str) -> str:
    """A text as a JSON string that shows what would hide: control, bidi and zero-width characters and control tokens are escaped."""
    quoted = json.dumps(text, ensure_ascii=False)
    if not quoted.isprintable():
        quoted = "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else _escaped(c) for c in quoted)
    if not quoted.isascii():
        quoted = _UNSEEN.sub(lambda found: _escaped(found.group()), quoted)
    return _CONTROL_TOKEN.sub(lambda found: _escaped(found.group()), quoted)


def _escaped(character: str) -> str:
    """The character as JSON's ``\\u``, one for each UTF-16 unit."""
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def quote_lines(lines: Sequence[str], *, first: int = 1, notes: Sequence[str] = ()) -> Quoted:
    """Numbered texts, each a JSON string on a line of its own, between delimiters.

    ``notes``: what is to be said of each text, after it; it stands as it is given, so texts in it must be quoted (``json_text``).
    """
    said = [f" | {note}" if note else "" for note in notes] if notes else [""] * len(lines)
    rows = zip(lines, said, strict=True)
    return _between([f"{number} {json_text(text)}{note}" for number, (text, note) in enumerate(rows, first)])


def quote_lists(lists: Mapping[str, Sequence[str]]) -> Quoted:
    """Named lists of texts, each a JSON array on a line after its name, between delimiters."""
    return _between([f"{name}: [{', '.join(map(json_text, texts))}]" for name, texts in lists.items()])


def _between(lines: Sequence[str]) -> Quoted:
    body = "\n".join(lines)
    salt = 0
    while True:
        delimiter = "DATA-" + hashlib.sha256(f"{salt} {body}".encode()).hexdigest()[:8]
        if delimiter not in body:
            return Quoted(f"<{delimiter}>\n{body}\n</{delimiter}>", delimiter)
        salt += 1


def quote_windows(
    windows: Sequence[ShownWindow],
    pieces: TokenText,
    *,
    context_tokens: int = 0,
    marked: Callable[[ShownWindow, int], bool] | None = None,
    notes: Sequence[str] = (),
) -> Quoted:
    """Windows as a quoted block; ``marked(window, index)`` says which tokens are marked, ``notes`` what is said of each."""
    lines = []
    for window in windows:
        mark = None if marked is None else (lambda index, shown=window: marked(shown, index))
        lines.append(window_text(window, pieces, context_tokens=context_tokens, marked=mark))
    return quote_lines(lines, notes=notes)
