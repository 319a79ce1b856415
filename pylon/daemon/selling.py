"""What sells, as a whole that opens and closes: the provider, and who announces it."""

from __future__ import annotations

from collections.abc import Callable

from pylon import events
from pylon.provider.announce import Announcer, Profile
from pylon.provider.pricing import Terms
from pylon.provider.server import Provider
from pylon.supervision import ChildSpec, Supervisor


class Selling:
    """Closed and opened again where nothing can be written down for a while (``pylon.daemon.diskguard``).

    :param announce: makes the one who announces these terms, as this profile.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        provider: Provider,
        profile: Profile,
        announce: Callable[[Terms, Profile], Announcer],
        publish: Callable[[events.Event], None] = lambda event: None,
    ) -> None:
        self._supervisor = supervisor
        self._profile = profile
        self._announce = announce
        self._publish = publish
        self.provider = provider
        self.announcer: Announcer | None = None
        """``None`` while nothing is sold."""

    async def open(self) -> None:
        self.announcer = self._announce(self.provider.terms, self._profile)
        self._supervisor.start(ChildSpec("provider", self.provider.run))
        self._supervisor.start(ChildSpec("announcer", self.announcer.run))
        self._publish(events.ProviderOpened())

    async def close(self) -> None:
        for name in ("announcer", "provider"):
            await self._supervisor.stop(name)
        await self.farewell()

    async def farewell(self) -> None:
        """Take the announcement back, once."""
        if self.announcer is not None:
            announcer, self.announcer = self.announcer, None
            self._publish(events.ProviderClosed())
            await announcer.farewell()

    def sell_by(self, terms: Terms, profile: Profile) -> None:
        """Sell by new terms from the next request on, and announce them; what was quoted stays quoted."""
        self._profile = profile
        self.provider.sell_by(terms)
        if self.announcer is not None:
            self.announcer.sell_by(terms, profile)
