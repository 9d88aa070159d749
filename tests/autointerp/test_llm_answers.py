"""An answer's JSON: what is taken, what is refused in which words, and the probabilities of its 0s and 1s by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.llm.answers import binary_probabilities, element_offsets, read_json
from autointerp.llm.asking import BadAnswer
from autointerp.llm.protocol import Completion, TokenLogprob

MATCHES = {
    "type": "object",
    "properties": {
        "matches": {"type": "array", "items": {"type": "integer", "enum": [0, 1]}, "minItems": 3, "maxItems": 3}
    },
    "required": ["matches"],
    "additionalProperties": False,
}
ANYTHING: dict[str, Any] = {}


def completion(text: str, logprobs: tuple[TokenLogprob, ...] = ()) -> Completion:
    return Completion(text=text, finish_reason="stop", model="m", logprobs=logprobs)


@pytest.mark.parametrize(
    "text",
    [
        '{"matches": [0, 1, 1]}',
        ' \n\t{ "matches" :\n\n  [0,1 , 1] }\n ',
        '```json\n{"matches": [0, 1, 1]}\n```',
        '\n```\n{"matches": [0, 1, 1]}\n```  ',
        '<think>The first is {"matches": [1]}, no.</think>\n\n{"matches": [0, 1, 1]}',
        'so it is 1, 1</think>```json\n{"matches": [0, 1, 1]}\n```',
    ],
)
def test_json_after_the_schema_is_read(text: str) -> None:
    assert read_json(completion(text), MATCHES) == {"matches": [0, 1, 1]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("```json\n```", "empty"),
        ("<think>It never ends", "not valid JSON"),
        ("Sure! {}", "not valid JSON: Expecting value at character 0"),
        ('{"matches": [0, 1, 1]} I hope that helps', "Extra data at character 23"),
        ('{"matches": [0, 1', "not valid JSON"),
        ("{'matches': [0, 1, 1]}", "not valid JSON"),
        ('{"matches": [0, 1, NaN]}', "NaN is no JSON number"),
        ('{"matches": [0, 1, -Infinity]}', "-Infinity is no JSON number"),
        ('{"matches": [0, 1, 1e999]}', "too large"),
        ('{"matches": [0, 1, ' + "9" * 5000 + "]}", "too many digits"),
        ('{"matches": [0, 1, 1], "matches": [1, 1, 1]}', 'the key "matches" twice'),
        ("[" * 30_000, "nested too deep"),
        ('{"a": "\\ud800"}', "no character"),
        ('{"a": ["\\u0000"]}', "no character"),
        ('{"matches": [0, 1]}', "the answer's matches has 2 items; give exactly 3"),
        ('{"matches": [0, 1, 1, 1]}', "the answer's matches has 4 items; give exactly 3"),
        ('{"matches": [0, 1, 2]}', "the answer's matches[2] is 2; give one of [0, 1]"),
        ('{"matches": [0, 1, true]}', "matches[2]"),
        ('{"matches": [0, 1, null]}', "matches[2]"),
        ('{"matches": "011"}', 'the answer\'s matches is "011"; give a value of type array'),
        ('{"match": [0, 1, 1]}', '"match'),
        ("[0, 1, 1]", "the answer is [0, 1, 1]; give a value of type object"),
        ('{"matches": [0, 1, 1], "why": ""}', 'the unknown key "why"; known are "matches"'),
    ],
)
def test_everything_else_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(BadAnswer) as caught:
        read_json(completion(text), MATCHES)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_missing_key_is_named() -> None:
    with pytest.raises(BadAnswer, match='lacks the key "matches"'):
        read_json(completion("{}"), MATCHES)


def test_the_size_is_counted_in_bytes() -> None:
    text = json.dumps("é" * 40, ensure_ascii=False)
    assert len(text) < 64 < len(text.encode())
    with pytest.raises(BadAnswer, match="longer than 64 bytes"):
        read_json(completion(text), ANYTHING, limit_bytes=64)
    assert read_json(completion(text), ANYTHING, limit_bytes=len(text.encode())) == "é" * 40


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        value = read_json(completion(text), MATCHES)
    except BadAnswer:
        return
    assert set(value) == {"matches"}


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=6), st.floats(allow_nan=False))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
)


@given(
    st.dictionaries(st.text(max_size=3), VALUES, max_size=4),
    st.text(max_size=3),
    st.lists(SCALARS | st.lists(SCALARS, max_size=2), max_size=6),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_offsets_are_those_of_the_arrays_scalars(
    around: dict[str, Any], key: str, array: list[Any], indent: int | None, fenced: bool
) -> None:
    text = json.dumps({**around, key: array}, indent=indent)
    if fenced:
        text = f"```json\n{text}\n```"
    found = [json.loads(text[start:end]) for start, end in element_offsets(text, key)]
    assert found == [item for item in array if not isinstance(item, list)]


def test_an_array_deeper_down_or_in_a_text_is_not_taken() -> None:
    assert element_offsets('{"a": {"matches": [1]}, "b": "\\"matches\\": [1]"}', "matches") == []
    assert element_offsets('[{"matches": [1]}]', "matches") == []
    assert element_offsets('{"matches": {"matches": [1]}}', "matches") == []


def token(text: str, probability: float, **others: float) -> TokenLogprob:
    """A token with its probability and those of others, written as ``_1`` for "1"."""
    top = {name.removeprefix("_").replace("s", " ").replace("c", ","): math.log(p) for name, p in others.items()}
    return TokenLogprob(token=text, logprob=math.log(probability), top={text: math.log(probability), **top})


def test_probabilities_of_tokens_that_are_a_digit() -> None:
    tokens = (
        token('{"matches":', 1.0),
        token(" [", 0.9),
        token("1", 0.6, _0=0.2, x=0.1),
        token(",", 0.99),
        token(" ", 0.5),
        token("0", 0.75, _1=0.25),
        token(", ", 0.99),
        token("1", 0.98),
        token("]}", 1.0),
        token("<|end|>", 1.0),
    )
    text = "".join(part.token for part in tokens[:-1])
    # 0.6 / (0.6 + 0.2); 0.25 / 1; the 0 is not among the alternatives
    assert binary_probabilities(completion(text, tokens), "matches") == pytest.approx([0.75, 0.25, 1.0])


def test_probabilities_of_tokens_that_hold_more_than_the_digit() -> None:
    tokens = (
        token('{"matches"', 1.0),
        token(":", 1.0),
        token("[1", 0.4, **{"[0": 0.1, "[": 0.3}),
        token(",0", 0.3, **{",1": 0.1, ", ": 0.5}),
        token(", 1", 0.2, **{", 0": 0.2, "x1": 0.6}),
        token(" ]", 1.0),
        token("}", 1.0),
    )
    text = "".join(part.token for part in tokens)
    assert text == '{"matches":[1,0, 1 ]}'
    assert binary_probabilities(completion(text, tokens), "matches") == pytest.approx([0.8, 0.25, 0.5])


def test_one_token_with_two_digits_gives_each_its_own() -> None:
    tokens = (
        token('{"matches":[', 1.0),
        token("1,0", 0.4, **{"1,1": 0.1, "0,0": 0.3, "0,1": 0.2}),
        token(",1]}", 0.5, **{",0]}": 0.5}),
    )
    # first: (0.4 + 0.1) / 1; second, after the 1 that was written: 0.1 / 0.5
    given_text = "".join(part.token for part in tokens)
    assert binary_probabilities(completion(given_text, tokens), "matches") == pytest.approx([0.5, 0.2, 0.5])


def test_white_space_before_the_digit_is_no_other_answer() -> None:
    tokens = (token('{"m":[', 1.0), token(" 1", 0.3, _1=0.3, _0=0.2, s0=0.2, _10=0.5), token("]}", 1.0))
    assert binary_probabilities(completion('{"m":[ 1]}', tokens), "m") == pytest.approx([0.6])


def test_an_array_after_broken_characters_is_found() -> None:
    tokens = (
        token('{"why":"', 1.0),
        token("bytes:\\xc3", 1.0),
        token("bytes:\\xa9", 1.0),
        token('","m":[', 1.0),
        token("0", 0.9, _1=0.1),
        token("]}", 1.0),
    )
    assert binary_probabilities(completion('{"why":"é","m":[0]}', tokens), "m") == pytest.approx([0.1])


def test_very_unlikely_digits_do_not_overflow() -> None:
    digit = TokenLogprob(token="1", logprob=-9999.0, top={"0": -9998.0, "x": -0.1})
    tokens = (token('{"m":[', 1.0), digit, token("]}", 1.0))
    expected = 1 / (1 + math.e)
    assert binary_probabilities(completion('{"m":[1]}', tokens), "m") == pytest.approx([expected])


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ('{"m":[1]}', ()),
        ('{"m":[1]}', (token('{"m":[', 1.0), token("0", 1.0), token("]}", 1.0))),
        ('{"m":[1]}', (token("1", 1.0),)),
        ('{"m":[2]}', (token('{"m":[2]}', 1.0),)),
        ('{"m":[true]}', (token('{"m":[true]}', 1.0),)),
        ('{"m":[]}', (token('{"m":[]}', 1.0),)),
        ('{"other":[1]}', (token('{"other":[1]}', 1.0),)),
        # it stands twice, so which one was meant cannot be said
        ('{"a":[1],"m":[1]}', (token('{"a" :[1],"m":[1]}', 1.0),)),
    ],
)
def test_no_probabilities_where_they_do_not_line_up(text: str, tokens: tuple[TokenLogprob, ...]) -> None:
    assert binary_probabilities(completion(text, tokens), "m") is None


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0.01, 0.99)), min_size=1, max_size=12),
    st.data(),
)
def test_any_cut_into_tokens_gives_the_same(items: list[tuple[bool, float]], data: st.DataObject) -> None:
    pieces = ['{ "m" :', " [ "]
    for index, (one, _) in enumerate(items):
        pieces += [data.draw(st.sampled_from(["", " ", "\n  "]))] + (["1"] if one else ["0"])
        pieces += [","] if index < len(items) - 1 else []
    pieces += ["\n]", "}"]
    probabilities = iter(p for _, p in items)
    tokens: list[TokenLogprob] = []
    pending = ""
    for piece in pieces:
        # what stands before a digit may be in one token with it
        if piece not in ("0", "1"):
            pending += piece
            if data.draw(st.booleans()):
                tokens.append(token(pending, 1.0))
                pending = ""
            continue
        one = next(probabilities)
        own, other = (one, 1 - one) if piece == "1" else (1 - one, one)
        flipped = pending + ("0" if piece == "1" else "1")
        log = {pending + piece: math.log(own), flipped: math.log(other)}
        tokens.append(TokenLogprob(token=pending + piece, logprob=math.log(own), top=log))
        pending = ""
    tokens.append(token(pending, 1.0))
    found = binary_probabilities(completion("".join(pieces), tuple(tokens)), "m")
    assert found == pytest.approx([p for _, p in items])


def test_thoughts_hold_no_elements() -> None:
    text = '<think>{"matches": [1, 1]}</think> {"matches": [0, 1]}'
    assert [text[a:b] for a, b in element_offsets(text, "matches")] == ["0", "1"]
    assert element_offsets(text, "matches")[0][0] > text.index("</think>")


def test_the_end_of_thoughts_within_an_answer_is_text() -> None:
    text = '{"label": "closes </think> {tags}"}'
    assert read_json(completion(text), {}) == {"label": "closes </think> {tags}"}
