"""One wallet's connection to Spark: opened when it is used, asked with deadlines, proven to be in step.

The SDK hangs, waits and lies when it is offline (its ``sync_wallet`` returns "synchronized" when nobody was reached,
``get_info`` gives what it last wrote down), so:

* Every call has a deadline. A deadline before anything was sent is ``WalletUnreachable``.
* **What it says is known after a proven round trip**, which is three calls in a row: ``get_user_settings``,
  ``sync_wallet``, ``get_user_settings`` again. The settings are fetched from the coordinating Spark operator, signed in
  as this wallet, each time that they are asked for; offline the call fails at DNS. On top of it this instance must once
  have said ``SYNCED``, which it says first after it has read all its leaves from the operators. A trip within
  ``fresh_seconds`` serves again, until there is news of a payment.
"""

from __future__ import annotations

import abc
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from pylon.errors import StoreError, WalletError, brief
from pylon.wallets import spark_errors
from pylon.wallets.port import Balance, Payment, PaymentEvents
from pylon.wallets.spark_journal import Journal
from pylon.wallets.spark_kit import SparkKit

log = logging.getLogger(__name__)

PAGE = 200
_POLL_SECONDS = 5.0
"""How often a wallet in server mode is asked for news while somebody listens to it."""


class SparkLink(abc.ABC):
    """See the module. Reading and connecting; what is done with it is the wallet's (``spark_payments``, ``spark``).

    :param seed: the 64 bytes of a BIP-39 phrase.
    :param server: without background work of its own: it is looked after in turn (``spark_fleet``).
    :param on_change: told, without delay, that balance or payments may have changed.
    :param on_balance: told each balance that it was found to have.
    """

    def __init__(
        self,
        kit: SparkKit,
        seed: bytes,
        name: str,
        *,
        server: bool = False,
        on_change: Callable[[Any], None] = lambda wallet: None,
        on_balance: Callable[[Any, Balance], None] = lambda wallet, balance: None,
    ) -> None:
        self.name = name
        self.identity_pubkey = kit.identity(seed)
        """Hex, 33 bytes compressed: by which it is known."""
        self.server = server
        self.used_at = -math.inf
        """Monotonic time of the last use but by sweeps."""
        self.known_at = -math.inf
        """Wall time of the beginning of the last proven round trip."""
        self._kit = kit
        self._clock = kit.clock
        self._seed = seed
        self._on_change = on_change
        self._on_balance = on_balance
        self._directory = kit.directory / self.identity_pubkey[:16]
        self._journal = Journal(self._directory / "journal.db", durable=kit.durable)
        self._instance: Any = None
        self._opening = trio.Lock()
        self._proving = trio.Lock()
        self._closed = False
        self._users = 0
        self._sweeps = 0
        self._synced = False
        self._stale = True
        """There may be news since the last round trip."""
        self._trip_began = -math.inf
        self._trips = 0
        self._good_trip = 0
        self._listeners: set[Listener] = set()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.identity_pubkey[:16]}>"

    # --- the round trip ---------------------------------------------------------------------------------------

    async def _refresh(self) -> None:
        """Prove that Spark is there and we have what it has: see the module. Raises ``WalletUnreachable``."""
        self._check_open()
        if not self._stale and self._clock.monotonic() - self._trip_began < self._kit.fresh_seconds:
            return
        next_trip = self._trips + 1
        async with self._proving:
            if self._good_trip >= next_trip:
                return  # one that began after we asked has ended well while we waited
            self._trips += 1
            trip = self._trips
            async with self._using() as instance:
                began, self._stale = self._clock.now(), False
                started = self._clock.monotonic()
                try:
                    settings = await self._ask("reaching Spark", instance.get_user_settings)
                    await self._keep_private(instance, settings)
                    await self._ask(
                        "synchronizing",
                        instance.sync_wallet,
                        self._kit.sdk.SyncWalletRequest(),
                        seconds=self._kit.deadlines.sync,
                    )
                    await self._ask("reaching Spark", instance.get_user_settings)
                    if not self._synced:
                        raise spark_errors.unreachable("synchronizing", "it has not said that it is done")
                except BaseException:
                    self._stale = True
                    raise
            self.known_at, self._trip_began, self._good_trip = began, started, trip

    def outdate(self) -> None:
        """There may be news: the last round trip does not serve any more."""
        self._stale = True

    async def _keep_private(self, instance: Any, settings: Any) -> None:
        """Have the operators show its balance to nobody. In client mode the SDK does that by itself."""
        if not self.server or settings.spark_private_mode_enabled:
            return
        request = self._kit.sdk.UpdateUserSettingsRequest(
            spark_private_mode_enabled=True, stable_balance_active_label=None, spark_master_identity_public_key=None
        )
        await self._ask("setting the wallet to private", instance.update_user_settings, request)

    # --- reading ----------------------------------------------------------------------------------------------

    async def _by_id(self, payment_id: str) -> Any:
        """A payment as the SDK has it; ``None`` where it has none."""
        sdk = self._kit.sdk
        async with self._using() as instance:
            try:
                with trio.fail_after(self._kit.deadlines.call):
                    response = await self._kit.bridge.run(
                        instance.get_payment, sdk.GetPaymentRequest(payment_id=payment_id)
                    )
            except sdk.SdkError as error:
                text = spark_errors.words(error).lower()
                if "no rows" in text or "not found" in text:
                    return None
                raise spark_errors.before_sending(error, "looking a payment up") from None
            except trio.TooSlowError:
                raise spark_errors.unreachable("looking a payment up") from None
        return response.payment

    async def _list(
        self,
        instance: Any,
        *,
        type_filter: list[Any] | None = None,
        status_filter: list[Any] | None = None,
        since: int = 0,
        limit: int | None = None,
        newest: bool = False,
    ) -> list[Any]:
        """The SDK's payments in sats, page by page, oldest first unless the ``newest`` are asked for."""
        sdk = self._kit.sdk
        found: list[Any] = []
        while limit is None or len(found) < limit:
            size = PAGE if limit is None else min(PAGE, limit - len(found))
            request = sdk.ListPaymentsRequest(
                type_filter=type_filter,
                status_filter=status_filter,
                asset_filter=sdk.AssetFilter.BITCOIN(),
                from_timestamp=max(0, since) or None,
                offset=len(found),
                limit=size,
                sort_ascending=not newest,
            )
            page = (await self._ask("reading the payments", instance.list_payments, request)).payments
            found.extend(page)
            if len(page) < size:
                break
        return found

    # --- the connection ---------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether the SDK holds it."""
        return self._instance is not None

    @property
    def is_closed(self) -> bool:
        return self._closed

    async def connect(self) -> None:
        """Open it now, and not with its first use. Raises ``WalletError``."""
        async with self._using():
            pass

    @property
    def is_busy(self) -> bool:
        """Whether something is under way with it, or somebody listens."""
        return bool(self._users or self._listeners)

    async def let_go(self) -> bool:
        """Disconnect, to be connected anew (perhaps in the other mode) when it is used again. False: it is busy."""
        async with self._opening:
            if self.is_busy:
                return False
            await self._disconnect()
            return True

    async def aclose(self) -> None:
        """Let go of the SDK within a few seconds, and end the listeners. A payment under way ends by itself."""
        if self._closed:
            return
        self._closed = True
        for listener in list(self._listeners):
            listener.end()
        with trio.CancelScope(shield=True):
            await self._disconnect()
        self._journal.close()

    async def _disconnect(self) -> None:
        instance, self._instance, self._synced, self._stale = self._instance, None, False, True
        self._journal.close()  # opened again when it is needed: ten thousand wallets are not ten thousand open files
        if instance is None:
            return
        # With twenty wallets open in client mode the SDK takes up to 15 s, and nothing is won by waiting for it.
        with trio.move_on_after(self._kit.deadlines.disconnect):
            try:
                await self._kit.bridge.outlast(instance.disconnect)
            except Exception as error:
                log.info("closing %r: %s", self, brief(error))

    @asynccontextmanager
    async def _using(self) -> AsyncIterator[Any]:
        """The SDK's instance, connected if need be, and kept while it is in use."""
        self._users += 1
        try:
            if not self._sweeps:
                self.used_at = self._clock.monotonic()
            if self._instance is None:
                async with self._opening:
                    if self._instance is None:
                        self._instance = await self._connect()
            yield self._instance
        finally:
            self._users -= 1

    async def _connect(self) -> Any:
        self._check_open()
        instance = await self._kit.connect(self._seed, self._directory, server=self.server)
        post = self._kit.bridge.poster()

        heard = self._heard

        class Ear(self._kit.sdk.EventListener):  # type: ignore[misc,name-defined]
            async def on_event(self, event: Any) -> None:
                post(heard, event)

        await self._ask("opening the wallet", instance.add_event_listener, Ear())
        return instance

    async def _ask(
        self, doing: str, method: Callable[..., Awaitable[Any]], *args: Any, seconds: float | None = None
    ) -> Any:
        """A call that moves no money, with a deadline. ``doing`` says what, in words."""
        seconds = self._kit.deadlines.call if seconds is None else seconds
        try:
            with trio.move_on_after(seconds):
                return await self._kit.bridge.run(method, *args)
        except self._kit.sdk.SdkError as error:
            raise spark_errors.before_sending(error, doing) from None
        raise spark_errors.unreachable(doing, f"no answer within {seconds:.0f} s")

    @abc.abstractmethod
    def _heard(self, event: Any) -> None:
        """On the Trio side, for each event of the SDK."""

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"the Spark wallet {self.name} is closed")


class Listener:
    """The payments of one wallet that end, from the moment of entering until the wallet is closed."""

    def __init__(self, wallet: SparkLink) -> None:
        self._wallet = wallet
        self._waiting: deque[Payment] = deque()
        self._bell = trio.Event()
        self._ended = False

    async def __aenter__(self) -> PaymentEvents:
        async with self._wallet._using():
            self._wallet._check_open()
            self._wallet._listeners.add(self)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._wallet._listeners.discard(self)

    def push(self, payment: Payment) -> None:
        self._waiting.append(payment)
        self._bell.set()

    def end(self) -> None:
        self._ended = True
        self._bell.set()

    def __aiter__(self) -> AsyncIterator[Payment]:
        return self

    async def __anext__(self) -> Payment:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._ended or self._wallet._closed:
                raise StopAsyncIteration
            with trio.move_on_after(_POLL_SECONDS if self._wallet.server else math.inf):
                await self._bell.wait()
                self._bell = trio.Event()
                continue
            try:
                await self._wallet._refresh()
            except WalletError as error:
                log.info("no news of %r: %s", self._wallet, error.message)
        return self._waiting.popleft()
