"""The frame of the doctor: checks stand for themselves."""

from __future__ import annotations

import random

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pylon.clock import SystemClock
from pylon.config import Config, Loaded
from pylon.daemon import doctor_parts as parts
from pylon.daemon.doctor import Finding, Patient, Status, admit, examine, failed, passed
from pylon.errors import ConfigError, ControlError, NotRunning, StoreError
from pylon.paths import Home


def nobody(verb, params, seconds):
    raise NotRunning("nobody", "pylon start")


@pytest.fixture
def patient(tmp_path):
    return Patient(
        home=Home(tmp_path / "home"),
        clock=SystemClock(),
        ask=nobody,
        loaded=Loaded(Config(network="simnet", relays=())),
        config_error=None,
        running=False,
        status=None,
        silence="",
        holder=None,
    )


async def good(patient):
    await trio.lowlevel.checkpoint()
    return [passed("good", "fine")]


async def hangs(patient):
    await trio.sleep_forever()


async def falls(patient):
    raise ZeroDivisionError("with a canary in it")


async def refuses(patient):
    raise StoreError("the disk is full", "make room")


async def grouped(patient):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuses, patient)


async def denied(patient):
    raise PermissionError(13, "Permission denied", "/somewhere")


CHECKS = {"good": good, "hangs": hangs, "falls": falls, "refuses": refuses, "grouped": grouped, "denied": denied}


@pytest.mark.parametrize("seed", range(5))
async def test_none_keeps_another_from_being_told_and_the_order_stays(patient, autojump_clock, seed):
    names = list(CHECKS) * 1
    random.Random(seed).shuffle(names)
    began = trio.current_time()
    found = await examine(patient, {name: (CHECKS[name], 3.0) for name in names})
    assert trio.current_time() - began == pytest.approx(3.0)
    assert [finding.check for finding in found] == names
    by_name = {finding.check: finding for finding in found}
    assert by_name["good"].status is Status.PASS
    assert all(finding.status is Status.FAIL for name, finding in by_name.items() if name != "good")
    assert all(finding.remedy for name, finding in by_name.items() if name != "good")
    assert "within 3 s" in by_name["hangs"].detail
    assert "ZeroDivisionError" in by_name["falls"].detail
    assert "canary" not in repr(by_name)
    assert (by_name["refuses"].detail, by_name["refuses"].remedy) == ("the disk is full", "make room")
    assert by_name["grouped"].detail == "the disk is full"
    assert by_name["denied"].detail == "Permission denied: /somewhere"


async def test_the_daemon_is_asked_once_and_its_silence_is_told(tmp_path):
    home = Home(tmp_path)

    def silent(verb, params, seconds):
        raise ControlError("the daemon has not answered 'status' within 3 s", "see its log")

    def wrong():
        raise ConfigError("config.toml:1: no", "mend it")

    (tmp_path / "control.sock").touch()
    found = await admit(home, SystemClock(), silent, wrong, None)
    assert (found.running, found.status, "has not answered" in found.silence) == (True, None, True)
    assert found.loaded is None
    assert str(found.config_error) == "config.toml:1: no"
    found = await admit(home, SystemClock(), nobody, lambda: Loaded(Config()), None)
    assert (found.running, found.silence) == (False, "")
    found = await admit(home, SystemClock(), lambda *_: {"wallet": {}}, lambda: Loaded(Config()), None)
    assert found.running


def row(**changes):
    step = {"ok": True, "seconds": 0.01, "detail": ""}
    found = {
        "url": "wss://a.example",
        "ok": True,
        "connect": step,
        "latency": 0.01,
        "read": step,
        "write": step,
        "auth": "not asked",
        "information": None,
        "information_error": "",
        "clock_ahead": 0.2,
    }
    return {**found, **changes}


def no(detail):
    return {"ok": False, "seconds": None, "detail": detail}


async def looked(patient, rows, relays=("wss://a.example", "wss://b.example")):
    config = attrs.evolve(patient.loaded.config, relays=relays)
    asked = attrs.evolve(patient, running=True, status={}, ask=lambda *_: {"relays": rows}, loaded=Loaded(config))
    return await parts.relays(asked)


