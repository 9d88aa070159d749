"""The JSON in an answer's text: read strictly, and with the probabilities that the log-probabilities give its 0s and 1s."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from autointerp.llm.asking import BadAnswer
from autointerp.llm.protocol import Completion, TokenLogprob

LIMIT_BYTES = 64 * 1024
"""Longest answer that is read."""

_THOUGHTS_END = "</think>"
"""What ends the thoughts of models that think."""
_FENCED = re.compile(r"\A```[A-Za-z0-9]*[ \t]*\r?\n(.*?)\s*```\Z", re.DOTALL)
_PART = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)
_NO_CHARACTER = re.compile("[\x00\ud800-\udfff]")


def read_json(completion: Completion, schema: Mapping[str, Any], *, limit_bytes: int = LIMIT_BYTES) -> Any:
    """The answer as JSON that follows ``schema``; thoughts before it (up to ``</think>``) and a code fence around
    the whole of it are taken off, nothing else is.

    Errors: BadAnswer, with a reason that the model can mend: too long, no strict JSON (NaN, a key given twice, text
    around it, nested too deep), or not after the schema.
    """
    if len(completion.text) > limit_bytes or len(completion.text.encode("utf-8", "replace")) > limit_bytes:
        raise BadAnswer(f"the answer is longer than {limit_bytes} bytes")
    start, end = _json_span(completion.text)
    text = completion.text[start:end]
    if not text:
        raise BadAnswer("the answer is empty; answer with JSON")
    try:
        value = _DECODER.decode(text)
        if "\\u" in text:
            _check_characters(value)
        error = best_match(Draft202012Validator(schema).iter_errors(value))
    except json.JSONDecodeError as broken:
        near = json.dumps(text[max(0, broken.pos - 15) : broken.pos + 15], ensure_ascii=False)
        raise BadAnswer(
            f"the answer is not valid JSON: {broken.msg} at character {broken.pos} (near {near}); "
            f"answer with JSON only, without any text around it"
        ) from None
    except RecursionError:
        raise BadAnswer("the answer's JSON is nested too deep") from None
    except ValueError:
        # Python refuses to read a whole number of more than some thousand digits
        raise BadAnswer("the answer's JSON holds a number with too many digits") from None
    if error is not None:
        raise BadAnswer(_complaint(error))
    return value


def _json_span(text: str) -> tuple[int, int]:
    """Where the JSON begins and ends: after a model's thoughts, without white space and a code fence around the whole."""
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] not in ("{", "[", "`"):
        # servers without a reasoning parser leave the thoughts in the answer; some templates open them in the prompt
        thought = text.find(_THOUGHTS_END)
        if thought >= 0:
            start = thought + len(_THOUGHTS_END)
            start += len(text[start:]) - len(text[start:].lstrip())
    end = len(text.rstrip())
    fenced = _FENCED.match(text[start:end])
    if fenced is None:
        return start, max(start, end)
    return start + fenced.start(1), start + fenced.end(1)


def _no_constant(name: str) -> NoReturn:
    raise BadAnswer(f"the answer is not valid JSON: {name} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise BadAnswer(f"the answer's JSON holds the number {digits[:20]}, which is too large")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadAnswer(f"the answer's JSON gives the key {_short(twice)} twice")
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_without_repeats)


def _check_characters(value: Any) -> None:
    """Refuses NUL and half characters, which escapes can bring into a text and which no database takes."""
    if isinstance(value, str):
        if _NO_CHARACTER.search(value):
            raise BadAnswer("a text in the answer's JSON holds an escape that is no character")
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_characters(name)
            _check_characters(item)
    elif isinstance(value, list):
        for item in value:
            _check_characters(item)


