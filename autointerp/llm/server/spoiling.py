"""Faults that lie in a reply which comes with HTTP 200: good JSON of the API made bad, as bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

Body = dict[str, Any]


def dumps(value: Any) -> bytes:
    """Compact JSON; NaN, infinities and lone surrogates pass, as some servers let them."""
    return json.dumps(value, separators=(",", ":")).encode()


def _with_text(body: Body, text: str | None, finish_reason: str | None = None) -> Body:
    """The reply with another answer."""
    body = deepcopy(body)
    for choice in body["choices"]:
        if "message" in choice:
            choice["message"]["content"] = text
        else:
            choice["text"] = text
        if finish_reason is not None:
            choice["finish_reason"] = finish_reason
    return body


def _text(body: Body) -> str:
    choice = body["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


def _first_half(body: Body) -> str:
    text = _text(body)
    return text[: len(text) // 2]


def _with_logprobs(body: Body, spoil: Callable[[float], float | None]) -> Body:
    """The reply with other log-probabilities; a reply without any gets one token that has it."""
    body = deepcopy(body)
    for choice in body["choices"]:
        if "message" in choice:
            tokens = (choice.get("logprobs") or {}).get("content") or [
                {"token": _text(body), "logprob": -0.5, "bytes": None, "top_logprobs": []}
            ]
            for token in tokens:
                token["logprob"] = spoil(token["logprob"])
                for entry in token["top_logprobs"]:
                    entry["logprob"] = spoil(entry["logprob"])
            choice["logprobs"] = {"content": tokens, "refusal": None}
            continue
        logprobs = choice.get("logprobs") or {"tokens": [_text(body)], "token_logprobs": [-0.5], "text_offset": [0]}
        logprobs["token_logprobs"] = [None if v is None else spoil(v) for v in logprobs["token_logprobs"]]
        tops = logprobs.get("top_logprobs") or []
        logprobs["top_logprobs"] = [None if top is None else {k: spoil(v) for k, v in top.items()} for top in tops]
        choice["logprobs"] = logprobs
        for entries in choice.get("prompt_logprobs") or []:
            for entry in (entries or {}).values():
                entry["logprob"] = spoil(entry["logprob"])
    return body


def _without_logprobs(body: Body) -> Body:
    body = deepcopy(body)
    for choice in body["choices"]:
        choice["logprobs"] = None
        choice.pop("prompt_logprobs", None)
    return body


def _wrong_types(body: Body) -> Body:
    body = _with_text(body, None)
    for choice in body["choices"]:
        choice["message" if "message" in choice else "text"] = 17
        choice["finish_reason"] = ["stop"]
    body["usage"] = {"prompt_tokens": "many", "completion_tokens": -3, "total_tokens": None}
    return body


def _extra_keys(body: Body) -> Body:
    body = deepcopy(body)
    for place in (body, body["usage"], *body["choices"], *(c["message"] for c in body["choices"] if "message" in c)):
        place["x_new_in_this_release"] = {"nested": [1, None, {"deep": True}]}
    return body


def _extra_answer_key(body: Body) -> Body:
    try:
        answer = json.loads(_text(body))
    except ValueError:
        answer = {}
    return _with_text(body, json.dumps({**(answer if isinstance(answer, dict) else {}), "remarks": "none asked for"}))


def _refused(body: Body) -> Body:
    body = _with_text(body, None)
    for choice in body["choices"]:
        if "message" in choice:
            choice["message"]["refusal"] = "I'm sorry, but I can't help with that."
        else:
            choice["text"] = ""
            choice["finish_reason"] = "content_filter"
    return body


def _deep(depth: int = 100_000) -> str:
    return "[" * depth + "]" * depth


def _error_object(body: Body) -> Body:
    return {"error": {"message": "Rate limit reached for requests", "type": "requests", "code": "rate_limit_exceeded"}}


SPOILED: dict[str, Callable[[Body], bytes]] = {
    "broken_json": lambda body: dumps(body)[: len(dumps(body)) // 2],
    "html": lambda body: b"<!DOCTYPE html><html><body><h1>502 Bad Gateway</h1></body></html>",
    "empty_body": lambda body: b"",
    "not_utf8": lambda body: dumps(body).replace(b'"model":"', b'"model":"\xff\xfe'),
    "error_object": lambda body: dumps(_error_object(body)),
    "no_choices": lambda body: dumps({**body, "choices": []}),
    "null_choices": lambda body: dumps({**body, "choices": None}),
    "null_content": lambda body: dumps(_with_text(body, None)),
    "length": lambda body: dumps(_with_text(body, _first_half(body), "length")),
    "null_length": lambda body: dumps(_with_text(body, None, "length")),
    "refusal": lambda body: dumps(_refused(body)),
    "content_filter": lambda body: dumps(_with_text(body, "", "content_filter")),
    "nan_logprobs": lambda body: dumps(_with_logprobs(body, lambda value: float("nan"))),
    "inf_logprobs": lambda body: dumps(_with_logprobs(body, lambda value: float("-inf"))),
    "null_logprobs": lambda body: dumps(_with_logprobs(body, lambda value: None)),
    "missing_logprobs": lambda body: dumps(_without_logprobs(body)),
    "deep_json": lambda body: _deep().encode(),
    "deep_answer": lambda body: dumps(_with_text(body, _deep())),
    "wrong_types": lambda body: dumps(_wrong_types(body)),
    "extra_keys": lambda body: dumps(_extra_keys(body)),
    "extra_answer_key": lambda body: dumps(_extra_answer_key(body)),
    "no_usage": lambda body: dumps({key: value for key, value in body.items() if key != "usage"}),
    "nul": lambda body: dumps(_with_text(body, '{"label": "with a \\u0000 in it"}')),
    "raw_nul": lambda body: dumps(_with_text(body, "with a \x00 in it")),
    "surrogates": lambda body: dumps(_with_text(body, '{"label": "half a \\ud83d character"}')),
    "raw_surrogates": lambda body: dumps(_with_text(body, "half a \ud83d character")),
    "long_label": lambda body: dumps(_with_text(body, json.dumps({"label": "very " * 200_000}))),
    "prose": lambda body: dumps(_with_text(body, "Sure! Here is what I think of it.")),
    "broken_answer": lambda body: dumps(_with_text(body, _first_half(body))),
    "empty_answer": lambda body: dumps(_with_text(body, "")),
}
"""Bytes of the body by the fault's name, from the good reply. The answer was made, so a real server would bill it."""
