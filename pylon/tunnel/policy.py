"""What a session may do: the rules of this machine, and what a page's wishes make of them. No I/O but to resolve paths.

1. The rules of the machine come from ``[claude]`` and the command line. A page can tighten them, and never loosen them:
   for every tool use, what the tightened rules decide is at least as strict as what the machine's decide.
2. *Autonomy*, from loose to strict: *full* asks for nothing of itself; *supervised* asks for the tools of
   ``approval_required_tools``; *restricted* asks for all; *read_only* lets reads through (``READS``) and denies the
   rest. Where either side says restricted, everything is asked for, reads of read_only too.
3. A tool that is not among ``allowed_tools``, if that names any, or that is among ``blocked_tools``, is denied. A
   page's list of tools narrows the machine's; its blocked and approval-required tools are added to them.
4. A file tool that reaches out of the session's directory, with ``..``, symbolic links and ``~`` resolved, is asked
   for; read_only denies it, full lets it. Into the home of Pylon, where keys are, none reaches, whatever is allowed.
   What a shell does is not seen through: that is what asking for Bash is for.
5. A session's directory is the machine's, or one within it. Its cost is the smaller of both caps.
6. Names of tools are compared without regard to case, and ``*`` stands for anything (``mcp__github__*``). To block or
   to ask for a tool is to block or to ask for its kin (``KIN``).

Web tools are no reads: an address or a search carries out whatever is put into it.
"""

from __future__ import annotations

import enum
import fnmatch
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from pylon.config import AUTONOMY, ClaudeConfig
from pylon.errors import ConfigError
from pylon.tunnel.messages import SessionRequest

READ_TOOLS = (
    *("Read", "Glob", "Grep", "LS", "NotebookRead", "ToolSearch"),
    *("TodoWrite", "TodoRead", "TaskCreate", "TaskGet", "TaskList", "TaskUpdate"),
)
READS = frozenset(map(str.casefold, READ_TOOLS))
"""What read_only allows. A list of things to do is the session's own, and touches nothing."""

NEVER = (
    *("AskUserQuestion", "CronCreate", "EnterWorktree", "ListAgents", "ScheduleWakeup", "SendMessage", "Workflow"),
    "RemoteTrigger",
)
"""Tools of no session: they want a person at the terminal, act when nobody has asked, or reach other sessions of this
machine, which have rules of their own."""

KIN: Mapping[str, frozenset[str]] = {
    "edit": frozenset({"multiedit", "notebookedit"}),
    "bash": frozenset({"monitor", "powershell"}),
    "task": frozenset({"agent"}),
    "agent": frozenset({"task"}),
}
"""Tools that do what another does, under another name."""

_PATHS: Mapping[str, tuple[str, ...]] = {
    "read": ("file_path",),
    "write": ("file_path",),
    "edit": ("file_path",),
    "multiedit": ("file_path",),
    "notebookread": ("notebook_path",),
    "notebookedit": ("notebook_path",),
    "glob": ("path", "pattern"),
    "grep": ("path",),
    "ls": ("path",),
    "lsp": ("filePath",),
}
"""The parameters of file tools that name files."""
_TRIMMED = (
    "\t\n\v\f\r \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f"
    "\u3000\ufeff"
)
"""What Claude Code cuts off both ends of a path before it goes there: JavaScript's white space (ECMA-262, 12.2)."""
_DEEP = frozenset({"grep"})
"""Tools that show what is in files of the whole directory."""

_TOOL = re.compile(r"[A-Za-z0-9_.:*-]{1,200}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]{0,199}")
_GLOB = re.compile(r"[*?\[{]")

Resolve = Callable[[str], str]
"""An absolute path -> the same without symbolic links and ``..``."""


class Decision(enum.IntEnum):
    """From loose to strict."""

    ALLOW = 0
    ASK = 1
    DENY = 2


@attrs.frozen
class Verdict:
    decision: Decision
    reason: str
    """May be told to the page, and to Claude."""


class RequestRefused(ValueError):
    """A wish that cannot be granted, nor be tightened to something that was meant. The message may be told."""


