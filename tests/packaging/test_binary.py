"""Pylon as one file, made and run: where there is no Python, no shell and no network, and as a daemon of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pylon import __version__

ROOT = Path(__file__).parents[2]
SMALL = 200_000_000
"""Bytes, with the model inside."""

pytestmark = [
    pytest.mark.deep,
    pytest.mark.timeout(1_800),  # it is built first
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the single file is made on Linux only"),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The single file, with the model inside. PYLON_TEST_FILE names one that was made already."""
    if given := os.environ.get("PYLON_TEST_FILE"):
        return Path(given)
    out = tmp_path_factory.mktemp("binary")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, str(ROOT / "packaging" / "binary.py"), "--out", str(out)], check=True, env=environment
    )
    (found,) = (path for path in out.iterdir() if not path.name.endswith(".tar.gz"))
    return found


@pytest.fixture
def run(file, tmp_path):
    """Run it as somebody who has nothing else."""
    environment = {"HOME": str(tmp_path), "PATH": "/nowhere", "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def call(*arguments, timeout=120.0):
        return subprocess.run(
            [str(file), "--home", str(tmp_path / "home"), *arguments],
            env=environment, capture_output=True, text=True, check=False, timeout=timeout,
        )  # fmt: skip

    return call


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="chroot wants root")
@pytest.mark.skipif(shutil.which("unshare") is None or shutil.which("ip") is None, reason="util-linux, iproute2")
def test_the_demo_where_there_is_nothing_else(file, tmp_path):
    def run(*arguments):
        return subprocess.run(
            [str(ROOT / "packaging" / "try_in_empty_root.sh"), str(file), *arguments],
            env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip

    assert file.stat().st_size < SMALL
    done = run("--version")
    assert done.stdout == f"pylon {__version__}\n", done.stderr
    done = run("demo", "--json")
    assert done.returncode == 0, done.stderr
    story = json.loads(done.stdout)
    assert story["books"]["balanced"] is True
    assert len({job["provider"] for job in story["jobs"]}) == 2, "one of the two was killed on the way"
    assert story["notes"]
    inside = [line.split()[0] for line in done.stderr.splitlines() if line.startswith("  /")]
    assert "/pylon" in inside
    assert not [path for path in inside if "python" in path or "/bin/" in path], inside


def test_a_daemon_of_its_own(run, tmp_path):
    assert run("init", "--network", "simnet").returncode == 0
    (tmp_path / "home" / "config.toml").write_text(
        'network = "simnet"\n[relay]\nbind = "127.0.0.1:0"\n[api]\nbind = "127.0.0.1:0"\n'
    )
    pulled = run("models", "pull", "--json")
    assert json.loads(pulled.stdout)["fetched"] is True, pulled.stderr
    started = run("start", "-d", "--json")
    assert started.returncode == 0, started.stderr
    daemon = psutil.Process(json.loads(started.stdout)["pid"])
    try:
        program = tmp_path / "cache" / "pylon" / "program"
        assert Path(daemon.exe()).is_relative_to(program)
        answer = run("infer", "--json", "Say one word.")
        assert answer.returncode == 0, answer.stderr
        engines = [child for child in daemon.children() if "pylon.inference.engine" in child.cmdline()]
        assert len(engines) == 1
        status = json.loads(run("status", "--json").stdout)
        assert status["daemon"]["pid"] == daemon.pid
        assert run("doctor").returncode == 0
        daemon.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs([daemon, *engines], 20)
        assert not alive, "an orphan is left"
        assert run("status").returncode == 3
        assert run("start", "-d").returncode == 0, "what was left of the killed one is in the way"
        assert run("stop").returncode == 0
    finally:
        if daemon.is_running():
            daemon.kill()


def test_it_is_not_unpacked_at_every_start(run, tmp_path):
    assert run("--version").stdout == f"pylon {__version__}\n"
    (place,) = (tmp_path / "cache" / "pylon" / "program").iterdir()
    before = (place / "pylon").stat()
    began = time.monotonic()
    assert run("--version").returncode == 0
    assert time.monotonic() - began < 5
    assert (place / "pylon").stat() == before


def test_a_service_is_the_file_itself(run, file, tmp_path):
    run("init", "--network", "simnet")
    told = run("service", "install", "--print")
    assert f"ExecStart={file} --home {tmp_path / 'home'} start" in told.stdout, told
    assert "NotifyAccess=all" in told.stdout
