"""How an agent moves: out as a phrase or a sealed bundle, in from either.

The phrase alone is enough where relays have the rest: profile, schedule, triggers, and the state that the agent sealed
for itself. A bundle holds everything, also what woke it and waits, and needs no relay.

Whoever imports raises the *epoch*, and publishes it with the state: a runner that reads a higher epoch than its own
parks at once. What the wallet has done so far is booked as from outside: it was the former home's doing.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import cattrs
import orjson
import trio

from protocols.keys import SecretKey
from protocols.nip01 import Event, Filter, newer
from protocols.nip_sa import (
    PROFILE,
    SCHEDULE,
    STATE,
    AgentEventInvalid,
    Trigger,
    parse_profile,
    parse_schedule,
    parse_triggers,
)
from protocols.nip_sa_state import AgentState, parse_state
from pylon.errors import BundleError, ConfigError, UsageError
from pylon.host import bundle, registry, triggers
from pylon.host.agents import Agents, keys_of
from pylon.host.burn import Burn
from pylon.host.settings import MAX_NAME_CHARS, AgentSettings, check_name
from pylon.relays.pool import RelayPool
from pylon.store import inbox
from pylon.store.database import Tx

VERSION = 1
FETCH_SECONDS = 10.0
_BACKUP = "pylon agent backup 1 "

Tell = Callable[[str], Awaitable[None]]


@attrs.frozen
class Arrived:
    """What was found of an agent that has moved here."""

    agent: str
    profile: bool = False
    schedule: bool = False
    state: bool = False


# --- out ------------------------------------------------------------------------------------------------------


def pack(agents: Agents, agent_id: str) -> bytes:
    """Everything that an agent is, as JSON: to be sealed before it goes anywhere."""
    store, vault = agents.store, agents.store.vault
    with store.snapshot():
        agent = registry.load(store, agent_id)
        waiting = store.read(
            "SELECT id, kind, at, stranger, heard FROM triggers WHERE agent = ? AND tick IS NULL", (agent_id,)
        )
        taken = store.read("SELECT id FROM triggers WHERE agent = ? AND tick IS NOT NULL", (agent_id,))
        seen = store.read("SELECT event_id FROM inbox WHERE consumer = ?", (f"agent:{agent_id}",))
        value = {
            "version": VERSION,
            "phrase": registry.phrase(store, vault, agent_id),
            "epoch": agent.epoch,
            "ticks": agent.ticks,
            "settings": agent.settings.to_json(),
            "burn": _converter().unstructure(agent.burn),
            "state": registry.state(store, vault, agent_id).to_json(),
            "waiting": [
                {
                    "id": row["id"],
                    "kind": row["kind"],
                    "at": row["at"],
                    "stranger": row["stranger"],
                    "heard": vault.open(row["heard"], triggers.place(agent_id, row["id"])),
                }
                for row in waiting
            ],
            "taken": [row["id"] for row in taken],
            "seen": [row["event_id"] for row in seen],
        }
    return orjson.dumps(value)


async def export_bundle(agents: Agents, agent_id: str, passphrase: str) -> str:
    """A sealed bundle of one agent. Raises ``BundleError`` for a passphrase that is none."""
    payload = pack(agents, agent_id)
    # A third of a second of scrypt, on purpose: it must not keep the loop.
    now = agents.clock.now()
    return await trio.to_thread.run_sync(lambda: bundle.seal(passphrase, payload, now=now))


# --- in -------------------------------------------------------------------------------------------------------


async def import_phrase(
    agents: Agents, phrase: str, *, name: str | None, relays: tuple[str, ...], pool: RelayPool, tell: Tell
) -> Arrived:
    """Bring an agent here by its phrase. Raises ``IdentityError``, ``UsageError``."""
    secrets = keys_of(phrase)
    for url in relays:
        pool.add_relay(url)
    found = await _fetch(pool, secrets.nostr)
    profile, chosen = _read(found, secrets.nostr)
    mind = _state(found, secrets.nostr)
    await tell(_words(profile is not None, bool(found.get((SCHEDULE, "schedule"))), mind is not None))
    if mind is not None:
        chosen = registry.settings_in(mind) or chosen
    called = name or _named(profile.name if profile is not None else chosen.name)
    if called is None:
        raise UsageError(
            "the relays know no name for this agent that can be used here", "give one: pylon agent import --name NAME"
        )
    settings = attrs.evolve(chosen, name=called, relays=relays or chosen.relays)
    epoch = (mind.epoch if mind is not None else 0) + 1
    born = await agents.spawn(settings, phrase=phrase, mind=mind, epoch=epoch)
    return Arrived(born.agent.id, profile is not None, (SCHEDULE, "schedule") in found, mind is not None)


def back_up(agents: Agents, agent_id: str) -> str:
    """A copy of an agent for its own home alone: sealed with the home's data key, for no passphrase is at hand."""
    sealed = agents.store.vault.seal(pack(agents, agent_id).decode(), f"backup:{agent_id}")
    return f"{_BACKUP}{agent_id}\n{base64.b64encode(sealed).decode()}\n"


def _open_backup(agents: Agents, text: str) -> bytes:
    """What ``back_up`` sealed. Raises ``BundleError``, ``SealError``."""
    head, _, body = text.partition("\n")
    try:
        sealed = base64.b64decode(body.strip(), validate=True)
    except ValueError:
        raise BundleError("the backup is damaged", "use another copy of it") from None
    return agents.store.vault.open(sealed, f"backup:{head.removeprefix(_BACKUP)}").encode()


def is_backup(text: str) -> bool:
    """Whether this is what was written of an agent that was deleted: sealed with the home's own key."""
    return text.startswith(_BACKUP)


