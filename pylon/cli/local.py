"""Running a verb: by the daemon if there is one, else here, under the home's lock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pylon.cli.client import Progress, call
from pylon.cli.output import State, note, warn
from pylon.cli.unlock import unlock
from pylon.errors import IdentityError, NotRunning


def run_verb(
    state: State,
    verb: str,
    params: Mapping[str, Any] | None = None,
    *,
    online: bool = False,
    on_progress: Progress | None = None,
    timeout: float | None = 10.0,
) -> Any:
    """The result of a verb. ``online``: without a daemon it needs relays and wallet for as long as it takes."""
    try:
        return call(state.home, verb, params, on_progress=on_progress, timeout=timeout)
    except NotRunning:
        pass
    if online and not state.json and state.home.mnemonic.exists():
        note("no daemon is running; doing it here, until it is done")

    import trio

    return trio.run(_run_here, state, verb, dict(params or {}), online, on_progress)


async def _run_here(state: State, verb: str, params: dict[str, Any], online: bool, on_progress: Progress | None) -> Any:
    import random
    from contextlib import AsyncExitStack

    from pylon import config as configuration
    from pylon.clock import SystemClock
    from pylon.daemon.agents import AgentVerbs
    from pylon.daemon.hosting import assemble, usual_relays
    from pylon.daemon.process import hold_home
    from pylon.daemon.runtime import open_home_store, open_runtime
    from pylon.daemon.verbs import Verbs
    from pylon.daemon.wallets import open_wallets
    from pylon.wallets.purse import Purse

    loaded = configuration.load(state.home.config)
    warn(loaded.warnings)
    if not state.home.mnemonic.exists():
        raise IdentityError(f"there is no identity in {state.home.data}", "pylon init --network simnet")
    config, clock = loaded.config, SystemClock()

    async def notify(method: str, data: Any) -> None:
        if on_progress is not None:
            on_progress(method, data)

    async with AsyncExitStack() as stack:
        stack.enter_context(hold_home(state.home))
        keys = unlock(state)  # whoever has to be asked is: nothing runs yet that would have to wait
        if online:
            mode = "host" if verb == "agent.tick" else "buyer"
            runtime = await stack.enter_async_context(
                open_runtime(state.home, config, mode=mode, clock=clock, keys=keys)
            )
            verbs = Verbs.of(runtime)
        else:
            identity = keys.identity
            store = await stack.enter_async_context(open_home_store(state.home, config, clock, keys))
            wallets = await stack.enter_async_context(open_wallets(state.home, config, identity, clock))
            if config.wallet.kind == "nwc":
                from pylon.daemon.nwc_home import open_nwc_wallet

                opened = open_nwc_wallet(wallets, state.home, config, store, clock, random.Random(), check=False)
                wallets = await stack.enter_async_context(opened)
            hosting = assemble(
                config,
                identity,
                store,
                wallets.keeper,
                clock,
                random.Random(),
                relays=lambda: usual_relays(config),
            )
            wallets.learn_seeds(hosting.agents.seed_of_wallet)
            agents = AgentVerbs(state.home, config, hosting, Purse(wallets.own, store, clock))
            verbs = Verbs(config, clock, store, wallets.own, agents=agents)
        return await verbs.table()[verb](params, notify)
