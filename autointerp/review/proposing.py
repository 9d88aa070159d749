"""Asks a run's explainer for one more label of a latent: a suggestion, which a person may edit and save, or leave.

The explainer is shown what it is always shown: windows of the explain side. So the windows that score an edit, which are of
the score side and were shown to nobody, stay what they are; whoever saves the suggestion saves an edit
(:func:`autointerp.review.reviewing.review_latent`). Nothing of the run's rows changes but its ledger, in which the calls stand
under the purpose ``proposal``, within the run's budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import func, select

from autointerp.components import parse_component
from autointerp.explainers.base import Explainer
from autointerp.explainers.best_of_n import BestOfNExplainer
from autointerp.explainers.counted_llms import CountedLLMs
from autointerp.explainers.llm_explainer import LLMExplainer
from autointerp.explanation import Explanation
from autointerp.failure import Failure, LatentStatus
from autointerp.llm.endpoints.base import Endpoint
from autointerp.llm.endpoints.openai_batch import OpenAIBatchEndpoint
from autointerp.llm.endpoints.vllm import VLLMEndpoint
from autointerp.llm.runtime import LLMRuntime
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.latent_evidence import evidence_of
from autointerp.pipeline.owner import Owner
from autointerp.pipeline.stages.explain import explain_latent
from autointerp.report.figures import UNDEFINED
from autointerp.store.models import LLMCall
from sae_core.errors import EndpointError, InputError, StoreError, UnknownNameError, did_you_mean

PURPOSE = "proposal"
"""Under which the calls stand in the ledger."""
LIMIT_S = 45.0
"""Longest that a person waits, seconds."""
_TEMPERATURE = 0.7
"""At which an explainer is asked that is configured to say the same again and again."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A label that a model suggests, or why it gave none."""

    latent: int
    explainer: str
    """Kind of the configured explainer that was asked."""
    model: str
    """That answered, or was asked."""
    text: str | None
    """The suggestion; None with a failure."""
    failure: Failure | None
    """Why there is none."""
    input_tokens: int
    """Of all calls that it took, repairs of bad answers among them."""
    output_tokens: int
    cost_usd: float | None
    """Of the same; None where the endpoint's price is not known."""

    @property
    def sentence(self) -> str:
        """Who wrote it and what it cost, or why there is none, for a person."""
        price = UNDEFINED if self.cost_usd is None else f"${self.cost_usd:,.4f}"
        cost = f"{self.input_tokens:,} tokens read, {self.output_tokens:,} written, {price}"
        if self.failure is not None:
            return f"{self.model} ({self.explainer}) suggests nothing: {self.failure.message.rstrip('.')} ({cost})."
        return f"{self.model} ({self.explainer}) suggests this: {cost}."


class Proposer(NamedTuple):
    """An explainer of a run that can be asked again."""

    kind: str
    """As it is configured."""
    writer: LLMExplainer
    """What writes a text: itself, or of one that compares drafts what writes these."""
    endpoint: Endpoint
    first_sample: int
    """The first draw that the run does not make itself."""


def proposers(context: RunContext) -> list[Proposer]:
    """The run's explainers that ask a language model what a latent fires on, and get its answer while a person waits, in their
    order."""
    return [found for found, _ in _askable(context) if found is not None]


def propose_label(
    context: RunContext, source: str, latent: int, explainer: str | None = None, *, limit_s: float = LIMIT_S
) -> Proposal:
    """One more label of a latent by the run's first explainer that asks a language model, or the one of the kind ``explainer``.

    It is a draw that was not made before, at the explainer's temperature, or at 0.7 where that is 0. Of an explainer that compares drafts
    it is one draft, of one that works in rounds the first one. Calls are reserved for and entered as the run's own are.

    What goes wrong with the answer (a refusal, no label in it, a server that fails) is the proposal's ``failure``. Errors: InputError for a run without such
    an explainer or a latent of which no label can be saved, StoreError for a latent that has no row yet, EndpointError for an endpoint that takes no call or
    does not answer in ``limit_s`` seconds, BudgetError.
    """
    _check_latent(context, source, latent)
    proposer = _proposer(context, explainer)
    writer = proposer.writer.model_copy(
        update={
            "sample": proposer.first_sample + _num_calls(context, source, latent),
            "temperature": proposer.writer.temperature or _TEMPERATURE,
        }
    )
    evidence = evidence_of(context, source, latent)
    # the explainer's endpoint alone: a judge's may be away, or load a model
    with LLMRuntime(
        [proposer.endpoint],
        context.store,
        context.run_id,
        scope=context.run_id,
        budget=context.config.budget,
        owner=str(Owner.of_this_process()),
        folder=context.folder.root,
    ) as runtime:
        counted: list[CountedLLMs] = []

        async def ask() -> Explanation:
            counted.append(CountedLLMs(runtime.llms(source, latent), PURPOSE))
            return await explain_latent(writer, evidence, counted[0])

        said = runtime.run(ask, _until(limit_s, proposer.endpoint))
    usage = counted[0].usage
    return Proposal(
        latent=latent,
        explainer=proposer.kind,
        model=said.model or proposer.endpoint.model,
        text=None if said.failure is not None else said.text,
        failure=said.failure,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cost_usd=usage.cost_usd,
    )


