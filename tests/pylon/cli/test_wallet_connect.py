"""``pylon wallet connect|connections|disconnect``, and a home's own wallet by NWC."""

from __future__ import annotations

import json

import pytest

from protocols.nip47 import ConnectionUri


def test_a_connection_from_its_making_to_its_end(simnet):
    code, out, err = simnet("wallet", "connect", "app", "--budget-day", "1_000", "--relay", "wss://r.example")
    assert code == 0
    uri = ConnectionUri.parse(out)
    assert uri.relays == ("wss://r.example",)
    secret = uri.secret.reveal().hex()
    assert "1,000 sat in any 24 hours" in err
    assert secret not in err
    code, out, _ = simnet("wallet", "connections")
    assert code == 0
    assert secret not in out
    assert "app (open" in out
    assert "1,000 sat left" in out
    shown = json.loads(simnet("wallet", "connections", "--json")[1])["connections"]
    assert [entry["client"] for entry in shown] == [uri.client.hex]
    assert secret not in json.dumps(shown)
    assert simnet("wallet", "disconnect", "app")[:2] == (0, "app cannot use this wallet any more\n")
    assert simnet("wallet", "connections")[1] == "nobody else uses this wallet\n"
    assert "app (closed" in simnet("wallet", "connections", "--closed")[1]
    assert simnet("wallet", "disconnect", "app")[0] == 1
    # The name is free again.
    assert simnet("wallet", "connect", "app", "--budget-day", "0", "--relay", "wss://r.example")[0] == 0


def test_bounds_and_their_units(simnet):
    made = json.loads(
        simnet("--json", "wallet", "connect", "app", "--budget-day", "5", "--budget-each", "1500msat",
               "--expires", "2d")[1]
    )  # fmt: skip
    assert (made["day_msats"], made["each_msats"], made["left_msats"]) == (5_000, 1_500, 5_000)
    assert made["expires_at"] - made["created_at"] == 2 * 86_400
    assert made["relays"] == ["ws://127.0.0.1:7777"]
    text = simnet("wallet", "connections")[1]
    assert "5 sat in 24 hours, 1.5 sat an invoice" in text
    assert "closes: in 1d 23h" in text or "closes: in 2d" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["app"],
        ["app", "--budget-day", "-1"],
        ["app", "--budget-day", "1.5"],
        ["app", "--budget-day", "1e30"],
        ["app", "--budget-day", "abc"],
        ["app", "--budget-day", "1", "--budget-each", "0"],
        ["app", "--budget-day", "1", "--expires", "soon"],
        ["app", "--budget-day", "1", "--relay", "https://r.example"],
        ["", "--budget-day", "1"],
        ["x" * 65, "--budget-day", "1"],
    ],
)
def test_what_makes_no_connection(simnet, arguments):
    code, out, err = simnet("--json", "wallet", "connect", *arguments)
    assert (code, out) == (2, "")
    assert json.loads(err)["error"]["code"] == "usage"
    assert json.loads(simnet("--json", "wallet", "connections")[1])["connections"] == []


SECRET = "7b" * 32
URI = f"nostr+walletconnect://{'b889ff5b1513b641e2a139f661a661364979c5beee91842f8f0ef42ab558e9d4'}?secret={SECRET}"


@pytest.fixture
def by_nwc(simnet, tmp_path, monkeypatch):
    simnet("wallet", "balance")
    monkeypatch.setenv("PYLON_WALLET_KIND", "nwc")
    monkeypatch.setenv("PYLON_WALLET_URI_FILE", str(tmp_path / "wallet.nwc"))
    return tmp_path / "wallet.nwc"


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (None, 0o600, "there is no"),
        (URI, 0o644, "open to others"),
        (URI, 0o600, "names no relay"),
        ("nonsense", 0o600, "begins with"),
        ("x" * 20_000, 0o600, "at most"),
    ],
)
def test_a_connection_string_that_cannot_be_used(simnet, by_nwc, text, mode, said):
    if text is not None:
        by_nwc.write_text(text)
        by_nwc.chmod(mode)
    code, out, err = simnet("wallet", "balance")
    assert (code, out) == (1, "")
    assert said in err
    assert SECRET not in err


def test_the_environment_wins_and_is_not_repeated(simnet, by_nwc, monkeypatch):
    monkeypatch.setenv("PYLON_NWC_URI", URI)
    code, _, err = simnet("wallet", "balance")
    assert code == 1
    assert "PYLON_NWC_URI: the connection string names no relay" in err
    assert SECRET not in err
