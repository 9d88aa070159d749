"""Asks endpoints what they can do, before anything is spent: an impossible plan is refused with its alternatives."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from autointerp.config import RunConfig
from autointerp.explainers.base import Explainer
from autointerp.llm.asking import LLMNeed
from autointerp.llm.call_errors import CallError
from autointerp.llm.endpoints.base import Endpoint
from autointerp.llm.metered import metered
from autointerp.llm.prior_calls import PriorCalls
from autointerp.llm.probing import probe
from autointerp.llm.protocol import Capability
from autointerp.scorers.base import Scorer
from sae_core.errors import ConfigError, EndpointError

PROBE_DEADLINE_S = 60.0
"""Of each of the few calls of a probe; a server's first one with log-probabilities may compile for half a minute."""


def check_endpoints(config: RunConfig, calls: PriorCalls) -> dict[str, frozenset[Capability]]:
    """What each endpoint that is asked can do, by its name; what is asked to find out goes through ``calls``.

    Errors: BudgetError where there is no room for that; EndpointError where nobody answers or the key or the model is not known; ConfigError where a component needs what its
    endpoint lacks.
    """
    endpoints = config.build_endpoints()
    needs = needs_of(config)
    asked = {need.endpoint or endpoints[0].name for _, need in needs} if needs else set()
    found = {endpoint.name: capabilities_of(endpoint, calls) for endpoint in endpoints if endpoint.name in asked}
    check_needs(needs, endpoints, found)
    return found


def needs_of(config: RunConfig) -> list[tuple[str, LLMNeed]]:
    """What each component asks of language models, with its kind."""
    components: list[Explainer | Scorer] = [*config.build_explainers(), *config.build_scorers()]
    return [(component.kind, need) for component in components for need in component.llm_needs()]


def capabilities_of(endpoint: Endpoint, calls: PriorCalls) -> frozenset[Capability]:
    """What an endpoint says of itself, else what a few tiny calls show. Errors: EndpointError."""
    known = endpoint.known_capabilities()
    return asyncio.run(_probed(endpoint, calls)) if known is None else known


async def _probed(endpoint: Endpoint, calls: PriorCalls) -> frozenset[Capability]:
    client = metered(endpoint.open_for_probing(), endpoint, calls, "probe")
    try:
        return await probe(client, PROBE_DEADLINE_S)
    except CallError as error:
        raise EndpointError(
            f"the endpoint {endpoint.name!r} ({endpoint.model!r}) cannot be used: {str(error).rstrip('.')}; start its server or "
            "correct its base_url, model and api_key_env, then run the same command again."
        ) from None
    finally:
        await client.close()


def check_needs(
    needs: Sequence[tuple[str, LLMNeed]],
    endpoints: Sequence[Endpoint],
    found: Mapping[str, frozenset[Capability]],
) -> None:
    """Errors: ConfigError where a component needs what its endpoint lacks, with what to do instead."""
    for kind, need in needs:
        name = need.endpoint or endpoints[0].name
        missing = sorted(capability.value for capability in need.capabilities - found[name])
        if missing:
            has = ", ".join(sorted(capability.value for capability in found[name])) or "none of what is probed"
            instead = need.alternative or "ask another endpoint"
            raise ConfigError(
                f"{kind!r} needs {' and '.join(missing)} of the endpoint {name!r}, which was found to offer {has}: {instead}."
            )