def _check_latent(context: RunContext, source: str, latent: int) -> None:
    """Nothing is spent on what nobody could save."""
    if context.source(source).control:
        raise InputError(f"{source!r} is a control of random directions: ask for labels of the coder beside it.")
    rows = context.store.labels(context.run_id, source, [latent])
    if not rows:
        raise StoreError(
            f"latent {latent} of {source!r} has no label row in the run {context.run_id}: ask for labels of latents that it labels, "
            "after its end."
        )
    if rows[0].status == LatentStatus.DEAD.value:
        raise InputError(f"latent {latent} of {source!r} never fires, so there is nothing to say of it.")


def _proposer(context: RunContext, kind: str | None) -> Proposer:
    found = _askable(context)
    if kind is not None:
        kinds = [explainer.kind for explainer in context.explainers]
        if kind not in kinds:
            raise UnknownNameError(f"the run {context.run_id} has no explainer {kind!r}: {did_you_mean(kind, kinds)}")
        found = [one for one, explainer in zip(found, context.explainers, strict=True) if explainer.kind == kind]
    able = [proposer for proposer, _ in found if proposer is not None]
    if able:
        return able[0]
    reason = next((reason for _, reason in found if reason), "none of its explainers does.")
    raise InputError(
        f"the run {context.run_id} cannot be asked for another label, which takes a language model that says at once what a latent "
        f"fires on: {reason}"
    )


def _askable(context: RunContext) -> list[tuple[Proposer | None, str]]:
    """Each explainer as a proposer, or why it is none: "" where it asks nobody what a latent fires on."""
    endpoints = {endpoint.name: endpoint for endpoint in context.endpoints}
    found: list[tuple[Proposer | None, str]] = []
    for explainer in context.explainers:
        writer = _writer(explainer)
        if writer is None:
            found.append((None, ""))
            continue
        endpoint = endpoints[writer.endpoint] if writer.endpoint else context.endpoints[0]
        if isinstance(endpoint, OpenAIBatchEndpoint):
            found.append((None, f"the endpoint {endpoint.name!r} answers in batches, within a day."))
        elif isinstance(endpoint, VLLMEndpoint):
            found.append((None, f"the endpoint {endpoint.name!r} would have to load its model first."))
        else:
            first = explainer.n if isinstance(explainer, BestOfNExplainer) else writer.sample + 1
            found.append((Proposer(explainer.kind, writer, endpoint, first), ""))
    return found


def _writer(explainer: Explainer) -> LLMExplainer | None:
    """What writes a text about what a latent fires on, and can be told to draw another one."""
    if explainer.side != "input":
        return None
    if isinstance(explainer, BestOfNExplainer):
        drafts = parse_component("explainers", explainer.of)
        assert isinstance(drafts, LLMExplainer), "best_of_n takes no others"
        return drafts.model_copy(update={"temperature": explainer.temperature})
    return explainer if isinstance(explainer, LLMExplainer) else None


def _num_calls(context: RunContext, source: str, latent: int) -> int:
    """Calls that proposals of the latent took so far: no fewer than draws that were paid."""
    query = select(func.count()).where(
        LLMCall.run_id == context.run_id,
        LLMCall.source == source,
        LLMCall.latent == latent,
        LLMCall.purpose == PURPOSE,
    )
    with context.store.reading() as connection:
        return int(connection.execute(query).scalar_one())


def _until(limit_s: float, endpoint: Endpoint) -> Callable[[], None]:
    """What a wait calls again and again; it ends the wait when the time is up."""
    ends = time.monotonic() + limit_s

    def poll() -> None:
        if time.monotonic() > ends:
            raise EndpointError(
                f"the endpoint {endpoint.name!r} has given no answer in {limit_s:g} s: see that its server is well, and ask again."
            )

    return poll