@attrs.frozen(kw_only=True)
class Rules:
    """What holds for a session."""

    model: str
    autonomy: str
    cwd: Path
    """Absolute, resolved."""
    root: Path
    """The machine's own directory: ``cwd``, or above it."""
    asks_all: bool = False
    """Restricted, on either side."""
    allowed: tuple[tuple[str, ...], ...] = ()
    """Lists of tools: one has to be on each of them."""
    blocked: tuple[str, ...] = ()
    approval_required: tuple[str, ...] = ()
    """The machine's; full does not ask for them."""
    approval_added: tuple[str, ...] = ()
    """The page's; they are always asked for."""
    max_cost_usd: int | None = None
    """Millionths of a dollar; ``None``: no cap."""
    closed: tuple[Path, ...] = ()
    """Resolved directories that no file tool may touch."""

    @property
    def asks(self) -> tuple[str, ...]:
        """The tools that are asked for, by name."""
        own = () if self.autonomy == "full" else self.approval_required
        return tuple(dict.fromkeys((*own, *self.approval_added)))

    @property
    def allowed_names(self) -> tuple[str, ...] | None:
        """The tools that are allowed, for people; ``None``: all that are not blocked."""
        if not self.allowed:
            return None
        *others, last = self.allowed
        return tuple(tool for tool in last if all(_named(tool.casefold(), other, kin=False) for other in others))

    @property
    def known_tools(self) -> tuple[str, ...] | None:
        """The tools that Claude need know of at all; ``None``: no telling. What is denied, ``decide`` says."""
        allowed = self.allowed_names
        if self.autonomy == "read_only":
            reads = READ_TOOLS
            return tuple(tool for tool in reads if allowed is None or _named(tool.casefold(), allowed, kin=False))
        return None if allowed is None or any("*" in tool or tool.startswith("mcp__") for tool in allowed) else allowed

    @property
    def shown_cwd(self) -> str:
        """From the machine's directory: what is above it is nobody's business."""
        return os.path.relpath(self.cwd, self.root)

    def decide(self, tool: str, params: Mapping[str, Any], *, resolve: Resolve = os.path.realpath) -> Verdict:
        """What becomes of one use of a tool."""
        name = tool.casefold()
        if _named(name, NEVER):
            return Verdict(Decision.DENY, f"{tool} is not for a session that is driven from elsewhere")
        if not all(_named(name, allowed, kin=False) for allowed in self.allowed):
            return Verdict(Decision.DENY, f"{tool} is not among the allowed tools")
        if _named(name, self.blocked):
            return Verdict(Decision.DENY, f"{tool} is blocked on this machine")
        reach = _reach(name, params, self.cwd, resolve)
        if reach is None:
            return Verdict(Decision.DENY, f"{tool}: its path is none")
        for closed in self.closed:
            if any(_within(path, closed, fold=True) for path in reach):
                return Verdict(Decision.DENY, f"{tool}: nothing reaches into the home of Pylon")
            if name in _DEEP and any(_within(closed, path, fold=True) for path in reach):
                return Verdict(Decision.DENY, f"{tool}: the home of Pylon is in that directory: name one below it")
        outside = not all(_within(path, self.cwd) for path in reach)
        if self.autonomy == "read_only":
            if name not in READS:
                return Verdict(Decision.DENY, f"{tool} is no read, and the session is read-only")
            if outside:
                return Verdict(Decision.DENY, f"{tool}: out of the session's directory, and the session is read-only")
        if _named(name, self.asks):
            return Verdict(Decision.ASK, f"{tool} wants a yes")
        if self.asks_all:
            return Verdict(Decision.ASK, "the session is restricted: every tool wants a yes")
        if outside and self.autonomy != "full":
            return Verdict(Decision.ASK, f"{tool}: out of the session's directory")
        return Verdict(Decision.ALLOW, "allowed by the rules")


def rules_of(config: ClaudeConfig, *, default_cwd: Path, closed: Iterable[Path] = ()) -> Rules:
    """The machine's own rules. Raises ``ConfigError`` for a directory that is none, and for what names no tool."""
    cwd = Path(os.path.realpath(config.cwd or default_cwd))
    if not cwd.is_dir():
        raise ConfigError(f"[claude] cwd: there is no directory {cwd}", "name one that exists, or give --cwd")
    closed = tuple(Path(os.path.realpath(path)) for path in closed)
    if any(_within(cwd, path, fold=True) for path in closed):
        raise ConfigError(f"{cwd} is the home of Pylon, where its keys are", "give another directory with --cwd")
    lists = {
        "allowed_tools": config.allowed_tools,
        "blocked_tools": config.blocked_tools,
        "approval_required_tools": config.approval_required_tools,
    }
    for key, tools in lists.items():
        for tool in tools:
            if _TOOL.fullmatch(tool) is None:
                raise ConfigError(
                    f"[claude] {key}: {tool[:60]!r} names no tool",
                    "tools are named alone, without what they may do: Bash, not Bash(git:*)",
                )
    if _MODEL.fullmatch(config.model) is None:
        raise ConfigError(f"[claude] model: {config.model[:60]!r} names no model", "claude-sonnet-4-20250514, or opus")
    return Rules(
        model=config.model,
        autonomy=config.autonomy,
        cwd=cwd,
        root=cwd,
        asks_all=config.autonomy == "restricted",
        allowed=(config.allowed_tools,) if config.allowed_tools else (),
        blocked=config.blocked_tools,
        approval_required=config.approval_required_tools,
        max_cost_usd=config.max_cost_usd,
        closed=closed,
    )


@attrs.frozen
class Tightened:
    rules: Rules
    refused: tuple[str, ...]
    """Wishes that would have loosened something, in words: they are as if they had not been made."""


