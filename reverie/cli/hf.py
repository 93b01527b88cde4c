"""`reverie convert` and `reverie generate`: parse and call; no logic."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from reverie.cli.options import AsJson, Device, Int8, device_named, number_list
from reverie.cli.progress import ReadDisplay
from reverie.cli.terminal import err_console, interruptible, say, show, tell, tell_if_untrained
from reverie.errors import UserError
from reverie.files import text_of

if TYPE_CHECKING:
    from reverie.sleep import SleepConfig

app = typer.Typer(rich_markup_mode=None)


@app.command("convert")
def convert_command(
    source: Annotated[str, typer.Option("--from", help="smollm2, a folder, or an id on the Hugging Face hub.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder.")],
    insert: Annotated[
        str | None, typer.Option(help="jet or gdn: layers for a model without fast weights of its own.")
    ] = None,
    layers: Annotated[int | None, typer.Option(help="How many, spread evenly; 6 if absent.")] = None,
    after: Annotated[str | None, typer.Option(help="Or the blocks that they follow, from 0, such as 4,9,14.")] = None,
    behind: Annotated[str | None, typer.Option(hidden=True, help="The earlier name of --after.")] = None,
    window: Annotated[int, typer.Option(help="Tokens awake before sleep.")] = 512,
    passes: Annotated[int, typer.Option(help="Sleep passes N.")] = 2,
    eviction: Annotated[str, typer.Option(help="hard: sleep empties the window; sliding: it moves on.")] = "hard",
    loop: Annotated[str | None, typer.Option(help="Blocks a to b - 1 of a pass, such as 8,22; all if absent.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a Hugging Face model sleep: insert fast weights where it has none, and save it with its tokenizer.

    Its logits within a window stay what they were, bit for bit; training teaches the new layers.
    """
    if behind is not None:
        tell("--behind is called --after now")
        after = behind if after is None else after
    kind = _kind(insert, layers, after)
    blocks = None if after is None else number_list(after, "--after", "4,9,14")
    config = _sleep_config(window, passes, eviction, loop)
    need_transformers()
    from reverie.hf.convert import conversion_table, convert

    with interruptible("nothing is left of it"), err_console.status("converting"), _in_options():
        done = convert(source, out, config, kind=kind, layers=6 if layers is None else layers, after=blocks)
    tell_if_untrained(done.remembers, out)
    show(as_json, asdict(done) | {"behind": done.after}, conversion_table(done))  # its earlier name


@app.command("generate")
def generate_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What reverie convert made.")],
    prompt_file: Annotated[Path | None, typer.Option(metavar="FILE", help="A text to read, of any length.")] = None,
    prompt: Annotated[str | None, typer.Option(help="More text, after that of the file.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens to write.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="Of drawing; 0 takes the most likely token.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of drawing.")] = 0,
    passes: Annotated[int | None, typer.Option(min=1, help="Sleep passes N; as saved if absent.")] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Tokens awake before sleep; as saved if absent.")] = None,
    int8: Int8 = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Read a text of any length with a model that sleeps, then go on with it.

    A reading that was broken off is kept in the folder of caches; the same command goes on with it.
    """
    where = device_named(device)
    need_transformers()
    from reverie.hf.generate import generate, load_sleeper
    from reverie.memory.bookmark import bookmark_folder
    from reverie.model import model_remembers

    text = read_prompt(prompt_file, prompt)
    with interruptible("the same command begins again"):
        with err_console.status("loading the model"):
            model, tokenizer = load_sleeper(folder, where, num_sleep_passes=passes, window_size=window, int8=int8)
        remembers = model_remembers(model)
        tell_if_untrained(remembers, folder)
        with ReadDisplay(err_console, "reading") as display, _own_lines(as_json):
            done = generate(
                model,
                tokenizer,
                text,
                max_tokens=tokens,
                temperature=temperature,
                seed=seed,
                write=_hold if as_json else _stream,
                report=display.update,
                keep_in=bookmark_folder(),
                tell=tell,
            )
    if as_json:
        say(json.dumps(asdict(done) | {"remembers": remembers}))
    tell(done.sentence())


@contextlib.contextmanager
def _own_lines(as_json: bool) -> Iterator[None]:
    """Ends the line that streamed text is on, also where it breaks off."""
    try:
        yield
    finally:
        if not as_json:
            say("")


def _stream(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _hold(text: str) -> None:
    """Keep text back for --json, which prints all at the end."""


def need_transformers() -> None:
    """Raises UserError where transformers is not installed."""
    if find_spec("transformers") is None:
        raise UserError("this needs the package transformers; run pip install 'reverie[hf]'")


_OPTIONS = {
    "layers must be": "--layers must be",
    "insert layers of kind jet or gdn": "add --insert jet or --insert gdn",
}


@contextlib.contextmanager
def _in_options() -> Iterator[None]:
    """Words what `convert` says of its arguments as options of the command."""
    try:
        yield
    except UserError as error:
        message = str(error)
        for words, option in _OPTIONS.items():
            message = message.replace(words, option)
        raise UserError(message) from None


def read_prompt(path: Path | None, more: str | None) -> str:
    """The text of a file, and `more` after it, on a new line. Raises UserError if that is nothing."""
    try:
        text = "" if path is None else text_of(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8") from None
    between = "\n" if text and more and not text.endswith("\n") else ""
    text += between + (more or "")
    if not text:
        raise UserError("there is nothing to go on from: give --prompt-file, --prompt, or both")
    return text


def _kind(insert: str | None, layers: int | None, after: str | None) -> Literal["jet", "gdn"] | None:
    if layers is not None and after is not None:
        raise UserError("--layers and --after both say where to insert: give one of them")
    if insert is None and (layers is not None or after is not None):
        raise UserError("--layers and --after say where to insert: add --insert jet or --insert gdn")
    if insert is None or insert == "jet" or insert == "gdn":
        return insert
    raise UserError(f"--insert must be jet or gdn, got {insert!r}")


def _sleep_config(window: int, passes: int, eviction: str, loop: str | None) -> SleepConfig:
    from pydantic import ValidationError

    from reverie.sleep import SleepConfig

    for option, value in (("--window", window), ("--passes", passes)):
        if value < 1:
            raise UserError(f"{option} must be at least 1, got {value}")
    if eviction not in ("hard", "sliding"):
        raise UserError(f"--eviction must be hard or sliding, got {eviction!r}")
    looped = None if loop is None else number_list(loop, "--loop", "8,22")
    try:
        return SleepConfig.model_validate(
            {"window_size": window, "num_sleep_passes": passes, "eviction": eviction, "looped_blocks": looped}
        )
    except ValidationError:
        raise UserError(f"--loop must be two blocks a,b with 0 <= a < b, such as 8,22, got {loop!r}") from None
