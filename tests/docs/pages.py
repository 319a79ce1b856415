"""The pages that people read, taken apart: headings, links, and the commands that they are told to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SHELLS = {"bash", "sh", "console"}
"""Languages of blocks with commands; in ``console`` only what stands behind a prompt is one."""

_FENCE = re.compile(r"^( *)(`{3,})([^`\n]*)\n(.*?)^\1\2 *$", re.M | re.S)
_CODE = re.compile(r"(`+)(.+?)\1", re.S)
_HEADING = re.compile(r"^#{1,6} +(.+?) *#* *$", re.M)
_LINK = re.compile(r"(?<!\\)\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_PUNCTUATION = re.compile(r"[^\w\- ]")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@attrs.frozen
class Block:
    """A fenced block."""

    language: str
    line: int
    text: str


def blocks(text: str) -> list[Block]:
    return [
        Block(found[3].strip(), text.count("\n", 0, found.start()) + 2, found[4]) for found in _FENCE.finditer(text)
    ]


def prose(text: str) -> str:
    """Without its fenced blocks; their lines stay, empty."""
    return _FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)


def code_spans(text: str) -> list[tuple[int, str]]:
    """What stands between backticks, with the lines where it begins; broken lines are joined."""
    plain = prose(text)
    return [
        (plain.count("\n", 0, found.start()) + 1, re.sub(r"\s*\n\s*", " ", found[2])) for found in _CODE.finditer(plain)
    ]


def links(text: str) -> list[tuple[int, str]]:
    """Targets of links and pictures, with their lines."""
    plain = _CODE.sub(lambda found: " " * len(found[0]), prose(text))
    return [(plain.count("\n", 0, found.start()) + 1, found[1]) for found in _LINK.finditer(plain)]


def anchors(text: str) -> set[str]:
    """The names that headings can be linked to by, as GitHub and myst make them."""
    found: set[str] = set()
    for heading in _HEADING.findall(prose(text)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.replace("`", ""))
        slug = _PUNCTUATION.sub("", words.strip().lower()).replace(" ", "-")
        name, count = slug, 0
        while name in found:
            count += 1
            name = f"{slug}-{count}"
        found.add(name)
    return found


def commands(block: Block) -> Iterator[tuple[int, list[str]]]:
    """The words of each ``pylon`` that a block of a shell runs, without what the shell itself takes of it."""
    for number, line in _lines(block):
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words: list[str] = []
        for token in [*lexer, ";"]:
            if token and set(token) <= set("|&;()"):
                if (told := _of_pylon(words)) is not None:
                    yield number, told
                words = []
            else:
                words.append(token)


def _lines(block: Block) -> Iterator[tuple[int, str]]:
    """Whole commands: continued lines joined, and none of what they print."""
    text, begun = "", 0
    for number, line in enumerate(block.text.splitlines(), block.line):
        if not text:
            if block.language == "console":
                if not line.startswith("$ "):
                    continue
                line = line[2:]
            begun = number
        text += line.strip()
        if text.endswith("\\"):
            text = text[:-1] + " "
        else:
            yield begun, text
            text = ""


def _of_pylon(words: list[str]) -> list[str] | None:
    """What ``pylon`` gets of one command; ``None`` where it is another program's."""
    rest = list(words)
    while rest and re.fullmatch(r"[A-Za-z_]\w*=.*", rest[0], re.S):
        rest.pop(0)
    if not rest or rest.pop(0) != "pylon":
        return None
    kept: list[str] = []
    for word in rest:
        if word and set(word) <= set("<>&"):
            if kept and kept[-1].isdigit() and (word == "<" or kept[-1] in "12"):
                kept.pop()  # the descriptor of `3< FILE` or `2>&1`
            kept.append("<")
        elif kept and kept[-1] == "<":
            kept.pop()  # where to, or from
        else:
            kept.append(word)
    return kept
