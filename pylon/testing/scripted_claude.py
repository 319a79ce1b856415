"""A scripted ``claude``: it speaks the streaming JSON of Claude Code, thinks nothing, and costs nothing.

For tests of what drives Claude Code (``claude --input-format stream-json --output-format stream-json --verbose
--include-partial-messages --permission-prompt-tool stdio``): the shapes are those that Claude Code 2.1 writes and
reads, as its Python SDK knows them (github.com/anthropics/claude-agent-sdk-python). It says of itself that it is
scripted, in its version. ``install`` makes the executable; only the standard library is needed to run it.

A script is a list of rules, ``{"when": REGEX, "do": [STEP, ...]}``; the first whose expression is found in a prompt
plays. Where none is, the prompt is repeated, with the files that it names by ``@``, as Claude Code would read them; a
prompt that begins with a slash is a command. ``"then": [STEP, ...]`` of a rule is a turn of its own that follows,
without a prompt, as when a subagent in the background ends. Steps:

- ``{"text": "..."}``: said in pieces, at word ends; ``"each": SECONDS`` waits between them
- ``{"tool": "Write", "input": {...}, "output": "..."}``: asks whether it may, and then says that it did. ``Write``
  really writes its file. ``{"tools": [STEP, ...]}``: several, asked for all at once
- ``{"wait": SECONDS}``; ``{"cost": DOLLARS}``: of this turn; ``{"raw": "..."}``: a line of stdout, as it is
- ``{"spawn": SECONDS}``: leaves a child of its own behind; ``{"exit": CODE}``: dies
- ``{"fail": "..."}``: the turn ends in an error

Settings beside ``"rules"``: ``"version"``; ``"log"``: a file that gets a line of JSON for the arguments and for
whatever is read; ``"deaf": true``: goes on when its stdin ends or SIGTERM comes; ``"spendthrift": true``: heeds no
``--max-budget-usd``; ``"without_hooks": true``: calls none; ``"ask_rules": [TOOL, ...]``: asks for these even if a hook
allows them, as a rule in the user's own settings would have it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

VERSION = "2.1.240 (Claude Code, scripted)"
COST = 0.01
"""Dollars of a turn that names none."""
_USAGE = {"input_tokens": 12, "output_tokens": 34, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 6}
_UNASKED = ("Read", "Glob", "Grep", "LS", "TodoWrite")
"""What Claude Code itself does without asking, where no hook is in the way."""


def install(directory: Path, rules: list[dict[str, Any]] | None = None, **settings: Any) -> Path:
    """Write an executable ``claude`` that plays this script into ``directory``. Returns its path."""
    script = directory / "claude-script.json"
    script.write_text(json.dumps({"rules": rules or [], **settings}))
    executable = directory / "claude"
    command = " ".join(map(shlex.quote, (sys.executable, "-I", str(Path(__file__).resolve()), str(script))))
    executable.write_text(f'#!/bin/sh\n# A scripted claude, for tests.\nexec {command} "$@"\n')
    executable.chmod(0o755)
    return executable


def end_all(log: Path) -> None:
    """End every process that a log tells of, if it still runs, with its group: for a test that has failed."""
    for line in log.read_text().splitlines() if log.exists() else []:
        number = json.loads(line).get("process")
        with contextlib.suppress(OSError):
            # By its number alone it may be another's by now.
            if number is not None and Path(__file__).name.encode() in Path(f"/proc/{number}/cmdline").read_bytes():
                os.killpg(number, signal.SIGKILL)


class _Interrupted(Exception):
    pass


class _Claude:
    def __init__(self, script: dict[str, Any], arguments: list[str]) -> None:
        self.script = script
        self.arguments = arguments
        self.session = self.option("--session-id") or str(uuid.uuid4())
        self.model = self.option("--model") or "claude-scripted"
        self.partial = "--include-partial-messages" in arguments
        self.prompts: queue.Queue[str | None] = queue.Queue()
        self.answers: dict[str, dict[str, Any]] = {}
        self.changed = threading.Condition()
        self.interrupted = False
        self.hooks: list[str] = []
        self.cost = 0.0
        self.turns = 0
        self.asked = 0

    def option(self, name: str) -> str | None:
        for at, argument in enumerate(self.arguments):
            if argument == name and at + 1 < len(self.arguments):
                return self.arguments[at + 1]
            if argument.startswith(f"{name}="):
                return argument.removeprefix(f"{name}=")
        return None

    def log(self, what: str, value: Any) -> None:
        if path := self.script.get("log"):
            with open(path, "a") as file:
                file.write(json.dumps({what: value}) + "\n")

    # Writing.

    def say(self, **message: Any) -> None:
        line = json.dumps({**message, "session_id": self.session, "uuid": str(uuid.uuid4())})
        with self.changed:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    def event(self, **event: Any) -> None:
        if self.partial:
            self.say(type="stream_event", event=event, parent_tool_use_id=None)

    def assistant(self, block: dict[str, Any], message_id: str) -> None:
        message = {
            "id": message_id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [block],
            "stop_reason": None,
            "usage": _USAGE,
        }
        self.say(type="assistant", message=message, parent_tool_use_id=None)

    # Reading.

    def listen(self) -> None:
        for line in sys.stdin:
            message = json.loads(line)
            self.log("read", message)
            match message["type"]:
                case "user":
                    content = message["message"]["content"]
                    if not isinstance(content, str):
                        content = "".join(block.get("text", "") for block in content)
                    self.prompts.put(content)
                case "control_request":
                    self.control(message["request_id"], message["request"])
                case "control_response":
                    with self.changed:
                        self.answers[message["response"]["request_id"]] = message["response"]
                        self.changed.notify_all()
        if self.script.get("deaf"):
            threading.Event().wait()
        os._exit(0)

    def control(self, request_id: str, request: dict[str, Any]) -> None:
        response: dict[str, Any] = {}
        match request["subtype"]:
            case "initialize":
                matchers = (request.get("hooks") or {}).get("PreToolUse", [])
                self.hooks = [name for matcher in matchers for name in matcher["hookCallbackIds"]]
                response = {"commands": [], "output_style": "default", "available_output_styles": ["default"]}
            case "interrupt":
                with self.changed:
                    self.interrupted = True
                    self.changed.notify_all()
        answer = {"subtype": "success", "request_id": request_id, "response": response}
        self.say(type="control_response", response=answer)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        request_id = str(uuid.uuid4())
        self.say(type="control_request", request_id=request_id, request=request)
        with self.changed:
            while request_id not in self.answers:
                if self.interrupted:
                    break
                self.changed.wait()
            answer = self.answers.pop(request_id, None)
        if answer is None:
            self.say(type="control_cancel_request", request_id=request_id)
            raise _Interrupted
        if answer["subtype"] != "success":
            return {"behavior": "deny", "message": answer.get("error", "")}
        found = answer.get("response")
        return found if isinstance(found, dict) else {}

    # Playing.

    def play(self) -> None:
        threading.Thread(target=self.listen, daemon=True).start()
        while (prompt := self.prompts.get()) is not None:
            self.turn(prompt)

    def turn(self, prompt: str) -> None:
        with self.changed:
            self.interrupted = False
        self.turns += 1
        self.say(
            type="system",
            subtype="init",
            cwd=os.getcwd(),
            tools=[*_UNASKED, "Write", "Edit", "Bash", "WebFetch"],
            mcp_servers=[],
            model=self.model,
            permissionMode=self.option("--permission-mode") or "default",
            claude_code_version=VERSION,
            apiKeySource="none",
            slash_commands=[],
            output_style="default",
        )
        rule = next((rule for rule in self.script["rules"] if re.search(rule["when"], prompt)), None)
        if prompt.startswith("/"):
            rule = {"do": [{"text": "the settings were changed"}]}
        self.perform(rule["do"] if rule else [{"text": f"You said: {prompt}{_attached(prompt)}"}])
        if rule and "then" in rule:
            self.perform(rule["then"])

    def perform(self, steps: list[dict[str, Any]]) -> None:
        self.cost += sum(float(step.get("cost", 0)) for step in steps) or COST
        said: list[str] = []
        error: str | None = None
        try:
            for step in steps:
                error = self.step(step, said)
                if error is not None:
                    break
        except _Interrupted:
            note = [{"type": "text", "text": "[Request interrupted by user]"}]
            self.say(type="user", message={"role": "user", "content": note}, parent_tool_use_id=None)
            self.result("error_during_execution", is_error=True, terminal_reason="aborted_streaming")
            return
        budget = self.option("--max-budget-usd")
        if budget is not None and self.cost >= float(budget) and not self.script.get("spendthrift"):
            self.result("error_max_budget_usd", is_error=True, errors=[f"Reached maximum budget (${budget})"])
        elif error is not None:
            self.result("error_during_execution", is_error=True, errors=[error])
        else:
            self.result("success", is_error=False, result="".join(said), terminal_reason="completed")

    def result(self, subtype: str, **more: Any) -> None:
        self.say(
            type="result",
            subtype=subtype,
            duration_ms=5,
            duration_api_ms=4,
            num_turns=self.turns,
            total_cost_usd=round(self.cost, 6),
            usage=_USAGE,
            modelUsage={},
            permission_denials=[],
            **more,
        )

    def step(self, step: dict[str, Any], said: list[str]) -> str | None:
        """What went wrong, for a step that ends the turn so."""
        if "text" in step:
            self.text(step["text"], step.get("each", 0))
            said.append(step["text"])
        if "tool" in step:
            self.tools([step])
        if "tools" in step:
            self.tools(step["tools"])
        if "wait" in step:
            self.wait(step["wait"])
        if "raw" in step:
            with self.changed:
                sys.stdout.write(step["raw"] + "\n")
                sys.stdout.flush()
        if "spawn" in step:
            subprocess.Popen(["sleep", str(step["spawn"])])
        if "exit" in step:
            sys.stderr.write("the script says: die\n")
            sys.stderr.flush()
            os._exit(step["exit"])
        return step.get("fail")

    def wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        with self.changed:
            while (left := until - time.monotonic()) > 0 and not self.interrupted:
                self.changed.wait(left)
            if self.interrupted:
                raise _Interrupted

    def text(self, text: str, each: float) -> None:
        message_id = f"msg_{uuid.uuid4().hex[:12]}"
        self.event(type="message_start", message={"id": message_id, "role": "assistant", "content": []})
        self.event(type="content_block_start", index=0, content_block={"type": "text", "text": ""})
        for piece in re.findall(r"\S*\s*", text):
            if piece:
                self.wait(each)
                self.event(type="content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
        self.assistant({"type": "text", "text": text}, message_id)
        self.event(type="content_block_stop", index=0)
        self.event(type="message_delta", delta={"stop_reason": "end_turn"}, usage=_USAGE)
        self.event(type="message_stop")

    def tools(self, steps: list[dict[str, Any]]) -> None:
        message_id = f"msg_{uuid.uuid4().hex[:12]}"
        uses = [(f"toolu_{uuid.uuid4().hex[:12]}", step) for step in steps]
        for index, (use, step) in enumerate(uses):
            block = {"type": "tool_use", "id": use, "name": step["tool"], "input": step.get("input", {})}
            self.event(type="content_block_start", index=index, content_block={**block, "input": {}})
            partial = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
            self.event(type="content_block_delta", index=index, delta=partial)
            self.assistant(block, message_id)
            self.event(type="content_block_stop", index=index)
        results: dict[str, str | None] = {}
        interrupt = threading.Event()
        threads = [
            threading.Thread(target=self.permit, args=(use, step, results, interrupt), daemon=True)
            for use, step in uses
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.interrupted or interrupt.is_set():
            raise _Interrupted
        for use, step in uses:
            refusal = results.get(use)
            output = step.get("output", "done") if refusal is None else refusal
            if refusal is None and step["tool"] == "Write":
                path = Path(step["input"]["file_path"])
                path.write_text(step["input"]["content"])
            block = {"type": "tool_result", "tool_use_id": use, "content": output, "is_error": refusal is not None}
            self.say(type="user", message={"role": "user", "content": [block]}, parent_tool_use_id=None)

    def permit(
        self, use: str, step: dict[str, Any], results: dict[str, str | None], interrupt: threading.Event
    ) -> None:
        try:
            results[use] = self.refusal(use, step["tool"], step.get("input", {}), interrupt)
        except _Interrupted:
            pass

    def refusal(self, use: str, tool: str, given: dict[str, Any], interrupt: threading.Event) -> str | None:
        allowed = tool in _UNASKED
        for hook in [] if self.script.get("without_hooks") else self.hooks:
            told = {
                "session_id": self.session,
                "transcript_path": "",
                "cwd": os.getcwd(),
                "permission_mode": "default",
                "hook_event_name": "PreToolUse",
                "tool_name": tool,
                "tool_input": given,
                "tool_use_id": use,
            }
            answer = self.ask({"subtype": "hook_callback", "callback_id": hook, "input": told, "tool_use_id": use})
            decision = answer.get("hookSpecificOutput", {})
            if answer.get("continue") is False:
                interrupt.set()
            if decision.get("permissionDecision") == "deny":
                return str(decision.get("permissionDecisionReason") or "denied by a hook")
            allowed = allowed or decision.get("permissionDecision") == "allow"
        if allowed and tool not in self.script.get("ask_rules", ()):
            return None
        request = {"subtype": "can_use_tool", "tool_name": tool, "input": given, "tool_use_id": use}
        answer = self.ask({**request, "permission_suggestions": [], "blocked_path": None})
        if answer.get("behavior") == "allow":
            return None
        if answer.get("interrupt"):
            interrupt.set()
        return str(answer.get("message") or "denied")


def _attached(prompt: str) -> str:
    if os.environ.get("CLAUDE_CODE_DISABLE_ATTACHMENTS"):
        return ""
    named = [Path(found) for found in re.findall(r'(?:^|\s)@"?([^\s"]+)', prompt)]
    return "".join(path.read_text() for path in named if path.is_file())


def main() -> None:
    script = json.loads(Path(sys.argv[1]).read_text())
    arguments = sys.argv[2:]
    if arguments in (["--version"], ["-v"]):
        print(script.get("version", VERSION))
        return
    if script.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    claude = _Claude(script, arguments)
    claude.log("arguments", arguments)
    claude.log("environment", sorted(os.environ))
    claude.log("process", os.getpid())
    claude.play()


if __name__ == "__main__":
    main()
