"""A score from verdicts, or the typed failure in its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.judging.batching import Asked
from autointerp.judging.verdicts import Verdicts
from autointerp.sampling.window import Stratum
from autointerp.score import Score, ScoreValue, defined


def missing_label(kind: str, latent: int, explanation: Explanation | None) -> Score | None:
    """The score of a label that is not there; None where it is."""
    if explanation is not None and explanation.failure is None:
        return None
    reason = explanation.failure.message if explanation and explanation.failure else "none was written"
    return Score(
        latent=latent,
        scorer=kind,
        explainer=explanation.explainer if explanation else None,
        failure=Failure(kind=FailureKind.NO_EXPLANATION, message=f"there is no label to score: {reason}"),
    )


def too_few(
    kind: str,
    evidence: LatentEvidence,
    explanation: Explanation | None,
    found: str,
    values: dict[str, ScoreValue],
) -> Score:
    """The score where a side has too few windows; ``found`` says how many of which, and how many are needed."""
    if evidence.is_dead:
        failure = Failure(kind=FailureKind.DEAD, message="never fires in the corpus")
    else:
        side = evidence.scored_side
        total = evidence.num_windows_firing(side)
        failure = Failure(
            kind=FailureKind.TOO_FEW_WINDOWS,
            message=f"{found} (it fires in {total:,} windows of the {side.name.lower()} side of the corpus)",
        )
    explainer = explanation.explainer if explanation else None
    return Score(latent=evidence.latent, scorer=kind, explainer=explainer, values=defined(values), failure=failure)


def spent(kind: str, asked: Asked[Any], asked_model: str) -> dict[str, ScoreValue]:
    """Who judged, and what it took; ``asked_model`` is the configured model, which need not be the one that answered."""
    return {
        "judge_model": ", ".join(asked.models) or None,
        "judge_asked_model": asked_model,
        f"{kind}_calls": asked.num_calls,
        f"{kind}_input_tokens": asked.usage.input_tokens,
        f"{kind}_output_tokens": asked.usage.output_tokens,
        f"{kind}_cost_usd": asked.usage.cost_usd,
    }


def failed_of(kind: str, failures: Iterable[FailureKind | None]) -> dict[str, ScoreValue]:
    """Questions without an answer, in all (``<kind>_failed``) and by the failure (``<kind>_failed_<failure>``)."""
    counts = Counter(failure.value for failure in failures if failure is not None)
    return {f"{kind}_failed": counts.total(), **{f"{kind}_failed_{name}": n for name, n in sorted(counts.items())}}


def _no_answer(verdicts: Verdicts, asked: Asked[Any], missing: str) -> Failure:
    """Why there is no score: the most common failure of the calls."""
    kind = verdicts.common_failure
    assert kind is not None, "questions without an answer carry a failure"
    said = next((failure.message for failure in asked.failures if failure.kind is kind), "")
    return Failure(
        kind=kind, message=f"{missing}: {len(asked.failures)} of {asked.num_calls} calls failed ({kind.value}: {said})"
    )


def two_sided_score(
    kind: str,
    latent: int,
    explanation: Explanation,
    verdicts: Verdicts,
    asked: Asked[Any],
    asked_model: str,
    values: dict[str, ScoreValue],
) -> Score:
    """The score of yes-or-no questions: balanced accuracy of the answers, with the rates it is made of.

    A stratum's rate of false yeses stands as ``<kind>_fpr_<stratum>`` where the stratum was asked about.
    """
    scored: dict[str, ScoreValue] = {
        f"{kind}_score": verdicts.balanced_accuracy,
        f"{kind}_auroc": verdicts.auroc,
        f"{kind}_tpr": verdicts.tpr,
        f"{kind}_fpr": verdicts.fpr,
        f"{kind}_judged": verdicts.num_judged,
        **failed_of(kind, (item.failure for item in verdicts.items)),
        f"{kind}_probabilities": verdicts.num_probabilities,
    }
    for stratum in Stratum:
        if any(item.stratum is stratum and not item.truth for item in verdicts.items):
            scored[f"{kind}_fpr_{stratum.value}"] = verdicts.fpr_of(stratum)
    failure = None
    if verdicts.balanced_accuracy is None:
        missing = "no activating" if verdicts.tpr is None else "no non-activating"
        if verdicts.tpr is None and verdicts.fpr is None:
            missing = "no"
        failure = _no_answer(verdicts, asked, f"{missing} window was judged")
    return Score(
        latent=latent,
        scorer=kind,
        explainer=explanation.explainer,
        values=defined(scored | values | spent(kind, asked, asked_model)),
        failure=failure,
        verdicts=verdicts.to_json(),
    )


def accuracy_score(
    kind: str,
    latent: int,
    explanation: Explanation | None,
    verdicts: Verdicts,
    asked: Asked[Any],
    asked_model: str,
    values: dict[str, ScoreValue],
) -> Score:
    """The score of choices among several: share of right ones."""
    scored: dict[str, ScoreValue] = {
        f"{kind}_score": verdicts.accuracy,
        f"{kind}_judged": verdicts.num_judged,
        **failed_of(kind, (item.failure for item in verdicts.items)),
    }
    failure = None if verdicts.num_judged else _no_answer(verdicts, asked, "no question was answered")
    return Score(
        latent=latent,
        scorer=kind,
        explainer=explanation.explainer if explanation else None,
        values=defined(scored | values | spent(kind, asked, asked_model)),
        failure=failure,
        verdicts=verdicts.to_json(),
    )
