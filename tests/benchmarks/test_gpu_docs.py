"""docs/GPU.md: its commands parse, and its files and plans exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "GPU.md").read_text(encoding="utf-8")
LINES = [
    line
    for block in re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("python ")
]
SCRIPTS = sorted({line.split()[1] for line in LINES})


def test_all_scripts_are_shown() -> None:
    assert {Path(script).name for script in SCRIPTS} == {"run.py", "pieces.py", "figures.py"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_options_exist(script: str) -> None:
    commands = [line.split()[2:] for line in LINES if line.split()[1] == script]
    sub = [commands[0][0]] if Path(script).name == "pieces.py" else []
    done = subprocess.run([sys.executable, ROOT / script, *sub, "--help"], capture_output=True, text=True, check=True)
    options = set(re.findall(r"--[a-z-]+", done.stdout))
    for command in commands:
        assert {word for word in command if word.startswith("--")} <= options, command


def test_plans_and_paths_exist() -> None:
    plans = {path.stem for path in (ROOT / "benchmarks" / "gpu" / "plans").glob("*.toml")}
    table = TEXT[TEXT.index("| plan |") : TEXT.index("A plan of your own")]
    assert set(re.findall(r"^\| `([a-z0-9-]+)`", table, flags=re.MULTILINE)) == plans
    for path in re.findall(r"benchmarks/gpu/[\w./-]+\.(?:py|toml)", TEXT):
        assert (ROOT / path).is_file(), path
    assert re.findall(r"`([\w-]+/[\w-]+)`", TEXT) == []  # recipes would be checked by the README's tests
