"""What a reply may say, what is understood of it, and that nothing else comes of whatever a model writes."""

from __future__ import annotations

import json
from typing import Any

import cattrs
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocols.json_schema import read_schema
from protocols.keys import SecretKey
from protocols.nip19 import encode_npub, encode_nsec
from protocols.nip90 import MAX_PARAM_CHARS
from pylon.host import replies
from pylon.host.replies import MAX_TEXT_CHARS, Proposed, Reply, ReplyInvalid, parse, schema
from pylon.host.settings import ActionKind

ALL = tuple(ActionKind)
NPUB = encode_npub(SecretKey(b"\x07" * 32).public)
INVOICE = "lnsb50n1" + "q" * 200
CANARY = "canary-5150"

kinds = st.sets(st.sampled_from(ALL))
goal_ids = st.one_of(st.none(), st.lists(st.text(min_size=1, max_size=30), max_size=30, unique=True))


# --- the schema -----------------------------------------------------------------------------------------------


@given(
    allowed=kinds,
    steps=st.integers(0, 50),
    references=st.one_of(st.integers(0, 3), st.just(10_000)),
    first=kinds,
    goals=goal_ids,
    keys=st.booleans(),
    tokens=st.sampled_from([16, 100, 200, 400, 2_000, 100_000]),
)
@example(allowed=set(ALL), steps=4, references=10_000, first=set(), goals=None, keys=True, tokens=2_000)
@example(allowed=set(ALL), steps=4, references=10_000, first=set(ALL), goals=None, keys=True, tokens=2_000)
def test_every_schema_fits_into_a_request_and_is_taken_by_a_provider(
    allowed, steps, references, first, goals, keys, tokens
):
    text = schema(allowed, steps, references, first=first, goals=goals, keys=keys, tokens=tokens)
    assert len("json_schema") + len(text) <= MAX_PARAM_CHARS
    read_schema(text)
    assert text == schema(allowed, steps, references, first=first, goals=goals, keys=keys, tokens=tokens)


@pytest.mark.parametrize("count", [1, 5, 8, 10, 12, 20, 100])
@pytest.mark.parametrize("length", [1, 15, 30, 128])
def test_also_with_everything_and_many_goals(count, length):
    goals = [f"{n}".zfill(length)[:length] for n in range(count)]
    for char in ("g", '"', "好"):
        text = schema(ALL, 50, 10_000, goals=[goal.replace("0", char) for goal in goals], tokens=100_000)
        assert len("json_schema") + len(text) <= MAX_PARAM_CHARS


def made_from(draw: st.DrawFn, node: dict[str, Any], root: dict[str, Any]) -> Any:
    """Some JSON that ``node`` allows."""
    match node:
        case {"$ref": ref}:
            return made_from(draw, root["$defs"][ref.removeprefix("#/$defs/")], root)
        case {"const": value}:
            return value
        case {"enum": values}:
            return draw(st.sampled_from(values))
        case {"anyOf": choices}:
            return made_from(draw, draw(st.sampled_from(choices)), root)
        case {"type": "string"}:
            return draw(st.text(min_size=node.get("minLength", 0), max_size=min(node["maxLength"], 100)))
        case {"type": "integer"}:
            return draw(st.integers(node["minimum"], node["maximum"]))
        case {"type": "array"}:
            assert node["minItems"] == node["maxItems"] == len(node["prefixItems"])
            return [made_from(draw, item, root) for item in node["prefixItems"]]
    assert node["type"] == "object"
    assert node["additionalProperties"] is False
    chosen = [name for name in node["properties"] if name in node["required"] or draw(st.booleans())]
    return {name: made_from(draw, node["properties"][name], root) for name in chosen}


@given(st.data(), kinds, st.integers(0, 6), st.integers(0, 3), kinds, goal_ids, st.booleans())
def test_what_the_schema_allows_is_understood(data, allowed, steps, references, first, goals, keys):
    root = json.loads(schema(allowed, steps, references, first=first, goals=goals, keys=keys))
    found = data.draw(st.composite(lambda draw: made_from(draw, root, root))())
    reply = parse(json.dumps(found), allowed, steps, references, goals=goals)
    entries = found.get("actions", [])
    assert len(entries) <= max(steps, 0)
    assert len(reply.actions) + len(reply.dropped) == len(entries)
    for said in reply.dropped:
        # What no grammar of reasonable size can tell: whether it is a key, an invoice, a word.
        assert said.endswith(
            (
                *("once more", "no words", "empty", "not a public key", "not a Lightning invoice"),
                *("not the id of a goal", "there is none with this id"),
            )
        )
    began = [entry["do"] for entry in entries[:1]]
    possible = {kind.value for kind in first & allowed}
    offered = {name.removeprefix("do_") for name in root.get("$defs", {}) if name.startswith("do_")}
    assert not began or not possible & offered or began[0] in possible


