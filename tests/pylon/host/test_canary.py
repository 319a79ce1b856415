"""Canaries: words and keys that must not turn up where they do not belong, looked for byte by byte.

What is private: phrases and keys; prompts, thoughts, memories, goals and private messages, in both directions. Looked
into: every page of the database, the log at its most talkative, what is on the relay, what stands in tracebacks and
representations, and what every verb answers.
"""

from __future__ import annotations

import base64
import json
import logging
from contextlib import suppress

import orjson
import pytest
import trio

from protocols import nip04, nip17
from protocols.keys import PublicKey, SecretKey
from protocols.nip01 import Filter, sign_event
from protocols.nip19 import encode_npub, encode_nsec
from protocols.nip90 import FeedbackStatus, build_feedback
from protocols.nip_sa import Autonomy
from pylon import config as configuration
from pylon import identity
from pylon.clock import SystemClock
from pylon.config import Config
from pylon.daemon.agents import AgentVerbs
from pylon.daemon.hosting import Hosting
from pylon.daemon.logs import start_logging
from pylon.daemon.runtime import open_runtime
from pylon.daemon.verbs import Verbs
from pylon.daemon.withdrawals import Withdrawals
from pylon.errors import PylonError
from pylon.host import registry
from pylon.host.settings import ActionKind, Grant
from pylon.money import sats
from pylon.paths import Home
from pylon.testing.backend import ScriptedBackend
from pylon.wallets.purse import Purse
from tests.pylon.host.world import open_world, reply, settings, until

FRIEND = SecretKey(b"\x0c" * 32)
CANARIES = {
    "goal": "canary-goal-7d1f",
    "memory": "canary-memory-52ab",
    "message": "canary-message-e930",
    "old message": "canary-oldmessage-1c4d",
    "mention": "canary-mention-55ee",
    "thought": "canary-thought-b7c2",
    "note": "canary-note-9a60",
    "answer": "canary-answer-03fd",
    "refusal": "canary-refusal-c81e",
    "nonsense": "canary-nonsense-4f77",
}
PUBLIC = frozenset({"mention", "refusal"})
"""Those that others have said in public."""
ANSWER = reply(
    {"do": "dm", "to": encode_npub(FRIEND.public), "text": CANARIES["answer"]},
    {"do": "add_memory", "text": CANARIES["note"]},
    {"do": "request_payment", "to": encode_npub(FRIEND.public), "sats": 5},
    {"do": "zap", "to": encode_npub(FRIEND.public), "sats": 1},
    {"do": "update_goal", "goal": "g1", "progress": 10, "text": CANARIES["note"]},
    thought=CANARIES["thought"],
)


def spelled(text: str) -> set[bytes]:
    """A text in the forms in which it would be stored or logged by mistake."""
    raw = text.encode()
    coded = base64.b64encode(raw).rstrip(b"=")[:-1], raw.hex().encode(), repr(text)[1:-1].encode()
    return {raw, text.upper().encode(), *coded}


def of_key(secret: SecretKey) -> set[bytes]:
    raw = secret.reveal()
    return {raw, base64.b64encode(raw).rstrip(b"=")[:-1], *spelled(raw.hex()), *spelled(encode_nsec(secret))}


def of_phrase(phrase: str) -> set[bytes]:
    words = phrase.split()
    return {*spelled(phrase), " ".join(words[:4]).encode(), json.dumps(words).encode(), ",".join(words).encode()}


def found_in(data: bytes, forms: dict[str, set[bytes]]) -> list[str]:
    return [name for name, ways in forms.items() if any(way in data for way in ways)]


def words_of(*names: str) -> dict[str, set[bytes]]:
    return {name: spelled(CANARIES[name]) for name in names or CANARIES}


