"""The one validation of every raw reply: what passes is a Completion, everything else is an InvalidReply.

A server may answer 200 with HTML, an error object, no choices or NaN (RELIABILITY 2.2), and the client does not mind;
so nothing else in the package reads a raw reply.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from autointerp.llm.call_errors import BadLogprobs, InvalidReply
from autointerp.llm.foreign_text import clean, shown
from autointerp.llm.protocol import Completion, CompletionRequest, Usage
from autointerp.llm.reply_logprobs import answer_logprobs, echoed_logprobs, vllm_prompt_logprobs

LIMIT_BYTES, LOGPROBS_LIMIT_BYTES = 2**20, 2**24
"""Longest reply that is read: without and with log-probabilities, of which each token may have twenty alternatives."""

_MOST_TOKENS = 10**9
_STOPPED = {"stop", "eos", "eos_token", "stop_sequence", "end_turn"}
_CUT_OFF = {"length", "max_tokens"}
_BYTES_A_TOKEN = 3

Finish = Literal["stop", "length", "refusal"]


def body_limit_bytes(request: CompletionRequest) -> int:
    """Longest reply to the request that is read."""
    return LOGPROBS_LIMIT_BYTES if request.top_logprobs or request.prompt_logprobs else LIMIT_BYTES


def read_reply(body: str, request: CompletionRequest) -> Completion:
    """A raw reply as a completion. Pure, so that a stored reply gives the same again.

    Usage that the server leaves out, or that cannot be, is estimated. NUL becomes U+2400 and half characters U+FFFD, for no database takes
    them. Errors: InvalidReply, with what is wrong with the reply.
    """
    limit_bytes = body_limit_bytes(request)
    if len(body) > limit_bytes or len(body.encode("utf-8", "replace")) > limit_bytes:
        raise InvalidReply(f"the reply is longer than {limit_bytes} bytes")
    data = _json(body)
    if not isinstance(data, dict):
        raise InvalidReply(f"the reply is a JSON {json_kind(data)}, not an object")
    choices = data.get("choices")
    if not choices:
        _raise_reported(data)
        raise InvalidReply("the reply has no choices")
    if not isinstance(choices, list) or not isinstance(choices[0], dict):
        raise InvalidReply("the reply's choices are not a list of at least one object")
    choice: dict[str, Any] = choices[0]
    usage = data.get("usage")
    if request.text is None:
        text, finish = _chat_text(choice)
        parts: dict[str, Any] = {}
    else:
        text, finish, parts = _plain_text(choice, request, _count(usage, "prompt_tokens"))
    if request.top_logprobs and request.max_tokens and finish != "refusal" and text:
        if "logprobs" not in parts:
            try:
                parts["logprobs"] = answer_logprobs(choice)
            except InvalidReply as error:
                raise BadLogprobs(str(error)) from None
        if not parts["logprobs"]:
            raise BadLogprobs("asked for log-probabilities and got none")
    parts |= {"text": clean(text), "finish_reason": finish}
    model = data.get("model")
    parts["model"] = shown(model, limit=200) if isinstance(model, str) else ""
    parts["usage"] = _usage(usage, request, text)
    return Completion(**parts)


def estimated_usage(request: CompletionRequest, text: str) -> Usage:
    """Tokens of a call that nobody counted: a token for each three bytes, begun ones counted."""
    asked = sum(_num_bytes(message.content) for message in request.messages) + _num_bytes(request.text or "")
    return Usage(input_tokens=-(-asked // _BYTES_A_TOKEN), output_tokens=-(-_num_bytes(text) // _BYTES_A_TOKEN))


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _json(body: str) -> Any:
    try:
        return json.loads(body)
    except RecursionError:
        raise InvalidReply("the reply's JSON is nested too deep") from None
    except ValueError:
        start = body.lstrip()[:200]
        if not start:
            raise InvalidReply("the reply is empty") from None
        if start.startswith("<"):
            raise InvalidReply("the reply is a page of HTML or XML, not JSON: does base_url name the API?") from None
        raise InvalidReply(f"the reply is not JSON: it begins with {shown(start, limit=60)!r}") from None


def json_kind(value: Any) -> str:
    """What a JSON value is, in a word."""
    names = {list: "array", str: "string", bool: "truth value", int: "number", float: "number", dict: "object"}
    return names.get(type(value), "null")


def _raise_reported(data: Mapping[str, Any]) -> None:
    """Raises the error that a reply reports instead of an answer."""
    if reported_error(data):
        raise InvalidReply(f"the reply is an error with the status of a success: {reported(data)}")


def reported_error(data: Mapping[str, Any]) -> Any:
    """The error that a reply reports instead of an answer, in OpenAI's shape, vLLM's or FastAPI's; else nothing."""
    return data.get("error") or (data if data.get("object") == "error" else None) or data.get("detail")


