"""``pylon service``: have the user's service manager keep the daemon: systemd on Linux, launchd on macOS."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click

from pylon import ourselves
from pylon.cli.output import State, emit, json_option, note, pass_state, plain
from pylon.errors import ConfigError, IdentityError, NotRunning, PylonError, UsageError

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,40}")
_SECONDS = 90.0
_ASKED = ("LoadState", "ActiveState", "SubState", "UnitFileState", "MainPID", "NRestarts", "Result", "StatusText")


def _check_name(context: click.Context, param: click.Parameter, value: str) -> str:
    if not _NAME.fullmatch(value):
        raise click.BadParameter("small letters, digits, - and _, a letter first")
    return value


name_option = click.option(
    "--name", default="pylon", show_default=True, callback=_check_name, help="Of the service; one for each home."
)


@click.group()
def service() -> None:
    """Have systemd (Linux) or launchd (macOS) start the daemon with your login, and again when it fails."""


@service.command()
@click.option("--print", "print_only", is_flag=True, help="Show what would be written, and do nothing.")
@name_option
@click.option("-m", "--mode", type=click.Choice(["host", "provider", "both"]), default="both", show_default=True)
@click.option("-c", "--config", "config_path", metavar="FILE", help="As of pylon start.")
@click.option("--credential", metavar="FILE", help="systemd: a file with the home's passphrase (LoadCredential).")
@click.option("--gpu", is_flag=True, help="systemd: let it use the GPU's devices.")
@click.option("--no-sandbox", is_flag=True, help="systemd: without what takes a user namespace.")
@click.option("--no-start", is_flag=True, help="Only with the next login.")
@json_option
@pass_state
def install(
    state: State,
    print_only: bool,
    name: str,
    mode: str,
    config_path: str | None,
    credential: str | None,
    gpu: bool,
    no_sandbox: bool,
    no_start: bool,
) -> None:
    """Write the service of this home, enable it and start it. Doing it again replaces it."""
    for option, path in (("--config", config_path), ("--credential", credential)):
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"{option}: there is no file {path}", "name one that is there")
    manager = _manager(name)
    command = [*ourselves.lasting_command(), *_home(state), "start", "-m", mode]
    if config_path is not None:
        command += ["-c", os.path.abspath(config_path)]
    passphrase = None if credential is None else Path(credential).absolute()
    text = manager.text(state, command, credential=passphrase, sandbox=not no_sandbox, gpu=gpu)
    if print_only:
        emit(state, {"path": str(manager.path), "text": text}, text.rstrip("\n"))
        return
    if not state.home.mnemonic.exists():
        raise IdentityError(f"there is no identity in {state.home.data}", "pylon init")
    state.home.prepare()
    for directory in _others():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write(manager.path, text)
    try:
        manager.enable(start=not no_start)
    except PylonError as error:
        raise type(error)(f"{manager.path} is written, and {error.message}", error.hint) from None
    note(manager.advice)
    started = "" if no_start else " and started"
    emit(
        state, {"path": str(manager.path), "name": name, "started": not no_start}, f"installed{started}: {manager.path}"
    )


@service.command()
@name_option
@json_option
@pass_state
def uninstall(state: State, name: str) -> None:
    """Stop the service and remove it. The home stays as it is."""
    manager = _manager(name)
    if not manager.path.exists():
        raise NotRunning(f"there is no service {manager.path}", "pylon service install")
    manager.disable()
    manager.path.unlink(missing_ok=True)
    with contextlib.suppress(PylonError):
        manager.reload()
    emit(state, {"path": str(manager.path), "name": name}, f"removed: {manager.path}")


@service.command("status")
@name_option
@json_option
@pass_state
@click.pass_context
def status_(context: click.Context, state: State, name: str) -> None:
    """Show what the service manager knows. Exit code 3 if the service is not installed, or does not run."""
    manager = _manager(name)
    installed = manager.path.exists()
    known = manager.ask() if installed else {}
    running = manager.runs(known)
    told = {"name": name, "path": str(manager.path), "installed": installed, "running": running, "manager": known}
    words = "not installed" if not installed else "running" if running else "not running"
    lines = [f"Service:  {words} ({manager.path})", *(f"{key}: {value}" for key, value in known.items())]
    emit(state, told, "\n".join(lines))
    if not running:
        context.exit(NotRunning.exit_code)


# --- the managers -------------------------------------------------------------------------------------------------


class _Systemd:
    """The user's own manager."""

    advice = "it ends with your last login, unless: loginctl enable-linger"

    def __init__(self, name: str) -> None:
        self.unit = f"{name}.service"
        base = os.environ.get("XDG_CONFIG_HOME", "")
        root = Path(base) if os.path.isabs(base) else Path("~/.config").expanduser()
        self.path = root / "systemd" / "user" / self.unit

    def text(self, state: State, command: list[str], *, credential: Path | None, sandbox: bool, gpu: bool) -> str:
        from pylon.cli.service_units import systemd_unit

        writable = list(dict.fromkeys((state.home.root, state.home.data, *_ledgers(state), *_others())))
        return systemd_unit(
            command,
            writable=writable,
            environment=_environment(),
            credential=credential,
            sandbox=sandbox,
            gpu=gpu,
            wrapped=ourselves.lasting_command() != ourselves.command(),
        )

    def reload(self) -> None:
        self._systemctl("daemon-reload")

    def enable(self, *, start: bool) -> None:
        self.reload()
        self._systemctl("enable", self.unit)
        if start:
            self._systemctl("restart", self.unit)

    def disable(self) -> None:
        self._systemctl("disable", "--now", self.unit)

    def ask(self) -> dict[str, str]:
        told = self._systemctl("show", self.unit, f"--property={','.join(_ASKED)}")
        pairs = (line.partition("=") for line in told.splitlines())
        return {key: plain(value) for key, _, value in pairs if key in _ASKED and value}

    def runs(self, known: dict[str, str]) -> bool:
        return known.get("ActiveState") in ("active", "reloading", "activating")

    def _systemctl(self, *arguments: str) -> str:
        return _run(["systemctl", "--user", *arguments], f"journalctl --user -u {self.unit} -n 20")


