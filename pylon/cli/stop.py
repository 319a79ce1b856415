"""``pylon stop``: ask the daemon to end, wait, and insist. It signals a process only while that holds this home."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import click

from pylon.cli.client import call, is_running, not_running
from pylon.cli.output import State, emit, json_option, note, pass_state
from pylon.errors import ControlError, NotRunning, PylonError

if TYPE_CHECKING:
    from pylon.daemon.holder import Running

ASK_SECONDS = 2.0
"""For the daemon to answer that it has heard."""
TERM_SECONDS = 3.0
"""From SIGTERM to what comes next."""
KILL_SECONDS = 5.0
AGAIN = 0.1


@click.command()
@click.option("-f", "--force", is_flag=True, help="Kill it (SIGKILL) if it does not end otherwise.")
@click.option(
    "-t",
    "--timeout",
    type=click.FloatRange(0, 86_400),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long it may take to end by itself; then SIGTERM.",
)
@json_option
@pass_state
def stop(state: State, force: bool, timeout: float) -> None:
    """Stop the daemon of this home: work under way is parked, announcements are withdrawn.

    It is asked first; after SECONDS it gets SIGTERM; with -f, SIGKILL in the end. What is parked goes on with the next
    start, also after SIGKILL. Exit code 3 if no daemon is running.
    """
    from pylon.daemon import holder

    began = time.monotonic()
    deadline = began + timeout
    running = holder.find(state.home.pid)
    if running is None:
        _stop_unseen(state, deadline)
        emit(state, {"pid": None, "how": "asked", "seconds": round(time.monotonic() - began, 3)}, "stopped (asked)")
        return
    with running:
        how = "asked"
        ended = _asked_to_end(state, running, deadline)
        if not ended:
            how = "terminated"
            _signal(running, signal.SIGTERM)
            ended = running.wait(TERM_SECONDS if force else max(TERM_SECONDS, deadline - time.monotonic()))
        if not ended and force:
            how = "killed"
            _signal(running, signal.SIGKILL)
            ended = running.wait(KILL_SECONDS)
        if not ended:
            hint = f"it may hang in the kernel: ps -p {running.pid}" if force else "pylon stop -f kills it"
            raise ControlError(f"the daemon (pid {running.pid}) has not ended", f"{hint}; its log: {state.home.log}")
    told = {"pid": running.pid, "how": how, "seconds": round(time.monotonic() - began, 3)}
    emit(state, told, f"stopped (pid {running.pid}, {how})")


def _asked_to_end(state: State, running: Running, deadline: float) -> bool:
    """Whether it has ended by itself. One that does not listen starts or ends, and is asked as soon as it listens."""
    while True:
        began = time.monotonic()
        try:
            call(state.home, "stop", timeout=ASK_SECONDS)
        except NotRunning:
            if running.wait(min(AGAIN, max(0.0, deadline - began))):
                return True
            if time.monotonic() >= deadline:
                return False
            continue
        except PylonError as error:
            # Who hangs up without an answer is ending; who is silent hangs.
            if time.monotonic() - began >= ASK_SECONDS:
                note(f"warning: {error.message}")
                return False
        return running.wait(max(0.0, deadline - time.monotonic()))


def _signal(running: Running, number: signal.Signals) -> None:
    try:
        running.signal(number)
    except PermissionError:
        raise ControlError(f"pid {running.pid} belongs to another user", "stop it as that user") from None


def _stop_unseen(state: State, deadline: float) -> None:
    """Whoever answers here holds no lock that we see: the file system has none, or it runs in another container.

    It can be asked, and nothing more.
    """
    if not is_running(state.home):
        raise not_running(state.home.data)
    call(state.home, "stop", timeout=ASK_SECONDS)
    while is_running(state.home):
        if time.monotonic() >= deadline:
            raise ControlError("the daemon has heard, and has not ended", "end it where it runs")
        time.sleep(AGAIN)
