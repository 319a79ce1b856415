"""What stands behind the @ of an agent's lightning address."""

from __future__ import annotations

import ipaddress

from pylon.config import Config
from pylon.config_values import Bind


def public_address(config: Config, bound: Bind | None) -> str | None:
    """The host, and port if need be, under which payers reach the API; ``None``: they do not.

    That is ``[api] public_name``. On simnet without one it is the loopback where the API listens (``bound``), since
    whoever pays there is on this machine.
    """
    if bound is None:
        return None
    if config.api.public_name:
        return config.api.public_name
    if config.network != "simnet":
        return None
    host = _loopback(bound.host)
    return None if host is None else f"{host}:{bound.port}"


def _loopback(host: str) -> str | None:
    """How a lightning address, which knows no brackets, names the loopback of a bound address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host if host == "localhost" else None
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "localhost"
    if not address.is_loopback:
        return None
    return host if address.version == 4 else "localhost"
