"""What steering a latent does to text: a prompt, how the subject goes on, and how it goes on with the latent steered."""

from __future__ import annotations

import math
from typing import Literal

from autointerp.judging.steered_judge import SteeredJudge
from autointerp.review.shown_steering import ShownPrompt, shown_steering
from autointerp.server.shelf import ServedRun
from autointerp.server.views.base import View
from sae_core.intervention.text_evidence import CLEAN, Collapse
from sae_core.token_text import TokenText, show_whitespace

_FACTOR: float = SteeredJudge.model_fields["collapse_factor"].default


class SteeredTextView(View):
    """One text that the subject wrote."""

    steered: int | None
    """The latent that was steered; None where none was."""
    target: float | None
    """KL(clean || steered) to which it was steered, nats a token; None where nothing was."""
    strength: float | None
    """Multiple of its decoder row that does this; None where nothing was."""
    text: str
    """Visible text: no control characters, no line ends, no text direction marks."""
    broken: Literal["improbable", "repeats", "empty"] | None
    """Why it is no text that says what the latent does: steering broke the subject."""


class SteeredPromptView(View):
    """Texts that go on from one prompt, from the same seed."""

    kind: Literal["continuation", "answer"]
    """Whether the prompt is text in which the latent fires, or the same for all latents."""
    prompt: str
    """Visible text, as of ``SteeredTextView``."""
    is_cut: bool
    """Whether it is the end of a longer one."""
    without: SteeredTextView | None
    """With nothing steered."""
    steered: tuple[SteeredTextView, ...]
    """With the latent steered, the weakest first."""
    others: tuple[SteeredTextView, ...]
    """With other latents, drawn at random, steered to the same KL: what any such push may do to the text."""


def steered_view(run: ServedRun, source: str, latent: int) -> tuple[SteeredPromptView, ...]:
    """Some of the texts that the run had written; none where it had none. Errors: InputError for a file that is none."""
    shown = shown_steering(run.context, source, latent)
    if not shown:
        return ()
    pieces = run.context.exemplars(source).pieces
    judges = [scorer for scorer in run.context.scorers if isinstance(scorer, SteeredJudge)]
    factor = {judge.TEXTS: judge.collapse_factor for judge in reversed(judges)}
    return tuple(_prompt(prompt, pieces, factor.get(prompt.kind, _FACTOR)) for prompt in shown)


def _prompt(shown: ShownPrompt, pieces: TokenText, factor: float) -> SteeredPromptView:
    collapse = shown.texts.collapse(factor)

    def text(row: int) -> SteeredTextView:
        steered, target = int(shown.texts.steered[row]), float(shown.texts.target[row])
        is_clean = steered == CLEAN
        return SteeredTextView(
            steered=None if is_clean else steered,
            target=target if math.isfinite(target) else None,
            strength=None if is_clean else float(shown.texts.alpha[row]),
            text=pieces.visible(shown.texts.text_ids(row).tolist()),
            broken=_BROKEN[Collapse(int(collapse[row]))],
        )

    ids = shown.token_ids.tolist()
    while ids and ids[0] in pieces.special:
        del ids[0]  # what begins every text
    return SteeredPromptView(
        kind="continuation" if shown.kind == "steered_texts" else "answer",
        prompt=show_whitespace(shown.instruction) if shown.instruction else pieces.visible(ids),
        is_cut=shown.first > 0 and not shown.instruction,
        without=None if shown.clean is None else text(shown.clean),
        steered=tuple(text(row) for row in shown.steered),
        others=tuple(text(row) for row in shown.others),
    )


_BROKEN: dict[Collapse, Literal["improbable", "repeats", "empty"] | None] = {
    Collapse.NONE: None,
    Collapse.IMPROBABLE: "improbable",
    Collapse.REPEATS: "repeats",
    Collapse.EMPTY: "empty",
}
