"""``pylon demo`` with its real model: what it prints for machines, and whether that is true."""

import json
import re
import subprocess

import pytest

from pylon.paths import Home
from tests.e2e.homes import command, environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), pytest.mark.usefixtures("model")]

JOB = {"request", "provider", "invoice_msats", "paid_msats", "fee_msats", "payment_hash", "result", "prompt", "text"}
BOOKS = {"customer_paid_msats", "provider_earned_msats", "owed_msats", "fees_msats", "wallets_delta_msats", "balanced"}


def play(*options):
    done = subprocess.run(
        [command(), "demo", "--json", *options],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout), done.stderr


def check(told, thoughts):
    assert set(told) == {"jobs", "notes", "ticks", "books"}
    assert len(told["jobs"]) == len(told["ticks"]) == thoughts
    for job in told["jobs"]:
        assert set(job) == JOB
        for key in ("request", "provider", "payment_hash", "result"):
            assert re.fullmatch("[0-9a-f]{64}", job[key]), key
        assert job["paid_msats"] == job["invoice_msats"] > 0
        assert job["fee_msats"] > 0
        assert job["prompt"].strip()
        assert isinstance(json.loads(job["text"])["actions"], list), "the grammar holds"
    for key in ("request", "payment_hash", "result"):
        assert len({job[key] for job in told["jobs"]}) == thoughts
    # The cheaper one sells until it is killed; then the agent's own home does.
    first, *_, last = told["jobs"]
    assert {job["provider"] for job in told["jobs"][:-1]} == {first["provider"]}
    assert last["provider"] != first["provider"]
    assert last["paid_msats"] > first["paid_msats"]
    for tick, job in zip(told["ticks"], told["jobs"], strict=True):
        assert set(tick) == {"n", "trigger", "state", "cost_msats", "actions"}
        assert tick["cost_msats"] == job["paid_msats"] + job["fee_msats"]
    assert [tick["n"] for tick in told["ticks"]] == sorted(tick["n"] for tick in told["ticks"])
    for note in told["notes"]:
        assert set(note) == {"id", "text"}
        assert re.fullmatch("[0-9a-f]{64}", note["id"])
        assert note["text"].strip()

    books = told["books"]
    assert set(books) == BOOKS
    paid, fees = (sum(job[key] for job in told["jobs"]) for key in ("paid_msats", "fee_msats"))
    assert (books["customer_paid_msats"], books["fees_msats"]) == (paid, fees)
    delta = books["wallets_delta_msats"]
    assert all(type(amount) is int for amount in delta.values())
    assert delta["customer"] == -(paid + fees)
    sellers = [amount for name, amount in delta.items() if name != "customer"]
    assert len(sellers) == 2
    assert sum(sellers) == books["provider_earned_msats"] + books["owed_msats"] == paid
    assert books["balanced"] is True


def test_the_demo():
    told, said = play()
    check(told, 4)
    assert told["notes"], "it was asked to post"
    states = [tick["state"] for tick in told["ticks"]]
    assert "active" in states
    assert "low_balance" in states
    assert any(tick["trigger"] == "mention" for tick in told["ticks"])
    for words in ("not money", "hibernating", "no longer ticks", "withdrew", "dormant", "killed"):
        assert words in said


@pytest.mark.deep
def test_the_shortest_demo_with_a_goal_and_homes_to_keep(tmp_path):
    directory = tmp_path / "kept"
    told, said = play("--goal", "Say one word about the sea.", "--jobs", "2", "--keep", str(directory))
    check(told, 2)
    assert "Say one word about the sea." in told["jobs"][0]["prompt"]
    assert str(directory) in said
    # What was kept says the same in its own words.
    earned = 0
    for path in directory.glob("*/pylon.db"):
        home = Home(path.parent)
        done = subprocess.run(
            [command(), "--home", str(home.root), "books", "--check", "--json"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=environment(),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        accounts = json.loads(done.stdout)["accounts"]
        earned += accounts["earned_msats"]
        if path.parent.name == "home":
            assert accounts["spent_msats"] == told["books"]["customer_paid_msats"]
    assert earned == told["books"]["provider_earned_msats"]
