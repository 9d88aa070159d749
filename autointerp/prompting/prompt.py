"""A prompt file and the requests that are made from it.

A file is TOML: ``version`` (int), ``system`` and ``user`` (texts with ``$placeholders``), ``answer`` (a JSON schema as text, which
may have placeholders too; left out for plain-text answers), and any number of ``[[shots]]`` with ``user`` and ``answer`` texts,
which take no placeholders. The system text and the shots are the same for every call, so a server's prefix cache holds them;
within ``user`` what changes least (the label) comes first and what changes most (the windows) last.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autointerp.llm.protocol import CompletionRequest, Message
from sae_core.errors import ConfigError, did_you_mean


class Shot(BaseModel):
    """One worked example."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    user: str
    """What is asked."""
    answer: str
    """The ideal answer, as text."""


class Prompt(BaseModel):
    """One file of ``prompts/``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    """Name of the file without its ending."""
    version: int = Field(ge=1)
    """Raised whenever the text changes in a way that is meant to change answers."""
    system: str
    """Instructions, the same for every call."""
    user: str
    """What is asked of one call, with placeholders."""
    answer: str | None = None
    """JSON schema of the answer, as text with placeholders; None for plain text."""
    shots: tuple[Shot, ...] = ()
    """Worked examples between the instructions and the question."""

    @property
    def hash(self) -> str:
        """sha256 of everything that decides the requests."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def answer_schema(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer's JSON schema."""
        if self.answer is None:
            return None
        schema: dict[str, Any] = json.loads(Template(self.answer).substitute(values))
        return schema

    def request(self, values: Mapping[str, Any], **parameters: Any) -> CompletionRequest:
        """The request of one call; ``values`` fill the placeholders (a missing one is a KeyError, a bug of ours).

        ``parameters`` are further fields of CompletionRequest: max_tokens, temperature, seed, sample, top_logprobs.
        """
        messages = [Message(role="system", content=self.system.strip())]
        for shot in self.shots:
            messages.append(Message(role="user", content=shot.user.strip()))
            messages.append(Message(role="assistant", content=shot.answer.strip()))
        messages.append(Message(role="user", content=Template(self.user).substitute(values).strip()))
        return CompletionRequest(
            messages=tuple(messages), json_schema=self.answer_schema(values), prompt_hash=self.hash, **parameters
        )

    def text(self, values: Mapping[str, Any]) -> str:
        """System and user text as one plain text, for the completions API."""
        return f"{self.system.strip()}\n\n{Template(self.user).substitute(values).strip()}"


@cache
def load_prompt(name: str) -> Prompt:
    """The prompt file ``prompts/<name>.toml``. Errors: ConfigError for a name that is not there or a file that is no prompt."""
    place = files("prompts")
    path = place / f"{name}.toml"
    if not path.is_file():
        known = [item.name.removesuffix(".toml") for item in place.iterdir() if item.name.endswith(".toml")]
        raise ConfigError(f"there is no prompt {name!r}: {did_you_mean(name, known)}")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        # as JSON: strict about types, while lists may stand for tuples
        return Prompt.model_validate_json(json.dumps({"name": name, **data}))
    except (tomllib.TOMLDecodeError, ValidationError, TypeError) as error:
        raise ConfigError(f"prompts/{name}.toml is no prompt: {error}") from error
