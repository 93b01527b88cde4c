"""`reverie read`, `ask` and `chat`: what they print where, and that every mistake is one line on stderr."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Reverie, assert_one_line, assert_usage, in_empty_folder, the_json
from safetensors import safe_open
from tiny_sleeper import FACTS, QUESTION, tiny_run

from reverie.errors import UNTRAINED
from reverie.memory.file import read_info
from reverie.memory.memory import Memory
from reverie.sleep import side_by_side
from reverie.talk import answer_tables, reading, shipped
from reverie.talk.answer_tables import times
from reverie.talk.shipped import export_example
from reverie.talk.sleeper import load_model

BOOK = " ".join([FACTS] * 4)  # 56 words, 7 windows


@pytest.fixture
def reverie(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Reverie:
    call = in_empty_folder(monkeypatch, capsys, tmp_path)
    tiny_run(Path("model"))
    Path("book.txt").write_text(BOOK)
    return call


@pytest.fixture
def memory(reverie: Reverie) -> str:
    assert reverie("read", "model", "book.txt", "--memory", "m.safetensors").code == 0
    return "m.safetensors"


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


@pytest.mark.parametrize("command", ["read", "ask", "chat"])
def test_help(reverie: Reverie, command: str) -> None:
    done = reverie(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage: ")


def test_read(reverie: Reverie) -> None:
    done = reverie("read", "model", "book.txt", "--memory", "new/m.safetensors", "--passes", 3, "--tolerance", 1e-9)
    assert (done.code, done.out) == (0, "")
    assert "reading  window 7/7" in done.err
    assert "512 bytes" in done.err
    assert "all of it is in 512 bytes, slept over in 7 windows, 21 passes; memory in new/m.safetensors" in done.err
    info = read_info(Path("new/m.safetensors"))
    assert info.notes["source"] == "book.txt"
    assert (info.notes["model"], info.notes["complete"]) == ("tiny model", "yes")
    assert (info.config.num_sleep_passes, info.config.tolerance) == (3, 1e-9)
    with safe_open("new/m.safetensors", "pt") as file:
        assert any(name.startswith("history.") for name in file.keys())  # noqa: SIM118 (no mapping)


def test_read_from_standard_input(reverie: Reverie, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, BOOK)
    said = the_json(reverie("read", "model", "-", "--memory", "m.safetensors", "--json"))
    assert said["source"] == "standard input"
    assert (said["tokens"], said["passes"], said["complete"], said["nbytes"]) == (56, 14, True, 512)


def test_broken_off_and_resumed(reverie: Reverie, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the midst of windows 3 and 4, which are read side by side: they are finished and saved."""
    monkeypatch.setattr(side_by_side, "MOST_TOKENS", 2 * 8)
    assert reverie("read", "model", "book.txt", "--memory", "whole.safetensors").code == 0
    sleep_over, calls = reading.sleep_over, list[int]()

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return sleep_over(*args, **kwargs)

    monkeypatch.setattr(reading, "sleep_over", interrupted)
    arguments = ("read", "model", "book.txt", "--memory", "part.safetensors")
    done = reverie(*arguments)
    assert (done.code, done.out) == (130, "")
    assert "32 of 56 tokens" in done.err
    assert done.err.endswith("the same command with --resume goes on\n")
    monkeypatch.setattr(reading, "sleep_over", sleep_over)
    assert reverie(*arguments, "--resume").code == 0
    assert read_info(Path("part.safetensors")).notes == read_info(Path("whole.safetensors")).notes
    with safe_open("whole.safetensors", "pt") as one, safe_open("part.safetensors", "pt") as other:
        names = [name for name in one.keys() if name.startswith("fast_weights")]  # noqa: SIM118 (no mapping)
        assert names
        assert all(bool((one.get_tensor(name) == other.get_tensor(name)).all()) for name in names)


def test_ask(reverie: Reverie, memory: str) -> None:
    before = Path(memory).read_bytes()
    said = the_json(reverie("ask", "model", "--memory", memory, QUESTION, "How many", "--json"))
    first, second = said["answers"]
    assert (first["question"], second["question"]) == (QUESTION, "How many")
    assert 0 < first["probabilities"][0] < 1
    done = reverie("ask", "model", "--memory", memory, QUESTION)
    assert (done.code, done.err) == (0, "")
    assert QUESTION.split()[0] in done.out
    assert f"{first['probabilities'][0]:.2f}" in done.out
    assert Path(memory).read_bytes() == before


