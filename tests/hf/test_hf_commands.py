"""`reverie convert` and `reverie generate`: what they print where, and that every mistake is one line on stderr."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from command_line import Reverie, assert_one_line, assert_usage, in_empty_folder, the_json
from tiny_folder import tiny_folder, tiny_tokenizer

from reverie.cli.progress import ReadDisplay
from reverie.errors import UNTRAINED
from reverie.hf import convert as convert_module
from reverie.hf import generate as generate_module
from reverie.hf import load
from reverie.hf.blocks import inserted_parameters
from reverie.interrupts import Terminated
from reverie.sleep import side_by_side

pytestmark = pytest.mark.hf

BOOK = "It was a dark and stormy night. Rain fell in torrents, except at times.\n"


@pytest.fixture
def reverie(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Reverie:
    call = in_empty_folder(monkeypatch, capsys, tmp_path)
    tiny_folder(tmp_path / "llama")
    Path("book.txt").write_text(BOOK)
    capsys.readouterr()
    return call


@pytest.fixture
def sleeper(reverie: Reverie) -> str:
    done = reverie("convert", "--from", "llama", "--insert", "jet", "--layers", 2, "--window", 8, "--out", "sleeper")
    assert done.code == 0
    return "sleeper"


@pytest.mark.parametrize("command", ["convert", "generate"])
def test_help(reverie: Reverie, command: str) -> None:
    done = reverie(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage: ")
    assert "--json" in done.out


def test_convert_prints_a_table(reverie: Reverie) -> None:
    done = reverie("convert", "--from", "llama", "--insert", "gdn", "--after", "0,3", "--out", "new/[a]")
    assert done.code == 0
    for part in ("llama (LlamaForCausalLM, 4 blocks)", "2 gdn layers, after blocks 0, 3", "every 512 tokens, 2 passes"):
        assert part in done.out
    assert "bit for bit" in done.out
    assert "new/[a] (" in done.out
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in Path("new/[a]").iterdir()}


def test_the_earlier_name_of_after(reverie: Reverie) -> None:
    done = reverie("convert", "--from", "llama", "--insert", "gdn", "--behind", "0,3", "--out", "out", "--json")
    assert "--behind is called --after now" in done.err
    printed = json.loads(done.out)
    assert printed["behind"] == printed["after"] == [0, 3]


def test_convert_as_json(reverie: Reverie) -> None:
    sleep = ("--window", 16, "--passes", 3, "--eviction", "sliding", "--loop", "1,3")
    done = the_json(
        reverie("convert", "--from", "llama", "--insert", "jet", "--layers", 2, *sleep, "--out", "out", "--json")
    )
    assert (done["after"], done["kind"], done["path"], done["checked_tokens"]) == ([1, 3], "jet", "out", 16)
    kept = {key: done[key] for key in ("window_size", "num_sleep_passes", "eviction", "looped_blocks")}
    assert kept == {"window_size": 16, "num_sleep_passes": 3, "eviction": "sliding", "looped_blocks": [1, 3]}


def test_generate_streams_text(reverie: Reverie, sleeper: str) -> None:
    done = reverie("generate", sleeper, "--prompt-file", "book.txt", "--prompt", "So", "--tokens", 12)
    assert done.code == 0
    same = the_json(
        reverie("generate", sleeper, "--prompt-file", "book.txt", "--prompt", "So", "--tokens", 12, "--json")
    )
    assert done.out == same["text"] + "\n"
    assert (same["tokens_read"], same["tokens_written"], same["windows_slept_over"]) == (74, 12, 10)
    *progress, last = done.err.splitlines()
    assert progress[-1].startswith("reading  window 10/10  ")
    assert last.startswith("read 74 tokens at ")
    assert "slept over 10 windows; state at most " in last


@pytest.mark.slow
def test_layers_that_were_never_trained_are_said_to_be(reverie: Reverie, sleeper: str) -> None:
    """And how to train them; once they are, and of a model with fast weights of its own, there is nothing to say."""
    model = load(sleeper)
    torch.nn.init.normal_(next(p for name, p in inserted_parameters(model).items() if name.endswith("out_proj.weight")))
    model.save_pretrained("trained")
    tiny_tokenizer().save_pretrained("trained")
    tiny_folder(Path("hybrid"), "qwen3_next")
    convert = ("convert", "--window", 8, "--json", "--from")
    said = {
        "llama": reverie(*convert, "llama", "--insert", "gdn", "--layers", 1, "--out", "new"),
        "trained": reverie(*convert, "trained", "--out", "again"),
        "hybrid": reverie(*convert, "hybrid", "--out", "own"),
    }
    for model, remembers in (("new", False), ("again", True), ("own", True)):
        memory = ("--memory", f"{model}.safetensors")
        said[f"{model} generates"] = reverie("generate", model, "--prompt", BOOK, "--tokens", 2, "--json")
        said[f"{model} reads"] = reverie("read", model, "book.txt", *memory, "--json")
        asked = reverie("ask", model, *memory, "Why", "--tokens", 3, "--against-empty", "--json")
        said[f"{model} answers"] = asked
        assert (the_json(asked)["answers"][0]["gain"] == 0) is not remembers
    advice = f"{UNTRAINED}; train them: reverie adapt new --data notes\n"
    for name, done in said.items():
        untrained = name == "llama" or name.startswith("new")
        assert the_json(done)["remembers"] is not untrained
        assert done.err.count(advice if untrained else UNTRAINED) == untrained
        assert "Warning" not in done.err


@pytest.mark.slow
def test_generate_options(reverie: Reverie, sleeper: str) -> None:
    def text(*options: object) -> str:
        return the_json(reverie("generate", sleeper, "--prompt", BOOK, "--tokens", 20, "--json", *options))["text"]

    assert text("--temperature", 2, "--seed", 1) != text("--temperature", 2, "--seed", 2)
    assert text("--passes", 3, "--device", "cpu") == text("--passes", 1)  # new layers say nothing yet
    assert text("--window", 100) != text()


def test_nothing_but_errors_of_transformers_is_shown(reverie: Reverie, tmp_path: Path) -> None:
    """Not which kernels it has not found, not the bars while it reads files."""
    tiny_folder(tmp_path / "hybrid", "qwen3_next")
    done = reverie("convert", "--from", "hybrid", "--out", "out")
    assert done.code == 0
    assert "[transformers]" not in done.err
    assert "it/s" not in done.err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--from nowhere --insert jet", "there is no folder nowhere, nor is it smollm2 or an organisation/model"),
        ("--from book.txt --insert jet", "there is no folder book.txt, nor is it "),
        ("--from llama", "LlamaForCausalLM has no fast weights: add --insert jet or --insert gdn"),
        ("--from llama --insert mamba", "--insert must be jet or gdn, got 'mamba'"),
        ("--from llama --layers 2", "--layers and --after say where to insert: add --insert jet or --insert gdn"),
        ("--from llama --insert jet --layers 2 --after 1", "--layers and --after both say where to insert"),
        ("--from llama --insert jet --layers 5", "--layers must be 1 to 4, the number of blocks, got 5"),
        ("--from llama --insert jet", "--layers must be 1 to 4, the number of blocks, got 6"),
        ("--from llama --insert jet --after 1;2", "--after must be whole numbers separated by commas, such as 4,9,14"),
        ("--from llama --insert jet --after 9", "blocks 0 to 3, so nothing can be inserted after block 9"),
        ("--from llama --insert jet --layers 2 --window 0", "--window must be at least 1, got 0"),
        ("--from llama --insert jet --layers 2 --passes 0", "--passes must be at least 1, got 0"),
        ("--from llama --insert jet --layers 2 --eviction soft", "--eviction must be hard or sliding, got 'soft'"),
        (
            "--from llama --insert jet --layers 2 --loop 3",
            "--loop must be two blocks a,b with 0 <= a < b, such as 8,22",
        ),
        ("--from llama --insert jet --layers 2 --loop 3,1", "--loop must be two blocks a,b with 0 <= a < b"),
        ("--from llama --insert jet --layers 2 --loop 0,9", "looped_blocks [0, 9] must end at or before 4"),
        ("--from llama --insert jet --layers 2 --out llama", "llama is there already; choose a new folder"),
        ("--from llama --insert jet --layers 2 --out book.txt/x", "cannot write book.txt/x: "),
    ],
)
def test_mistakes_of_convert(reverie: Reverie, options: str, sentence: str) -> None:
    before = sorted(Path().rglob("*"))
    given = options.split() if "--out" in options else [*options.split(), "--out", "out"]
    assert_one_line(reverie("convert", *given), sentence)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("llama --prompt a", "llama holds a model of type llama, saved without sleep"),
        ("nowhere --prompt a", "there is no folder nowhere; reverie convert makes one"),
        ("llama", "there is nothing to go on from: give --prompt-file, --prompt, or both"),
        ("llama --prompt-file none.txt", "cannot read none.txt: No such file or directory"),
        ("llama --prompt-file llama", "cannot read llama: Is a directory"),
        ("llama --prompt-file llama/model.safetensors", "llama/model.safetensors is no text in UTF-8"),
        ("llama --prompt a --device tpu", "--device must be cpu, cuda, mps or auto, got 'tpu'"),
    ],
)
def test_mistakes_of_generate(reverie: Reverie, options: str, sentence: str) -> None:
    assert_one_line(reverie("generate", *options.split()), sentence)


def test_usage(reverie: Reverie) -> None:
    assert_usage(reverie("convert", "--from", "llama"), "Missing option '--out'")
    assert_usage(reverie("generate", "llama", "--tokens", "0"), "Invalid value for '--tokens'")
    assert_usage(reverie("generate", "llama", "--temperature", "-1"), "Invalid value for '--temperature'")
    assert_usage(reverie("generate", "llama", "--passes", "0"), "Invalid value for '--passes'")


def test_without_transformers(reverie: Reverie, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    sentence = "this needs the package transformers; run pip install 'reverie[hf]'"
    assert_one_line(reverie("convert", "--from", "llama", "--out", "out"), sentence)
    assert_one_line(reverie("generate", "llama", "--prompt", "a"), sentence)


def test_signals(reverie: Reverie, sleeper: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written stays, and a message stands on a line of its own."""

    def interrupted(*args: object, **kwargs: object) -> None:
        if (write := kwargs.get("write")) is not None:
            assert callable(write)
            write("It was")
        raise KeyboardInterrupt

    def terminated(*args: object, **kwargs: object) -> None:
        raise Terminated("terminated")

    monkeypatch.setattr(generate_module, "generate", interrupted)
    done = reverie("generate", sleeper, "--prompt", "a")
    assert (done.code, done.out) == (128 + signal.SIGINT, "It was\n")
    assert done.err.splitlines()[-1] == "interrupted; the same command begins again"
    monkeypatch.setattr(convert_module, "convert", terminated)
    done = reverie("convert", "--from", "llama", "--insert", "jet", "--out", "out")
    assert (done.code, done.out) == (128 + signal.SIGTERM, "")
    assert done.err == "terminated; nothing is left of it\n"


