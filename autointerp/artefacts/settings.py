"""Whether workers exchange files by a remote place, as their environment says."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from autointerp.artefacts.exchange import Exchange
from autointerp.artefacts.remote import Remote
from autointerp.pipeline.folder import RunFolder, usable_folder
from autointerp.store import LabelStore
from sae_core.errors import ConfigError
from sae_core.token_cache import TokenCache

URL_VARIABLE, CACHE_VARIABLE = "AUTOINTERP_ARTEFACTS__URL", "AUTOINTERP_ARTEFACTS__CACHE"


def exchange_for(store: LabelStore, run_id: str, folder: RunFolder, retried: int) -> tuple[RunFolder, Exchange | None]:
    """Where this machine keeps a run's files, and how they come and go: ``folder`` itself and None where AUTOINTERP_ARTEFACTS__URL is not set.

    ``retried``: how often somebody asked for what failed to be tried again. What a stage found before must not be taken for what it
    found since, so each time begins with an empty folder. Errors: ConfigError.
    """
    url = os.environ.get(URL_VARIABLE, "")
    if not url:
        return folder, None
    root = local_folder() / (f"{run_id}-{retried}" if retried else run_id)
    root.mkdir(parents=True, exist_ok=True)
    return replace(folder, root=root), Exchange(Remote(url), store, run_id, root)


def fetch_results(store: LabelStore, run_id: str, folder: Path) -> int:
    """Bring to ``folder`` what a person reads of a run; how many files came.

    Errors: ConfigError where workers exchange nothing; StoreError, StoreUnavailableError, DiskFullError.
    """
    url = os.environ.get(URL_VARIABLE, "")
    if not url:
        raise ConfigError(
            f"{URL_VARIABLE} is not set, so the run's files are in its folder, {store.run(run_id).folder!r}: look there, or set the "
            "variable to the place where its workers exchange files."
        )
    with usable_folder(folder, "the folder"):
        folder.mkdir(parents=True, exist_ok=True)
    return Exchange(Remote(url), store, run_id, folder).fetch_results()


def local_folder() -> Path:
    """Where a machine keeps copies: AUTOINTERP_ARTEFACTS__CACHE, by default beside the cached corpora."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given).absolute() if given else TokenCache.of(os.environ).folder.parent / "runs"