def test_ask_says_what_was_not_read(reverie: Reverie, memory: str) -> None:
    content = Memory.load(memory, load_model("model"))
    replace(content, notes={**content.notes, "complete": "no, 24 of 56 tokens"}).save("part.safetensors")
    done = reverie("ask", "model", "--memory", "part.safetensors", QUESTION)
    assert done.code == 0
    assert done.err == "part.safetensors holds a part of its text alone: 24 of 56 tokens\n"


def test_the_example(reverie: Reverie, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that was trained for nothing."""
    export_example(Path("model"), Path("example"), 1)
    monkeypatch.setattr("reverie.talk.sleeper.EXAMPLE", Path("example"))
    monkeypatch.setattr(answer_tables, "EXAMPLE", Path("example"))
    shown = shipped.load_example_text(Path("example"))
    monkeypatch.setattr("reverie.talk.shipped.load_example_text", lambda: shown)
    said = the_json(reverie("ask", "--example", "--json"))
    assert [row["right"] for row in said["answers"]] == [answer for _, answer in shown.questions]
    assert 0 <= said["accuracy"] <= 1
    done = reverie("ask", "--example")
    assert (done.code, done.err) == (0, "")
    assert "windows of 8 and slept over each, 2 passes" in done.out
    assert "✓" in done.out or "✗" in done.out
    lines = done.out.splitlines()
    [read] = [line.split() for line in lines if line.startswith("reverie read")]
    assert reverie(*read[1:]).code == 0
    assert any(line.startswith('reverie ask example --memory facts.safetensors "') for line in lines)
    python = done.out[done.out.index("from reverie import") :]
    exec(python, {})


def test_chat(reverie: Reverie, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, f"{FACTS}\n{QUESTION}\n/save chat.safetensors\n/memory\n")
    done = reverie("chat", "model")
    assert done.code == 0
    assert done.out.count("\n") == 1
    assert "> " not in done.out
    assert done.err.count("(slept over 8 tokens, 2 passes, ") == 2
    assert "saved in chat.safetensors: 16 tokens in memory, 512 bytes, 5 awake" in done.err
    typed(monkeypatch, "/memory\n/quit\n")
    again = reverie("chat", "model", "--memory", "chat.safetensors", "--passes", 5)
    assert (again.code, again.out) == (0, "")
    assert again.err == "16 tokens in memory, 512 bytes, 4 passes so far; 5 of 8 tokens awake\n"


def test_chat_about_a_book(reverie: Reverie, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, f"{QUESTION}\n/memory\n")
    done = reverie("chat", "model", "--memory", memory)
    answer = the_json(reverie("ask", "model", "--memory", memory, QUESTION, "--json"))["answers"][0]["text"]
    assert done.out == f"{answer}\n"
    assert "56 tokens in memory, 512 bytes of book.txt, 14 passes so far; 7 of 8 tokens awake" in done.err


@pytest.mark.slow
def test_a_model_that_was_never_trained_says_so(reverie: Reverie, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, on stderr and as JSON, in every command that shows a memory; and a trained model does not."""
    tiny_run(Path("new"), untrained=True)
    for model, remembers in (("new", False), ("model", True)):
        out = f"of_{model}.safetensors"
        reading = reverie("read", model, "book.txt", "--memory", out, "--json")
        asking = [
            reverie("ask", model, "--memory", out, QUESTION, "--json", *more) for more in ((), ("--against-empty",))
        ]
        watching = reverie("watch", out, "--json")
        typed(monkeypatch, f"{QUESTION}\n/sleep\n/save chat_{out}\n")
        chatting = reverie("chat", model)
        watching_chat = reverie("watch", f"chat_{out}", "--json")
        watching_run = reverie("watch", model, "--examples", 2, "--json")
        for done in (reading, *asking, watching, watching_chat, watching_run):
            assert the_json(done)["remembers"] is remembers
        for done in (reading, *asking, watching, chatting, watching_chat, watching_run):
            assert done.err.count(UNTRAINED) == (0 if remembers else 1)
            assert "Warning" not in done.err
            assert "reverie adapt" not in done.err  # which takes models of transformers
    assert the_json(asking[1])["answers"][0]["gain"] != 0
    assert_one_line(reverie("ask", "new", "--memory", memory, QUESTION), f"{memory} is a memory of another model")


def test_ask_against_an_empty_memory(reverie: Reverie, memory: str) -> None:
    ask = ("ask", "model", "--memory", memory, QUESTION, "How many")
    rows = the_json(reverie(*ask, "--against-empty", "--json"))["answers"]
    plain = the_json(reverie(*ask, "--json"))["answers"]
    assert [{name: row[name] for name in plain[0]} for row in rows] == plain
    for row in rows:
        assert set(row) - set(plain[0]) == {"empty", "log_probability", "empty_log_probability", "gain"}
        assert set(row["empty"]) == set(plain[0]) - {"question"}
        assert row["gain"] == row["log_probability"] - row["empty_log_probability"]
    done = reverie(*ask, "--against-empty")
    assert (done.code, done.err) == (0, "")
    for part in ("from memory", "empty memory", rows[0]["text"], rows[1]["empty"]["text"], times(rows[0]["gain"])):
        assert part in done.out
    assert_one_line(reverie("ask", "--example", "--against-empty"), "--example brings its own")


def test_what_is_wrong_with_reading(reverie: Reverie, memory: str) -> None:
    out = ("--memory", "out.safetensors")
    assert_one_line(reverie("read", "nowhere", "book.txt", *out), "there is no model at nowhere: give a run")
    assert_one_line(reverie("read", "model", "none.txt", *out), "cannot read none.txt: No such file")
    Path("latin").write_bytes(b"\xe9t\xe9")
    assert_one_line(reverie("read", "model", "latin", *out), "latin is no text in UTF-8")
    Path("empty").touch()
    assert_one_line(reverie("read", "model", "empty", *out), "empty holds no text")
    Path("prose").write_text("It was a dark and stormy night.")
    assert_one_line(reverie("read", "model", "prose", *out), "'It was a dark and stormy night.' is not in the vocab")
    assert_one_line(
        reverie("read", "model", "book.txt", *out, "--tolerance", 0), "the tolerance must be a number above 0"
    )
    assert_one_line(
        reverie("read", "model", "book.txt", *out, "--tolerance", "nan"), "the tolerance must be a number above 0"
    )
    assert_one_line(reverie("read", "model", "book.txt", *out, "--tolerance", "inf"), "the tolerance must be a")
    assert_one_line(reverie("read", "model", "book.txt", "--memory", "."), ". is a folder: give the name of a file")
    assert_one_line(reverie("read", "model", "book.txt", "--memory", memory), f"{memory} is there already: resume it")
    assert_one_line(reverie("read", "model", "book.txt", *out, "--resume"), "there is no memory at out.safetensors")
    assert_one_line(reverie("read", "model", "book.txt", "--memory", memory, "--resume", "--passes", 7), "other passes")
    assert_usage(reverie("read", "model", "book.txt", *out, "--passes", 0), "greater than or equal to 1")
    assert_usage(reverie("read", "model", "book.txt"), "Missing option '--memory'.")
    assert not Path("out.safetensors").exists()


def test_what_is_wrong_with_asking(reverie: Reverie, memory: str) -> None:
    tiny_run(Path("other"), seed=1)
    assert_one_line(reverie("ask", "other", "--memory", memory, QUESTION), f"{memory} is a memory of another model")
    assert_one_line(reverie("ask", "model", "--memory", memory), "give a question, in quotes")
    assert_one_line(reverie("ask", "model", QUESTION), "say with --memory what to answer from")
    assert_one_line(reverie("ask"), "give a model, --memory and a question in quotes, or --example alone")
    assert_one_line(reverie("ask", "--example", "model"), "--example brings its own model")
    assert_one_line(reverie("ask", "--example", "--tokens", 1), "--example brings its own model")
    assert_one_line(reverie("ask", "model", "--memory", "none", QUESTION), "there is no memory at none")
    assert_one_line(reverie("ask", "model", "--memory", "book.txt", QUESTION), "book.txt is not a memory")
    assert_one_line(reverie("ask", "model", "--memory", memory, "Who?"), "'Who?' is not in the vocabulary")
    assert_one_line(reverie("chat", "other", "--memory", memory), f"{memory} is a memory of another model")
    assert json.loads(reverie("ask", "model", "--memory", memory, QUESTION, "--json").out)


def test_what_is_wrong_with_chatting(reverie: Reverie) -> None:
    assert_one_line(reverie("chat", "model", "--temperature", 1e-5), "the temperature must be 0, for the most likely")
    assert_one_line(reverie("chat", "model", "--tolerance", "inf"), "the tolerance must be a number above 0")
    assert_usage(reverie("chat", "model", "--seed", -1), "--seed")
    assert_usage(reverie("chat", "model", "--seed", 2**63), "--seed")
    assert_usage(reverie("chat", "model", "--idle", 1e300), "--idle")
