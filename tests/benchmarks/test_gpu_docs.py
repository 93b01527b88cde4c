"""docs/GPU.md, and what docs/LOG.md says waits for a GPU: commands parse, and files and plans exist."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "GPU.md").read_text(encoding="utf-8")
LOG = (
    (ROOT / "docs" / "LOG.md")
    .read_text(encoding="utf-8")
    .partition("\n## Waiting for a GPU\n")[2]
    .partition("\n## ")[0]
)


def commands_in(text: str) -> list[list[str]]:
    """Script and arguments of every command with one of ours; a line may go on behind a backslash."""
    blocks = "".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ")
    found = re.findall(r"^.*?\bpython3? (benchmarks/gpu/.*)$", blocks, flags=re.MULTILINE)
    return [line.split() for line in found]


COMMANDS = {"GPU.md": commands_in(TEXT), "LOG.md": commands_in(LOG)}
sys.path.insert(0, str(ROOT / "benchmarks" / "gpu"))


def test_all_scripts_are_shown() -> None:
    shown = {Path(command[0]).name for command in COMMANDS["GPU.md"]}
    assert shown == {"run.py", "pieces.py", "figures.py", "throughput.py"}


@pytest.mark.parametrize("place", COMMANDS)
def test_commands_parse(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of every script all options that are shown exist, and so does the plan."""
    for script, *words in COMMANDS[place]:
        sub = words[:1] if Path(script).name == "pieces.py" else []
        with pytest.raises(SystemExit, match=r"^0$"):
            importlib.import_module(Path(script).stem).main([*sub, "--help"])
        options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        assert {word for word in words if word.startswith("--")} <= options, (script, words)
        assert all((ROOT / word).is_file() for word in words if word.endswith(".toml")), words


def test_plans_and_paths_exist() -> None:
    plans = {path.stem for path in (ROOT / "benchmarks" / "gpu" / "plans").glob("*.toml")}
    table = TEXT[TEXT.index("| plan |") : TEXT.index("A plan of your own")]
    assert set(re.findall(r"^\| `([a-z0-9-]+)`", table, flags=re.MULTILINE)) == plans
    for path in re.findall(r"benchmarks/gpu/[\w./-]+\.(?:py|toml)", TEXT + LOG):
        assert (ROOT / path).is_file(), path
    assert re.findall(r"`([\w-]+/[\w-]+)`", TEXT) == []  # recipes would be checked by the README's tests
