"""What the Spark wallets of a process share: the SDK, loaded when it is first needed, the bridge to it, the network."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import attrs
import trio

from protocols import bolt11, nip06
from pylon.clock import Clock
from pylon.errors import ConfigError, WalletUnreachable
from pylon.wallets import spark_errors, spark_types
from pylon.wallets.bridge import AsyncioBridge, Bridge
from pylon.wallets.spark_calls import SparkCalls
from pylon.wallets.spark_types import SparkNetwork

KEY_HINT = (
    "ask Breez for a key, free of charge (https://breez.technology/request-api-key/#contact-us-form-sdk), and set"
    " [spark] api_key in config.toml, or PYLON_SPARK_API_KEY"
)


@attrs.frozen(kw_only=True)
class SparkDeadlines:
    """Seconds after which a call of the SDK has failed."""

    connect: float = 20.0
    call: float = 15.0
    sync: float = 25.0
    settle: float = 30.0
    """How long ``pay`` waits for a Lightning payment; then it is pending."""
    send: float = 50.0
    """How long ``pay`` waits for ``send_payment`` as a whole; then it is unknown, and the call goes on."""
    disconnect: float = 3.0


class SparkKit:
    """See the module.

    :param api_key: mainnet wants one. Raises ``ConfigError`` without.
    :param directory: under it each wallet has its own, 0700.
    :param fresh_seconds: how long a proven round trip serves.
    :param durable: whether what is written down is synced to the disk.
    :param sdk: the module, or a fake of it; imported when it is first needed.
    """

    def __init__(
        self,
        network: SparkNetwork,
        *,
        clock: Clock,
        directory: Path,
        api_key: str = "",
        bridge: Bridge | None = None,
        sdk: Any = None,
        deadlines: SparkDeadlines | None = None,
        fresh_seconds: float = 10.0,
        durable: bool = True,
    ) -> None:
        if network.name == "mainnet" and not api_key:
            raise ConfigError("Spark's mainnet wants an API key, and none is set", KEY_HINT)
        self.network = network
        self.clock = clock
        self.directory = directory
        self.deadlines = deadlines or SparkDeadlines()
        self.fresh_seconds = fresh_seconds
        self.durable = durable
        self.calls = SparkCalls()
        self._api_key = api_key
        self._bridge = bridge
        self._sdk = sdk
        self._context: Any = None
        self._context_lock = trio.Lock()

    def __repr__(self) -> str:
        return f"<SparkKit {self.network.name}>"

    @property
    def bridge(self) -> Bridge:
        if self._bridge is None:
            self._bridge = AsyncioBridge.shared()
        return self._bridge

    @property
    def sdk(self) -> Any:
        """The SDK's module; 50 MB, so that nobody pays for it who has no Spark wallet."""
        if self._sdk is None:
            try:
                self._sdk = importlib.import_module("breez_sdk_spark")
            except ImportError as error:
                raise ConfigError(
                    f"the Spark SDK cannot be loaded: {error}", 'pip install breez-sdk-spark; or network = "simnet"'
                ) from None
        return self._sdk

    def identity(self, seed: bytes) -> str:
        """The identity key of a seed, by which its wallet is known: hex, 33 bytes compressed."""
        secret = nip06.derive(seed, spark_types.identity_path(self.network))
        return bolt11.node_public_key(secret).hex()

    async def connect(self, seed: bytes, directory: Path, *, server: bool) -> Any:
        """Open a wallet: with background work of its own, or (``server``) as one of many that has none."""
        sdk, variant = self.sdk, self.network.variant
        network = getattr(sdk.Network, variant)
        config = (sdk.default_server_config if server else sdk.default_config)(network)
        config.api_key = self._api_key or None
        # A direct transfer gives no preimage, and the other services would learn what is nobody's business.
        config.prefer_spark_over_lightning = False
        config.real_time_sync_server_url = None
        config.use_default_external_input_parsers = False
        _make_private(directory)

        async def build() -> Any:
            builder = sdk.SdkBuilder(config, sdk.Seed.ENTROPY(seed))
            await builder.with_default_storage(str(directory))
            if context is not None:
                await builder.with_shared_context(context)
            return await builder.build()

        try:
            context = await self._shared_context() if server else None
            with trio.move_on_after(self.deadlines.connect):
                return await self.bridge.run(build)
        except sdk.SdkError as error:
            text = spark_errors.words(error)
            if "api key" in text.lower() or "base64" in text.lower() or "certificate" in text.lower():
                raise ConfigError("Spark does not take the API key that is set", KEY_HINT) from None
            raise spark_errors.before_sending(error, "opening the wallet") from None
        raise self._too_slow()

    def _too_slow(self) -> WalletUnreachable:
        return spark_errors.unreachable("opening the wallet", f"no answer within {self.deadlines.connect:.0f} s")

    async def _shared_context(self) -> Any:
        async with self._context_lock:
            if self._context is None:
                sdk = self.sdk
                config = sdk.SdkContextConfig(
                    network=getattr(sdk.Network, self.network.variant), api_key=self._api_key or None
                )
                with trio.move_on_after(self.deadlines.connect):
                    self._context = await self.bridge.run(sdk.new_shared_sdk_context, config)
                if self._context is None:
                    raise self._too_slow()
            return self._context


def _make_private(directory: Path) -> None:
    """What the SDK writes there is 0644; nobody else comes so far."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
