"""What went wrong with one latent, as a type: never a score of 0, never a text that stands in for a label."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class FailureKind(StrEnum):
    """Why there is no value. The first ten are those of any component, the rest belong to counted evidence."""

    REFUSED = "refused"
    UNPARSEABLE = "unparseable"
    TRUNCATED = "truncated"
    TIMEOUT = "timeout"
    SERVER_ERROR = "server_error"
    MISSING_CAPABILITY = "missing_capability"
    NAN_INPUT = "nan_input"
    UNREACHABLE = "unreachable"
    """No strength of steering reaches the asked KL."""
    OVER_BUDGET = "over_budget"
    POISONED = "poisoned"
    """Killed its worker again and again."""
    DEAD = "dead"
    """The latent never fires in the corpus."""
    TOO_FEW_WINDOWS = "too_few_windows"
    """Fewer windows on a side than the component needs; the message has the numbers."""
    TOO_FEW_TEXTS = "too_few_texts"
    """Fewer usable texts of a language model than the component needs; the message has the numbers."""
    TOO_FEW_LABELS = "too_few_labels"
    """Fewer labels of other latents than the component compares with; the message has the numbers."""
    TOO_FEW_LATENTS = "too_few_latents"
    """Fewer other latents that can be steered like it than the component compares with; the message has the numbers."""
    COLLAPSED = "collapsed"
    """Steering broke too many of the subject's texts to judge what it does to them; the message has the numbers."""
    NO_PATTERN = "no_pattern"
    """No pattern was found that predicts the latent."""
    NO_EVIDENCE = "no_evidence"
    """A stage that should have written evidence about the latent left none."""
    NO_EXPLANATION = "no_explanation"
    """There is no explanation to score; the explanation's own failure says why."""
    BAD_LABEL = "bad_label"
    """The LLM's label breaks a rule: it repeats the prompt's delimiters or an exemplar's text, or is no line of text."""
    REJECTED = "rejected"
    """A person has looked at the label and rejected it; the message says who and when."""
    NO_EFFECT = "no_effect"
    """Taking the latent out changes nothing, so that there is nothing a label could keep; the message has the KL."""
    NO_EFFECT_ROWS = "no_effect_rows"
    """The latent fires in no window that an intervention could be made in."""


class LatentStatus(StrEnum):
    """State of a latent in the labelled dictionary."""

    LABELLED = "labelled"
    DEAD = "dead"
    RARE = "rare"
    FAILED = "failed"


class Failure(BaseModel):
    """A typed failure with one sentence for a person."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: FailureKind
    """What went wrong."""
    message: str
    """One sentence with the numbers that matter."""

    @property
    def status(self) -> LatentStatus:
        """State of a latent whose explanation failed like this."""
        if self.kind is FailureKind.DEAD:
            return LatentStatus.DEAD
        if self.kind is FailureKind.TOO_FEW_WINDOWS:
            return LatentStatus.RARE
        return LatentStatus.FAILED
