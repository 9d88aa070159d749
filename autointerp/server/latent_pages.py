"""A latent's page as whoever asks sees it: under their own name, with what they may do, and with what became of what they did."""

from __future__ import annotations

from typing import NamedTuple

from fastapi import Request
from starlette.responses import HTMLResponse

from autointerp.server.access import Principal, Scope
from autointerp.server.pages import page
from autointerp.server.views.latent import LatentView


class Given(NamedTuple):
    """What somebody has written into the form, to be shown again."""

    text: str | None = None
    """None for the label as it is."""
    by: str = ""
    note: str = ""


def shown_latent(
    request: Request,
    principal: Principal,
    view: LatentView,
    *,
    status: int = 200,
    error: str | None = None,
    suggested: str | None = None,
    given: Given | None = None,
) -> HTMLResponse:
    """The page. ``error``: why nothing was done; ``suggested``: who has written the text that stands in the form and what it cost."""
    return page(
        request,
        "latent.html",
        view,
        status=status,
        review_error=error,
        suggested=suggested,
        given=given or Given(),
        signed_by=signature(principal),
        may_review=principal.allows(Scope.REVIEW),
        may_propose=principal.allows(Scope.SUBMIT) and bool(view.proposers),
    )


def signature(principal: Principal) -> str | None:
    """The name under which its reviews stand whatever it says; None for the user of this machine, who gives a name."""
    return principal.name if principal.token_id is not None else None