def test_what_makes_no_sense_is_not_offered():
    def offered(*arguments, **more):
        return {name[3:] for name in json.loads(schema(ALL, 5, *arguments, **more))["$defs"] if name[:3] == "do_"}

    assert not offered(0, goals=(), keys=False, seconds=(60, 60)) & {
        "reply", "react", "dm", "zap", "request_payment", "update_goal", "set_heartbeat", "nothing"
    }  # fmt: skip
    assert {"reply", "react", "dm"} <= offered(1, goals=(), keys=False)
    assert {"dm", "update_goal", "set_heartbeat"} <= offered(0)
    assert "actions" not in json.loads(schema(ALL, 0, 1))["properties"]
    assert "review_minutes" not in json.loads(schema(ALL, 1, 1, review=0))["properties"]
    assert json.loads(schema(ALL, 1, 1, review=10**9))["properties"]["review_minutes"]["maximum"] == 10_080


@pytest.mark.parametrize("tokens", [130, 200, 400, 1_000])
def test_ordinary_replies_end_before_their_tokens(tokens):
    """At four characters a token, the longest that the grammar lets through."""
    root = json.loads(schema([ActionKind.POST, ActionKind.ADD_MEMORY], 5, 0, tokens=tokens))
    most = max(len(choice.get("prefixItems", ())) for choice in root["properties"]["actions"]["anyOf"])
    longest = root["$defs"]["text"]["maxLength"]
    post = {"do": "post", "text": "x" * longest}
    reply = {"actions": [post] * most, "thought": "x" * root["properties"]["thought"]["maxLength"]}
    assert len(json.dumps(reply)) / 4 < tokens


# --- round trips ----------------------------------------------------------------------------------------------

plain = st.text(
    st.characters(categories=["L", "N", "So"], include_characters=" .,!?\n\"\\{}'"), min_size=1, max_size=80
)
worded = plain.map(str.strip).filter(lambda text: any(char.isalnum() for char in text))
REFERENCES = 9


@st.composite
def proposals(draw: st.DrawFn) -> Proposed:
    kind = draw(st.sampled_from([kind for kind in ActionKind if kind is not ActionKind.NOTHING]))
    about, sats = draw(st.integers(1, REFERENCES)), draw(st.integers(1, 10**9))
    text, whom = draw(worded), draw(st.sampled_from([{"about": about}, {"to": NPUB}, {"about": about, "to": NPUB}]))
    more: dict[str, Any] = {"text": text}
    match kind:
        case ActionKind.REPLY:
            more |= {"about": about}
        case ActionKind.REACT:
            more = {"about": about, "text": draw(st.sampled_from(["+", "-", "🤙", ":ok:"]))}
        case ActionKind.DM:
            more |= whom
        case ActionKind.REQUEST_PAYMENT | ActionKind.ZAP:
            more = {**whom, "sats": sats, "text": draw(st.one_of(st.just(""), worded))}
        case ActionKind.PAY_INVOICE:
            more = {
                "invoice": INVOICE,
                "sats": draw(st.sampled_from([0, sats])),
                "about": draw(st.sampled_from([0, about])),
            }
        case ActionKind.UPDATE_GOAL:
            percent, status = (
                draw(st.one_of(st.none(), st.integers(0, 100))),
                draw(st.sampled_from(["", *replies.STATUSES])),
            )
            percent = 100 if status == "completed" and percent is not None else percent
            more |= {
                "goal": draw(st.sampled_from(["g1", "g2"])),
                "progress": None if percent is None else percent / 100,
                "status": status,
            }
        case ActionKind.SET_HEARTBEAT:
            more = {"seconds": draw(st.integers(1, 86_400))}
    return Proposed(kind=kind, **more)


def each_once(actions: list[Proposed]) -> tuple[Proposed, ...]:
    kept: list[Proposed] = []
    for action in actions:
        if not any(replies._same(action, other) for other in kept):
            kept.append(action)
    return tuple(kept)


