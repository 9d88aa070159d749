"""``autointerp source|endpoint|corpus add|list|remove``: what users of the server may ask for by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from autointerp.server.catalogue import Catalogue, Kind

_HOME = typer.Option(
    help="The server's folder, as of `autointerp serve --home`; where AUTOINTERP_STORE__URL is set, that store is used."
)
_SETS = typer.Option("--set", metavar="KEY=VALUE", help="A further key, as in a run's file; once for each.")
_NAME = typer.Argument(metavar="NAME", help="The name by which requests ask for it.")
_HomePath = Annotated[Path, _HOME]
_DEFAULT_HOME = Path("runs")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    topics: list[tuple[Kind, Callable[..., None], str]] = [
        ("source", add_source, "Sparse coders, with their subjects, that runs may label."),
        ("endpoint", add_endpoint, "Language models that runs may ask."),
        ("corpus", add_corpus, "Texts that runs may read."),
    ]
    for kind, add, what in topics:
        group = typer.Typer(help=what, no_args_is_help=True)
        group.command("add")(add)
        _register_list(group, kind)
        _register_remove(group, kind)
        app.add_typer(group, name=kind)


def add_source(
    name: Annotated[str, _NAME],
    subject: Annotated[str | None, typer.Option(help="Folder or hub id of the subject model.")] = None,
    coder: Annotated[str | None, typer.Option(help="Folder, file or hub id of the sparse coder.")] = None,
    hookpoint: Annotated[
        list[str] | None, typer.Option(help="Where it attaches, once for each hookpoint; else as it says itself.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="A run's TOML file to take subject, coder and all but corpus, endpoints, latents and budget from."
        ),
    ] = None,
    sets: Annotated[list[str] | None, _SETS] = None,
    unchecked: Annotated[
        bool,
        typer.Option("--unchecked", help="Do not load the coder now; its latents are counted when a plan needs them."),
    ] = False,
    home: _HomePath = _DEFAULT_HOME,
) -> None:
    """Let users label a sparse coder. Keys of --set are those of a run's file: subject.dtype, coders.0.k, extraction.context_length, ..."""
    import tomllib

    from autointerp.config.overlay import lay_over
    from autointerp.server.catalogue import Entry, source_config, source_entry
    from sae_core.errors import ConfigError, MissingFileError

    data: dict[str, Any] = {}
    base = Path.cwd()
    if config is not None:
        try:
            data = tomllib.loads(config.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise MissingFileError(
                f"there is no file {str(config)!r} that can be read: give a run's TOML file."
            ) from error
        except ValueError as error:
            raise ConfigError(f"{str(config)!r} is not valid TOML: {error}.") from error
        base = config.resolve().parent
    if config is None and (subject is None or coder is None):
        raise ConfigError("give --subject and --coder, or --config with the file of a run that has them.")
    if subject is not None:
        data["subject"] = {**data.get("subject", {}), "model": str(_from_here(subject, base))}
    if coder is not None:
        data["coders"] = [{"path": str(_from_here(coder, base))}]
    if hookpoint:
        data.setdefault("coders", [{}])[0]["hookpoint"] = hookpoint[0] if len(hookpoint) == 1 else hookpoint
    for key, value in _pairs(sets):
        lay_over(data, key, value, f"--set {key}={value}")
    entry = source_entry(name, data, base, "what was given" if config is None else str(config))
    found = "its coder was not loaded"
    if not unchecked:
        from autointerp.pipeline.attaching import load_configured

        num_latents = load_configured(source_config(entry).coders[0]).num_latents
        entry = Entry(entry.kind, entry.name, {**entry.settings, "num_latents": num_latents})
        found = f"{num_latents:,} latents"
    _catalogue(home).add(entry)
    print(f"source {name}: {entry.shown}, {found}")


def add_endpoint(
    name: Annotated[str, _NAME],
    model: Annotated[str, typer.Option(help="Model to ask, as the server names it.")],
    base_url: Annotated[str | None, typer.Option(help="Address of the API up to and with /v1.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="NAME of the environment variable that holds the key; never the key.")
    ] = None,
    price: Annotated[
        str | None,
        typer.Option(metavar="IN,OUT", help="US dollars for a million prompt tokens and a million answer tokens."),
    ] = None,
    kind: Annotated[str, typer.Option(help="Kind of endpoint: openai, vllm, ...")] = "openai",
    sets: Annotated[list[str] | None, _SETS] = None,
    home: _HomePath = _DEFAULT_HOME,
) -> None:
    """Let users have a language model asked."""
    from autointerp.config.overlay import lay_over
    from autointerp.server.catalogue import endpoint_entry
    from sae_core.errors import ConfigError

    table: dict[str, Any] = {"kind": kind, "model": model}
    table |= {key: value for key, value in (("base_url", base_url), ("api_key_env", api_key_env)) if value is not None}
    if price is not None:
        try:
            prompt, answer = map(float, price.split(","))
        except ValueError:
            raise ConfigError(
                f"--price is {price!r}: give two numbers with a comma between, such as 0.15,0.6."
            ) from None
        table |= {"usd_per_million_input_tokens": prompt, "usd_per_million_output_tokens": answer}
    for key, value in _pairs(sets):
        lay_over(table, key, value, f"--set {key}={value}")
    entry = endpoint_entry(name, table)
    _catalogue(home).add(entry)
    print(f"endpoint {name}: {entry.shown}")


def add_corpus(
    name: Annotated[str, _NAME],
    path: Annotated[str, typer.Argument(metavar="PATH", help="Folder, file, hub data set id, or python-stdlib.")],
    sets: Annotated[list[str] | None, _SETS] = None,
    home: _HomePath = _DEFAULT_HOME,
) -> None:
    """Let users have texts read. Keys of --set are those of [corpus]: text_field, split, ..."""
    from autointerp.config.overlay import lay_over
    from autointerp.server.catalogue import corpus_entry

    data: dict[str, Any] = {"corpus": {"path": path}}
    for key, value in _pairs(sets):
        lay_over(data, key if key.startswith("corpus.") else f"corpus.{key}", value, f"--set {key}={value}")
    entry = corpus_entry(name, data["corpus"], Path.cwd(), "what was given")
    _catalogue(home).add(entry)
    print(f"corpus {name}: {entry.shown}")


def _register_list(group: typer.Typer, kind: Kind) -> None:
    @group.command("list", help=f"Show every {kind} of the catalogue.")
    def show(home: _HomePath = _DEFAULT_HOME) -> None:
        entries = _catalogue(home).entries(kind)
        for entry in entries:
            print(f"{entry.name}\t{entry.shown}{' (comes with autointerp)' if entry.built_in else ''}")
        if not entries:
            print(f"there is none yet: autointerp {kind} add")


def _register_remove(group: typer.Typer, kind: Kind) -> None:
    @group.command("remove", help=f"Take a {kind} out of the catalogue; runs that were started with it go on.")
    def remove(name: Annotated[str, _NAME], home: _HomePath = _DEFAULT_HOME) -> None:
        _catalogue(home).remove(kind, name)
        print(f"{kind} {name} removed")


def _catalogue(home: Path) -> Catalogue:
    from autointerp.pipeline.finding import shared_store
    from autointerp.pipeline.folder import DATABASE, usable_folder
    from autointerp.server.catalogue import Catalogue
    from autointerp.store import open_store
    from autointerp.store.opening import sqlite_url

    store = shared_store()
    if store is None:
        with usable_folder(home, "--home"):
            home.mkdir(parents=True, exist_ok=True)
        store = open_store(sqlite_url(home / DATABASE))
    return Catalogue(store)


def _pairs(sets: list[str] | None) -> list[tuple[str, str]]:
    from sae_core.errors import ConfigError

    pairs = [(key.strip(), value.strip()) for key, _, value in (item.partition("=") for item in sets or ())]
    wrong = next((item for item in sets or () if "=" not in item), None)
    if wrong is not None:
        raise ConfigError(f"--set {wrong!r} is not of the form key=value.")
    return pairs


def _from_here(given: str, base: Path) -> str:
    """A path of the command line is one from where it was typed, not from the file's folder."""
    here = Path(given).expanduser()
    return str(here.resolve()) if base != Path.cwd() and here.exists() else given
