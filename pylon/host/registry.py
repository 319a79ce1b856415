"""The rows of the agents: who there is, what its operator has set, what it holds in mind.

Functions over the store and nothing else; whoever changes an agent does so through ``pylon.host.agents``. Names are
unique among those that are not deleted; a deleted agent keeps its row and its keys, for money may come late.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs
import orjson

from protocols.keys import PublicKey, SecretKey
from protocols.nip19 import Nip19Error, decode_public_key, encode_npub
from protocols.nip_sa import to_json, to_object
from protocols.nip_sa_state import AgentState, Goal
from pylon.errors import ConfigError, NotFound, SealError, UsageError
from pylon.host.burn import Burn, Span
from pylon.host.lifecycle import LIFECYCLE, Lifecycle, LifecycleState
from pylon.host.settings import AgentSettings
from pylon.money import Msat
from pylon.store.database import Reads, Store, Tx
from pylon.store.records import RecordTable
from pylon.store.vault import STAMP_BYTES, Vault

STOPPED = "stopped"
PAUSED = "paused"
RESTORED = "restored:"
"""In ``pylon.store.settings``, before the id of an agent that came from a backup of the home, until relays know."""
SETTINGS = "settings"
"""The field of a state in which they stand."""
SHORTEST_PREFIX = 8
"""Hex digits that name an agent."""

_COLUMNS = (
    "id, name, created_at, wallet, epoch, instance, paused, moved, deleted_at, ticks, quiet, beat, last_error,"
    " settings, burn"
)


@attrs.frozen
class Agent:
    """One row, without its secrets."""

    id: str
    """Public key, hex."""
    name: str
    created_at: float
    wallet: str
    """The public id of its wallet."""
    epoch: int
    """How often it has moved; a runner that sees a higher one parks."""
    instance: str
    """The runner's own name, told in the state that it publishes."""
    paused: str
    """``paused``, ``stopped``, or empty."""
    moved: str
    """Who runs it now, in words; empty: we do."""
    deleted_at: float | None
    ticks: int
    """All that were run, quiet ones included."""
    quiet: int
    beat: float | None
    """When the next heartbeat is due."""
    last_error: str
    """Id of the last tick that thought, if it has failed; why, stands in its record."""
    settings: AgentSettings
    burn: Burn

    @property
    def npub(self) -> str:
        return _npub(self.id)

    @property
    def may_run(self) -> bool:
        """Whether this home runs it at all, whatever its balance."""
        return not self.paused and not self.moved and self.deleted_at is None


@attrs.frozen(repr=False, eq=False)
class Keys:
    """What an agent signs and pays with. Its repr is blank."""

    nostr: SecretKey
    wallet: SecretKey

    def __repr__(self) -> str:
        return "Keys(…)"


# --- reading --------------------------------------------------------------------------------------------------


def load(source: Reads, agent_id: str) -> Agent:
    """Raises ``NotFound``."""
    row = source.one(f"SELECT {_COLUMNS} FROM agents WHERE id = ?", (agent_id,))
    if row is None:
        raise NotFound(f"there is no agent {agent_id[:16]}", "pylon agent list")
    return _agent(row)


def beat(source: Reads, agent_id: str) -> float | None:
    """When the next heartbeat is due, as far as it is known."""
    row = source.one("SELECT beat FROM agents WHERE id = ?", (agent_id,))
    return None if row is None else row["beat"]


def by_name(source: Reads, name: str) -> Agent | None:
    row = source.one(f"SELECT {_COLUMNS} FROM agents WHERE name = ?", (name,))
    return None if row is None else _agent(row)


def find(source: Reads, text: str) -> Agent:
    """By name, npub, hex, or at least 8 digits of it. Raises ``NotFound``, ``UsageError``."""
    named = by_name(source, text)
    if named is not None:
        return named
    if text.startswith("npub1"):
        try:
            return load(source, decode_public_key(text).hex)
        except (Nip19Error, ValueError):
            raise UsageError(f"{text[:80]!r} is no npub", "pylon agent list") from None
    if len(text) >= SHORTEST_PREFIX and not text.lower().strip("0123456789abcdef"):
        rows = source.read(
            f"SELECT {_COLUMNS} FROM agents WHERE id LIKE ? AND deleted_at IS NULL LIMIT 2", (text.lower() + "%",)
        )
        if len(rows) == 2:
            raise UsageError(f"more than one agent's key begins with {text}", "give more digits of it, or the name")
        if rows:
            return _agent(rows[0])
    raise NotFound(f"there is no agent {text[:80]!r}", "pylon agent list")


def everybody(source: Reads, limit: int | None = None) -> Iterator[Agent]:
    """All that are not deleted, oldest first; or so many of them."""
    rows = source.read(
        f"SELECT {_COLUMNS} FROM agents WHERE deleted_at IS NULL ORDER BY created_at, id LIMIT ?",
        (-1 if limit is None else limit,),
    )
    return map(_agent, rows)


