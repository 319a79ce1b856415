"""Every command line that is shown, in the docs or in a hint, is one that the command understands."""

from __future__ import annotations

import ast
import re

import click
import pytest

from pylon.cli.main import cli
from pylon.cli.output import State
from pylon.errors import PylonError
from tests.docs.pages import PAGES, ROOT, SHELLS, Block, blocks, code_spans, commands, named

SOURCES = sorted((ROOT / "pylon").rglob("*.py"))
GENERATED = ROOT / "docs" / "reference"


def understand(words):
    """Parse a command line as ``pylon`` does; nothing is run. Raises what it would say to its user."""
    command, name, above = cli, "pylon", None
    while True:
        context = command.make_context(name, list(words), parent=above, obj=State())
        rest = [*context._protected_args, *context.args]
        if not isinstance(command, click.Group) or not rest:
            return
        name, inner, words = command.resolve_command(context, rest)
        assert inner is not None
        command, above = inner, context


def complaint(words):
    try:
        understand(words)
    except (click.ClickException, PylonError) as error:
        return error.format_message() if isinstance(error, click.ClickException) else error.message
    except click.exceptions.Exit:
        pass
    return ""


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_what_is_to_be_typed_is_understood(page):
    wrong = [
        f"{named(page)}:{line}: pylon {' '.join(words)}: {said}"
        for block in blocks(page.read_text(encoding="utf-8"))
        if block.language in SHELLS
        for line, words in commands(block)
        if (said := complaint(words))
    ]
    assert wrong == []


# --- what is only mentioned -------------------------------------------------------------------------------------------


def mentioned(text):
    """What is wrong with a mention such as ``pylon agent grant NAME zap --each 21``: words that there are not.

    Arguments may be anything, ``a|b`` and ``[...]`` are read as what they stand for.
    """
    words = re.sub(r"[\[\]]", " ", text).split()[1:]
    context, wrong = click.Context(cli, info_name="pylon"), []
    while words:
        word = words.pop(0)
        command = context.command
        if word.startswith("-") and word not in ("-", "--"):
            for option in word.split("|"):
                known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
                name = option.partition("=")[0].rstrip(".,;:)")
                if name not in known | {"-h", "--help"}:
                    wrong.append(f"{command.name} has no {name}")
            owner = next((p for p in command.params if word.split("|")[0] in p.opts), None)
            if owner is not None and isinstance(owner, click.Option) and not owner.is_flag and words:
                words.pop(0)
        elif isinstance(command, click.Group):
            names = [name.rstrip(".,;:)") for name in word.split("|")]
            if any(not re.fullmatch(r"[a-z][a-z-]*", name) for name in names):
                return wrong  # COMMAND, ..., or the end of the sentence
            for name in names:
                try:
                    found = command.get_command(context, name)
                except PylonError:
                    found = None
                if found is None:
                    wrong.append(f"{command.name} has no command {name}")
            inner = command.get_command(context, names[0])
            if inner is None or len(names) > 1:
                return wrong
            context = click.Context(inner, parent=context, info_name=names[0])
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_what_is_mentioned_exists(page):
    wrong = [
        f"{named(page)}:{line}: {text}: {said}"
        for line, text in code_spans(page.read_text(encoding="utf-8"))
        if text.startswith("pylon ")
        for said in mentioned(text)
    ]
    assert wrong == []


_HINTED = re.compile(r"\bpylon (?:--\w+ \S+ )?(?=[a-z])[^,;:(){}`\n]*")


def test_what_hints_and_help_tell_to_type_exists():
    wrong = []
    groups = set(cli.list_commands(click.Context(cli)))
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            for found in _HINTED.findall(text):
                if found.split()[1] in groups:
                    wrong += [f"{named(source)}:{node.lineno}: {found!r}: {said}" for said in hinted(found)]
    assert wrong == []


def hinted(text):
    """Of words within a sentence: as far as they can only be meant as a command."""
    words = text.split()
    context, command = click.Context(cli, info_name="pylon"), cli
    for word in words[1:]:
        if not isinstance(command, click.Group):
            break
        inner = command.get_command(context, word.rstrip(".,'`"))
        if inner is None:
            return []  # a group's name in a sentence
        command = inner
        if word[-1] in ".,'`":
            return []
    return mentioned(" ".join(words))


# --- the reading itself -----------------------------------------------------------------------------------------------


def test_what_a_shell_takes_for_itself():
    text = """\
# pylon nothing
export A=1; A=b pylon --home x init   # words
pylon start -d --passphrase-fd 3 3< FILE && pylon stop
cat f | pylon job submit - --bid 20 \\
    > out 2>&1
echo $(pylon status)
"""
    found = [words for _, words in commands(Block("bash", 1, text))]
    assert found == [
        ["--home", "x", "init"],
        ["start", "-d", "--passphrase-fd", "3"],
        ["stop"],
        ["job", "submit", "-", "--bid", "20"],
        ["status"],
    ]
    assert list(commands(Block("console", 1, "$ pylon status\npylon is\n"))) == [(1, ["status"])]


def test_what_is_wrong_is_found():
    assert "no command 'strat'" in complaint(["strat"])
    assert "--detatch" in complaint(["start", "--detatch"])
    assert complaint(["wallet", "invoice", "many"])
    assert complaint(["--home", "x", "wallet", "pay"]), "an argument is missing"
    assert complaint(["wallet", "pay", "TARGET", "--dry-run"]) == ""
    assert mentioned("pylon stop [-f] [-t]") == []
    assert mentioned("pylon agent spawn|lits") == ["agent has no command lits"]
    assert mentioned("pylon books --chekc") == ["books has no --chekc"]
