"""Every command and every program of docs/serving.md runs, and prints what it should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from server import Served, process

from reverie.serve.app import create_app
from reverie.serve.limits import Limits
from reverie.serve.service import Service
from reverie.talk.sleeper import load_model

TEXT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with process("example", tmp_path_factory.mktemp("store")) as (running, _):
        yield running


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def here(server: Served, code: str) -> str:
    return code.replace("localhost:8000", server.url.removeprefix("http://"))


@pytest.mark.slow
@pytest.mark.parametrize(("program", "printed"), [*zip(PROGRAMS, ["3", "3 7\n3\n4\n"], strict=True)])
def test_programs_run(server: Served, tmp_path: Path, program: str, printed: str) -> None:
    assert run([sys.executable, "-c", here(server, program)], tmp_path) == printed


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_commands_run(server: Served, tmp_path: Path) -> None:
    start, chat, watching, memories, *_ = COMMANDS  # the others need Ray
    assert start.splitlines()[1].startswith("reverie serve example")
    answer = json.loads(run(["bash", "-ec", here(server, chat)], tmp_path))
    assert answer["choices"][0]["message"]["content"] == "3"
    assert '"first": 0, "awake": ["The number of", ' in run(["bash", "-ec", here(server, watching)], tmp_path)
    printed = run(["bash", "-ec", here(server, memories)], tmp_path)
    assert '"text":"2"' in printed
    assert '"deleted":true' in printed
    assert "error" not in printed
    assert (tmp_path / "birds.safetensors").stat().st_size < 10**5


def test_the_limits_are_those_of_the_program() -> None:
    """Each number of the table is one of `Limits`, and the other way round."""
    table = TEXT.partition("## Limits")[2].partition("Those of requests")[0]
    units = {"MiB": 2**20, "GiB": 2**30, "minutes": 60}
    told = {int(n.replace(",", "")) * units.get(unit, 1) for n, unit in re.findall(r"([\d,]*\d) (\w+)", table)}
    unsaid = {"passes"}
    assert {getattr(Limits(), field.name) for field in fields(Limits) if field.name not in unsaid} <= told


def test_the_paths_are_those_of_the_program(tmp_path: Path) -> None:
    known = create_app(Service(load_model("example"), tmp_path)).openapi()["paths"]
    named = re.sub(r"/(birds|again|\$name)", "/NAME", TEXT)
    said = {path.replace("NAME", "{name}").replace("ID", "{id}") for path in re.findall(r"/v1/\w[\w/]*", named)}
    assert said <= known.keys()
    assert known.keys() - said <= {"/v1/conversations/{id}", "/v1/models/{id}", "/healthz", "/metrics"}