async def test_one_relay_away_is_a_warning_all_of_them_a_failure(patient):
    away = row(ok=False, connect=no("no connection"), read=None, write=None, clock_ahead=None)
    found = await looked(patient, [row(), {**away, "url": "wss://b.example"}])
    assert [(f.check, f.status.value) for f in found] == [("relays", "pass"), ("relays", "warn"), ("clock", "pass")]
    found = await looked(patient, [row(url="ws://127.0.0.1:7777"), away, {**away, "url": "wss://b.example"}])
    assert [f.status.value for f in found if f.check == "relays"] == ["pass", "fail", "fail"]
    assert "pylon relay remove wss://a.example" in found[1].remedy


@pytest.mark.parametrize(
    ("changes", "detail", "remedy"),
    [
        ({"write": no("restricted: members only")}, "written to: restricted", "join it"),
        ({"write": no("pow: no")}, "written to: pow", "pylon relay remove"),
        ({"write": no("no"), "information": {"limitation": {"payment_required": True}}}, "written to", "join it"),
        ({"read": no("it did not answer in time")}, "read from: it did not answer", "pylon relay remove"),
        (
            {"read": no("auth-required: who"), "auth": "asked for, and there is no key here to answer with"},
            "read from: auth-required",
            "pylon init",
        ),
    ],
)
async def test_what_a_relay_does_not_let_us_has_a_remedy(patient, changes, detail, remedy):
    found = await looked(patient, [row(ok=False, **changes), row(url="wss://b.example")])
    assert detail in found[0].detail
    assert remedy in found[0].remedy
    assert found[0].status is Status.WARN


@pytest.mark.parametrize(
    ("ahead", "status", "word"),
    [
        ([0.4], "pass", "within"),
        ([45.0], "warn", "45 s behind"),
        ([3_600.0], "fail", "3,600 s behind"),
        ([-3_600.0], "fail", "3,600 s ahead of"),
        ([-3_600.0, 0.1, 0.3], "pass", "within"),
        ([None], "pass", "no relay"),
    ],
)
async def test_the_clock_against_the_middle_one(patient, ahead, status, word):
    rows = [row(url=f"wss://{number}.example", clock_ahead=each) for number, each in enumerate(ahead)]
    (found,) = [f for f in await looked(patient, rows, tuple(r["url"] for r in rows)) if f.check == "clock"]
    assert (found.status.value, word in found.detail) == (status, True)
    assert ("timedatectl" in found.remedy) == (status != "pass")


@given(st.text(max_size=30), st.sampled_from(Status), st.text(max_size=30))
def test_a_finding_is_json_and_its_fix_is_not_in_it(detail, status, remedy):
    told = Finding("x", status, detail, remedy, lambda: None).to_json()
    assert told == {
        "check": "x",
        "status": status.value,
        "detail": detail,
        "remedy": remedy or None,
        "fixable": True,
    }
    assert failed("x", detail, remedy).to_json()["fixable"] is False


def answering(patient, **reports):
    return attrs.evolve(patient, running=True, status={}, ask=lambda verb, params, seconds: reports[verb])


async def test_a_wallet_that_has_not_answered_is_asked_why(patient):
    asked = answering(patient, **{"wallet.status": {"problem": "Spark's servers cannot be reached"}})
    (found,) = await parts.wallet(asked)
    assert (found.status, found.detail) == (Status.FAIL, "Spark's servers cannot be reached")


async def test_a_model_that_is_being_loaded_is_not_a_model_that_is_missing(patient):
    engine = {"name": "llamacpp", "endpoint": "embedded", "available": False, "detail": "starting", "models": ["m"]}
    ollama = {**engine, "name": "ollama", "endpoint": "http://127.0.0.1:11434", "detail": "no answer", "models": []}
    report = {"local_backends": [ollama, engine], "embedded_missing": None, "default_model_used": None}
    (found,) = await parts.backends(answering(patient, compute=report))
    assert (found.status, "starting" in found.detail) == (Status.WARN, True)
    assert "pull" not in found.remedy
    (found,) = await parts.backends(answering(patient, compute={**report, "local_backends": [ollama]}))
    assert "pylon models pull" in found.remedy