def count_by_state(source: Reads) -> dict[str, int]:
    """How many agents are in each state, of those that are not deleted."""
    rows = source.read(
        "SELECT l.state, COUNT(*) AS n FROM agents a JOIN lifecycles l ON l.id = a.id WHERE a.deleted_at IS NULL"
        " GROUP BY l.state ORDER BY l.state"
    )
    return {row["state"]: row["n"] for row in rows}


def lifecycles(source: Reads, agents: Iterable[Agent]) -> dict[str, Lifecycle]:
    """The lifecycles of many, from what stands beside the sealed records. Raises ``NotFound``."""
    known = {agent.id: agent for agent in agents}
    rows = source.read(
        "SELECT id, state, balance_msats, burn_msats, created_at FROM lifecycles"
        " WHERE id IN (SELECT value FROM json_each(?))",
        (orjson.dumps(list(known)).decode(),),
    )
    found = {
        row["id"]: Lifecycle(
            id=row["id"],
            created_at=row["created_at"],
            state=LifecycleState(row["state"]),
            balance=Msat(row["balance_msats"]),
            burn=Msat(row["burn_msats"]),
            settings=known[row["id"]].settings.lifecycle,
        )
        for row in rows
    }
    for name in known.keys() - found.keys():
        raise NotFound(f"agent {name[:16]} has no lifecycle", "restore a backup of the home")
    return found


def summaries(source: Reads, names: Sequence[str]) -> dict[str, sqlite3.Row]:
    """Of many agents: the ``goals`` that are active, the ``approvals`` waited for, when the ``last_tick`` began.

    ``pays``: whether it has ever begun to pay anything.
    """
    rows = source.read(
        "SELECT a.id, COALESCE((SELECT goals FROM agent_states s WHERE s.agent = a.id), 0) AS goals,"
        " (SELECT created_at FROM ticks t WHERE t.agent = a.id ORDER BY n DESC LIMIT 1) AS last_tick,"
        " (SELECT COUNT(*) FROM actions c WHERE c.agent = a.id AND c.state = 'waiting') AS approvals,"
        " EXISTS (SELECT 1 FROM intents i WHERE i.owner = a.id) AS pays"
        " FROM agents a WHERE a.id IN (SELECT value FROM json_each(?))",
        (orjson.dumps(list(names)).decode(),),
    )
    return {row["id"]: row for row in rows}


def keys(source: Reads, vault: Vault, agent_id: str) -> Keys:
    """Raises ``NotFound``, ``SealError``."""
    row = source.one("SELECT keys FROM agents WHERE id = ?", (agent_id,))
    if row is None:
        raise NotFound(f"there is no agent {agent_id[:16]}", "pylon agent list")
    value = orjson.loads(vault.open(row["keys"], f"agents.keys:{agent_id}"))
    return Keys(SecretKey.from_hex(value["nostr"]), SecretKey.from_hex(value["wallet"]))


def phrase(source: Reads, vault: Vault, agent_id: str) -> str:
    """For one who asked for it by name. Raises ``NotFound``, ``SealError``."""
    row = source.one("SELECT phrase FROM agents WHERE id = ?", (agent_id,))
    if row is None:
        raise NotFound(f"there is no agent {agent_id[:16]}", "pylon agent list")
    return vault.open(row["phrase"], f"agents.phrase:{agent_id}")


def phrase_of_wallet(source: Reads, vault: Vault, wallet: str) -> str | None:
    """The phrase of the agent with this wallet; ``None`` where no agent has it. Raises ``SealError``."""
    row = source.one("SELECT id FROM agents WHERE wallet = ?", (wallet,))
    return None if row is None else phrase(source, vault, row["id"])


def state(source: Reads, vault: Vault, agent_id: str) -> AgentState:
    """What it holds in mind. Raises ``SealError``."""
    return _state(source, vault, agent_id, lambda text: text)


def goals(source: Reads, vault: Vault, agent_id: str) -> tuple[Goal, ...]:
    """The goals of ``state`` alone, for a tenth of its price: most of a state is memories. Raises ``SealError``."""
    return _state(source, vault, agent_id, lambda text: to_json({"goals": to_object(text).get("goals")})).goals


def _state(source: Reads, vault: Vault, agent_id: str, part: Callable[[str], str]) -> AgentState:
    row = source.one("SELECT state FROM agent_states WHERE agent = ?", (agent_id,))
    if row is None:
        return AgentState()
    try:
        return AgentState.from_json(part(vault.open(row["state"], f"agent_states.state:{agent_id}")))
    except ValueError:
        raise SealError(f"the state of agent {agent_id[:16]} does not read", "restore a backup of the home") from None


def state_stamp(source: Reads, agent_id: str) -> bytes:
    """Which writing of its state is there: read without opening it, and another one each time that it is written."""
    row = source.one("SELECT substr(state, 1, ?) AS stamp FROM agent_states WHERE agent = ?", (STAMP_BYTES, agent_id))
    return b"" if row is None else bytes(row["stamp"])


# --- writing --------------------------------------------------------------------------------------------------


