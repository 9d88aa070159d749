"""Which scorer compares a latent's explanations on the choose side."""

from __future__ import annotations

from collections.abc import Sequence

from autointerp.explainers.base import Explainer
from autointerp.explanation import Explanation
from autointerp.scorers.base import Scorer
from sae_core.errors import ConfigError, did_you_mean

ANY_TEXT = Explanation(latent=0, explainer="any", text="any text")
"""An explanation that is a text and nothing else."""


def can_compare(scorer: Scorer) -> bool:
    """Whether a scorer can say of any texts, on the choose side, which one is better."""
    return scorer.judges_explanation and scorer.reads_windows and scorer.can_judge(ANY_TEXT)


def comparing_scorer(explainers: Sequence[Explainer], scorers: Sequence[Scorer], choose: str, by: str) -> Scorer | None:
    """The scorer of kind ``by``, "" for the first one that judges texts; None where nothing is compared.

    Errors: ConfigError where there is no such scorer, or where it cannot judge every text that may come up.
    """
    if choose != "best" or sum(explainer.side == "input" for explainer in explainers) < 2:
        return None
    judges = {scorer.kind: scorer for scorer in scorers if can_compare(scorer)}
    if not judges:
        raise ConfigError(
            'labels.choose is "best" and no scorer judges texts, so explanations could not be compared: add one to [[scorers]], '
            'such as kind = "detection", or set labels.choose = "order".'
        )
    if not by:
        return next(iter(judges.values()))
    if by not in judges:
        if any(scorer.kind == by for scorer in scorers):
            raise ConfigError(
                f"labels.by is {by!r}, which cannot judge every explanation that may come up on the choose side: "
                f"name one that can ({', '.join(judges)}), or leave labels.by out."
            )
        raise ConfigError(f"labels.by is {by!r}: {did_you_mean(by, judges)}")
    return judges[by]
