"""What wakes an agent, from event to row.

``understand`` is pure: an event in, what was heard out, or nothing. The rest keeps it in the table ``triggers``, where
it waits for a tick that takes it.

Rules
-----
1. Nothing is heard but what the operator has switched on, what names the agent, and what is not its own. Notes (kind
   1), messages (4, 1059) and zaps (9735) have a switch each; naming their kinds among others opens no second door.
2. What cannot be opened or does not check is nothing, and not worth a word in the log: anybody may send any number.
   Sizes are looked at before anything is decrypted or verified. Text is a stranger's: cut, and never obeyed here.
3. One thing is heard once, under an id that does not depend on how it came: a message by its rumor, however often it
   was wrapped; a zap by its request, however many receipts tell of it, and however often others pay for that request
   again, which its receipt has made public.
4. What was taken by a tick is never taken by another, unless that tick was abandoned. Rows outlive all that relays may
   send again.
5. At most ``MAX_WAITING`` wait for one agent. When they are so many, a stranger's newcomer is turned away: what came
   first stays, so that no flood washes out what was there before it, and what was noted once is a promise. Somebody
   known takes the place of the stranger's that came last. Whatever is turned away or loses its place is counted.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Iterable

import attrs
import cattrs
import orjson

from protocols import nip04, nip10, nip17, nip40, nip57, nip59
from protocols.keys import SecretKey
from protocols.nip01 import Event
from pylon.errors import SealError
from pylon.host.schedule import Trigger, TriggerKind
from pylon.host.settings import AgentSettings
from pylon.money import Msat
from pylon.store import settings as kept
from pylon.store.database import Reads, Tx
from pylon.store.vault import Vault

log = logging.getLogger(__name__)

MAX_TEXT_CHARS = 2_000
MAX_NOTE_CHARS = 16_384
"""Of a note's JSON that is kept to answer it. What is longer is kept without its words."""
MAX_SEALED_CHARS = 65_536
"""Of what is decrypted: a message of some 30 kB."""
MAX_RECEIPT_CHARS = 65_536
"""Of a zap receipt's tags."""
LATE_SECONDS = 7 * 86_400
EARLY_SECONDS = 900
"""How old, and how far ahead of our clock, what is heard may be."""

MAX_WAITING = 1_000
KEEP_SECONDS = 30 * 86_400.0
"""How long what was taken is remembered: longer than any subscription looks back."""

_MAX_RELAY_CHARS = 300
_MAX_D_CHARS = 300


@attrs.frozen(kw_only=True)
class Heard:
    """What an agent is to know of something that woke it."""

    id: str
    """Of a note or named kind and of an old message (kind 4) the event's; of a message (NIP-17) its rumor's; of a zap
    its request's; of own funds the payment's."""
    kind: TriggerKind
    event_id: str
    """Of what came over the wire; empty: nothing did."""
    event_kind: int
    author: str
    """Public key, hex: who wrote, or zapped; empty: nobody knows."""
    text: str = attrs.field(repr=False)
    """At most ``MAX_TEXT_CHARS``."""
    created_at: int
    """As its author says, Unix seconds."""
    amount_msats: int | None = None
    """Of a zap, and of own funds."""
    event: str = attrs.field(default="", repr=False)
    """JSON of a public event that may be answered (NIP-10, NIP-25); its words may be missing. Empty: none is kept."""
    relay: str = ""
    """Where it came from."""


# --- from event to meaning ------------------------------------------------------------------------------------


def understand(
    event: Event,
    *,
    secret: SecretKey,
    settings: AgentSettings,
    zap_signer: str,
    invoice_prefix: str,
    now: float,
    relay: str = "",
) -> Heard | None:
    """What a verified event tells the agent whose key ``secret`` is; ``None``: nothing that should wake it.

    ``zap_signer`` (hex) is the key that signs receipts of the agent's LNURL service, ``invoice_prefix`` its network
    (``protocols.bolt11``). Raises nothing, whatever the event.
    """
    agent = secret.public.hex
    if event.pubkey == agent or not nip10.mentions(event, agent) or nip40.is_expired(event, now):
        return None
    match event.kind:
        case nip10.KIND:
            heard = _note(event, TriggerKind.MENTION, agent) if settings.mentions else None
        case nip59.GIFT_WRAP:
            heard = _message(event, secret) if settings.dms else None
        case nip04.KIND:
            heard = _old_message(event, secret) if settings.dms else None
        case nip57.RECEIPT:
            heard = _zap(event, agent, zap_signer, invoice_prefix) if settings.zaps else None
        case kind:
            heard = _note(event, TriggerKind.KIND, agent) if kind in settings.kinds else None
    if heard is None or not now - LATE_SECONDS <= heard.created_at <= now + EARLY_SECONDS:
        return None
    return attrs.evolve(heard, relay=relay[:_MAX_RELAY_CHARS])


