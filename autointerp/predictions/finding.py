"""Finds what a label predicts by asking every kind of predictor of this package."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from functools import cache

import autointerp.predictions as package
from autointerp.explainers.base import Explainer
from autointerp.explanation import Explanation
from autointerp.predictions.base import Predictor, Verdicts
from autointerp.scorers.base import Scorer


@cache
def known_predictors() -> tuple[type[Predictor], ...]:
    """The concrete predictors of the package's modules, by their modules' names."""
    found: list[type[Predictor]] = []
    for module_info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{package.__name__}.{module_info.name}")
        found += [
            member
            for _, member in inspect.getmembers(module, inspect.isclass)
            if issubclass(member, Predictor) and not inspect.isabstract(member) and member.__module__ == module.__name__
        ]
    return tuple(found)


def can_predict(components: Sequence[Explainer | Scorer]) -> bool:
    """Whether labels of a run with these components may have predictions of any kind."""
    return any(kind.may_come_of(component) for kind in known_predictors() for component in components)


def predictor_of(explanation: Explanation, verdicts: Verdicts) -> Predictor | None:
    """What a label predicts; the first kind that can tell counts. None for a failed explanation, or where none can.

    Errors: InputError where a prediction is there and damaged.
    """
    if explanation.failure is not None or explanation.side != "input":
        return None
    for kind in known_predictors():
        predictor = kind.of(explanation, verdicts)
        if predictor is not None:
            return predictor
    return None
