"""The pages of the README and the docs: their blocks, and the commands in them."""

import dataclasses
import pathlib
import re
import shlex
import textwrap
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]

_BLOCK = re.compile(r"^( *)```([^\s`]+)[^\n]*\n(.*?)^\1```[ ]*$", re.M | re.S)
_NOT_RUN = re.compile(r"<!-- not run: ((?:(?!-->).)*?)\s*-->\s*\Z", re.S)
_FILE = re.compile(r"\b[Ss]ave\s+(?:it|this|that)\s+as\s+`([^`]+)`:\s*\Z")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: The number of its first line in the page, from 1.
        kind: What it is marked as, such as "sh".
        text: What it holds.
        reason: Why it is not run, from a comment `<!-- not run: REASON -->` on the line before it.
        file: What the page says to save it as, by "Save this as `FILE`:" before it.
    """

    line: int
    kind: str
    text: str
    reason: str | None
    file: str | None


def blocks(page: pathlib.Path) -> Iterator[Block]:
    """The fenced blocks of a page that say of what kind they are."""
    text = page.read_text()
    for match in _BLOCK.finditer(text):
        before = text[: match.start()]
        not_run = _NOT_RUN.search(before)
        file = _FILE.search(before[: not_run.start()] if not_run else before)
        yield Block(
            line=before.count("\n") + 2,
            kind=match[2],
            text=textwrap.dedent(match[3]),
            reason=" ".join(not_run[1].split()) if not_run else None,
            file=file[1] if file else None,
        )


def commands(block: Block) -> Iterator[tuple[int, str]]:
    """The commands of a block of shell, with the numbers of their lines.

    What a backslash, a quote or a here-document continues is one command.
    """
    command, first = "", block.line
    for number, line in enumerate(block.text.splitlines(), block.line):
        first = first if command else number
        command += line
        if line.endswith("\\"):
            command = command[:-1] + " "
        elif _goes_on(command, line):
            command += "\n"
        else:
            if command.strip() and not command.lstrip().startswith("#"):
                yield first, command
            command = ""
    assert not command, f"line {first}: something is left open in {command}"


def _goes_on(command: str, line: str) -> bool:
    """Whether more lines belong to a command than those up to this one."""
    if end := re.search(r"<<-? *['\"]?(\w+)", command):
        return line.strip() != end[1]
    try:
        shlex.split(command, comments=True)
    except ValueError:  # No closing quotation.
        return True
    return False


def where(page: pathlib.Path, line: int) -> str:
    """How a message names a line of a page."""
    return f"{page.relative_to(ROOT)}:{line}"
