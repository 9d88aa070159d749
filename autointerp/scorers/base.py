"""What every scorer is: its config as fields, its behaviour as one method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

from autointerp.evidence import EvidenceRequest, LatentEvidence
from autointerp.explanation import Explanation
from autointerp.llm.asking import NO_LLMS, LLMNeed, LLMs
from autointerp.planning.planned import PlannedCalls, PlanSizes
from autointerp.score import Score

if TYPE_CHECKING:
    from autointerp.judging.supposed import SupposedLabel
    from autointerp.judging.written_texts import WrittenTexts


class Scorer(BaseModel, ABC):
    """Says how far an explanation, or a latent itself, can be trusted, on evidence of a side that made no label."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    CHANCE: ClassVar[float | None] = None
    """What the headline comes to where nothing of the label is used; None where that is not one number."""

    COUNTS: ClassVar[bool] = False
    """Whether its precision and recall are counted over the corpus, so that no judge has to estimate them."""

    NOT_TESTED: ClassVar[str | None] = None
    """Why the self-test has nothing to say of it, where that lies in what it measures."""

    COMPARES_LABELS: ClassVar[bool] = False
    """Whether it reads other latents' labels (``evidence.other_labels``): all of a run's must be there before it scores any. It has
    its control in these, so the controls do not ask it about shuffled labels."""

    kind: str
    """Name in the config file; a concrete class narrows it to a ``Literal``."""

    @property
    def judges_explanation(self) -> bool:
        """Whether an explanation is scored; False for scores of the latent itself, which are made once a latent."""
        return True

    @property
    def writes_texts(self) -> bool:
        """Whether it has texts written from each label (:meth:`write`), which the subject is run on before it scores.

        Such a scorer reads no side's windows, so it cannot compare labels on the choose side.
        """
        return False

    @property
    def reads_windows(self) -> bool:
        """Whether it judges windows of whichever side it is given: only then can it compare labels on the choose side, and be asked
        about labels that say nothing.
        """
        return not self.writes_texts

    @property
    def sample(self) -> int | None:
        """Latents of each coder, drawn at random, that it says something of; None for all of them."""
        return None

    def looks_at(self, evidence: LatentEvidence) -> bool:
        """Whether the latent is one that it says something of; of the others it has no score at all, and no failure."""
        return True

    @property
    def headline(self) -> str:
        """Name of the value by which explanations are compared, more is better."""
        return f"{self.kind}_score"

    def can_judge(self, explanation: Explanation) -> bool:
        """Whether it has something to say of this explanation, its failure included (a pattern scorer counts patterns only)."""
        return explanation.side == "input"

    def needs(self) -> list[EvidenceRequest]:
        """Evidence that GPU stages must have written before."""
        return []

    def check(self) -> None:
        """Look whether what it needs of this machine is there, before a run begins. Errors: InputError's family."""

    def llm_needs(self) -> list[LLMNeed]:
        """Endpoints that it asks, and what these must be able to do; checked before anything is spent."""
        return []

    def planned(self, sizes: PlanSizes) -> list[PlannedCalls]:
        """Its calls for one label, or one latent, worked out from its fields; none where it asks nobody."""
        return []

    def planned_again(self, sizes: PlanSizes) -> list[PlannedCalls]:
        """Its further calls for one label on the score side, where what it asks again hangs on answers: as is expected, and at most."""
        return []

    async def write(self, explanation: Explanation, llms: LLMs = NO_LLMS) -> WrittenTexts:
        """Texts for one label without a failure, where ``writes_texts``; ``score`` finds them in ``evidence.written`` and what
        the latent does on them in ``evidence.tried``. What goes wrong is their ``failure``, not an exception.
        """
        raise NotImplementedError(f"{self.kind} has no texts written")

    @abstractmethod
    async def score(self, explanation: Explanation | None, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Score:
        """One score on ``evidence.scored_side``; what goes wrong with the latent is its ``failure``, not an exception."""

    def scores_if(self, labels: Sequence[SupposedLabel], evidence: LatentEvidence) -> list[Score] | None:
        """The scores of labels that hold in given windows, as ``score`` would make them if it read these without fault.

        Windows are drawn and answers counted as ever, but nobody is asked. None where it cannot be told without asking; then the
        self-test leaves it out. All are labels of the latent, and the windows are the same for all of them.
        """
        return None
