"""``pylon connect serve``: what it says, and what it refuses."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import stat
import subprocess
import sys

import httpx
import pytest

from pylon.tunnel.address import TunnelAddress


def served(home, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pylon.cli.main", "--home", str(home.root), "connect", "serve", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_says_how_both_ends_reach_it_and_ends_at_a_signal(home):
    with served(home, "--bind", "127.0.0.1:0", "--json") as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        try:
            assert httpx.get(told["url"], trust_env=False).status_code == 200
            file = home.data / "tunnel.token"
            assert (told["token_file"], stat.S_IMODE(file.stat().st_mode)) == (str(file), 0o600)
            words = shlex.split(told["connect"])
            assert words == ["pylon", "connect", "--tunnel-url", told["tunnel_url"]]
            assert TunnelAddress.of(told["tunnel_url"]).shown == told["url"].replace("http", "ws")
            assert told["page_url"].startswith(f"{told['url']}/#session_id={told['session_id']}&token=")
        finally:
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=20)
    assert process.returncode == 0
    secret = file.read_text().strip()
    assert secret not in "".join(said) + json.dumps(told)


def test_without_tls_it_warns_and_the_machine_is_told_so(home):
    with served(home, "--bind", "127.0.0.1:0", "--public-url", "http://tunnel.example.org:8080") as process:
        assert process.stdout is not None
        page, machine = process.stdout.readline(), process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert page.startswith("page:    http://tunnel.example.org:8080/#")
    assert machine.startswith("machine: pylon connect --tunnel-url 'ws://tunnel.example.org:8080/")
    assert machine.endswith("--insecure\n")
    assert "has no TLS" in said


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--bind", "here"], 2, "--bind"),
        (["--public-url", "tunnel.example.org"], 2, "--public-url"),
        (["--bind", "{taken}"], 1, "cannot listen"),
    ],
)
def test_what_cannot_be(pylon, options, code, said):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        found, out, err = pylon("connect", "serve", *(option.format(taken=address) for option in options))
    assert (found, out) == (code, "")
    assert said in err
    assert "hint: " in err


def test_a_token_that_others_can_read_is_not_used(pylon, home):
    home.prepare()
    path = home.data / "tunnel.token"
    path.write_text("x" * 64)
    path.chmod(0o644)
    code, _, err = pylon("connect", "serve")
    assert (code, "chmod 600" in err) == (1, True)