whole_replies = st.builds(
    Reply,
    thought=st.one_of(st.just(""), worded),
    actions=st.lists(proposals(), max_size=5).map(each_once),
    review_seconds=st.one_of(st.none(), st.integers(0, 10_080).map(lambda minutes: 60 * minutes)),
)


@given(whole_replies)
def test_a_reply_is_understood_as_it_was_meant(reply):
    assert parse(reply.to_json(), ALL, 5, REFERENCES, goals=("g1", "g2")) == reply


@given(
    whole_replies,
    st.sampled_from(["Here it is:\n```json\n{}\n```", '{}\n\nI hope that helps: "so" it\'s done.', "  {}"]),
)
def test_words_and_fences_around_it_do_not_matter(reply, around):
    text = around.replace("{}", reply.to_json())
    assert parse(text, ALL, 5, REFERENCES) == reply


@given(whole_replies, kinds)
def test_what_is_not_allowed_is_left_out(reply, allowed):
    understood = parse(reply.to_json(), allowed, 5, REFERENCES)
    assert understood.actions == tuple(action for action in reply.actions if action.kind in allowed)
    assert len(understood.dropped) == len(reply.actions) - len(understood.actions)
    assert all(said.endswith("is not allowed") for said in understood.dropped)


@given(whole_replies)
def test_a_proposal_survives_being_stored(reply):
    converter = cattrs.Converter(forbid_extra_keys=False)
    stored = orjson.dumps(converter.unstructure(reply.actions))
    assert converter.structure(orjson.loads(stored), tuple[Proposed, ...]) == reply.actions


# --- whatever a model writes ----------------------------------------------------------------------------------

keys = st.sampled_from(
    ["do", "text", "to", "about", "sats", "invoice", "goal", "progress", "status", "seconds", "actions", "thought"]
)
scalars = st.one_of(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    st.sampled_from([kind.value for kind in ALL]),
    st.sampled_from(["+", NPUB, INVOICE, "g1", "active", "...", CANARY]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=6)),
    max_leaves=20,
)
entries = st.dictionaries(keys, scalars, max_size=8).flatmap(
    lambda entry: st.sampled_from([kind.value for kind in ALL]).map(lambda name: {**entry, "do": name})
)
objects = st.fixed_dictionaries(
    {"actions": st.one_of(values, st.lists(st.one_of(entries, values), max_size=70))},
    optional={"thought": values, "review_minutes": values, "more": values},
)


def check(text: str, allowed: set[ActionKind], steps: int, references: int) -> None:
    try:
        reply = parse(text, allowed, steps, references)
    except ReplyInvalid as error:
        assert CANARY not in str(error)  # noqa: PT017
        return
    assert len(reply.actions) <= max(0, steps)
    assert len(reply.thought) <= replies.MAX_THOUGHT_CHARS
    assert reply.review_seconds is None or 0 <= reply.review_seconds <= 7 * 86_400
    assert CANARY not in "".join(reply.dropped)
    for action in reply.actions:
        assert action.kind in allowed
        assert action.kind is not ActionKind.NOTHING
        assert 0 <= action.about <= references
        assert 0 <= action.sats <= replies.MAX_SATS
        assert len(action.text) <= MAX_TEXT_CHARS
        assert action.to in ("", NPUB)
        assert action.progress is None or 0 <= action.progress <= 1
        assert not any(char < " " and char not in "\n\t" for char in action.text)


@given(st.text(), kinds, st.integers(-1, 3), st.integers(0, 2))
def test_no_text_does_harm(text, allowed, steps, references):
    check(text, allowed, steps, references)


@given(values, kinds, st.integers(0, 3), st.integers(0, 2))
def test_no_json_does_harm(value, allowed, steps, references):
    check(json.dumps(value), allowed, steps, references)


