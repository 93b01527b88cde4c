"""What is typed into `reverie chat`, and what is told about it."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_sleeper import FACTS, QUESTION, tiny_sleeper

from reverie.memory.memory import Memory
from reverie.talk.chat import Chat
from reverie.talk.chat_session import Session, lines
from reverie.talk.sleeper import Sleeper


@pytest.fixture(scope="module")
def sleeper(tmp_path_factory: pytest.TempPathFactory) -> Sleeper:
    return tiny_sleeper(tmp_path_factory.mktemp("run"))


class Typed:
    """A session with these lines; what the model said and what was told."""

    def __init__(self, sleeper: Sleeper, *typed: str | None, prompt: str = "", wraps: bool = False) -> None:
        self.said, self.told = "", list[str]()
        chat = Chat(sleeper, Memory.empty(sleeper))
        self.session = Session(
            chat, None, say=self._say, tell=self.told.append, prompt=prompt, at_terminal=prompt != "", wraps=wraps
        )
        self.session.run(typed)

    def _say(self, text: str) -> None:
        self.said += text


def test_a_conversation(sleeper: Sleeper) -> None:
    typed = Typed(sleeper, FACTS, "", QUESTION, "/memory")
    assert typed.said.count("\n") == 1  # of the question
    assert typed.told[0].startswith("(slept over 8 tokens, 2 passes, 0.")
    assert typed.told[-1] == "16 tokens in memory, 512 bytes, 4 passes so far; 5 of 8 tokens awake"
    prompted = Typed(sleeper, FACTS, "", QUESTION, "/memory", prompt="> ").said
    assert prompted == f"> > > {typed.said}> > \n"
    assert Typed(sleeper, "How many", None, "/quit", prompt="> ").said == "> > \n> "  # it sleeps on a line of its own


def test_it_opens_with_model_memory_and_help(sleeper: Sleeper, tmp_path: Path) -> None:
    typed = Typed(sleeper)
    typed.session.greet()
    assert typed.told == ["tiny words: sleeps over every 8 tokens, 2 passes", "/help lists the commands"]
    typed.session.run(["How many", "/sleep", f"/save {tmp_path / 'm.safetensors'}"])
    typed.told.clear()
    typed.session.greet()
    assert typed.told[1] == (
        f"memory {tmp_path / 'm.safetensors'}: 1 token in memory, 512 bytes, 2 passes so far; 0 of 8 tokens awake"
    )


def test_what_is_said_and_told_wraps_at_words(sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    wide, narrow = (Typed(sleeper, FACTS, QUESTION, "/help", "/memory", wraps=wraps) for wraps in (False, True))
    assert narrow.said == wide.said  # a word
    for one, other in zip(wide.told[-2:], narrow.told[-2:], strict=True):
        assert other.split() == one.split()
        assert max(map(len, other.split("\n"))) <= 20


def test_it_sleeps_when_told_and_when_nothing_is_said(sleeper: Sleeper) -> None:
    """Once, however long nothing is said."""
    typed = Typed(sleeper, "How many", None, None, None, "/sleep", "How many", "/sleep", None)
    assert len([line for line in typed.told if line.startswith("(slept over 1 token,")]) == 2
    assert typed.told[1] == "nothing was said since the last sleep"


def test_the_last_turn_is_taken_back(sleeper: Sleeper) -> None:
    typed = Typed(sleeper, "How many", "does", "/undo", "/memory", "/undo", "/undo")
    assert typed.told[0] == "took back 'does'; 0 tokens in memory, 0 bytes, 1 awake"
    assert typed.told[1].endswith("1 of 8 tokens awake")
    assert typed.told[2] == "took back 'How many'; 0 tokens in memory, 0 bytes, 0 awake"
    assert typed.told[3].startswith("error: there is no turn to take back")


def test_save_branch_load(sleeper: Sleeper, tmp_path: Path) -> None:
    one, other = tmp_path / "one.safetensors", tmp_path / "the other.safetensors"
    typed = Typed(
        sleeper, "How many", f"/save {one}", "does", f"/branch {other}", "Heron Marsh", "/save", f"/load {other}"
    )
    assert typed.told == [
        f"saved in {one}: 0 tokens in memory, 0 bytes, 1 awake",
        f"saved in {other}: 0 tokens in memory, 0 bytes, 2 awake",
        f"saved in {one}: 0 tokens in memory, 0 bytes, 3 awake",
        f"loaded {other}: 0 tokens in memory, 0 bytes, 2 awake",
    ]
    assert typed.session.path == other
    loaded = Typed(sleeper, f"/load {one}", "/memory")
    assert loaded.told[-1].endswith("3 of 8 tokens awake")


def test_no_file_is_overwritten_but_memories(sleeper: Sleeper, tmp_path: Path) -> None:
    thesis, memory, own = (tmp_path / name for name in ("thesis.txt", "memory.safetensors", "own.safetensors"))
    thesis.write_text("years of work")
    typed = Typed(sleeper, f"/save {memory}", f"/branch {memory}", f"/save {thesis}", f"/branch {thesis}")
    assert [line.split(":")[0] for line in typed.told[:2]] == [f"saved in {memory}"] * 2
    assert typed.told[2:] == [f"error: {thesis} is there already and is no memory: choose another name"] * 2
    assert thesis.read_text() == "years of work"
    typed.session.path = own
    own.write_text("cut sh")  # whoever did that: it is where the chat belongs
    typed.session.run(["/save"])
    assert typed.told[-1].startswith(f"saved in {own}")


def test_home_is_understood(sleeper: Sleeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Typed(sleeper, "/save ~/chat.safetensors")
    assert (tmp_path / "chat.safetensors").is_file()


def test_notes_do_not_steer_the_terminal(sleeper: Sleeper) -> None:
    typed = Typed(sleeper)
    typed.session.chat.memory = replace(typed.session.chat.memory, notes={"source": "a\x1b[2J\nb"})
    typed.session.run(["/memory"])
    assert "of a\ufffd[2J\ufffdb, " in typed.told[-1]


@pytest.mark.parametrize(("prompt", "number"), [("> ", signal.SIGINT), ("", signal.SIGINT), ("> ", signal.SIGTERM)])
def test_ctrl_c_ends_the_answer(sleeper: Sleeper, prompt: str, number: signal.Signals) -> None:
    """At a terminal; in a script, and by SIGTERM, it ends the chat."""
    typed = Typed(sleeper, prompt=prompt)
    chat = typed.session.chat
    choose = chat._choose

    def interrupted(*state: object) -> int:
        os.kill(os.getpid(), number)
        return choose(*state)  # type: ignore[arg-type]

    chat._choose, chat.max_tokens = interrupted, 9  # type: ignore[method-assign]
    if prompt and number == signal.SIGINT:
        typed.session.run([QUESTION, "/memory"])
        assert "(cut off: what was written counts as said)" in typed.told
        assert typed.told[-1].endswith("tokens awake")
    else:
        with pytest.raises(KeyboardInterrupt):
            typed.session.run([QUESTION, "/memory"])
    assert chat.turns == 1


def test_mistakes_are_told_and_the_session_goes_on(sleeper: Sleeper, tmp_path: Path) -> None:
    typed = Typed(
        sleeper, "a unicorn", "/svae", "/save", "/branch", "/load", f"/load {tmp_path}/none", "/help", "/quit", "x"
    )
    assert [line for line in typed.told if line.startswith("error: ")] == [
        "error: 'a unicorn' is not in the vocabulary of these worlds: this model knows the words of its task alone; "
        "`reverie tasks show gsm_infinite` has a text",
        "error: there is no command /svae; /help lists them",
        "error: say where to: /save FILE",
        "error: say where to: /branch FILE",
        "error: say where from: /load FILE",
        f"error: there is no memory at {tmp_path}/none",
    ]
    assert "/branch FILE" in typed.told[-1]  # nothing came after /quit


def test_lines_as_they_come_and_none_in_between() -> None:
    """Of a file that can be waited for, as a terminal: several lines at once, and a last one without an end."""
    (here, there), nothing_came = os.pipe(), threading.Event()

    def write() -> None:
        os.write(there, "one\ntwö\r\nth".encode())
        nothing_came.wait(60)
        os.write(there, b"ree\nfour")
        os.close(there)

    writer = threading.Thread(target=write)
    came = list[str | None]()
    with os.fdopen(here) as file:
        writer.start()
        for line in lines(file, 0.1):
            came.append(line)
            if line is None and "twö" in came:
                nothing_came.set()
    writer.join()
    assert [line for line in came if line is not None] == ["one", "twö", "three", "four"]
    assert came[came.index("one") : came.index("twö") + 2] == ["one", "twö", None]


def test_lines_of_a_pipe(tmp_path: Path) -> None:
    """Also where they are not UTF-8."""
    (tmp_path / "typed").write_bytes(b"one\r\n\ncaf\xe9\ntwo")
    with (tmp_path / "typed").open() as file:
        assert list(lines(file, None)) == ["one", "", "caf\ufffd", "two"]
