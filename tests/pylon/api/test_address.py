from __future__ import annotations

import pytest

from protocols import lnurl
from pylon.api.address import public_address
from pylon.config import ApiConfig, Config
from pylon.config_values import Bind


@pytest.mark.parametrize(
    ("network", "name", "bound", "address"),
    [
        ("simnet", "", Bind("127.0.0.1", 9899), "127.0.0.1:9899"),
        ("simnet", "", Bind("0.0.0.0", 81), "127.0.0.1:81"),
        ("simnet", "", Bind("::", 81), "localhost:81"),
        ("simnet", "", Bind("::1", 81), "localhost:81"),
        ("simnet", "", Bind("127.0.0.2", 81), "127.0.0.2:81"),
        ("simnet", "", Bind("localhost", 81), "localhost:81"),
        ("simnet", "", Bind("192.168.1.2", 81), None),
        ("simnet", "", Bind("box", 81), None),
        ("simnet", "agents.example.com", Bind("127.0.0.1", 9899), "agents.example.com"),
        ("simnet", "", None, None),
        ("simnet", "agents.example.com", None, None),
        ("mainnet", "", Bind("127.0.0.1", 9899), None),
        ("mainnet", "agents.example.com:8443", Bind("127.0.0.1", 9899), "agents.example.com:8443"),
    ],
)
def test_what_stands_behind_the_at(network, name, bound, address):
    config = Config(network=network, api=ApiConfig(public_name=name))
    found = public_address(config, bound)
    assert found == address
    if found is not None:
        lnurl.lightning_address_url(f"alice@{found}", allow_local=network == "simnet")