def of_payment(*, payment_id: str, amount: Msat, at: float, text: str = "") -> Heard:
    """Own funds: a payment that reached the agent's wallet and is no zap. Nobody knows whose it is."""
    return Heard(
        # Apart from what is called by a hash alone.
        id=f"payment:{payment_id}",
        kind=TriggerKind.FUNDS,
        event_id="",
        event_kind=0,
        author="",
        text=text[:MAX_TEXT_CHARS],
        created_at=int(at),
        amount_msats=amount,
    )


def is_stranger(author: str, settings: AgentSettings, operator: str) -> bool:
    """Whether ``author`` (hex) is neither the operator nor trusted. Nobody (empty) is a stranger."""
    return not author or (author != operator and author not in settings.trusted)


def _note(event: Event, kind: TriggerKind, agent: str) -> Heard:
    return Heard(
        id=event.id,
        kind=kind,
        event_id=event.id,
        event_kind=event.kind,
        author=event.pubkey,
        text=event.content[:MAX_TEXT_CHARS],
        created_at=event.created_at,
        event=_answerable(event, agent),
    )


def _message(event: Event, secret: SecretKey) -> Heard | None:
    if len(event.content) > MAX_SEALED_CHARS:
        return None
    try:
        message = nip17.open_message(event, secret)
    except nip17.MessageInvalid:
        return None
    if message.sender == secret.public.hex:
        return None
    return Heard(
        id=message.id,
        kind=TriggerKind.DM,
        event_id=event.id,
        event_kind=event.kind,
        author=message.sender,
        text=message.text[:MAX_TEXT_CHARS],
        created_at=message.created_at,
    )


def _old_message(event: Event, secret: SecretKey) -> Heard | None:
    if len(event.content) > MAX_SEALED_CHARS:
        return None
    try:
        message = nip04.open_message(event, secret)
    except nip04.Nip04Error:
        return None
    return Heard(
        id=event.id,
        kind=TriggerKind.DM,
        event_id=event.id,
        event_kind=event.kind,
        author=event.pubkey,
        text=message.text[:MAX_TEXT_CHARS],
        created_at=event.created_at,
    )


def _zap(event: Event, agent: str, zap_signer: str, invoice_prefix: str) -> Heard | None:
    if sum(len(entry) for tag in event.tags for entry in tag) > MAX_RECEIPT_CHARS:
        return None
    try:
        receipt = nip57.check_receipt(event, nostr_pubkey=zap_signer, recipient=agent, prefix=invoice_prefix)
    except nip57.ZapInvalid:
        return None
    if receipt.sender == agent:
        return None
    return Heard(
        id=receipt.request.id,
        kind=TriggerKind.ZAP,
        event_id=event.id,
        event_kind=event.kind,
        author=receipt.sender,
        text=receipt.comment[:MAX_TEXT_CHARS],
        # Who has signed an old request has zapped long ago, whoever pays for it now.
        created_at=min(receipt.created_at, receipt.request.created_at),
        amount_msats=receipt.amount_msats,
    )


def _answerable(event: Event, agent: str) -> str:
    """The event's JSON. One that is too long keeps what an answer repeats: thread, people and address."""
    text = event.to_json()
    if len(text) <= MAX_NOTE_CHARS:
        return text
    thread = nip10.parse_thread(event)
    marked = ((thread.root, "root"), (thread.reply_to, "reply"))
    tags: list[tuple[str, ...]] = [
        ("e", found.id, found.relay if len(found.relay) <= _MAX_RELAY_CHARS else "", marker, found.author or "")
        for found, marker in marked
        if found is not None
    ]
    tags += [("p", key) for key in dict.fromkeys([*thread.participants[: nip10.MAX_PARTICIPANTS], agent])]
    tags += [("d", event.d)] if 0 < len(event.d) <= _MAX_D_CHARS else []
    return attrs.evolve(event, content="", tags=tuple(tags)).to_json()


# --- what waits -----------------------------------------------------------------------------------------------


