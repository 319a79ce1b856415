"""The server's address: what is none is said, and the token never is."""

from __future__ import annotations

import pytest

from pylon.errors import UsageError
from pylon.tunnel.address import TunnelAddress

SECRET = "topsecret"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"wss://tunnel.example/api/tunnel/ws/tunnel?session_id=x&token={SECRET}", "wss://tunnel.example"),
        (f" wss://tunnel.example:8443/?token={SECRET}\n", "wss://tunnel.example:8443"),
        (f"ws://127.0.0.1:9/?token={SECRET}", "ws://127.0.0.1:9"),
        (f"ws://[::1]:9/?token={SECRET}", "ws://[::1]:9"),
        (f"ws://localhost/?token={SECRET}", "ws://localhost"),
    ],
)
def test_addresses(url, shown):
    address = TunnelAddress.of(url)
    assert (address.url, address.shown) == (url.strip(), shown)
    assert SECRET not in repr(address)


@pytest.mark.parametrize(
    "url",
    [
        "",
        SECRET,
        f"https://tunnel.example/{SECRET}",
        f"wss:///{SECRET}",
        f"wss://tunnel.example:99999/{SECRET}",
        f"wss://tunnel.example:0/{SECRET}",
        f"wss://user:{SECRET}@tunnel.example/",
        f"wss://tunnel.example/#{SECRET}",
        f"wss://tunnel.example/ {SECRET}",
        f"wss://tunnel.example/{SECRET}é",
        f"wss://tunnel.example/{SECRET * 600}",
        f"wss://[::1/{SECRET}",
        f"ws://tunnel.example/{SECRET}",
        f"ws://192.168.1.7/{SECRET}",
        f"ws://localhost.example/{SECRET}",
    ],
)
def test_what_is_none_is_refused_without_being_repeated(url):
    with pytest.raises(UsageError) as error:
        TunnelAddress.of(url)
    assert SECRET not in error.value.message + error.value.hint
    assert error.value.hint


def test_one_may_know_better():
    assert TunnelAddress.of("ws://192.168.1.7/", insecure=True).shown == "ws://192.168.1.7"