async def test_a_hostile_world(autojump_clock, tmp_path, caplog):
    """Providers that quote the prompt when they refuse, replies that do not read, services that break, dead wallets."""
    caplog.set_level(logging.DEBUG)

    async def broken_service(agent, secret, to, amount, comment, note):
        raise RuntimeError(f"{CANARIES['goal']} {secret.reveal().hex()}")

    answers = [ANSWER, CANARIES["nonsense"] + "{", reply({"do": CANARIES["nonsense"]}), ANSWER, None]
    grants = (Grant(action=ActionKind.ZAP, each=sats(5), day=sats(9), strangers=True),)
    async with open_world(tmp_path, *answers, zap_invoice=broken_service) as world:
        chosen = settings(autonomy=Autonomy.AUTONOMOUS, grants=grants, heartbeat=900)
        agent = await world.spawn(chosen, goals=[CANARIES["goal"]], funds=3_000)
        await world.agents.remind(agent, remembering)
        keys = world.agents.keys(agent)
        phrase = registry.phrase(world.store, world.store.vault, agent)
        secrets = {
            "agent's key": of_key(keys.nostr),
            "wallet's key": of_key(keys.wallet),
            "home's key": of_key(world.node.secret),
            "phrase": of_phrase(phrase),
        }
        await until(lambda: world.state(agent) == "active")
        world.mention(agent, CANARIES["mention"], FRIEND)
        world.dm(agent, CANARIES["message"], FRIEND)
        now = int(world.clock.now())
        world.relay.publish(
            nip04.build_message(FRIEND, PublicKey.from_hex(agent), CANARIES["old message"], created_at=now)
        )
        await until(lambda: len(world.ended(agent)) >= 3, 4_000)
        await refuse_with_the_prompt(world, agent)
        await until(lambda: len(world.ended(agent)) >= 5, 9_000)
        assert any(CANARIES["refusal"] in tick.reason for tick in world.ended(agent))
        world.node.outage = world.node.unreachable = True
        await trio.sleep(2_000)
        world.node.outage = world.node.unreachable = False
        await world.kill()
        await world.live()
        await trio.sleep(1_000)

        everything = {**secrets, **words_of()}
        for path in sorted(tmp_path.glob("home.db*")):
            assert not found_in(path.read_bytes(), everything), path
        # The ledger is the network: what a payee writes on its invoice, its payer reads.
        for path in sorted(tmp_path.glob("simnet.db*")):
            assert not found_in(path.read_bytes(), everything), path
        assert not found_in(caplog.text.encode(), everything)
        assert caplog.records
        on_relay = "\n".join(event.to_json() for event in world.relay.events(Filter()))
        private = [name for name in CANARIES if name not in PUBLIC]
        assert not found_in(on_relay.encode(), {**secrets, **words_of(*private)})
        # It did get there: for those whom it was meant for.
        opened = []
        for wrap in world.events(1059):
            with suppress(nip17.MessageInvalid):
                opened.append(nip17.open_message(wrap, FRIEND).text)
        assert CANARIES["answer"] in opened
        prompts = "".join(sold.request.prompt or "" for sold in world.vendor.sold)
        assert not found_in(prompts.encode(), secrets)
        assert all(CANARIES[name] in prompts for name in ("goal", "memory", "message", "old message", "mention"))
        represented = repr([*world.ticks(agent), *world.agents.lifecycles.where(world.store, "1 = 1")])
        represented += repr([*world.host.deeds.records.where(world.store, "1 = 1"), world.row(agent), keys])
        represented += repr(list(world.node.buyer.records.where(world.store, "1 = 1")))
        assert not found_in(represented.encode(), {**secrets, **words_of(*private)})
        await check_verbs(world, agent, secrets, tmp_path)


def remembering(mind):
    from pylon.host import memory

    return memory.remember(mind, type="note", content=CANARIES["memory"], now=1.0, relevance=1.0, origin="operator")


async def refuse_with_the_prompt(world, agent):
    """From now on the vendor turns everybody away, and quotes whatever it was asked in its refusal."""

    async def quote(event):
        from protocols.nip90 import parse_request

        job = parse_request(event, world.vendor.secret)
        world.relay.publish(
            build_feedback(
                world.vendor.secret,
                request=job.id,
                customer=job.customer,
                status=FeedbackStatus.ERROR,
                message=f"{CANARIES['refusal']}: {job.prompt[:200]}",
                created_at=int(world.clock.now()),
            )
        )

    world.vendor._quote = quote


async def check_verbs(world, agent, secrets, directory):
    """No verb tells a key; a phrase only those that are named after it."""
    home = Home(directory / "verbs")
    home.data.mkdir(parents=True, exist_ok=True)
    hosting = Hosting(world.agents, world.host.deeds, world.host.funds, None, Withdrawals(world.store, world.clock))
    own = world.ledger.wallet("own", b"\x44" * 32)
    verbs = AgentVerbs(home, Config(network="simnet"), hosting, Purse(own, world.store, world.clock))
    name = world.row(agent).name
    calls = {verb: {"agent": name} for verb in verbs.table()}
    calls["agent.spawn"] = {"name": "bob"}
    calls["agent.fund"] |= {"amount_msats": 5_000}
    calls["agent.invoice"] |= {"amount_msats": 5_000}
    calls["agent.goal_add"] |= {"description": "sing"}
    calls["agent.goal_set"] |= {"id": "g1", "progress": 0.5}
    calls["agent.memory_add"] |= {"text": "remember"}
    calls["agent.grant"] |= {"action": "post"}
    calls["agent.set"] |= {"about": "another"}
    calls["agent.export"] |= {"form": "bundle", "passphrase": "correct horse battery staple"}
    telling = {"agent.reveal", "agent.spawn"}
    for verb, params in sorted(calls.items(), key=lambda call: call[0] == "agent.delete"):
        if verb == "agent.delete":
            params["name"] = name
        try:
            answer = await verbs.table()[verb](params, None)
        except PylonError as error:
            answer = error.to_json()
        said = orjson.dumps(answer)
        hidden = {known: forms for known, forms in secrets.items() if known != "phrase" or verb not in telling}
        assert not found_in(said, hidden), verb
        if verb == "agent.reveal":
            assert found_in(said, secrets) == ["phrase"]
    for path in home.data.rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o077 == 0
            assert not found_in(path.read_bytes(), {**secrets, **words_of()}), path