async def import_bundle(
    agents: Agents, text: str, passphrase: str, *, name: str | None, pool: RelayPool, tell: Tell
) -> Arrived:
    """Bring an agent here with everything it had: from a bundle, or a backup of this home, which wants no passphrase.

    Raises ``BundleError``, ``SealError``, ``UsageError``.
    """
    if is_backup(text):
        payload = _open_backup(agents, text)
    else:
        payload = await trio.to_thread.run_sync(bundle.open_bundle, text, passphrase)
    return await unpack(agents, payload, name=name, pool=pool, tell=tell)


async def unpack(agents: Agents, payload: bytes, *, name: str | None, pool: RelayPool | None, tell: Tell) -> Arrived:
    """The other half of ``pack``; what relays know that is newer counts more."""
    try:
        value = orjson.loads(payload)
        if value["version"] != VERSION:
            raise BundleError(f"the bundle has version {value['version']}, this Pylon reads {VERSION}", "upgrade Pylon")
        settings = AgentSettings.from_json(value["settings"])
        burn = _converter().structure(value["burn"], Burn)
        mind = AgentState.from_json(value["state"])
        phrase, epoch, ticks = str(value["phrase"]), int(value["epoch"]), int(value["ticks"])
        waiting, taken, seen = list(value["waiting"]), list(value["taken"]), list(value["seen"])
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(f"what the bundle holds does not read ({type(error).__name__})") from None
    secret = keys_of(phrase).nostr
    latest = None if pool is None else _state(await _fetch(pool, secret), secret)
    if latest is not None and (latest.epoch, latest.tick_count) > (epoch, mind.tick_count):
        await tell("the relays have a newer state than the bundle; that one counts")
        epoch, mind = max(epoch, latest.epoch), latest
    await tell("the bundle has profile, schedule, state and whatever waited")
    if name is not None:
        settings = attrs.evolve(settings, name=name)
    mind = attrs.evolve(mind, tick_count=max(ticks, mind.tick_count))
    born = await agents.spawn(settings, phrase=phrase, mind=mind, epoch=epoch + 1, burn=burn)
    agent_id = born.agent.id

    def job(tx: Tx) -> None:
        now = agents.clock.now()
        for entry in waiting:
            sealed = tx.vault.seal(str(entry["heard"]), triggers.place(agent_id, entry["id"]))
            tx.execute(
                "INSERT INTO triggers (agent, id, kind, at, stranger, heard) VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT DO NOTHING",
                (agent_id, entry["id"], entry["kind"], entry["at"], entry["stranger"], sealed),
            )
        for trigger in taken:
            sealed = tx.vault.seal("{}", triggers.place(agent_id, trigger))
            tx.execute(
                "INSERT INTO triggers (agent, id, kind, at, stranger, tick, heard) VALUES (?, ?, 'kind', ?, 1, ?, ?)"
                " ON CONFLICT DO NOTHING",
                (agent_id, trigger, now, "before the move", sealed),
            )
        for event in seen:
            inbox.take(tx, f"agent:{agent_id}", str(event), now)

    await agents.store.write(job)
    return Arrived(agent_id, True, True, True)


# --- what relays know -----------------------------------------------------------------------------------------


async def _fetch(pool: RelayPool, secret: SecretKey) -> dict[tuple[int, str], Event]:
    """The newest version of each of the agent's own events, by kind and ``d``."""
    wanted = Filter(authors=[secret.public.hex], kinds=[PROFILE, SCHEDULE, STATE])
    found: dict[tuple[int, str], Event] = {}
    for event in await pool.fetch([wanted], timeout=FETCH_SECONDS):
        key = (event.kind, event.d)
        found[key] = newer(found[key], event) if key in found else event
    return found


def _read(found: dict[tuple[int, str], Event], secret: SecretKey) -> tuple[Any, AgentSettings]:
    """Profile and settings, as far as the events tell them."""
    profile, changed = None, dict[str, Any]()
    try:
        if (PROFILE, "profile") in found:
            profile = parse_profile(found[PROFILE, "profile"])
            changed |= {
                "about": profile.about,
                "picture": profile.picture,
                "capabilities": profile.capabilities or ("general",),
                "autonomy": profile.autonomy,
            }
        if (SCHEDULE, "schedule") in found:
            heartbeat = parse_schedule(found[SCHEDULE, "schedule"]).heartbeat_seconds
            changed |= {} if heartbeat is None else {"heartbeat": min(heartbeat, 30 * 86_400)}
        if (SCHEDULE, "triggers") in found:
            wanted = parse_triggers(found[SCHEDULE, "triggers"])
            changed |= {
                "mentions": Trigger.MENTION in wanted.named,
                "dms": Trigger.DM in wanted.named,
                "zaps": Trigger.ZAP in wanted.named,
                "kinds": tuple(sorted(wanted.kinds)),
            }
    except AgentEventInvalid:
        pass
    return profile, attrs.evolve(AgentSettings(name="unnamed"), **changed)


def _state(found: dict[tuple[int, str], Event], secret: SecretKey) -> AgentState | None:
    event = found.get((STATE, "state"))
    if event is None:
        return None
    try:
        return parse_state(event, secret)
    except AgentEventInvalid:
        return None


def _named(text: str) -> str | None:
    """A profile's name, as a name here."""
    name = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in text.lower())
    try:
        return check_name(name.strip("._-")[:MAX_NAME_CHARS].strip("._-"))
    except ConfigError:
        return None


def _words(profile: bool, schedule: bool, state: bool) -> str:
    said = [name for name, there in (("profile", profile), ("schedule", schedule), ("state", state)) if there]
    return f"on the relays: {', '.join(said) or 'nothing of this agent'}"


def _converter() -> cattrs.Converter:
    return cattrs.Converter(forbid_extra_keys=False)
