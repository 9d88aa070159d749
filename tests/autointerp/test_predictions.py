"""What labels predict: patterns for every token, simulations for the windows that were judged."""

from __future__ import annotations

import numpy as np
import pytest

from autointerp.explainers.max_activating import MaxActivatingExplainer
from autointerp.explainers.pattern import PatternExplainer
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.patterns.index import PoolIndex
from autointerp.patterns.trie import Pattern, PatternTrie
from autointerp.predictions.base import TokenPredictor, WindowPredictor
from autointerp.predictions.finding import can_predict, known_predictors, predictor_of
from autointerp.scorers.detection import DetectionScorer
from autointerp.scorers.pattern import PatternScorer
from autointerp.scorers.simulation import SimulationScorer
from sae_core.errors import InputError
from sae_core.records import Side
from tests.autointerp.pools import make_pool

A, B, C = 1, 2, 3
TRIE = PatternTrie(
    (
        Pattern((A,), True, 1.5, 10, 9),
        Pattern((A, B), False, 0.2, 5, 1),  # an exception: A after B does not fire
        Pattern((C, A), True, 4.0, 5, 5),
    )
)
LABEL = Explanation(latent=7, explainer="pattern", text="A", payload=TRIE.to_payload())


def test_a_pattern_predicts_its_activation_and_an_exception_silence() -> None:
    predictor = predictor_of(LABEL, {})
    assert isinstance(predictor, TokenPredictor)
    pool = make_pool(Side.SCORE, [[0, A, B, A, C, C]], [0], [], window=3)
    index = PoolIndex(pool)
    found = predictor.predict(index)
    tokens = pool.tokens.reshape(-1)[index.cell[found.ordinal]]
    places = (index.cell[found.ordinal] // pool.tokens.shape[1]).tolist()
    assert tokens.tolist() == [A, C]
    assert places == [0, 1], "the A after B is said to be silent, and a C without an A before it too"
    assert found.activation.tolist() == [1.5, 4.0]


def test_a_simulation_predicts_in_units_of_the_peak() -> None:
    kept = {"windows": ["3:0", "5:8"], "fires": [1, 0], "expected": [[0, 500, 1000], [0, 100]], "peak": -8.0}
    label = LABEL.model_copy(update={"payload": {}})
    predictor = predictor_of(label, {"simulation": kept, "detection": {"windows": []}})
    assert isinstance(predictor, WindowPredictor)
    first, second = predictor.windows
    assert (first.context, first.position, first.fires) == (3, 0, True)
    assert (second.context, second.position, second.fires) == (5, 8, False)
    np.testing.assert_allclose(first.activation, [0, -4.0, -8.0])
    np.testing.assert_allclose(second.activation, [0, -0.8])


def test_labels_without_predictions_have_none() -> None:
    plain = LABEL.model_copy(update={"payload": {}})
    assert predictor_of(plain, {}) is None
    assert predictor_of(plain, {"simulation": {"windows": ["1:0"], "strata": "f"}}) is None
    failed = Failure(kind=FailureKind.NO_PATTERN, message="none")
    assert predictor_of(Explanation(latent=7, explainer="pattern", failure=failed), {}) is None
    assert predictor_of(LABEL.model_copy(update={"side": "output"}), {}) is None


def test_damaged_predictions_are_named() -> None:
    bad = {"windows": ["3:0"], "fires": [], "expected": [[1]], "peak": 1.0}
    with pytest.raises(InputError, match="simulation scorer kept of latent 7"):
        predictor_of(LABEL.model_copy(update={"payload": {}}), {"simulation": bad})
    with pytest.raises(InputError, match="format"):
        predictor_of(LABEL.model_copy(update={"payload": TRIE.to_payload() | {"format": 99}}), {})


def test_every_module_with_a_predictor_is_found() -> None:
    assert {kind.__name__ for kind in known_predictors()} == {"PatternPredictor", "SimulatedWindows"}


def test_which_components_lead_to_predictions() -> None:
    others = [MaxActivatingExplainer(), DetectionScorer(), PatternScorer()]
    assert not can_predict(others)
    assert not can_predict([])
    assert can_predict([*others, PatternExplainer()])
    assert can_predict([*others, SimulationScorer()])