@given(objects, kinds, st.integers(0, 60), st.integers(0, 2), st.sampled_from(["{}", "so: {} ", "{{}}", "{}{}"]))
def test_nothing_that_looks_like_a_reply_does_harm(value, allowed, steps, references, around):
    check(around.replace("{}", json.dumps(value)), allowed, steps, references)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no JSON object"),
        ("I will not.", "no JSON object"),
        ("{", "no JSON object"),
        ("{'actions': []}", "no JSON object"),
        ('{"actions": [{"do": "post", "text": "cut o', "no JSON object"),
        ("[]", "no object"),
        ("5", "no object"),
        ('"{\\"actions\\": []}"', "no object"),
        ('[{"actions": []}]', "no object"),
        ("{}", "no reply"),
        ('{"text": "hello"}', "no reply"),
        ('{"actions": {"do": "post", "text": "x"}}', "no reply"),
        ('{"actions": "post"}', "no reply"),
        ('{"actions": []} and {"actions": []}', "more than one"),
        ('{"actions": []}\n{"do": "post"}', "more than one"),
        ('{"thought": NaN}', "no JSON object"),
        ("{" * 150_000, "no JSON object"),
        ('{"a":' * 30_000 + "1" + "}" * 30_000, "no JSON object"),
        ("[" * 150_000, "no JSON object"),
        ('{"thought": "' + "x" * 200_000 + '"}', "longer"),
        ('{"thought": "\ud800"}', "no JSON object"),
        ('{"thought": "\\ud800"}', "no JSON object"),
    ],
)
def test_what_is_no_reply(text, says):
    with pytest.raises(ReplyInvalid, match=says):
        parse(text, ALL, 5, 1)


def one(entry: Any, references: int = 1, allowed: tuple[ActionKind, ...] = ALL, goals: Any = None) -> Reply:
    return parse(json.dumps({"actions": [entry]}), allowed, 5, references, goals=goals)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("post", "no object"),
        ({"do": "transfer_all"}, "no such action"),
        ({"do": ["post"]}, "no such action"),
        ({"text": "hello"}, "no such action"),
        ({"do": "POST", "text": "hello"}, "no such action"),
        ({"do": "post"}, "text: not there"),
        ({"do": "post", "text": 5}, "text: not there"),
        ({"do": "post", "text": " \x00\n"}, "text: empty"),
        ({"do": "post", "text": "..."}, "text: no words"),
        ({"do": "post", "text": "x" * (MAX_TEXT_CHARS + 1)}, "text: longer"),
        ({"do": "reply", "about": 2, "text": "x"}, "about: not a whole number from 1 to 1"),
        ({"do": "reply", "about": True, "text": "x"}, "about: not"),
        ({"do": "reply", "about": "1", "text": "x"}, "about: not"),
        ({"do": "reply", "about": 1.0, "text": "x"}, "about: not"),
        ({"do": "react", "about": 1, "text": "well done"}, "not an emoji"),
        ({"do": "dm", "to": "alice", "text": "x"}, "to: not a public key"),
        ({"do": "dm", "to": encode_nsec(SecretKey(b"\x07" * 32)), "text": "x"}, "to: not a public key"),
        ({"do": "zap", "about": 1}, "sats: not"),
        ({"do": "zap", "about": 1, "sats": 0}, "sats: not"),
        ({"do": "zap", "about": 1, "sats": -5}, "sats: not"),
        ({"do": "zap", "about": 1, "sats": 1e3}, "sats: not"),
        ({"do": "zap", "about": 1, "sats": 10**30}, "sats: not"),
        ({"do": "pay_invoice"}, "invoice: not there"),
        ({"do": "pay_invoice", "invoice": "pay me"}, "invoice: not a Lightning invoice"),
        ({"do": "pay_invoice", "invoice": INVOICE, "sats": "all"}, "sats: not"),
        ({"do": "update_goal", "goal": "g1"}, "changes nothing"),
        ({"do": "update_goal", "goal": 1, "progress": 5}, "not the id"),
        ({"do": "update_goal", "goal": "g9", "progress": 5}, "none with this id"),
        ({"do": "update_goal", "goal": "g1", "progress": 0.5}, "progress: not"),
        ({"do": "update_goal", "goal": "g1", "progress": 101}, "progress: not"),
        ({"do": "update_goal", "goal": "g1", "status": "hacked"}, "status: not"),
        ({"do": "update_goal", "goal": "g1", "status": "completed", "progress": 5}, "completed, but not all done"),
        ({"do": "set_heartbeat", "seconds": 0}, "seconds: not"),
    ],
)
def test_an_entry_that_is_not_whole_is_left_out_with_a_word_why(entry, why):
    reply = one(entry, goals=("g1",))
    assert reply.actions == ()
    assert len(reply.dropped) == 1
    assert why in reply.dropped[0]


