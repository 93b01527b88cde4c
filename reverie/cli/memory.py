"""`reverie read`, `ask` and `chat`: parse and call; no logic."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reverie.cli.hf import need_transformers
from reverie.cli.options import AsJson, Device, Int8, device_named
from reverie.cli.progress import ReadDisplay
from reverie.cli.terminal import err_console, interruptible, out_console, say, show, tell, tell_if_untrained
from reverie.errors import UserError, plain

if TYPE_CHECKING:
    from reverie.talk.sleeper import Sleeper

app = typer.Typer(rich_markup_mode=None)

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A run of reverie train, a folder of reverie convert or adapt, example, or smollm2-notes."
    ),
]
Passes = Annotated[int | None, typer.Option(min=1, help="Sleep passes N; as the model or the memory has it if absent.")]
Tolerance = Annotated[
    float | None, typer.Option(help="Wake from a sleep when a pass changes the fast weights by less; N is the most.")
]
MaxTokens = Annotated[int | None, typer.Option("--tokens", min=1, help="Most tokens of an answer.")]


@app.command("read")
def read_command(
    model: ModelName,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A file in UTF-8, or - for standard input.")],
    memory: Annotated[Path, typer.Option(metavar="OUT", help="The memory file to make.")],
    passes: Passes = None,
    tolerance: Tolerance = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a reading that was broken off.")] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Read a text of any length into a memory file: the model sleeps over it window by window.

    The file is saved every ten seconds; Ctrl-C ends after a window and saves.
    """
    from reverie.talk.reading import begin, read_file, read_text

    content = read_file(text)
    sleeper = _load(model, device)
    config = sleeper.sleep_config.with_(num_sleep_passes=passes, tolerance=tolerance)
    begun = begin(memory, resume, sleeper, config if passes or tolerance else None)
    sleeper = replace(sleeper, sleep_config=config if begun is None else begun.config)
    tokens = sleeper.text(content)
    source = "standard input" if text == "-" else plain(Path(text).name)
    remembers = _remembers(sleeper, model)
    with ReadDisplay(err_console, "reading") as display:
        notes = {"model": plain(sleeper.name), "source": source}
        done = read_text(sleeper, tokens, memory, notes=notes, memory=begun, report=display.update)
    if as_json:
        say(json.dumps({"memory": str(memory), "source": source, **done.summary(), "remembers": remembers}))
    tell(f"{done.sentence()}; memory in {memory}")
    if done.stopped is not None:
        tell("the same command with --resume goes on")
        raise typer.Exit(128 + done.stopped)


