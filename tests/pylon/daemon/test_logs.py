from __future__ import annotations

import json
import logging
import stat
import subprocess
import sys

import pytest

from pylon.daemon import logs
from pylon.daemon.logs import start_logging
from pylon.logcontext import AGENT


@pytest.fixture
def root():
    """The root logger, as it was when the test is over."""
    logger = logging.getLogger()
    handlers, level, httpx = logger.handlers[:], logger.level, logging.getLogger("httpx").level
    yield logger
    for handler in logger.handlers:
        if handler not in handlers:
            handler.close()
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logging.getLogger("httpx").setLevel(httpx)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_each_record_is_a_line_of_json(tmp_path, root):
    path = tmp_path / "logs" / "pylon.log"
    start_logging(path)
    log = logging.getLogger("pylon.test")
    log.info("two\nlines, %s", "äöü \x1b[2J \udcff")
    log.debug("too small to be told")
    try:
        raise ZeroDivisionError("oh")
    except ZeroDivisionError:
        log.exception("broken")
    first, second = lines(path)
    assert first["event"].startswith("two\nlines, äöü")
    assert (first["level"], first["logger"]) == ("info", "pylon.test")
    assert first["timestamp"].endswith("Z")
    assert "ZeroDivisionError: oh" in second["exception"]


def test_only_the_owner_may_read(tmp_path, root):
    path = tmp_path / "logs" / "pylon.log"
    start_logging(path)
    logging.getLogger("pylon.test").info("hello")
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700


def test_it_is_rotated_and_the_old_ones_are_private_too(tmp_path, root, monkeypatch):
    monkeypatch.setattr(logs, "_ROTATE_AT", 2_000)
    path = tmp_path / "pylon.log"
    start_logging(path)
    for number in range(200):
        logging.getLogger("pylon.test").info("record %d", number)
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 1 + logs._KEEP
    assert all(mode(file) == 0o600 for file in kept)
    assert all(file.stat().st_size <= 2_000 for file in kept)
    assert lines(path)[-1]["event"] == "record 199"


def test_once_more_replaces_the_handler_and_appends(tmp_path, root):
    path = tmp_path / "pylon.log"
    for word in ("one", "two"):
        start_logging(path)
        logging.getLogger("pylon.test").info(word)
        root.handlers[0].close()
    assert [line["event"] for line in lines(path)] == ["one", "two"]


def test_httpx_does_not_tell_every_request(tmp_path, root):
    start_logging(tmp_path / "pylon.log")
    logging.getLogger("httpx").info("GET http://127.0.0.1/")
    assert lines(tmp_path / "pylon.log") == []


def test_an_agents_records_bear_its_name(tmp_path, root):
    start_logging(tmp_path / "pylon.log")
    log = logging.getLogger("pylon.test")
    token = AGENT.set("alice")
    log.info("one")
    AGENT.reset(token)
    log.info("two")
    assert [line.get("agent") for line in lines(tmp_path / "pylon.log")] == ["alice", None]


def test_it_goes_on_in_the_file_of_its_name(tmp_path, root):
    path = tmp_path / "pylon.log"
    handler = start_logging(path)
    log = logging.getLogger("pylon.test")
    log.info("one")
    path.rename(tmp_path / "moved")
    log.info("two")
    handler.reopen()
    log.info("three")
    assert [line["event"] for line in lines(tmp_path / "moved")] == ["one", "two"]
    assert [line["event"] for line in lines(path)] == ["three"]
    assert mode(path) == 0o600


class Full:
    """A file on a full disk."""

    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        pass

    def seek(self, *where):
        pass

    def tell(self):
        return 0

    def close(self):
        pass


def test_what_does_not_fit_on_the_disk_is_counted(tmp_path, root, capsys):
    path = tmp_path / "pylon.log"
    handler = start_logging(path)
    log = logging.getLogger("pylon.test")
    good, handler.stream = handler.stream, Full()
    for _ in range(3):
        log.info("lost")
    assert handler.dropped == 3
    handler.stream = good
    log.info("back")
    assert [line["event"] for line in lines(path)] == [
        "back",
        "the log could not be written: 3 records are missing",
    ]
    assert handler.dropped == 0
    assert capsys.readouterr() == ("", "")


def test_stdout_and_stderr_follow_the_rotation(tmp_path):
    """Of a daemon in the background: what a library writes is in the log, also after its rotation."""
    path = tmp_path / "pylon.log"
    code = (
        "import logging, os, sys\n"
        "from pathlib import Path\n"
        "from pylon.daemon import logs\n"
        "logs._ROTATE_AT = 2_000\n"
        "logs.start_logging(Path(sys.argv[1]), streams=True)\n"
        "for number in range(30):\n"
        "    logging.getLogger('x').info('record %d', number)\n"
        "os.write(1, b'from below\\n')\n"
        "print('an error', file=sys.stderr)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, stdin=subprocess.DEVNULL)
    assert (tmp_path / "pylon.log.1").exists()
    assert path.read_text().endswith("from below\nan error\n")
