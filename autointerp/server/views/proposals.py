"""Another label that a run's explainer suggests, paid for by the run."""

from __future__ import annotations

import logging
from dataclasses import replace

from autointerp.failure import Failure, FailureKind
from autointerp.pipeline.starting import open_run
from autointerp.report.highlight import plain_line
from autointerp.review.proposing import Proposal, propose_label
from autointerp.server.access import Principal
from autointerp.server.jobs.rows import OPEN, jobs
from autointerp.server.quotas import FREE, Bound, check_quota
from autointerp.server.shelf import ServedRun
from autointerp.server.tokens import token_named
from autointerp.server.views.asking_alone import asking_alone
from autointerp.server.views.base import View
from autointerp.store import LabelStore
from autointerp.store.calls import account
from autointerp.store.models import ENDED, JobRow
from sae_core.errors import BudgetError, ConfigError, EndpointError

_LOG = logging.getLogger(__name__)
_OF_SERVERS = {
    FailureKind.TIMEOUT: "its server gave no answer in time",
    FailureKind.SERVER_ERROR: "its server failed",
}
"""What is said of failures whose own words may name a host: these are for the log."""


class ProposalView(View):
    """A suggestion, which nothing has kept: an edit saves it, as it is or changed."""

    explainer: str
    """Kind of the run's explainer that was asked."""
    model: str
    text: str | None
    """None where it gave none."""
    failure: str | None
    """Kind of what went wrong then."""
    why_none: str | None
    """The same in a sentence."""
    input_tokens: int
    """Of all calls that it took."""
    output_tokens: int
    cost_usd: float | None
    """None where the price is not known."""
    sentence: str
    """Who wrote it and what it cost, or why there is none."""


def proposed(
    run: ServedRun, own: LabelStore, principal: Principal, source: str, latent: int, explainer: str | None
) -> ProposalView:
    """Ask. ``own``: the server's store, which has the tokens. Errors: what ``propose_label`` raises, BudgetError where the asker's
    token does not pay for it, StoreError while another request asks for the run."""
    with asking_alone(run.run_id):
        _check_quota(run, own, principal)
        found = _asked(run, source, latent, explainer)
    return ProposalView(
        explainer=found.explainer,
        model=plain_line(found.model),
        text=None if found.text is None else plain_line(found.text),
        failure=None if found.failure is None else found.failure.kind.value,
        why_none=None if found.failure is None else plain_line(found.failure.message),
        input_tokens=found.input_tokens,
        output_tokens=found.output_tokens,
        cost_usd=found.cost_usd,
        sentence=plain_line(found.sentence),
    )


def _asked(run: ServedRun, source: str, latent: int, explainer: str | None) -> Proposal:
    """The proposal, in words that say nothing of where its endpoint is."""
    # as the run is configured now: a budget may have grown
    context = open_run(run.store, run.run_id, run.folder.root)
    try:
        found = propose_label(context, source, latent, explainer)
    except (EndpointError, ConfigError) as error:  # no answer, no key, no model of that name
        _LOG.warning("no label could be asked for: %s", error)
        raise EndpointError(
            "the language model cannot be asked, or gives no answer: try again later, or tell whoever runs the server, whose log says why."
        ) from error
    finally:
        context.close()
    if found.failure is not None and found.failure.kind in _OF_SERVERS:
        _LOG.warning("a label was asked for and none came: %s", found.failure.message)
        failure = Failure(kind=found.failure.kind, message=_OF_SERVERS[found.failure.kind])
        return replace(found, failure=failure)
    return found


def _check_quota(run: ServedRun, own: LabelStore, principal: Principal) -> None:
    """Hold a token with a bound to it: only what its own runs spend counts there, so it may not have others' spend."""
    if principal.token_id is None:
        return
    token = token_named(own, principal.token_id)
    if token.budget_tokens is None and token.budget_nano_usd is None:
        return
    record = run.store.run(run.run_id)
    if record.owner != token.name:
        raise BudgetError(
            "this token may spend a bounded amount, in which its own runs count: ask for labels in a run of its own, or ask whoever "
            "runs the server."
        )
    waiting = [
        _bound(row.request.get("config", {}))
        for row in jobs(own, JobRow.asked_by == token.name, JobRow.state.in_(OPEN))
        if row.kind == "run" and row.run_id is None
    ]
    # all that a run may spend counts until it has ended; from then on what it has spent
    asked = _left(run, record.config) if record.state in ENDED else FREE
    check_quota([own], own, principal, jobs=0, asked=asked, waiting=waiting)


def _left(run: ServedRun, config: dict[str, object]) -> Bound:
    """What a run's budget still holds; None where it has no bound."""
    most = _bound(config)
    with run.store.reading() as connection:
        standing = account(connection, run.run_id, lock=False)
    used = standing.spent.plus(standing.reserved)
    return Bound(
        None if most.tokens is None else max(most.tokens - used.tokens, 0),
        None if most.nano_usd is None else max(most.nano_usd - used.nano_usd, 0),
    )


def _bound(config: dict[str, object]) -> Bound:
    """The most that the run of a stored configuration may spend."""
    budget = config.get("budget")
    given = budget if isinstance(budget, dict) else {}
    return Bound.of(given.get("tokens"), given.get("usd")) if config.get("endpoints") else FREE
