"""A picture of a terminal in which a command has run, as SVG.

    python benchmarks/terminal.py --out docs/terminal.svg --until right reverie ask --example

runs the command in a terminal of its own and draws what it printed, up to the line that begins with `--until`.
"""

from __future__ import annotations

import argparse
import io
import os
import pty
import shlex
import shutil
import subprocess
from pathlib import Path

import publish
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from reverie.errors import UserError
from reverie.files import write_atomic

# As rich's own frame, without fonts from the network, and with numbers that a second run makes alike.
FRAME = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=100, help="columns")
    parser.add_argument("--until", help="the word that the last line shown begins with; all of them if absent")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    lines = shown(printed(arguments.command, arguments.width).split("\n"), arguments.until)
    write_atomic(arguments.out, picture(arguments.command, lines, arguments.width).encode())


def printed(command: list[str], width: int) -> str:
    """What the command prints to a terminal of `width` columns. Raises UserError if there is none, or it fails."""
    if not command or shutil.which(command[0]) is None:
        raise UserError(f"there is no command {' '.join(command)}: give one behind the options")
    ours, its = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(width), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment) as process:
        os.close(its)
        parts = []
        try:
            while part := os.read(ours, 1 << 16):
                parts.append(part)
        except OSError:  # Linux's way to say that the other end is closed
            pass
    os.close(ours)
    if process.returncode:
        raise UserError(f"{' '.join(command)} ended with code {process.returncode}, so there is nothing to draw")
    return b"".join(parts).decode().replace("\r\n", "\n")


def shown(lines: list[str], until: str | None) -> list[str]:
    """The lines up to the one that begins with `until`; of one that was written over, what it said last.

    Raises UserError if none begins so.
    """
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in lines]
    if until is None:
        return lines
    for i, line in enumerate(lines):
        if Text.from_ansi(line).plain.strip().startswith(until):
            return lines[: i + 1]
    raise UserError(f"no line begins with {until!r}, which --until names")


def picture(command: list[str], lines: list[str], width: int) -> str:
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    command = [Path(command[0]).name, *command[1:]]
    console.print(Text.assemble(("$ ", "bold green"), (shlex.join(command), "bold")))
    for line in lines:
        console.print(Text.from_ansi(line), soft_wrap=False)
    return console.export_svg(title=" ".join(command[:2]), theme=MONOKAI, code_format=FRAME, unique_id="terminal")


if __name__ == "__main__":
    publish.run(main)
