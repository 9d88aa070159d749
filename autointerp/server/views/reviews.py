"""What became of a label that somebody reviewed."""

from __future__ import annotations

from contextlib import nullcontext

from autointerp.pipeline.starting import open_run
from autointerp.review.recording import Action
from autointerp.review.reviewing import review_latent
from autointerp.server.shelf import ServedRun
from autointerp.server.views.asking_alone import asking_alone
from autointerp.server.views.base import View


class ReviewedView(View):
    """A label after a review."""

    sentence: str
    """What happened."""
    status: str
    label: str | None
    num_unshown: int
    """Windows that were left out of scoring because a person may have seen them."""


def reviewed(
    run: ServedRun, source: str, latent: int, action: Action, text: str | None, by: str, note: str | None
) -> ReviewedView:
    """Keep the word, and score an edited text.

    Errors: InputError, StoreError (also while another request asks language models for the run: nothing is kept then), and what
    stops a run: the word is kept then.
    """
    with asking_alone(run.run_id) if action == "edit" else nullcontext():  # only an edit is judged
        # connections to language models of its own, which it closes
        context = open_run(run.store, run.run_id, run.folder.root)
        try:
            outcome = review_latent(context, source, latent, action, text, by, note)
        finally:
            context.close()
    return ReviewedView(
        sentence=outcome.sentence, status=outcome.label.status, label=outcome.label.text, num_unshown=outcome.num_seen
    )
