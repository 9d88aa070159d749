"""Text of corpora, language models and configurations in Markdown: shown as it is, and never more than text."""

from __future__ import annotations

import re
import unicodedata

LONGEST = 300
"""Characters of one quoted text."""
_NOT_SHOWN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Categories of characters that are not seen, or change how others are: controls, directions, private ones."""


def one_line(text: str, longest: int = LONGEST) -> str:
    """The text on one line; characters that are not seen are replaced by U+FFFD, what is too long is cut."""
    spaced = re.sub(r"[\s\x1c-\x1f\x85\u2028\u2029]+", " ", text).strip()
    shown = "".join("\ufffd" if unicodedata.category(sign) in _NOT_SHOWN else sign for sign in spaced)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def code_span(text: object, longest: int = LONGEST) -> str:
    """The text as a code span, in which neither Markdown nor HTML counts; not for tables."""
    line = one_line(str(text), longest)
    if not line:
        return "(empty)"
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    # a space on either side is taken off again, and keeps a backtick at the edge from joining the fence
    return f"{fence} {line} {fence}" if line[0] in "` " or line[-1] in "` " else f"{fence}{line}{fence}"


def without_place(name: str) -> str:
    """A model or data set as it may be published: of a path on this machine only the last part, of a URL nothing before the host."""
    if "://" in name:
        scheme, _, rest = name.partition("://")
        host, slash, path = rest.partition("?")[0].partition("#")[0].partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    if name.startswith(("/", "~", ".")) or "\\" in name:
        return re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    return name
