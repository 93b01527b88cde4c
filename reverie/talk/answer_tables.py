"""Answers on a terminal."""

from collections.abc import Sequence

from rich import box
from rich.filesize import decimal
from rich.table import Column, Table
from rich.text import Text

from reverie.talk.answer import Answer, Examined
from reverie.talk.shipped import EXAMPLE, TEXT
from reverie.talk.sleeper import Sleeper


def answers_table(answers: Sequence[Answer]) -> Table:
    """Questions and answers; how sure the model was, of answers of one token."""
    table = Table("question", Column("answer", style="bold"), box=box.SIMPLE_HEAD, pad_edge=False)
    if any(answer.probability is not None for answer in answers):
        table.add_column("probability", justify="right")
    for answer in answers:
        sure = "" if answer.probability is None else f"{answer.probability:.2f}"
        table.add_row(Text(answer.question), Text(answer.text), sure)
    return table


def example_table(done: Examined) -> Table:
    """Answers from the memory beside those from an empty one, and the share of each that is right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    table.add_column("question", footer="right")
    table.add_column("right answer", justify="right")
    for name, accuracy in (("from memory", done.accuracy), ("empty memory", done.blank_accuracy)):
        table.add_column(name, justify="right", footer=f"{100 * accuracy:.0f} %")
    for answer, blank, right in zip(done.answers, done.blank, done.right, strict=True):
        table.add_row(Text(answer.question), right, _marked(answer, right), _marked(blank, right))
    return table


def _marked(answer: Answer, right: str) -> Text:
    good = answer.text == right
    return Text(f"{answer.text} {'✓' if good else '✗'}", style="green" if good else "red")


def examined_sentence(sleeper: Sleeper, done: Examined) -> str:
    """A sentence about what was read, and how."""
    memory, L = done.memory, done.memory.config.window_size
    windows = -(-int(memory.tokens[0]) // L)
    return (
        f"{sleeper.name}: read {int(memory.tokens[0]):,} tokens in {windows} windows of {L} and slept over each, "
        f"{int(memory.passes[0]) / windows:g} passes, {done.seconds:.1f} s. The text is gone; the memory has "
        f"{decimal(memory.nbytes)}. Asked from it alone:"
    )


def do_it_yourself(question: str) -> str:
    """The same with commands, and in Python."""
    return f"""\
reverie read example {EXAMPLE / TEXT} --memory facts.safetensors
reverie ask example --memory facts.safetensors "{question}"

from reverie import sleep_over
from reverie.talk import ask, load_model

model = load_model("example")
memory = sleep_over(model, [model.text(open("{EXAMPLE / TEXT}").read())])
print(ask(model, memory, ["{question}"])[0].text)"""