def test_a_prompt_that_was_broken_off_goes_on(
    reverie: Reverie, sleeper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(side_by_side, "MOST_TOKENS", 2 * 8)
    command, update = ("generate", sleeper, "--prompt-file", "book.txt", "--tokens", 5), ReadDisplay.update

    def interrupted(display: ReadDisplay, windows: int, total: int, tokens: int) -> None:
        update(display, windows, total, tokens)
        if windows == 4:
            raise Terminated("terminated")

    with monkeypatch.context() as patch:
        patch.setattr(ReadDisplay, "update", interrupted)
        broken = reverie(*command)
    assert (broken.code, broken.out) == (143, "\n")
    last = broken.err.splitlines()[-1]
    assert last.startswith("terminated; the same text goes on after 32 of 72 tokens, kept in ")
    kept = Path(last.rpartition(" in ")[2])
    assert kept.is_relative_to(tmp_path / "caches" / "reverie")
    done = reverie(*command)
    assert f"goes on after 32 of 72 tokens, read before and kept in {kept}\n" in done.err
    assert not kept.exists()
    assert done.out == reverie(*command).out


def test_int8(reverie: Reverie, sleeper: str) -> None:
    given = ("generate", sleeper, "--prompt-file", "book.txt", "--tokens", 20)
    assert reverie(*given, "--int8").code == 0
    assert reverie("read", sleeper, "book.txt", "--memory", "m.safetensors").code == 0
    asked = reverie("ask", sleeper, "--memory", "m.safetensors", "rain", "--int8", "--tokens", 3)
    assert asked.code == 0
    assert_one_line(reverie("ask", "--example", "--int8"), "--example brings its own model")
    assert_one_line(reverie("chat", "example", "--int8"), "int8 is for models of transformers")