def tighten(rules: Rules, request: SessionRequest, *, resolve: Resolve = os.path.realpath) -> Tightened:
    """The rules of one session. Raises ``RequestRefused`` for what makes no sense, and for a directory outside."""
    refused: list[str] = []
    autonomy, asks_all = rules.autonomy, rules.asks_all
    if request.autonomy is not None:
        wished = request.autonomy.strip().casefold().replace("-", "_")
        if wished not in AUTONOMY:
            raise RequestRefused(f"autonomy is one of {', '.join(AUTONOMY)}")
        asks_all = asks_all or wished == "restricted"
        if AUTONOMY.index(wished) < AUTONOMY.index(autonomy):
            refused.append(f"autonomy stays {autonomy}")
        autonomy = AUTONOMY[max(AUTONOMY.index(wished), AUTONOMY.index(autonomy))]

    wished_tools = tuple(tool.name for tool in request.tools)
    added = request.approval_required_tools or ()
    for tool in (*wished_tools, *added, *request.blocked_tools):
        if _TOOL.fullmatch(tool) is None:
            raise RequestRefused("a tool is named alone, without what it may do")
    kept = [tool for tool in rules.approval_required if not _named(tool.casefold(), added)]
    if kept and request.approval_required_tools is not None and autonomy == "supervised":
        refused.append(f"still asked for: {', '.join(kept)}"[:1_000])

    cost = rules.max_cost_usd
    if request.max_cost_usd is not None:
        if cost is not None and request.max_cost_usd > cost:
            refused.append(f"max_cost_usd stays {cost}")
        cost = request.max_cost_usd if cost is None else min(cost, request.max_cost_usd)

    model = request.model or rules.model
    if _MODEL.fullmatch(model) is None:
        raise RequestRefused("that names no model")
    tightened = attrs.evolve(
        rules,
        model=model,
        autonomy=autonomy,
        asks_all=asks_all,
        cwd=_directory(rules.cwd, request.cwd, resolve),
        allowed=(*rules.allowed, wished_tools) if wished_tools and wished_tools not in rules.allowed else rules.allowed,
        blocked=tuple(dict.fromkeys((*rules.blocked, *request.blocked_tools))),
        approval_added=tuple(dict.fromkeys((*rules.approval_added, *added))),
        max_cost_usd=cost,
    )
    return Tightened(tightened, tuple(refused))


def _directory(own: Path, wished: str | None, resolve: Resolve) -> Path:
    if not wished:
        return own
    if "\0" in wished or wished.startswith("~"):
        raise RequestRefused("cwd: a directory within the machine's own is wanted")
    try:
        found = Path(resolve(os.path.join(own, wished)))
        inside = _within(found, own) and found.is_dir()
    except (OSError, ValueError):
        inside = False
    if not inside:
        # Whether it exists is nobody's business.
        raise RequestRefused("cwd: there is no such directory within the machine's own")
    return found


def _named(name: str, tools: Iterable[str], *, kin: bool = True) -> bool:
    """Whether a list names a tool; ``name`` is case-folded."""
    for tool in tools:
        pattern = tool.casefold()
        if fnmatch.fnmatchcase(name, pattern):
            return True
        if kin and name in KIN.get(pattern, ()):
            return True
    return False


def _reach(name: str, params: Mapping[str, Any], cwd: Path, resolve: Resolve) -> list[Path] | None:
    """Where a use of a file tool reaches; ``None``: a path that is none."""
    found = [cwd] if name in _DEEP and params.get("path") is None else []
    for parameter in _PATHS.get(name, ()):
        path = params.get(parameter)
        if path is None:
            continue
        if type(path) is not str or "\0" in path:
            return None
        try:
            for read in _readings(path):
                if parameter == "pattern":
                    bases = _readings(params.get("path"))
                    found += [_reach_of_pattern(read, base, cwd, resolve) for base in bases]
                else:
                    found.append(Path(resolve(os.path.join(cwd, os.path.expanduser(read)))))
        except (OSError, ValueError):
            return None
    return found


def _readings(path: Any) -> list[Any]:
    """A path as it stands, and as Claude Code may take it: without white space around it, composed (NFC). It has to be
    allowed to go to all of them."""
    if type(path) is not str:
        return [path]
    trimmed = path.strip(_TRIMMED)
    return list(dict.fromkeys((path, trimmed, unicodedata.normalize("NFC", trimmed))))


def _reach_of_pattern(pattern: str, base: Any, cwd: Path, resolve: Resolve) -> Path:
    """The directory under which all that a pattern matches is; the root of all, where a pattern could climb."""
    if ".." in re.split(r"[/\\{},]", pattern) or re.search(r"[{,][/~]", pattern):
        return Path("/")
    fixed, _, _ = _GLOB.split(pattern, maxsplit=1)[0].rpartition("/")
    start = os.path.join(cwd, os.path.expanduser(base)) if type(base) is str else str(cwd)
    if pattern.startswith("/"):
        fixed = fixed or "/"
    return Path(resolve(os.path.join(start, os.path.expanduser(fixed))))


def _within(path: Path, directory: Path, *, fold: bool = False) -> bool:
    """``fold``: without regard to case, where a file system may have none."""
    parts, above = path.parts, directory.parts
    if fold:
        parts, above = tuple(map(str.casefold, parts)), tuple(map(str.casefold, above))
    return parts[: len(above)] == above