class _Launchd:
    """The agents of the user's login."""

    advice = "it runs while you are logged in"

    def __init__(self, name: str) -> None:
        self.label = f"com.openagents.{name}"
        self.path = Path("~/Library/LaunchAgents").expanduser() / f"{self.label}.plist"
        self._domain = f"gui/{os.getuid()}"

    def text(self, state: State, command: list[str], *, credential: Path | None, sandbox: bool, gpu: bool) -> str:
        from pylon.cli.service_units import launchd_plist

        environment = _environment()
        if credential is not None:
            environment.append(("PYLON_PASSPHRASE_FILE", str(credential)))
        log = state.home.logs / "launchd.log"
        return launchd_plist(self.label, command, log=log, environment=environment).decode()

    def reload(self) -> None:
        """It reads the directory by itself."""

    def enable(self, *, start: bool) -> None:
        with contextlib.suppress(PylonError):
            self._launchctl("bootout", f"{self._domain}/{self.label}")
        if start:
            self._launchctl("bootstrap", self._domain, str(self.path))

    def disable(self) -> None:
        with contextlib.suppress(PylonError):  # one that is not loaded is no trouble
            self._launchctl("bootout", f"{self._domain}/{self.label}")

    def ask(self) -> dict[str, str]:
        try:
            told = self._launchctl("print", f"{self._domain}/{self.label}")
        except PylonError:
            return {}
        found: dict[str, str] = {}
        for line in told.splitlines():
            key, equals, value = line.strip().partition(" = ")
            if equals and key in ("state", "pid", "last exit code", "runs"):
                found.setdefault(key, plain(value))
        return found

    def runs(self, known: dict[str, str]) -> bool:
        return known.get("state") == "running"

    def _launchctl(self, *arguments: str) -> str:
        return _run(["launchctl", *arguments], "see Console.app")


def _manager(name: str) -> _Systemd | _Launchd:
    if sys.platform == "darwin":
        return _Launchd(name)
    if sys.platform.startswith("linux"):
        return _Systemd(name)
    raise UsageError("there is no service manager that we know here", "pylon start -d, from whatever starts things")


def _run(command: list[str], hint: str) -> str:
    if shutil.which(command[0]) is None:
        raise PylonError(f"there is no {command[0]} on this machine", "pylon start -d; pylon service install --print")
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
            env=ourselves.environment_of_others(),
        )
    except subprocess.TimeoutExpired:
        raise PylonError(f"{' '.join(command)} has not ended within {_SECONDS:.0f} s", hint) from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[:400]
        raise PylonError(f"{' '.join(command)} says: {said or f'exit code {done.returncode}'}", hint)
    return done.stdout


# --- what is written ----------------------------------------------------------------------------------------------


def _home(state: State) -> list[str]:
    """The default home is found by the daemon itself, with its ``data_dir``."""
    given = state.home_option or os.environ.get("PYLON_HOME")
    return ["--home", str(state.home.root)] if given else []


def _environment() -> list[tuple[str, str]]:
    """Where things are, for a manager that knows nothing of this shell. Nothing secret: units can be read."""
    names = ("PYLON_MODELS", "PYLON_LOCKS")
    return [(name, os.path.abspath(os.path.expanduser(value))) for name in names if (value := os.environ.get(name))]


def _others() -> list[Path]:
    """What is written outside of the home: models, and the locks by which the homes of a machine meet."""
    from pylon.host.seedlock import locks_path
    from pylon.inference.models import models_directory

    return [models_directory(), locks_path().parent]


def _ledgers(state: State) -> list[Path]:
    """The directory of a shared simnet ledger."""
    from pylon import config as configuration

    try:
        ledger = configuration.load(state.home.config).config.simnet.ledger
    except PylonError:
        return []
    return [] if ledger is None else [ledger.parent]


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.new")
        draft.write_text(text, encoding="utf-8")
        draft.chmod(0o644)
        os.replace(draft, path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}", "check its directory") from None