def note(tx: Tx, vault: Vault, agent: str, heard: Heard, *, at: float, stranger: bool) -> bool:
    """Have ``heard`` wait for a tick. False if it is known, whether a tick has taken it or not, or turned away.

    ``at``: wall time at which it came. Wakes the listeners of ``triggers:<agent>``.
    """
    if tx.one("SELECT 1 FROM triggers WHERE agent = ? AND id = ?", (agent, heard.id)) is not None:
        return False
    row = tx.one("SELECT COUNT(*) AS n FROM triggers WHERE agent = ? AND tick IS NULL", (agent,))
    if row is not None and row["n"] >= MAX_WAITING:
        _count_dropped(tx, agent)
        if stranger or not _drop_latest_stranger(tx, agent):
            return False
    tx.execute(
        "INSERT INTO triggers (agent, id, kind, at, stranger, tick, heard) VALUES (?, ?, ?, ?, ?, NULL, ?)",
        (agent, heard.id, heard.kind.value, at, stranger, vault.seal(_dump(heard), place(agent, heard.id))),
    )
    tx.touch(f"triggers:{agent}")
    return True


def pending(source: Reads, agent: str, limit: int = MAX_WAITING) -> tuple[Trigger, ...]:
    """What no tick has taken, oldest first.

    Where there is more than ``limit``, strangers' are left out first: those who are known must be heard, however many
    strangers wait for their budget.
    """
    rows = source.read(
        "SELECT id, kind, at, stranger FROM triggers WHERE agent = ? AND tick IS NULL"
        " ORDER BY stranger, at, id LIMIT ?",
        (agent, limit),
    )
    found = [Trigger(row["id"], TriggerKind(row["kind"]), row["at"], bool(row["stranger"])) for row in rows]
    return tuple(sorted(found, key=lambda trigger: (trigger.at, trigger.id)))


def take(tx: Tx, agent: str, ids: Iterable[str], tick: str) -> None:
    """Give what waits to a tick. What another has taken stays with that one."""
    for name in ids:
        tx.execute("UPDATE triggers SET tick = ? WHERE agent = ? AND id = ? AND tick IS NULL", (tick, agent, name))


def release(tx: Tx, agent: str, tick: str) -> None:
    """A tick was abandoned: what it had taken waits again, beyond ``MAX_WAITING`` too."""
    done = tx.execute("UPDATE triggers SET tick = NULL WHERE agent = ? AND tick = ?", (agent, tick))
    if done.rowcount:
        tx.touch(f"triggers:{agent}")


def heard(source: Reads, vault: Vault, ids: Collection[str], agent: str) -> list[Heard]:
    """What is kept under these ids, oldest first. What does not open is left out, and named in the log."""
    rows = source.read(
        "SELECT id, heard FROM triggers WHERE agent = ? AND id IN (SELECT value FROM json_each(?)) ORDER BY at, id",
        (agent, orjson.dumps(list(ids)).decode()),
    )
    found = []
    for row in rows:
        try:
            found.append(_load(vault.open(row["heard"], place(agent, row["id"])), place(agent, row["id"])))
        except SealError as error:
            log.error("left out: %s", error.message)
    return found


def dropped(source: Reads, agent: str) -> int:
    """How many triggers of an agent were turned away, or lost their place, because too many waited."""
    return int(kept.get(source, _counter(agent)) or 0)


def prune(tx: Tx, before: float, limit: int = -1) -> int:
    """Forget what was taken and came before this time, at most ``limit``; returns how many. Keep ``KEEP_SECONDS``."""
    return tx.execute(
        "DELETE FROM triggers WHERE rowid IN (SELECT rowid FROM triggers WHERE tick IS NOT NULL AND at < ? LIMIT ?)",
        (before, limit),
    ).rowcount


def _drop_latest_stranger(tx: Tx, agent: str) -> bool:
    done = tx.execute(
        "DELETE FROM triggers WHERE agent = ? AND id = (SELECT id FROM triggers WHERE agent = ? AND tick IS NULL"
        " AND stranger = 1 ORDER BY at DESC, id DESC LIMIT 1)",
        (agent, agent),
    )
    return done.rowcount == 1


def _count_dropped(tx: Tx, agent: str) -> None:
    count = dropped(tx, agent) + 1
    kept.put(tx, _counter(agent), str(count))
    # Said ever more rarely: a flood must not fill the log.
    if count & (count - 1) == 0:
        log.warning("agent %s: %d wait, more are not heard; %d so far", agent[:16], MAX_WAITING, count)


def _counter(agent: str) -> str:
    return f"triggers.dropped:{agent}"


def place(agent: str, name: str) -> str:
    """What a trigger's words are sealed for."""
    return f"triggers.heard:{agent}:{name}"


def _dump(value: Heard) -> str:
    return orjson.dumps(_converter().unstructure(value)).decode()


def _load(text: str, place: str) -> Heard:
    try:
        return _converter().structure(orjson.loads(text), Heard)
    except Exception as error:
        # The converter's texts quote values, which are people's words.
        raise SealError(f"what was heard at {place} does not read ({type(error).__name__})") from None


@functools.cache
def _converter() -> cattrs.Converter:
    return cattrs.Converter(forbid_extra_keys=False)