def reported(data: Any, *, secret: str = "") -> str:
    """The message of an error object, as far as it has one, fit for a sentence of ours."""
    inner = data
    if isinstance(data, Mapping):
        inner = data.get("error") or data.get("message") or data.get("detail") or data
    if isinstance(inner, Mapping):
        inner = inner.get("message") or inner.get("detail") or inner
    if isinstance(inner, str):
        return shown(inner, secret=secret)
    try:
        return shown(json.dumps(inner), secret=secret)
    except RecursionError:
        return "an error that is nested too deep"


def _finish(choice: Mapping[str, Any]) -> Finish:
    reason = choice.get("finish_reason")
    if isinstance(reason, str):
        if reason in _STOPPED:
            return "stop"
        if reason in _CUT_OFF:
            return "length"
        if reason == "content_filter":
            return "refusal"
        if reason in ("tool_calls", "function_call"):
            raise InvalidReply("the reply calls tools, though none were offered")
        raise InvalidReply(f"the reply's finish_reason is {shown(reason, limit=60)!r}")
    raise InvalidReply(f"the reply's finish_reason is a JSON {json_kind(reason)}, not a text")


def _chat_text(choice: Mapping[str, Any]) -> tuple[str, Finish]:
    message = choice.get("message")
    if not isinstance(message, dict):
        raise InvalidReply("the reply's first choice has no message")
    refusal, content = message.get("refusal"), message.get("content")
    if refusal is not None and not isinstance(refusal, str):
        raise InvalidReply(f"the reply's refusal is a JSON {json_kind(refusal)}, not a text")
    if refusal:
        return refusal, "refusal"
    if message.get("tool_calls") or message.get("function_call"):
        raise InvalidReply("the reply calls tools, though none were offered")
    finish = _finish(choice)
    if content is None and finish != "stop":
        return "", finish
    if not isinstance(content, str):
        raise InvalidReply(f"the reply's content is a JSON {json_kind(content)}, not a text")
    return content, finish


def _plain_text(
    choice: Mapping[str, Any], request: CompletionRequest, prompt_tokens: int | None
) -> tuple[str, Finish, dict[str, Any]]:
    """Text and reason of a completion, with the log-probabilities of the prompt, and of an echo's answer."""
    text = choice.get("text")
    if not isinstance(text, str):
        raise InvalidReply(f"the reply's text is a JSON {json_kind(text)}, not a text")
    # where no answer was asked for, that it was cut off says nothing
    finish: Finish = _finish(choice) if request.max_tokens else "stop"
    parts: dict[str, Any] = {}
    if request.prompt_logprobs:
        assert request.text is not None
        if choice.get("prompt_logprobs") is not None:
            parts["prompt_logprobs"] = vllm_prompt_logprobs(choice)
        else:
            parts["prompt_logprobs"], answer = echoed_logprobs(choice, request, prompt_tokens)
            text = text[len(request.text) :] if text.startswith(request.text) else "".join(t.token for t in answer)
            if request.top_logprobs and request.max_tokens:
                parts["logprobs"] = answer
    return (text if request.max_tokens else ""), finish, parts


def _count(usage: Any, name: str) -> int | None:
    """A count of the reply's usage, None where it is left out or cannot be: the answer is as good with a wrong bill."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def _usage(usage: Any, request: CompletionRequest, text: str) -> Usage:
    estimate = estimated_usage(request, text)
    read, written = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    cached = _count(details, "cached_tokens") or 0
    read = estimate.input_tokens if read is None else read
    return Usage(
        input_tokens=read,
        cached_tokens=cached if cached <= read else 0,
        output_tokens=estimate.output_tokens if written is None else written,
    )
