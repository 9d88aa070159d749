"""The variables of the environment that say where a cluster's broker and store are, with their passwords."""

from __future__ import annotations

import os
import re

BROKER_VARIABLE = "AUTOINTERP_BROKER__URL"
STORE_VARIABLE = "AUTOINTERP_STORE__URL"
_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1")


def given_broker() -> str | None:
    """The broker's URL with its password; None where the environment names neither a broker nor a store. Errors: ConfigError."""
    from autointerp.cluster.settings import load_settings

    if not (os.environ.get(BROKER_VARIABLE) or os.environ.get(STORE_VARIABLE)):
        return None
    return load_settings().broker_url


def given_store() -> str | None:
    """The store's URL with its password, None where the environment names none. Errors: ConfigError."""
    from autointerp.cluster.settings import load_settings

    return load_settings().store_url if os.environ.get(STORE_VARIABLE) else None


def key_prefix() -> str:
    """What the names of the broker's keys begin with. Errors: ConfigError."""
    from autointerp.cluster.settings import load_settings

    return load_settings().broker.key_prefix


def is_loopback(host: str | None) -> bool:
    """Whether a host name or address is this machine's own, which no other machine reaches."""
    return host is None or host == "" or _LOOPBACK.fullmatch(host.strip("[]")) is not None