@app.command("ask")
def ask_command(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="As for reverie read; not with --example.")
    ] = None,
    questions: Annotated[list[str] | None, typer.Argument(metavar="QUESTION...", help="Each in quotes.")] = None,
    memory: Annotated[Path | None, typer.Option(metavar="FILE", help="What reverie read has made.")] = None,
    example: Annotated[
        bool, typer.Option("--example", help="With the model, the text and the questions in the package.")
    ] = False,
    beside_empty: Annotated[
        bool, typer.Option("--against-empty", help="Answer from an empty memory too, and say what the memory adds.")
    ] = False,
    tokens: MaxTokens = None,
    int8: Int8 = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Ask a model about what it has read, from its memory alone; the memory stays as it is."""
    if example:
        if model or questions or memory or beside_empty or int8 or tokens is not None:
            raise UserError("--example brings its own model, text and questions: give it alone")
        return _ask_example(device, as_json)
    if model is None or memory is None or not questions:
        missing = (
            "give a model, --memory and a question in quotes" if model is None
            else "say with --memory what to answer from" if memory is None
            else "give a question, in quotes"
        )  # fmt: skip
        raise UserError(f"{missing}, or --example alone for a demonstration")
    from reverie.talk.answer import against_empty, ask
    from reverie.talk.answer_tables import answers_table, compared_table
    from reverie.talk.sleeper import load_memory

    sleeper = _load(model, device, int8=int8)
    known = load_memory(memory, sleeper)
    if (complete := known.notes.get("complete", "yes")) != "yes":
        tell(f"{memory} holds a part of its text alone: {plain(complete).removeprefix('no, ')}")
    remembers = _remembers(sleeper, model)
    with interruptible("the memory is as it was"):
        if beside_empty:
            compared = against_empty(sleeper, known, questions, max_tokens=tokens)
            table, rows = compared_table(compared), [row.summary() for row in compared]
        else:
            answers = ask(sleeper, known, questions, max_tokens=tokens)
            table, rows = answers_table(answers), [vars(answer) for answer in answers]
    show(as_json, {"memory": str(memory), "remembers": remembers, "answers": rows}, table)


@app.command("chat")
def chat_command(
    model: ModelName,
    memory: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A memory, or a saved chat, to begin with.")
    ] = None,
    passes: Passes = None,
    tolerance: Tolerance = None,
    idle: Annotated[
        float, typer.Option(min=0, max=86400, help="Seconds without a word after which it sleeps; 0: never.")
    ] = 30.0,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Of drawing; 0 takes the most likely token, whatever it repeats. If absent 0, or 0.3 "
            "for a model of transformers.",
        ),
    ] = None,
    tokens: MaxTokens = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of drawing.")] = 0,
    int8: Int8 = False,
    device: Device = "auto",
) -> None:
    """Talk with a model that sleeps over what was said when its window is full, or when nothing is said for a while.

    /help lists what can be done besides.
    """
    from reverie.memory.memory import Memory
    from reverie.talk.chat import Chat
    from reverie.talk.chat_session import Session, lines
    from reverie.talk.prompt import can_edit_lines, typed_lines
    from reverie.talk.sleeper import load_memory

    if sys.stdin is None:
        raise UserError("standard input is closed: a chat is led over it")
    sleeper = _load(model, device, int8=int8)
    known = Memory.empty(sleeper) if memory is None else load_memory(memory, sleeper)
    chat = Chat(
        sleeper,
        known,
        num_sleep_passes=passes,
        tolerance=tolerance,
        temperature=temperature,
        max_tokens=tokens,
        seed=seed,
    )
    at_terminal, edited = sys.stdin.isatty(), can_edit_lines()
    prompt = "> " if at_terminal and not edited else ""
    say_piece = partial(say, nl=False)
    session = Session(chat, memory, say=say_piece, tell=tell, prompt=prompt, at_terminal=at_terminal, wraps=edited)
    if at_terminal:
        session.greet()
    _remembers(sleeper, model)
    pause = idle if at_terminal and idle else None
    typed = typed_lines("> ", pause, lambda: bool(chat.awake)) if edited else lines(sys.stdin, pause)
    with interruptible("what was not saved is forgotten"), contextlib.closing(typed):
        session.run(typed)


def _ask_example(device: str, as_json: bool) -> None:
    from reverie.talk.answer import examine
    from reverie.talk.answer_tables import do_it_yourself, examined_sentence, example_table
    from reverie.talk.shipped import load_example_text

    shown, sleeper = load_example_text(), _load("example", device)
    done = examine(sleeper, shown.text, shown.questions)
    if as_json:
        say(json.dumps(done.summary()))
        return
    out_console.print(examined_sentence(sleeper, done), soft_wrap=True, highlight=False)
    out_console.print(example_table(done))
    out_console.print(do_it_yourself(done.compared[0].answer.question), soft_wrap=True, highlight=False, markup=False)


def _load(model: str, device: str, *, int8: bool = False) -> Sleeper:
    from reverie.talk.sleeper import load_model

    where = device_named(device)
    if (Path(model) / "config.json").is_file():
        need_transformers()
    loaded = load_model(model, where, int8=int8)
    if not loaded.fast_weight_blocks:
        raise UserError(f"{model} holds a transformer, which has no fast weights to keep a text in")
    return loaded


def _remembers(sleeper: Sleeper, model: str) -> bool:
    """Whether its memory can matter, which is said where it cannot; after all mistakes, since they are one line."""
    from reverie.model import model_remembers

    remembers = model_remembers(sleeper)
    tell_if_untrained(remembers, model)
    return remembers
