"""What a service manager reads: systemd's user unit, launchd's property list. Texts only; nothing is installed here.

The unit is shut in as far as it can be and still work (systemd.exec(5)). Left open: ``MemoryDenyWriteExecute``, for
the foreign-function interfaces of the wallet and of libsecp256k1 make callbacks at run time; ``ProcSubset``, for the
model asks ``/proc/cpuinfo``; the network, which is what it lives by.
"""

from __future__ import annotations

import plistlib
from collections.abc import Sequence
from pathlib import Path

WATCHDOG_SECONDS = 60
START_SECONDS = 300
STOP_SECONDS = 60

_SANDBOX = """
# The file system is read-only but for the home, the models and the locks; other processes are not to be seen.
# In a user's manager this takes a user namespace; where the system forbids those: pylon service install --no-sandbox.
PrivateUsers=yes
ProtectSystem=strict
ProtectHome=read-only
{paths}
PrivateTmp=yes
{devices}
ProtectProc=invisible
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RemoveIPC=yes
CapabilityBoundingSet=
AmbientCapabilities=
"""


def systemd_unit(
    command: Sequence[str],
    *,
    writable: Sequence[Path],
    environment: Sequence[tuple[str, str]] = (),
    credential: Path | None = None,
    sandbox: bool = True,
    gpu: bool = False,
    wrapped: bool = False,
) -> str:
    """A user unit. ``writable``: directories that it must write; ``credential``: a file with the passphrase.

    ``wrapped``: the command starts the daemon as its child, and waits for its end.
    """
    sandboxed = _SANDBOX.format(
        paths="\n".join(f"ReadWritePaths={quoted(str(path))}" for path in writable),
        devices="# PrivateDevices would hide the GPU." if gpu else "PrivateDevices=yes\nDevicePolicy=closed",
    )
    lines = [
        "# Written by `pylon service install`; what is changed here is lost with the next one. Your own settings:",
        "# systemctl --user edit pylon",
        "[Unit]",
        "Description=Pylon, the local runtime for sovereign AI agents",
        "# It is started again for as long as it fails, but not in a loop that nobody notices.",
        "StartLimitIntervalSec=600",
        "StartLimitBurst=10",
        "",
        "[Service]",
        "Type=notify",
        f"NotifyAccess={'all' if wrapped else 'main'}",
        f"ExecStart={' '.join(quoted(word).replace('$', '$$') for word in command)}",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "Restart=on-failure",
        "RestartSec=5",
        "# A command line that is wrong stays wrong.",
        "RestartPreventExitStatus=2",
        f"WatchdogSec={WATCHDOG_SECONDS}",
        f"TimeoutStartSec={START_SECONDS}",
        f"TimeoutStopSec={STOP_SECONDS}",
        "# It ends its own children; what is left of them goes with it.",
        "KillMode=mixed",
        *(f"Environment={quoted(f'{name}={value}')}" for name, value in environment),
        *([] if credential is None else [f"LoadCredential=pylon.passphrase:{escaped(str(credential))}"]),
        "UMask=0077",
        "LimitCORE=0",
        "LimitNOFILE=65536",
        "NoNewPrivileges=yes",
        "LockPersonality=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "RestrictNamespaces=yes",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "SystemCallArchitectures=native",
        "SystemCallFilter=@system-service",
        "SystemCallFilter=~@privileged @resources",
        "SystemCallErrorNumber=EPERM",
        *(sandboxed.strip("\n").splitlines() if sandbox else []),
        "",
        "[Install]",
        "WantedBy=default.target",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """A value in which systemd expands nothing (systemd.unit(5), specifiers)."""
    return text.replace("%", "%%")


def quoted(word: str) -> str:
    """One word of a list (systemd.syntax(7)). In a command line, ``$`` is to be doubled, too (systemd.service(5))."""
    for character, told in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("\n", "\\n")):
        word = word.replace(character, told)
    return f'"{word}"' if not word or set(word) & set(" \t'\";#\\") else word


def launchd_plist(
    label: str, command: Sequence[str], *, log: Path, environment: Sequence[tuple[str, str]] = ()
) -> bytes:
    """A launch agent: started at login, and again when it has failed. launchd knows no readiness and no watchdog."""
    return plistlib.dumps(
        {
            "Label": label,
            "ProgramArguments": list(command),
            "EnvironmentVariables": dict(environment),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 10,
            "ExitTimeOut": STOP_SECONDS,
            "ProcessType": "Background",
            "Umask": 0o077,
            "SoftResourceLimits": {"Core": 0, "NumberOfFiles": 4_096},
            "StandardInPath": "/dev/null",
            "StandardOutPath": str(log),
            "StandardErrorPath": str(log),
        }
    )
