"""A Lightning network of one's own: a toy chain, Electrum daemons on it, channels between them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.lightning.install import Installation, install
from tests.lightning.processes import Electrum, ToyChain, until

CONFIRMATIONS = 3
"""What an Electrum wants before it uses a channel."""
CHANNEL_OPENS_WITHIN = 60.0


class Lab:
    """``with Lab(directory) as lab``; everything ends with the block."""

    def __init__(self, directory: Path, installed: Installation | None = None) -> None:
        self._directory = directory
        self._installed = installed or install()
        self._stack = ExitStack()

    def __enter__(self) -> Lab:
        with ExitStack() as stack:
            self.chain = stack.enter_context(ToyChain(self._directory))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def daemons(self, *names: str) -> Sequence[Electrum]:
        """New daemons with empty wallets, started side by side."""
        started = [
            self._stack.enter_context(Electrum(name, self._directory, self.chain, self._installed)) for name in names
        ]
        for daemon in started:
            daemon.wait_started()
        return started

    def fund(self, *daemons: Electrum) -> None:
        """A block's subsidy for each, spendable."""
        for daemon in daemons:
            self.chain.mine(1, daemon.script())
        height = self.chain.mine(100)
        for daemon in daemons:
            until(lambda: daemon.height() >= height and daemon.coins() > 0, 60, f"{daemon.name} sees its coins")  # noqa: B023

    def open_channel(self, funder: Electrum, peer: Electrum, sats: int, pushed: int) -> str:
        """A channel of ``sats``, of which ``pushed`` are the peer's. Returns its channel point."""
        point = str(
            funder.call(
                "open_channel",
                connection_string=peer.address(),
                amount=f"{sats / 1e8:.8f}",
                push_amount=f"{pushed / 1e8:.8f}",
            )
        )
        self.chain.mine(CONFIRMATIONS)

        def opened() -> bool:
            states = [
                channel["state"]
                for daemon in (funder, peer)
                for channel in daemon.channels()
                if channel["channel_point"] == point and channel["peer_state"] == "GOOD"
            ]
            return states == ["OPEN", "OPEN"]

        until(opened, CHANNEL_OPENS_WITHIN, lambda: f"an open channel: {funder.channels()}, {peer.channels()}")
        return point