def insert(tx: Tx, agent: Agent, secrets: Keys, words: str) -> None:
    """Write a new agent down. Raises ``UsageError`` where the name, the key or the wallet is there already."""
    taken = tx.one("SELECT name, moved, deleted_at FROM agents WHERE id = ? OR wallet = ?", (agent.id, agent.wallet))
    if taken is not None and taken["deleted_at"] is None and not taken["moved"]:
        raise UsageError(f"this agent is here already, as {taken['name']!r}", f"pylon agent info {taken['name']}")
    other = by_name(tx, agent.name)
    if other is not None and other.id != agent.id:
        raise UsageError(f"there is an agent called {agent.name!r} already", "give another name")
    sealed = orjson.dumps({"nostr": secrets.nostr.reveal().hex(), "wallet": secrets.wallet.reveal().hex()}).decode()
    # An agent that was deleted here, or has moved away, and comes back takes its old row.
    tx.execute("DELETE FROM agents WHERE id = ?", (agent.id,))
    tx.execute(
        "INSERT INTO agents (id, name, created_at, wallet, epoch, instance, paused, moved, ticks, quiet, beat,"
        " settings, burn, keys, phrase) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(agent.id, agent.name, agent.created_at, agent.wallet, agent.epoch, agent.instance, agent.paused),
            *(agent.moved, agent.ticks, agent.quiet, agent.beat, agent.settings.to_json(), _burn_json(agent.burn)),
            tx.vault.seal(sealed, f"agents.keys:{agent.id}"),
            tx.vault.seal(words, f"agents.phrase:{agent.id}"),
        ),
    )


def save_settings(tx: Tx, agent_id: str, settings: AgentSettings) -> None:
    """The name is one of them: raises ``UsageError`` where another agent has it."""
    other = by_name(tx, settings.name)
    if other is not None and other.id != agent_id:
        raise UsageError(f"there is an agent called {settings.name!r} already", "give another name")
    tx.execute("UPDATE agents SET settings = ?, name = ? WHERE id = ?", (settings.to_json(), settings.name, agent_id))


def with_settings(mind: AgentState, settings: AgentSettings) -> AgentState:
    """A state that tells, sealed, what its operator has set: whoever has the phrase can run the agent as it was."""
    return attrs.evolve(mind, extra={**mind.extra, SETTINGS: orjson.loads(settings.to_json())})


def settings_in(mind: AgentState) -> AgentSettings | None:
    """What the operator had set, where the state tells it and it reads."""
    try:
        return AgentSettings.from_json(orjson.dumps(mind.extra[SETTINGS]).decode())
    except (KeyError, ConfigError, orjson.JSONEncodeError):
        return None


def save_state(tx: Tx, agent_id: str, state: AgentState) -> None:
    sealed = tx.vault.seal(state.to_json(), f"agent_states.state:{agent_id}")
    goals = sum(goal.status == "active" for goal in state.goals)
    tx.execute(
        "INSERT INTO agent_states (agent, updated_at, goals, state) VALUES (?, ?, ?, ?) ON CONFLICT (agent) DO UPDATE"
        " SET updated_at = excluded.updated_at, goals = excluded.goals, state = excluded.state",
        (agent_id, tx.clock.now(), goals, sealed),
    )


def save_burn(tx: Tx, agent_id: str, burn: Burn) -> None:
    tx.execute("UPDATE agents SET burn = ? WHERE id = ?", (_burn_json(burn), agent_id))


def lifecycle_records(store: Store) -> RecordTable[Lifecycle]:
    """The table of lifecycles."""
    return RecordTable(
        LIFECYCLE,
        Lifecycle,
        "lifecycles",
        store.vault,
        lambda record: {"balance_msats": record.balance, "burn_msats": record.burn},
    )


def _agent(row: sqlite3.Row) -> Agent:
    return Agent(
        id=row["id"],
        name=row["name"] or "",
        created_at=row["created_at"],
        wallet=row["wallet"],
        epoch=row["epoch"],
        instance=row["instance"],
        paused=row["paused"],
        moved=row["moved"],
        deleted_at=row["deleted_at"],
        ticks=row["ticks"],
        quiet=row["quiet"],
        beat=row["beat"],
        last_error=row["last_error"],
        settings=AgentSettings.from_json(row["settings"]),
        burn=_burn(row["burn"]),
    )


@functools.lru_cache(16_384)
def _npub(agent_id: str) -> str:
    return encode_npub(PublicKey.from_hex(agent_id))


def _burn_json(burn: Burn) -> str:
    """As lists: this is written with every tick, and read with every row."""
    normal, triggered = (
        [(span.seconds, span.ticks, span.cost) for span in spans] for spans in (burn.normal, burn.triggered)
    )
    return orjson.dumps((burn.heartbeat, burn.last_at, normal, triggered)).decode()


def _burn(text: str) -> Burn:
    heartbeat, last_at, normal, triggered = orjson.loads(text)
    return Burn(heartbeat, last_at, tuple(Span(*span) for span in normal), tuple(Span(*span) for span in triggered))
