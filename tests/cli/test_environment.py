"""Commands where they are called from odd places: output as far as possible, or one sentence and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="uses devices of Linux")]

LONG = "a" * 300
CARD = Path(__file__).parents[2] / "results/depo/nano.json"


def run(command: str, *, stdin: str | None = "", **environment: str | None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command through a shell; a variable that is None is unset."""
    variables = {**os.environ, **{key: x for key, x in environment.items() if x is not None}}
    for key in [key for key, x in environment.items() if x is None]:
        variables.pop(key, None)
    done = subprocess.run(
        ["bash", "-c", command.replace("reverie", f"{sys.executable} -m reverie", 1)],
        input=None if stdin is None else stdin.encode(),
        capture_output=True,
        env=variables,
        timeout=120,
    )
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def assert_refused(found: tuple[int, str, str], *parts: str) -> None:
    code, _, told = found
    assert code == 2, told
    assert "Traceback" not in told
    last = [line for line in told.splitlines() if line][-1]
    assert last.startswith("error: "), told
    assert all(part in last for part in parts), last


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("command", ["reverie ask --example", "reverie tasks show depo/nano"])
def test_terminals_that_lack_letters_get_the_rest(command: str, encoding: str) -> None:
    code, printed, told = run(command, PYTHONIOENCODING=encoding)
    assert code == 0, told
    assert len(printed.splitlines()) > 5
    assert "Traceback" not in told


@pytest.mark.parametrize("command", ["reverie read example - --memory m.safetensors", "reverie chat example"])
def test_closed_standard_input_is_one_sentence(command: str) -> None:
    assert_refused(run(f"{command} <&-", stdin=None), "standard input is closed")


@pytest.mark.parametrize(
    "command",
    [
        f"reverie read example {LONG} --memory m.safetensors",
        f"reverie read example {CARD} --memory {LONG}",
        f"reverie generate {LONG} --prompt a",
        f"reverie eval {LONG}",
        f"reverie watch {LONG}",
        f"reverie chat example --memory {LONG}",
        f"reverie plot {LONG}",
        f"reverie ask example hi --memory {LONG}",
        f"reverie memories {LONG}",
        f"reverie train {LONG}.toml",
        f"reverie data check {LONG}.jsonl",
        f"reverie convert --from {LONG} --insert jet --layers 1 --out {LONG}",
    ],
    ids=lambda command: " ".join(command.split()[1:3])[:12],
)
def test_names_that_no_file_system_takes_are_one_sentence(command: str) -> None:
    assert_refused(run(command))


def test_figures_are_the_same_whatever_matplotlib_is_told(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 30\naxes.facecolor: red\n")
    figures = []
    for backend, folder in ((None, None), ("module://matplotlib_inline.backend_inline", str(tmp_path)), ("no", None)):
        card = tmp_path / f"{backend is None}-{folder is None}.json"
        card.write_bytes(CARD.read_bytes())
        code, _, told = run(f"reverie plot {card} --json", MPLBACKEND=backend, MPLCONFIGDIR=folder)
        assert code == 0, told
        figures.append(card.with_suffix(".png").read_bytes())
    assert figures[0] == figures[1] == figures[2]


def test_a_full_standard_output_is_one_sentence() -> None:
    assert_refused(run("reverie tasks show depo/nano > /dev/full"), "No space left")


def test_a_reader_that_goes_away_is_no_error() -> None:
    _, printed, told = run("reverie tasks show depo/nano | head -1")
    assert len(printed.splitlines()) == 1
    assert "Traceback" not in told
    assert "error" not in told


@pytest.mark.parametrize("home", [None, "/proc/nothing"])
def test_without_a_home_commands_work(home: str | None) -> None:
    code, printed, told = run("reverie ask --example", HOME=home)
    assert code == 0, told
    assert "curlew" in printed


def test_twenty_columns_are_enough() -> None:
    for command in ("reverie ask --example", "reverie tasks show depo/nano", "reverie --help"):
        code, printed, told = run(command, COLUMNS="20", TERM="dumb")
        assert code == 0, told
        assert printed


def test_control_characters_of_files_do_not_reach_the_terminal(tmp_path: Path) -> None:
    rows = tmp_path / "rows\x1b[31m.jsonl"
    rows.write_text('{"\\u001b]0;title\\u0007": 1}\n')
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[task]\nname = "\\u001b[2J"\n')
    for command in (f"reverie data check '{rows}'", f"reverie train '{recipe}'", f"reverie eval '{tmp_path}/\x1b[2J'"):
        _, printed, told = run(command)
        assert told or printed
        assert "\x1b" not in printed + told
        assert "\x07" not in printed + told
