"""Reads a configuration: TOML file, ``--set key=value`` and ``AUTOINTERP_*`` environment."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from autointerp.config.checks import check_choice, check_endpoints, check_estimate, check_kinds
from autointerp.config.overlay import environment_values, lay_over
from autointerp.config.places import STDLIB_CORPUS, resolve_path, resolve_url
from autointerp.config.run import RunConfig
from autointerp.config.sections import StoreConfig
from autointerp.config.sentences import sentence_of
from sae_core.errors import ConfigError, MissingFileError


def load_config(path: Path | str, sets: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> RunConfig:
    """Read a configuration file, with ``sets`` (``key=value``) and ``environment`` laid over it.

    ``environment`` is usually ``os.environ``; None reads none. Errors: MissingFileError, ConfigError.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise MissingFileError(
            f"there is no configuration file {str(path)!r}: give the path of a TOML file."
        ) from error
    except (ValueError, OSError) as error:  # not UTF-8, a null character, no permission, a name too long
        raise ConfigError(f"{str(path)!r} cannot be read as text: give the path of a TOML file ({error}).") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{str(path)!r} is not valid TOML: {error}.") from error
    origins: dict[str, str] = {}
    from_environment = environment_values(environment or {})
    wanted = [data.pop("preset", None), *(value for key, value, _ in from_environment if key == "preset")]
    wanted += [item.partition("=")[2].strip() for item in sets if item.partition("=")[0].strip() == "preset"]
    name = next((value for value in reversed(wanted) if value is not None), None)
    if name is not None:
        from autointerp.presets import preset

        below = preset(str(name))
        if _takes_labels(data, from_environment, sets):
            below.pop("explainers", None)  # nothing is written here, so there is nothing for them to do
        both = [key for key, value in below.items() if isinstance(value, list) and key in data]
        if both:
            tables = " and ".join(f"[[{key}]]" for key in both)
            raise ConfigError(
                f"the preset {name!r} brings its own {tables}, and {str(path)!r} has {tables} too: leave them out of the file, or "
                "write the preset's tables there (autointerp/presets has them) and change them."
            )
        data = _laid_under(data, below)
    for key, value, origin in from_environment:
        if key != "preset":
            lay_over(data, key, value, origin)
            origins[key] = origin
    for item in sets:
        key, separator, value = item.partition("=")
        if not separator or not key.strip():
            raise ConfigError(
                f"--set {item!r} is not of the form key=value, for instance --set extraction.num_tokens=500000."
            )
        if key.strip() == "preset":
            continue
        lay_over(data, key.strip(), value.strip(), f"--set {item}")
        origins[key.strip()] = f"--set {item}"
    return parse_config(data, str(path), base=path.resolve().parent, origins=origins)


def _takes_labels(
    data: Mapping[str, Any], from_environment: Sequence[tuple[str, str, str]], sets: Sequence[str]
) -> bool:
    """Whether ``labels.from`` is set, wherever it is set."""
    labels = data.get("labels")
    keys = {key for key, _, _ in from_environment} | {item.partition("=")[0].strip() for item in sets}
    return "labels.from" in keys or (isinstance(labels, dict) and labels.get("from") is not None)


def _laid_under(data: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` with what it leaves out taken from ``below``; tables are joined key by key, lists are not."""
    out = dict(below)
    for key, value in data.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _laid_under(value, out[key]) if both else value
    return out


def parse_config(
    data: Mapping[str, Any], origin: str, base: Path | None = None, origins: Mapping[str, str] | None = None
) -> RunConfig:
    """Validate a configuration; ``origin`` names it in messages, ``base`` resolves relative paths.

    ``origins`` maps dotted keys that did not come from the file to where they came from. Errors: ConfigError.
    """
    try:
        config = RunConfig.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        # a mistyped name is the likelier cause of a missing one
        first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
        raise ConfigError(sentence_of(first, origin, origins or {})) from error
    config = _with_imported_labels(config, data, origin, base)
    if not config.explainers:
        raise ConfigError(
            f"explainers is an empty list in {origin}, so nothing would write a label: give at least one [[explainers]] "
            "table with a kind, or leave the key out."
        )
    check_kinds("explainers", config.build_explainers())
    check_kinds("scorers", config.build_scorers())
    explainers = [component.model_dump(mode="json") for component in config.build_explainers()]
    scorers = [component.model_dump(mode="json") for component in config.build_scorers()]
    endpoints = config.build_endpoints()
    check_endpoints(config, endpoints)
    check_choice(config)
    check_estimate(config)
    update: dict[str, Any] = {
        "explainers": tuple(explainers),
        "scorers": tuple(scorers),
        "endpoints": tuple(endpoint.model_dump(mode="json") for endpoint in endpoints),
    }
    if base is not None:
        update["explainers"] = tuple(
            {**table, "path": str(base / Path(table["path"]).expanduser())} if table["kind"] == "imported" else table
            for table in explainers
        )
        model = resolve_path("subject.model", config.subject.model, base)
        update["subject"] = config.subject.model_copy(update={"model": model})
        update["coders"] = tuple(
            coder.model_copy(update={"path": resolve_path(f"coders.{number}.path", coder.path, base)})
            for number, coder in enumerate(config.coders)
        )
        if config.corpus.path != STDLIB_CORPUS:
            update["corpus"] = config.corpus.model_copy(
                update={"path": resolve_path("corpus.path", config.corpus.path, base)}
            )
        if config.extraction.reuse is not None:
            where = (base / Path(config.extraction.reuse).expanduser()).resolve()
            update["extraction"] = config.extraction.model_copy(update={"reuse": str(where)})
        if config.store.url is not None:
            update["store"] = StoreConfig(url=resolve_url(config.store.url, base))
    resolved = config.model_copy(update=update)
    resolved.source_names()
    return resolved


def _with_imported_labels(config: RunConfig, data: Mapping[str, Any], origin: str, base: Path | None) -> RunConfig:
    """The configuration with the explainer that ``labels.from`` stands for."""
    if config.labels.from_ is None:
        return config
    where = config.labels.from_ if base is None else str((base / Path(config.labels.from_).expanduser()).resolve())
    labels = config.labels.model_copy(update={"from_": where})
    from autointerp.components import parse_component

    # a stored configuration holds the explainer that labels.from stood for
    ours = parse_component("explainers", labels.imported or {})
    others = [
        table.get("kind")
        for table in data.get("explainers", ())
        if table.get("kind") != "imported" or parse_component("explainers", table) != ours
    ]
    if others:
        raise ConfigError(
            f"labels.from is set in {origin} and there are [[explainers]] too ({', '.join(map(repr, others))}): with labels made "
            "elsewhere none are written here; leave one of the two out."
        )
    return config.model_copy(update={"labels": labels, "explainers": (labels.imported,)})
