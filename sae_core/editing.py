"""Change what passes a hookpoint while a subject runs: add to it, or put something else in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sae_core.hookpoints import (
    Hookpoint,
    block_index,
    block_list_name,
    edited_at,
    first_tensor,
    replace_first_tensor,
)
from sae_core.subject import SubjectModel


@contextmanager
def added(subject: SubjectModel, deltas: Mapping[Hookpoint, Tensor]) -> Iterator[None]:
    """While this is open, ``deltas`` [..., D] are added to what passes their hookpoints, for all that read it."""
    with ExitStack() as stack:
        for hookpoint, delta in deltas.items():

            def change(value: Tensor, delta: Tensor = delta) -> Tensor:
                return value + delta

            _changed(stack, subject, edited_at(subject.model, hookpoint), change)
        yield


@contextmanager
def put(
    subject: SubjectModel, values: Mapping[Hookpoint, Tensor], only: Mapping[Hookpoint, Tensor] | None = None
) -> Iterator[None]:
    """While this is open, each hookpoint carries the given activations [..., D] and not its own.

    ``only`` [..., 1] says for each hookpoint at which tokens; by default at all.
    """
    with ExitStack() as stack:
        for hookpoint, value in values.items():
            place = edited_at(subject.model, hookpoint)
            where = None if only is None else only[hookpoint]
            if place == hookpoint:

                def instead(own: Tensor, value: Tensor = value, where: Tensor | None = where) -> Tensor:
                    return value if where is None else torch.where(where, value, own)

                _changed(stack, subject, place, instead)
            else:
                _put_between(stack, subject, hookpoint, place, value, where)
        yield


@contextmanager
def changed(subject: SubjectModel, changes: Mapping[Hookpoint, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """While this is open, each hookpoint carries what its function makes of its activations [..., D], for all that read it.

    A function gives back what it was given wherever it changes nothing.
    """
    with ExitStack() as stack:
        for hookpoint, change in changes.items():
            place = edited_at(subject.model, hookpoint)
            if place == hookpoint:
                _changed(stack, subject, place, change)
            else:
                entering = _entering(stack, subject, hookpoint)

                def between(
                    own: Tensor, entering: list[Tensor] = entering, change: Callable[[Tensor], Tensor] = change
                ) -> Tensor:
                    stream = entering[0] + own
                    becomes = change(stream)
                    return torch.where(becomes != stream, becomes - entering[0], own)

                _changed(stack, subject, place, between)
        yield


def _changed(stack: ExitStack, subject: SubjectModel, place: Hookpoint, change: Callable[[Tensor], Tensor]) -> None:
    """Until the stack closes, ``change`` is applied to what the place's module gives (or takes)."""
    module: nn.Module = subject.base.get_submodule(place.module)
    if place.io == "output":

        def after(_module: nn.Module, _args: Any, output: Any) -> Any:
            return replace_first_tensor(output, change(first_tensor(output)))

        stack.callback(module.register_forward_hook(after).remove)
    else:

        def before(_module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

        stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)


def _put_between(
    stack: ExitStack,
    subject: SubjectModel,
    hookpoint: Hookpoint,
    attention: Hookpoint,
    value: Tensor,
    where: Tensor | None,
) -> None:
    """The stream between attention and MLP becomes ``value``: the attention gives what is missing to it."""
    entering = _entering(stack, subject, hookpoint)
    _changed(
        stack,
        subject,
        attention,
        lambda own: value - entering[0] if where is None else torch.where(where, value - entering[0], own),
    )


def _entering(stack: ExitStack, subject: SubjectModel, hookpoint: Hookpoint) -> list[Tensor]:
    """What enters the block of a hookpoint, as the list's one item once the block has begun."""
    block = f"{block_list_name(subject.base)}.{block_index(subject.base, hookpoint)}"
    entering: list[Tensor] = []

    def keep(stream: Tensor) -> Tensor:
        entering[:] = [stream]
        return stream

    _changed(stack, subject, Hookpoint(block, "input"), keep)
    return entering
