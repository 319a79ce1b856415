"""``pylon provider status|jobs|trust|block`` as people type and read them."""

from __future__ import annotations

import json

from protocols.keys import PublicKey
from protocols.nip19 import encode_npub

KEY = "3bf0c63fcb93463407af97a5e5ee64fa883d107ef9e558472c4eb9aaaefa459d"
NPUB = encode_npub(PublicKey.from_hex(KEY))


def test_without_a_daemon_the_configuration_is_told(simnet):
    code, out, err = simnet("provider", "status")
    assert (code, err) == (0, "")
    assert "nothing (no daemon is running)" in out
    assert "1 sat at least" in out
    report = json.loads(simnet("provider", "status", "--json")[1])
    assert (report["selling"], report["unpaid"], report["customers"]) == (False, 0, [])


def test_whom_one_trusts_and_does_not_hear_is_kept(simnet):
    assert simnet("provider", "trust", NPUB)[1] == f"{NPUB} is trusted: no cap holds it back\n"
    assert simnet("provider", "trust", KEY, "--free")[1] == f"{NPUB} is trusted, and served free\n"
    assert f"{NPUB}  free" in simnet("provider", "status")[1]
    assert simnet("provider", "block", NPUB)[1] == f"{NPUB} is not heard any more\n"
    code, _, err = simnet("provider", "untrust", NPUB)
    assert code == 2
    assert f"{NPUB} is blocked" in err
    said = json.loads(simnet("provider", "unblock", NPUB, "--json")[1])
    assert said == {"customer": KEY, "npub": NPUB, "standing": "stranger"}
    assert simnet("provider", "unblock", NPUB)[0] == 0, "again is no mistake"
    assert "Customer" not in simnet("provider", "status")[1]


def test_the_configuration_is_overruled(simnet, home):
    text = home.config.read_text().replace("[provider]", f'[provider]\nblocked = ["{NPUB}"]', 1)
    home.config.write_text(text)
    assert f"{NPUB}  blocked" in simnet("provider", "status")[1]
    simnet("provider", "unblock", NPUB)
    assert "Customer" not in simnet("provider", "status")[1]


def test_no_key_is_a_usage_error(simnet):
    for command in ("trust", "untrust", "block", "unblock"):
        code, _, err = simnet("provider", command, "somebody")
        assert code == 2
        assert "no public key" in err


def test_jobs(simnet, daemon):
    assert simnet("provider", "jobs")[1] == "No job was asked for.\n"
    row = {
        "id": "ab" * 32, "state": "delivered", "customer": KEY, "npub": NPUB, "model": "tiny", "price_msats": 2_000,
        "paid_msats": 2_000, "attempts": 0, "created_at": 1_800_000_000.0, "updated_at": 1_800_000_001.0,
    }  # fmt: skip
    with daemon({"result": {"jobs": [row]}}) as asked:
        _, out, _ = simnet("provider", "jobs", "--state", "delivered", "--customer", NPUB, "-l", "3")
    assert asked[0]["params"] == {"limit": 3, "state": "delivered", "customer": NPUB}
    for words in ("ab" * 8, "delivered", "2 sat of 2 sat", NPUB[:16], "tiny"):
        assert words in out
    assert simnet("provider", "jobs", "--state", "sold")[0] == 2
