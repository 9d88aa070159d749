"""Which labels a night scores: the anchors, then what is out of date, then what was scored longest ago, as far as the budget goes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from autointerp.nightly.base import Base, night_config
from autointerp.nightly.book import newest_scores
from autointerp.nightly.fingerprints import ScorerPrints, scorer_prints
from autointerp.nightly.schedule import REASONS, Reason, Schedule
from autointerp.planning.plan import plan_run
from autointerp.planning.planned import PlanSizes
from autointerp.review.effective import effective_labels
from autointerp.store import LabelStore
from autointerp.store.models import LatestScore
from sae_core.hashing import seed_for
from sae_core.records import Source

_BLOCK = 8_192
"""Latents that are looked at at once."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a night scores."""

    latents: dict[str, list[int]]
    """By source, ascending."""
    anchors: dict[str, list[int]]
    """Those of them that are scored every night, by source."""
    stale: dict[str, int]
    """Labels that are out of date, by the first reason that says so; chosen ones and others."""
    num_stale: int
    """Chosen ones that are out of date."""
    labelled: int
    """Labels that there are."""


def label_print(text: str) -> str:
    """What a label's text is told by."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def choose(store: LabelStore, schedule: Schedule, base: Base) -> Chosen:
    """Look at every label of the base, and take as many as the budget is expected to hold."""
    one = {source.name: [0] for source in base.sources}
    prints = scorer_prints(night_config(schedule, base, one))
    sources, latents, ranks, ages = [], [], [], []
    stale: Counter[str] = Counter()
    anchors = {}
    for number, source in enumerate(base.sources):
        labelled, urgency, scored_s, why = _looked_at(store, schedule, base, source, prints)
        stale.update(why)
        keys = np.random.default_rng(seed_for(0, "anchors", schedule.name, source.name)).random(source.num_latents)
        share = schedule.anchors // len(base.sources) + (number < schedule.anchors % len(base.sources))
        order = np.argsort(keys[labelled], kind="stable")[:share]
        anchors[source.name] = sorted(int(labelled[place]) for place in order)
        urgency[order] = 0
        sources.append(np.full(len(labelled), number))
        latents.append(labelled)
        ranks.append(urgency)
        # anchors by their own order: where not all have room, the same ones come every night
        ages.append(np.stack([np.where(urgency == 0, 0.0, scored_s), keys[labelled]]))
    source_n, latent_n, rank_n = (np.concatenate(parts) for parts in (sources, latents, ranks))
    age_2n = np.concatenate(ages, axis=1)
    order = np.lexsort(
        (age_2n[1], age_2n[0], rank_n)
    )  # equally old ones by chance, so that a part of them is a random one
    bounded = schedule.most_latents is not None or schedule.budget.tokens is not None or schedule.budget.usd is not None
    if not (schedule.oldest and bounded):
        order = order[rank_n[order] < 2]
    if schedule.most_latents is not None:
        order = order[: schedule.most_latents]
    order = order[: _room(schedule, base, source_n[order])]
    return Chosen(
        latents={
            source.name: sorted(latent_n[order][source_n[order] == number].tolist())
            for number, source in enumerate(base.sources)
        },
        anchors=anchors,
        stale={reason: stale[reason] for reason in REASONS if stale[reason]},
        num_stale=int(np.sum(rank_n[order] == 1)),
        labelled=len(latent_n),
    )


def _looked_at(
    store: LabelStore, schedule: Schedule, base: Base, source: Source, prints: dict[str, ScorerPrints]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Counter[str]]:
    """Labelled latents [L], 1 for those out of date and 2 for others [L], when they were scored (s since 1970, 0 for never) [L], and
    how many are out of date by reason."""
    latents, urgency, scored_s = [], [], []
    why: Counter[str] = Counter()
    wanted = schedule.latent_range(source.num_latents)
    for first in range(wanted.start, wanted.stop, _BLOCK):
        block = range(first, min(first + _BLOCK, wanted.stop))
        with store.reading() as connection:
            scores = dict(newest_scores(connection, schedule.name, source.name, block))
        for label in effective_labels(base.store, base.run_id, source.name, block):
            if label.text is None:
                continue
            own = scores.get(label.latent, [])
            reason = next(reasons(own, prints, source.coder_fingerprint, base.corpus, label.text, schedule.stale), None)
            if reason is not None:
                why[reason] += 1
            latents.append(label.latent)
            urgency.append(2 if reason is None else 1)
            known = {score.scorer: score.scored_at.timestamp() for score in own if score.scorer in prints}
            scored_s.append(min(known.values()) if len(known) == len(prints) else 0.0)
    return np.array(latents, dtype=np.int64), np.array(urgency, dtype=np.int8), np.array(scored_s), why


def reasons(
    scores: Sequence[LatestScore],
    prints: dict[str, ScorerPrints],
    coder: str,
    corpus: str,
    text: str,
    counted: Sequence[Reason] = REASONS,
) -> Iterator[Reason]:
    """Why a label's newest scores are out of date, of the reasons that count."""
    by_scorer = {score.scorer: score for score in scores}
    for reason in REASONS:
        if reason not in counted:
            continue
        for kind, now in prints.items():
            score = by_scorer.get(kind)
            before_and_now = {
                "never_scored": (score is None, False),
                "coder_changed": (score and score.coder, coder),
                "corpus_changed": (score and score.corpus, corpus[:64]),
                "prompt_changed": (score and score.prompt, now.prompt),
                "judge_changed": (score and score.judge, now.judge),
                "settings_changed": (score and score.settings, now.settings),
                "label_changed": (score and score.label, label_print(text)),
            }
            before, present = before_and_now[reason]
            if (score is not None or reason == "never_scored") and before != present:
                yield reason
                break


def _room(schedule: Schedule, base: Base, source_n: np.ndarray) -> int:
    """How many of the labels, in their order, the budget holds if most is asked."""
    if schedule.budget.tokens is None and schedule.budget.usd is None:
        return len(source_n)
    sizes = _sizes(base)
    config = night_config(schedule, base, {source.name: [0] for source in base.sources})
    config = config.model_copy(update={"latents": "all"})  # only how many they are is planned with

    def fits(count: int) -> bool:
        counts = np.bincount(source_n[:count], minlength=len(base.sources))
        total = plan_run(config, num_latents=counts.tolist(), sizes=sizes).at_most.total()
        assert total is not None, "the number of latents is known"
        tokens = total.usage.input_tokens + total.usage.output_tokens
        if schedule.budget.tokens is not None and tokens > schedule.budget.tokens:
            return False
        cost = total.usage.cost_usd
        return schedule.budget.usd is None or cost is None or cost <= schedule.budget.usd

    low, high = 0, len(source_n)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _sizes(base: Base) -> PlanSizes:
    """Lengths of windows, measured on the first source's."""
    from autointerp.pipeline.folder import RunFolder
    from autointerp.planning.sizes import measured_sizes
    from sae_core.exemplar_store import ExemplarStore

    return measured_sizes(ExemplarStore.open(RunFolder(base.extracted).exemplars(base.sources[0].name)))
