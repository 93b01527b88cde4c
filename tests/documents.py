"""README.md, CONTRIBUTING.md and the pages of docs/, and the blocks of code in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)(```+)([^\n]*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    code: str


def blocks(document: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a document in these languages, or in any."""
    found = [Block(m[3].strip(), m[4]) for m in FENCE.finditer(document.read_text(encoding="utf-8"))]
    return [block for block in found if not languages or block.language in languages]


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def commands(script: str) -> list[list[str]]:
    """The words of each command of a shell script, without comments; quotes and backslashes may run over lines."""
    found, begun = [], ""
    for line in script.replace("\\\n", " ").splitlines():
        begun += f"{line}\n"
        try:
            words = shlex.split(begun, comments=True)
        except ValueError:  # a quotation that goes on in the next line
            continue
        begun = ""
        while words and re.fullmatch(r"\w+=.*", words[0]):  # variables of the command alone
            words = words[1:]
        found += [words] if words else []
    assert not begun, begun
    return found