@pytest.mark.parametrize(
    ("entry", "proposed"),
    [
        ({"do": "react"}, Proposed(kind=ActionKind.REACT, about=1, text="+")),
        ({"do": "reply", "text": "hi", "to": "nobody"}, Proposed(kind=ActionKind.REPLY, about=1, text="hi")),
        ({"do": "dm", "about": None, "to": "", "text": "a\x1bb"}, Proposed(kind=ActionKind.DM, about=1, text="ab")),
        ({"do": "dm", "to": "NOSTR:" + NPUB, "text": "hi"}, Proposed(kind=ActionKind.DM, to=NPUB, text="hi")),
        ({"do": "dm", "to": SecretKey(b"\x07" * 32).public.hex, "text": "hi"},
         Proposed(kind=ActionKind.DM, to=NPUB, text="hi")),
        ({"do": "pay_invoice", "invoice": f" lightning:{INVOICE.upper()} "},
         Proposed(kind=ActionKind.PAY_INVOICE, invoice=INVOICE)),
        ({"do": "post", "text": "سلام\u200cدنیا"}, Proposed(kind=ActionKind.POST, text="سلام\u200cدنیا")),
    ],
)  # fmt: skip
def test_what_is_passed_over_and_made_good(entry, proposed):
    assert one(entry).actions == (proposed,)


def test_nothing_is_never_an_action_and_needs_no_leave():
    assert one({"do": "nothing", "text": 5}, allowed=()) == Reply()


def test_with_many_messages_an_answer_says_which():
    assert one({"do": "reply", "text": "hi"}, references=2).dropped == (
        "action 1: reply: about: not a whole number from 1 to 2",
    )
    assert one({"do": "dm", "text": "hi"}, references=0).dropped == ("action 1: dm: about: there are no messages",)


def test_more_than_may_be_done_is_cut():
    posts = [{"do": "post", "text": f"note {n}"} for n in range(100)]
    reply = parse(json.dumps({"actions": [{"do": "fly"}, *posts]}), ALL, 3, 0)
    assert [action.text for action in reply.actions] == ["note 0", "note 1", "note 2"]
    assert reply.dropped == (
        "action 1: no such action",
        "60 more than the 3 that one tick may do",
        "all after action 64",
    )


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ({"do": "reply", "about": 1, "text": "a"}, {"do": "reply", "about": 1, "text": "b"}, False),
        ({"do": "reply", "about": 1, "text": "a"}, {"do": "reply", "about": 2, "text": "a"}, True),
        ({"do": "reply", "about": 1, "text": "a"}, {"do": "react", "about": 1}, True),
        ({"do": "zap", "about": 1, "sats": 5}, {"do": "zap", "about": 1, "sats": 6}, False),
        ({"do": "dm", "about": 1, "text": "a"}, {"do": "dm", "to": NPUB, "text": "a"}, True),
        (
            {"do": "pay_invoice", "invoice": INVOICE, "about": 1},
            {"do": "pay_invoice", "invoice": INVOICE.upper()},
            False,
        ),
        ({"do": "post", "text": "a"}, {"do": "post", "text": " a"}, False),
        ({"do": "post", "text": "a"}, {"do": "post", "text": "b"}, True),
        ({"do": "add_memory", "text": "a"}, {"do": "post", "text": "a"}, True),
        ({"do": "update_goal", "goal": "g1", "progress": 5}, {"do": "update_goal", "goal": "g1", "progress": 9}, False),
        ({"do": "update_goal", "goal": "g1", "progress": 5}, {"do": "update_goal", "goal": "g2", "progress": 5}, True),
        ({"do": "set_heartbeat", "seconds": 60}, {"do": "set_heartbeat", "seconds": 90}, False),
    ],
)
def test_what_is_said_again_is_left_out(one, other, both):
    reply = parse(json.dumps({"actions": [one, other]}), ALL, 5, 2)
    assert len(reply.actions) == 1 + both
    assert reply.dropped == (() if both else (f"action 2: {other['do']}: once more",))


@pytest.mark.parametrize("minutes", [-1, 10_081, 1.5, "60", True])
def test_a_review_that_cannot_be(minutes):
    reply = parse(json.dumps({"thought": "x", "review_minutes": minutes}), ALL, 5, 0)
    assert reply.review_seconds is None
    assert reply.dropped == ("review_minutes: not a whole number from 0 to 10080",)


def test_nothing_that_was_said_shows_in_a_repr():
    reply = Reply(thought=CANARY, actions=(Proposed(kind=ActionKind.PAY_INVOICE, text=CANARY, invoice=CANARY),))
    assert CANARY not in repr(reply)


def test_words_are_all_that_a_model_has_worded():
    action = Proposed(kind=ActionKind.DM, text="abandon\n  abandon", to=NPUB, invoice=INVOICE, goal="g1")
    assert action.words() == ("abandon abandon", NPUB, INVOICE, "g1")