# --- a whole home -----------------------------------------------------------------------------------------------------


@pytest.fixture
def logged(tmp_path):
    """The daemon's own log, as talkative as it can be; afterwards as it was."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    path = tmp_path / "pylon.log"
    start_logging(path, logging.DEBUG)
    yield path
    for handler in root.handlers:
        handler.close()
    root.handlers[:], level = before
    root.setLevel(level)


async def test_a_home_on_disk(tmp_path, logged):
    """A daemon's parts with real sockets and files: an agent thinks, answers and pays; then all is read."""
    home = Home(tmp_path / "home")
    identity.create(home, now=1.0)
    home.config.write_text('network = "simnet"\n[relay]\nbind = "127.0.0.1:0"\n[api]\nbind = "127.0.0.1:0"\n')
    config = configuration.load(home.config, environ={}).config
    quick = {"min_gap": 0.1, "debounce": 0.1, "patience": 0.2, "catch_up": 0.5, "late": 5, "jitter": 0}
    answer = reply(
        {"do": "dm", "to": encode_npub(FRIEND.public), "text": CANARIES["answer"]},
        {"do": "add_memory", "text": CANARIES["note"]},
        thought=CANARIES["thought"],
    )

    async def ask(runtime, verb, **params):
        async def notify(method, data):
            pass

        return await Verbs.of(runtime).table()[verb](params, notify)

    with trio.fail_after(60):
        async with open_runtime(home, config, mode="both", backend=ScriptedBackend(answer), serve_http=True) as runtime:
            born = await ask(
                runtime, "agent.spawn", name="alice", goals=[CANARIES["goal"]], autonomy="autonomous", schedule=quick
            )
            await ask(runtime, "agent.memory_add", agent="alice", text=CANARIES["memory"])
            await ask(runtime, "agent.fund", agent="alice", amount_msats=sats(10_000))
            agent = born["pubkey"]
            message = nip04.build_message(
                FRIEND, PublicKey.from_hex(agent), CANARIES["old message"], created_at=int(SystemClock().now())
            )
            note = sign_event(FRIEND, kind=1, content="hello", tags=[["p", agent]], created_at=message.created_at)
            await until(lambda: runtime.host.runner(agent), 20)
            for event in (message, note):
                await runtime.pool.publish(runtime.pool.urls[0], event)
            done = await until(lambda: runtime.store.read("SELECT id FROM ticks WHERE state = 'done'"), 40)
            assert done
            shown = await ask(runtime, "agent.ticks", agent="alice")
            assert CANARIES["thought"] in json.dumps(shown)
            report = await ask(runtime, "books")
            assert report["clean"], report["problems"]
            keys = runtime.hosting.agents.keys(agent)
            await ask(runtime, "agent.withdraw", agent="alice", amount_msats=sats(50))
            await ask(runtime, "agent.delete", agent="alice", name="alice")
    known = identity.load(home)
    secrets = {
        "agent's key": of_key(keys.nostr),
        "agent's wallet": of_key(keys.wallet),
        "home's key": of_key(known.nostr),
        "home's wallet": of_key(known.simnet),
        "agent's phrase": of_phrase(born["mnemonic"]),
        "home's phrase": of_phrase(known.reveal_phrase()),
        "data key": {home.data_key.read_bytes(), *spelled(home.data_key.read_bytes().hex())},
        "token": spelled((home.data / "api.token").read_text().strip()),
        **words_of(),
    }
    theirs = {home.mnemonic: "home's phrase", home.data_key: "data key", home.data / "api.token": "token"}
    looked = 0
    for path in sorted([logged, *home.data.rglob("*")]):
        if path.is_file():
            looked += 1
            assert found_in(path.read_bytes(), secrets) == ([theirs[path]] if path in theirs else []), path
    assert looked >= 6
    assert b'"level": "debug"' in logged.read_bytes() or b'"level":"debug"' in logged.read_bytes()


def test_the_search_finds_what_it_looks_for():
    """What hides nothing is found in each form, so that finding nothing means something."""
    key = SecretKey(b"\x0d" * 32)
    for form in of_key(key):
        assert found_in(b"..." + form + b"...", {"key": of_key(key)}) == ["key"]
    assert found_in(b"x", words_of()) == []
    assert found_in(CANARIES["goal"].upper().encode(), words_of()) == ["goal"]
