"""Makes a run's configuration of a request and the catalogue."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal

from autointerp.components import known_components, parse_component
from autointerp.config import RunConfig, parse_config
from autointerp.config.overlay import environment_values, lay_over
from autointerp.server.catalogue import Catalogue, Entry
from autointerp.server.jobs.request import RunRequest
from sae_core.errors import ConfigError

if TYPE_CHECKING:
    from autointerp.explainers.base import Explainer
    from autointerp.scorers.base import Scorer

_ORIGIN = "the request"


def configured(request: RunRequest, catalogue: Catalogue, store_url: str) -> RunConfig:
    """The configuration, checked as that of `autointerp run`; settings in the server's environment win, as they do there.

    Errors: UnknownNameError for a name that the catalogue does not have; ConfigError.
    """
    sources = [catalogue.entry("source", name) for name in request.sources]
    data = deepcopy(dict(sources[0].settings["rest"]))
    data["subject"] = _one_subject(sources)
    data["coders"] = [dict(entry.settings["coder"]) for entry in sources]
    data["corpus"] = dict(catalogue.entry("corpus", request.corpus).settings)
    data["latents"] = f"0:{request.latents}" if request.latents.isdecimal() else request.latents
    if request.num_tokens is not None:
        data["extraction"] = {**data.get("extraction", {}), "num_tokens": request.num_tokens}
    if request.seed is not None:
        data["seed"] = request.seed
    judge = request.judge_endpoint or request.explainer_endpoint
    data["explainers"] = _tables("explainers", request.explainers, data, request.explainer_endpoint)
    data["scorers"] = _tables("scorers", request.scorers, data, judge)
    asked = list(dict.fromkeys(name for name in (request.explainer_endpoint, judge) if name is not None))
    data["endpoints"] = [dict(catalogue.entry("endpoint", name).settings) for name in asked]
    data["budget"] = {
        name: value
        for name, value in (("tokens", request.budget_tokens), ("usd", request.budget_usd))
        if value is not None
    }
    for key, value, origin in environment_values(os.environ):
        if key != "preset":
            lay_over(data, key, value, origin)
    data["store"] = {"url": store_url}
    config = parse_config(data, _ORIGIN)
    components: list[Explainer | Scorer] = [*config.build_explainers(), *config.build_scorers()]
    asks = any(component.llm_needs() for component in components)
    if asks and config.budget.tokens is None and config.budget.usd is None:
        raise ConfigError("the run asks a language model and has no budget: give budget_tokens or budget_usd.")
    return config


def _one_subject(sources: Sequence[Entry]) -> dict[str, Any]:
    subject = dict(sources[0].settings["subject"])
    other = next((entry for entry in sources if dict(entry.settings["subject"]) != subject), None)
    if other is not None:
        raise ConfigError(
            f"the sources {sources[0].name!r} and {other.name!r} are on different subjects: give each a run of its own."
        )
    return subject


def _tables(
    group: Literal["explainers", "scorers"], kinds: Sequence[str] | None, data: Mapping[str, Any], endpoint: str | None
) -> list[dict[str, Any]]:
    """The tables of a group: for each kind that of the source where it has one, else the kind's defaults. Errors: ConfigError."""
    given = [dict(table) for table in data.get(group, RunConfig.model_fields[group].default)]
    if kinds is not None:
        own = {table["kind"]: table for table in given}
        given = [own.get(kind, {"kind": kind}) for kind in kinds]
    for table in given:
        if table["kind"] == "imported":
            raise ConfigError(
                f"{group} has {table['kind']!r}, which reads a path of the server: it cannot be asked for."
            )
        component = parse_component(group, table)
        if component.llm_needs() and endpoint is None:
            field = "explainer_endpoint" if group == "explainers" else "judge_endpoint"
            raise ConfigError(f"the kind {table['kind']!r} of {group} asks a language model: name one in {field}.")
        if "endpoint" in known_components(group)[table["kind"]].model_fields and endpoint is not None:
            table["endpoint"] = endpoint
    return given
