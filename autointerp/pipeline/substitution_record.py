"""What the ``substitute`` stage has found: scores for the dictionary, and a block for ``summary.json``. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.pipeline.context import RunContext
from autointerp.score import Score
from autointerp.scorers.substitution import SubstitutionScorer
from autointerp.statistics.recovered import Recovered, recovered_share

if TYPE_CHECKING:
    from sae_core.intervention.substitution_evidence import JointSubstitutionEvidence, SubstitutionEvidence


def substitution_scores(context: RunContext, source: str, latents: Sequence[int]) -> list[Score]:
    """The scores of those latents whose label was put in their place, under the explainer that wrote it."""
    scorer = _scorer(context)
    if scorer is None or context.source(source).control:
        return []
    store = context.exemplars(source)
    wanted = latents if isinstance(latents, range) else frozenset(latents)  # a range of millions takes no room
    scores: list[Score] = []
    for evidence in _evidence(context, source):
        for place, latent in enumerate(evidence.latents.tolist()):
            if latent in wanted:
                kind = evidence.explainers[int(evidence.explainer[place])]
                label = Explanation(latent=latent, explainer=kind, text="the chosen label")
                scores.append(scorer.scored(label, LatentEvidence(latent, store, substitution=evidence)))
    return scores


def substitution_record(context: RunContext) -> dict[str, Any] | None:
    """The block ``substitution`` of the summary; None where no scorer asks for it.

    ``sources`` by name, each with ``latents`` (a random sample, one by one: see :func:`of_latents`) and ``all_at_once`` (see
    :func:`of_all_at_once`), null where the stage left nothing.
    """
    if _scorer(context) is None:
        return None
    from sae_core.intervention.substitution_evidence import JointSubstitutionEvidence

    sources: dict[str, Any] = {}
    for source in context.sources:
        if source.control:
            continue
        scores = substitution_scores(context, source.name, context.latents(source.name))
        path = context.folder.evidence(source.name, "joint_substitution", 0)
        joint = JointSubstitutionEvidence.load(path) if path.is_file() else None
        sources[source.name] = {
            "latents": of_latents(scores) if scores else None,
            "all_at_once": None if joint is None else of_all_at_once(joint),
        }
    return {"sources": sources}


def of_latents(scores: Sequence[Score]) -> dict[str, Any]:
    """Scores of a random sample of labelled latents, as JSON.

    ``num`` replaced and ``num_scored`` with a figure; ``median`` of the figures with the interval of their order statistics
    (``median_low``, ``median_high``), ``median_shuffled`` likewise under the control; ``share_above_shuffled`` of the latents with
    both whose interval lies above the control's figure, ``share_below_zero`` of those with a figure; ``failures`` by kind.
    """
    figures = _numbers(scores, "substitution")
    both = [
        (low, control)
        for score in scores
        if isinstance(control := score.values.get("substitution_shuffled"), float)
        and isinstance(score.values.get("substitution"), float)
        for low in (score.values.get("substitution_low"),)
    ]
    above = [isinstance(low, float) and low > control for low, control in both]
    return {
        "num": len(scores),
        "num_scored": len(figures),
        **_median("median", figures),
        **_median("median_shuffled", _numbers(scores, "substitution_shuffled")),
        "share_above_shuffled": float(np.mean(above)) if above else None,
        "share_below_zero": float((figures < 0).mean()) if len(figures) else None,
        "failures": dict(Counter(s.failure.kind.value for s in scores if s.failure is not None).most_common()),
    }


def of_all_at_once(evidence: JointSubstitutionEvidence) -> dict[str, Any]:
    """All labels of a coder in their latents' place at once, as JSON.

    ``contexts``, ``documents`` and ``tokens`` that the figures rest on, ``num_latents`` replaced and ``num_left`` (labelled, but
    without a prediction for every token); ``clean_ce`` and, by way of filling the latents in, ``kl`` and ``delta_ce``, nats a token;
    ``recovered`` by way: ``1 - KL / KL(all ablated)`` with an interval over documents, ``no_lower_end`` where that has none because
    documents differ too much; ``ce_recovered`` the same of the change of cross-entropy without an interval (a ratio of
    differences that may have either sign).
    Where no latent was replaced nothing was edited, and of one alone no labels can be shuffled: these are null and not 0.
    """
    tokens = int(evidence.num_tokens.sum())
    ways = {way: number for number, way in enumerate(evidence.ways)}
    least = {way: 2 if way == "shuffled" else 1 for way in ways}
    edited = {way for way in ways if tokens and evidence.num_latents >= least[way]}
    zero = ways["zero"]
    kl, change = _by_document(evidence.kl, evidence.document), evidence.delta_ce.sum(axis=0)
    recovered: dict[str, Any] = {}
    ce: dict[str, float | None] = {}
    for way, number in ways.items():
        if number == zero:
            continue
        share = Recovered(None, None, None)
        if way in edited:
            share = recovered_share(kl[:, number], kl[:, zero], unseen=False)
        no_lower_end = share.low is None and share.high is not None
        recovered[way] = {"value": share.value, "low": share.low, "high": share.high, "no_lower_end": no_lower_end}
        ce[way] = float(1 - change[number] / change[zero]) if way in edited and change[zero] > 0 else None
    per_token = max(tokens, 1)
    return {
        "contexts": len(evidence.context),
        "documents": len(np.unique(evidence.document)),
        "tokens": tokens,
        "num_latents": evidence.num_latents,
        "num_left": evidence.num_left,
        "clean_ce": float(evidence.clean_ce.sum()) / per_token if tokens else None,
        "kl": {way: float(kl[:, n].sum()) / per_token if way in edited else None for way, n in ways.items()},
        "delta_ce": {way: float(change[n]) / per_token if way in edited else None for way, n in ways.items()},
        "recovered": recovered,
        "ce_recovered": ce,
    }


def _scorer(context: RunContext) -> SubstitutionScorer | None:
    return next((scorer for scorer in context.scorers if isinstance(scorer, SubstitutionScorer)), None)


def _evidence(context: RunContext, source: str) -> list[SubstitutionEvidence]:
    from sae_core.intervention.substitution_evidence import SubstitutionEvidence

    folder = context.folder.evidence(source, "substitution", 0).parent
    return [SubstitutionEvidence.load(path) for path in sorted(folder.glob("substitution-*.safetensors"))]


def _by_document(values_CV: NDArray[np.float64], document: NDArray[np.int32]) -> NDArray[np.float64]:
    _, row = np.unique(document, return_inverse=True)
    out = np.zeros((int(row.max()) + 1 if len(row) else 0, values_CV.shape[1]))
    np.add.at(out, row, values_CV)
    return out


def _numbers(scores: Sequence[Score], name: str) -> NDArray[np.float64]:
    return np.array([v for s in scores if isinstance(v := s.values.get(name), float)], dtype=np.float64)


def _median(name: str, figures: NDArray[np.float64], level: float = 0.95) -> dict[str, float | None]:
    """The median, and the order statistics between which the population's lies at least ``level`` of the time."""
    count = len(figures)
    if not count:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    from scipy.stats import binom  # half a second, which every export would take

    ordered = np.sort(figures)
    rank = int(binom.ppf((1 - level) / 2, count, 0.5))
    inside = rank >= 1 and binom.cdf(rank - 1, count, 0.5) <= (1 - level) / 2
    low, high = (float(ordered[rank - 1]), float(ordered[count - rank])) if inside else (None, None)
    return {name: float(np.median(figures)), f"{name}_low": low, f"{name}_high": high}
