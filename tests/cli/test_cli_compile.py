"""`reverie compile`: the same answers, and every model that cannot be compiled is one line on stderr."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Reverie, assert_one_line, in_empty_folder, the_json

from reverie.bench import compiled
from reverie.errors import UserError
from reverie.files import CACHE
from reverie.model import HybridLM
from reverie.model.awake import Awake, AwakeGraph, Made
from reverie.sleep import SleepConfig
from reverie.talk import load_model


@pytest.fixture
def reverie(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Reverie:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return in_empty_folder(monkeypatch, capsys, tmp_path)


@pytest.mark.slow
def test_what_was_compiled_is_used_and_answers_alike(reverie: Reverie):
    def answers() -> str:
        return re.sub(r"[\d.,]+ s\b", "", reverie("ask", "--example").out)  # times differ

    before = answers()
    assert not load_model("example").awake
    done = reverie("compile", "example")
    assert done.code == 0
    assert done.out.startswith("compiled in ")
    again = the_json(reverie("compile", "example", "--json"))
    assert Path(again["file"]).is_file()
    assert again["difference"] < 1e-5
    assert load_model("example").awake
    assert answers() == before


def test_a_wrong_result_is_never_timed(monkeypatch: pytest.MonkeyPatch):
    def compile_wrongly(model: HybridLM, config: SleepConfig, *, batch_size: int) -> Path:
        graph = AwakeGraph(model, config.window_size, config.window_size)

        def run(*given: Any) -> Made:
            logits, hs, states, tails = graph(*given)
            return 1.5 * logits + 1, hs, states, tails

        sizes = {"span": config.window_size, "places": config.window_size, "batch_size": batch_size}
        model.awake[batch_size] = Awake(model, run, **sizes)
        return Path()

    monkeypatch.setattr(compiled, "compile_awake", compile_wrongly)
    monkeypatch.setattr(compiled, "alternate", lambda *given, **more: pytest.fail("it was timed"))
    with pytest.raises(UserError, match="nothing is measured"):
        compiled.compile_and_measure(load_model("example"), 1)


def test_other_models_are_refused(reverie: Reverie):
    assert_one_line(reverie("compile", "nothing"), "there is no model at nothing")
    with pytest.raises(UserError, match="one of transformers runs as it is"):
        compiled.compile_and_measure(replace(load_model("example"), sleeping=object()), 1)  # type: ignore[arg-type]


@pytest.mark.slow
def test_without_a_compiler_nothing_is_left(tmp_path: Path):
    """In a process of its own, since torch remembers which compiler it has found."""
    environment = os.environ | {
        CACHE: str(tmp_path),
        "CXX": "/no/such/compiler",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "reverie", "compile", "example"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        done.stderr.strip().splitlines()[-1].startswith("error: compiling needs a C++ compiler that works, such as g++")
    )
    assert not list((tmp_path / "awake").glob("*"))
