"""What must fit together in a configuration beyond its tables' own rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autointerp.config.run import RunConfig
from autointerp.llm.protocol import Usage
from sae_core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from autointerp.explainers.base import Explainer
    from autointerp.llm.endpoints.base import Endpoint
    from autointerp.scorers.base import Scorer

_ONE_TOKEN = Usage(input_tokens=1, output_tokens=1)


def check_choice(config: RunConfig) -> None:
    """Explanations can be compared, where they are to be. Errors: ConfigError."""
    from autointerp.scorers.comparing import comparing_scorer

    comparing_scorer(config.build_explainers(), config.build_scorers(), config.labels.choose, config.labels.by)


def check_estimate(config: RunConfig) -> None:
    """A judge whose verdicts are estimated from asks its doubtful yeses again. Errors: ConfigError."""
    scorer = config.estimated_scorer()
    if scorer is not None and not scorer.confirm:
        raise ConfigError(
            f"the scorer {scorer.kind!r} has confirm = false, and precision.by asks for precision from its verdicts, in which a false yes "
            'counts only if it is said twice: set confirm = true, or precision.by = "".'
        )


def check_endpoints(config: RunConfig, endpoints: Sequence[Endpoint]) -> None:
    """Names are unique, and every component finds the endpoint that it asks. Errors: ConfigError."""
    names = [endpoint.name for endpoint in endpoints]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two tables of [[endpoints]] have the name {twice!r}: give each a name of its own.")
    components: list[Explainer | Scorer] = [*config.build_explainers(), *config.build_scorers()]
    for component in components:
        for need in component.llm_needs():
            if not names:
                raise ConfigError(
                    f"the component {component.kind!r} asks a language model and none is configured: add a table [[endpoints]] with "
                    'kind = "openai", base_url and model (docs/llms.md).'
                )
            if need.endpoint and need.endpoint not in names:
                raise ConfigError(
                    f"the component {component.kind!r} asks the endpoint {need.endpoint!r}: {did_you_mean(need.endpoint, names)}"
                )
    if config.budget.usd is not None:
        unpriced = next((e.name for e in endpoints if e.cost(_ONE_TOKEN) is None), None)
        if unpriced is not None:
            raise ConfigError(
                f"budget.usd is {config.budget.usd} and the endpoint {unpriced!r} has no price, so that what is spent cannot be known: set its "
                "usd_per_million_input_tokens and usd_per_million_output_tokens (0 for a server of your own), or use budget.tokens."
            )


def check_kinds(group: str, components: Sequence[Explainer | Scorer]) -> None:
    """Rows are told apart by the kind that wrote them. Errors: ConfigError for two components of one kind."""
    kinds = [component.kind for component in components]
    twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"{kinds.count(twice)} tables of [[{group}]] have the kind {twice!r}; one of each kind is allowed: remove one, "
            "or give it a run of its own."
        )