def _short(value: Any, limit: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _complaint(error: ValidationError) -> str:
    """What is wrong, where, and what would be right."""
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    place = f"the answer's {where}" if where else "the answer"
    wanted: Any = error.validator_value
    given: Any = error.instance
    schema: Any = error.schema
    match error.validator:
        case "minItems" | "maxItems":
            exact = schema.get("minItems") == schema.get("maxItems")
            least = "exactly" if exact else "at least" if error.validator == "minItems" else "at most"
            return f"{place} has {len(given)} items; give {least} {wanted}"
        case "minLength" | "maxLength":
            least = "at least" if error.validator == "minLength" else "at most"
            return f"{place} has {len(given)} characters; give {least} {wanted}"
        case "required":
            return f"{place} lacks the key {', '.join(_short(name) for name in wanted if name not in given)}"
        case "additionalProperties" if wanted is False:
            known = schema.get("properties", {})
            extra = ", ".join(_short(name) for name in given if name not in known)
            return f"{place} has the unknown key {extra[:80]}; known are {', '.join(_short(name) for name in known)}"
        case "type":
            return f"{place} is {_short(given)}; give a value of type {wanted}"
        case "enum":
            return f"{place} is {_short(given)}; give one of {_short(wanted, 200)}"
        case "const":
            return f"{place} is {_short(given)}; give {_short(wanted, 200)}"
        case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "pattern":
            return f"{place} is {_short(given)}, which does not fit {error.validator} {_short(wanted, 200)}"
        case _:
            return f"{place} does not follow the schema: {error.message[:200]}"


def element_offsets(text: str, key: str) -> list[tuple[int, int]]:
    """Character spans (first, after the last) of the scalars in the array at the top-level ``key`` of a JSON text.

    ``text`` is one that ``read_json`` took; empty where there is no such key, or no array at it.
    """
    first, last = _json_span(text)
    parts = list(_PART.finditer(text, first, last))
    depth = 0
    for index, part in enumerate(parts):
        sign = part.group()
        if sign in "{[":
            depth += 1
        elif sign in "}]":
            depth -= 1
        elif depth == 1 and sign[0] == '"' and [p.group() for p in parts[index + 1 : index + 3]] == [":", "["]:
            in_object = parts[0].group() == "{"
            if in_object and json.loads(sign) == key:
                return list(_scalars(parts[index + 3 :]))
    return []


def _scalars(parts: Iterable[re.Match[str]]) -> Iterable[tuple[int, int]]:
    """Spans of an array's own scalars, from just after its opening bracket to its end."""
    depth = 1
    for part in parts:
        sign = part.group()
        if sign in "{[":
            depth += 1
        elif sign in "}]":
            depth -= 1
            if not depth:
                return
        elif depth == 1 and sign != ",":
            yield part.span()


def binary_probabilities(completion: Completion, key: str) -> list[float] | None:
    """Probability of 1 for each element of the array of 0s and 1s at ``key``, as the answer's tokens were drawn.

    Renormalised over the tokens of the reply's alternatives that say 0 or 1 at that place; one that is not among
    them counts nothing. None without log-probabilities, or where they do not line up with the text.
    """
    spans = element_offsets(completion.text, key)
    if not spans or not completion.logprobs:
        return None
    if any(completion.text[start:end] not in ("0", "1") for start, end in spans):
        return None
    joined = "".join(token.token for token in completion.logprobs)
    shift = _shift(completion.text, joined, spans)
    if shift is None:
        return None
    starts = []
    position = 0
    for token in completion.logprobs:
        starts.append(position)
        position += len(token.token)
    probabilities = []
    for start, _ in spans:
        index = bisect_right(starts, start + shift) - 1
        probabilities.append(_probability_of_one(completion.logprobs[index], start + shift - starts[index]))
    return probabilities


def _shift(text: str, joined: str, spans: list[tuple[int, int]]) -> int | None:
    """How much further on a character of the array stands in the joined tokens than in the text.

    Tokens around the text (an end of turn) or parts of characters before the array do no harm; an array that is
    found nowhere, or twice, does.
    """
    if joined.startswith(text):
        return 0
    start = text.rindex("[", 0, spans[0][0])
    array = text[start : text.index("]", spans[-1][1]) + 1]
    return joined.index(array) - start if joined.count(array) == 1 else None


def _probability_of_one(token: TokenLogprob, at: int) -> float:
    """Probability of 1 for the digit at character ``at`` of the token's text, given what the token says before it."""
    before = "".join(token.token[:at].split())
    found: dict[str, list[float]] = {"0": [], "1": []}
    for text, logprob in {**token.top, token.token: token.logprob}.items():
        # white space is free between JSON's parts, so " 1" and "1" are one answer; "10" is none
        said = "".join(text.split())
        digit, after = said[len(before) : len(before) + 1], said[len(before) + 1 : len(before) + 2]
        if said.startswith(before) and digit in found and not after.isdigit():
            found[digit].append(logprob)
    highest = max(found["0"] + found["1"])
    weight = {digit: sum(math.exp(logprob - highest) for logprob in given) for digit, given in found.items()}
    return weight["1"] / (weight["0"] + weight["1"])
