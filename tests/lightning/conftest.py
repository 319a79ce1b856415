"""One Lightning network for all tests here: opened once, for each test has invoices and payments of its own.

``payer`` has a channel to ``payee``, and ``distant`` one to ``payer``: so that what ``distant`` pays to ``payee`` is
forwarded, for a fee.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
import pytest

from tests.lightning.install import CannotInstall, install
from tests.lightning.lab import Lab
from tests.lightning.processes import Electrum, Relay, WalletService

CAPACITY_SATS = 10_000_000
"""A hundredth of it each side must keep: the payee, which begins with nothing, can receive often and not pay."""
PUSHED_SATS = 500_000
"""What is on the near side of the channel from ``distant`` from the beginning."""


@attrs.frozen
class Network:
    lab: Lab
    payer: Electrum
    payee: Electrum
    distant: Electrum


@pytest.fixture(scope="session")
def lightning(tmp_path_factory) -> Iterator[Network]:
    try:
        installed = install()
    except CannotInstall as error:
        pytest.skip(f"no Electrum: {error}")
    with Lab(tmp_path_factory.mktemp("lightning"), installed) as lab:
        payer, payee, distant = lab.daemons("payer", "payee", "distant")
        lab.fund(payer, distant)
        lab.open_channel(payer, payee, CAPACITY_SATS, 0)
        lab.open_channel(distant, payer, CAPACITY_SATS, PUSHED_SATS)
        yield Network(lab, payer, payee, distant)


@pytest.fixture
def relay(tmp_path) -> Iterator[str]:
    """Its URL."""
    with Relay(tmp_path) as relay:
        yield relay.url


Connect = Callable[..., WalletService]


@pytest.fixture
def connect(tmp_path, relay) -> Iterator[Connect]:
    """Starts a wallet service over a daemon; all that were started end with the test."""
    services: list[WalletService] = []

    def start(electrum: Electrum, **mute: int) -> WalletService:
        services.append(WalletService(electrum, tmp_path, relay, mute))
        return services[-1]

    yield start
    for service in services:
        service.end()
