"""A language model as explainers and scorers see it: asked with a request, it gives a valid answer or a typed failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NoReturn, Protocol, TypeVar

from autointerp.failure import Failure
from autointerp.llm.protocol import NO_USAGE, Capability, Completion, CompletionRequest, Usage

T = TypeVar("T")


class BadAnswer(Exception):
    """Raised by a ``read`` function: what is wrong with the answer, in words that help the model to mend it."""


class AskFailed(Exception):
    """No valid answer came; ``failure`` is typed. What was spent on the way stands in ``usage``."""

    def __init__(self, failure: Failure, usage: Usage = NO_USAGE) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.usage = usage


class NoLogprobs(AskFailed):
    """The server cannot answer this request with log-probabilities; without them it may."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """A valid answer."""

    value: T
    """What ``read`` made of the text."""
    completion: Completion
    """The reply that it was read from."""
    usage: Usage
    """Of all calls that it took, repairs among them."""


class LLM(Protocol):
    """One endpoint, bound to what the calls are for (source, latent, purpose: the ledger's rows)."""

    @property
    def name(self) -> str:
        """Name of the endpoint in the configuration."""
        ...

    @property
    def model(self) -> str:
        """Model, as the configuration names it."""
        ...

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the server was found to do."""
        ...

    async def ask(self, request: CompletionRequest, read: Callable[[Completion], T]) -> Answer[T]:
        """A valid answer. ``read`` raises BadAnswer for one that is not; it is then asked to repair it, twice at most.

        Errors: AskFailed (refused, truncated, unparseable, timeout, server_error, ...), which is about this request
        alone (NoLogprobs where only its log-probabilities are the matter); EndpointError and BudgetError, which stop the run.
        """
        ...


class LLMs(Protocol):
    """The endpoints of a run, bound to one latent."""

    def of(self, endpoint: str, purpose: str) -> LLM:
        """The endpoint of that name ("" for the first configured one), for calls with that purpose, e.g. ``"detection"``.

        Errors: ConfigError for a name that is not configured.
        """
        ...


class _NoLLMs:
    """Endpoints of components that use none."""

    def of(self, endpoint: str, purpose: str) -> NoReturn:
        raise AssertionError(f"{purpose} asks for an LLM without having declared it in llm_needs()")


NO_LLMS: LLMs = _NoLLMs()
"""For components that ask nobody."""


@dataclass(frozen=True, slots=True)
class LLMNeed:
    """One endpoint that a component uses, and what it must be able to do."""

    endpoint: str
    """Name in the configuration, "" for the first one."""
    capabilities: frozenset[Capability] = frozenset()
    """Without these the plan is refused before a token is spent."""
    alternative: str = ""
    """What to do where the server lacks them, as the end of a sentence: ``set variant = "json" ...``."""
    prompts: tuple[str, ...] = ()
    """Prompt files that are sent; their text is a part of a run's identity."""
