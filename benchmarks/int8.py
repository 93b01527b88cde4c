"""What int8 costs in accuracy: plain text and questions about pages that were read, beside float32.

    python benchmarks/int8.py runs/my-notes --out results/int8/notes.json

takes runs of `reverie adapt`. Pages are slept over in float32, as `reverie read` does, and each question is asked by
itself, as `reverie ask` does with and without --int8. Plain text is read token by token, by the adapter and by the
model that it adapts. Leaves a card.
"""

import argparse
from pathlib import Path
from typing import Any, cast

import publish
import torch
import torch.nn.functional as F

from reverie.bench.tables import markdown_table
from reverie.hf.add import install
from reverie.hf.bases import load_base
from reverie.hf.causal_lm import SleepingCausalLM
from reverie.hf.int8 import quantize_awake
from reverie.hf.load import load
from reverie.hf.reading import AWAKE
from reverie.model import SleepingModel
from reverie.recipe import Recipe
from reverie.results.checkpoint import FILE_NAME, load_checkpoint
from reverie.sleep import Context, SleepConfig, consolidate
from reverie.sleep.generate import token_by_token, write
from reverie.tasks.plain_text import plain_windows
from reverie.tasks.reading import ReadingTask

HELD_OUT = 24  # windows of plain text, those that training keeps back


def main() -> None:
    arguments = _arguments()
    origin = publish.begin()
    recipes = [load_checkpoint(run / FILE_NAME).recipe for run in arguments.runs]
    base, plain = str(cast(Any, recipes[0].model).pretrained), {}
    plain[base] = _plain(_untouched(base), recipes[0], arguments.windows)
    questions = {}
    for run, recipe in zip(arguments.runs, recipes, strict=True):
        name = f"{recipe.name}, N = {recipe.sleep.num_sleep_passes}"
        model: Any = load(run / "adapter")
        questions[name] = _questions(model, recipe, arguments.pages)
        plain[name] = _plain(load(run / "adapter"), recipe, arguments.windows)
    card = {"kind": "int8", "name": "int8", **origin(), "plain_text": plain, "questions": questions}
    publish.publish(arguments, card, table, lambda card: {key: card[key] for key in ("plain_text", "questions")})


def _arguments() -> argparse.Namespace:
    parser = publish.options(__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folders of reverie adapt, of one base")
    parser.add_argument("--pages", type=int, default=24, help="whose questions are asked")
    parser.add_argument("--windows", type=int, default=HELD_OUT, help="of plain text")
    return parser.parse_args()


def _untouched(base: str) -> Any:
    model = load_base(base).eval()
    install(model)
    return model


@torch.no_grad()
def _questions(model: Any, recipe: Recipe, pages: int) -> dict[str, Any]:
    """How many answers are right, word for word, from memories that were made in float32."""
    task = recipe.task
    assert isinstance(task, ReadingTask)
    sleeping = cast(SleepingCausalLM, model).sleeping
    read = task.pages("test", 0, 0, range(pages))
    memories = [
        consolidate(sleeping, torch.tensor([page.tokens]), Context.empty(sleeping), recipe.sleep) for page in read
    ]

    def said() -> list[tuple[int, ...]]:
        return [
            tuple(write(sleeping, torch.tensor([q.prompt]), memory, recipe.sleep, len(q.words))[0][0].tolist())
            for page, memory in zip(read, memories, strict=True)
            for q in page.questions
        ]

    before = said()
    quantize_awake(model)
    after, right = said(), [tuple(q.answer[: len(q.words)]) for page in read for q in page.questions]
    count = len(right)
    return {
        "questions": count,
        "right_in_float32": sum(map(_same, before, right)) / count,
        "right_in_int8": sum(map(_same, after, right)) / count,
        "same_answer": sum(map(_same, before, after)) / count,
    }


def _same(x: object, y: object) -> bool:
    return x == y


@torch.no_grad()
def _plain(model: Any, recipe: Recipe, windows: int) -> dict[str, float]:
    """Nats a token on windows that are read token by token, and how far the distribution of the next one moved."""
    task = recipe.task
    assert isinstance(task, ReadingTask)
    config = AWAKE if model.sleep_config == AWAKE else recipe.sleep
    text = torch.tensor(plain_windows("", task.tokenizer, task.window_tokens)[-HELD_OUT:][:windows])
    sleeping = cast(SleepingCausalLM, model).sleeping
    before = _distributions(sleeping, text, config)
    after = _distributions(cast(SleepingCausalLM, quantize_awake(model)).sleeping, text, config)
    losses = [F.nll_loss(x[:, :-1].flatten(0, 1), text[:, 1:].flatten()).item() for x in (before, after)]
    kl = F.kl_div(after.flatten(0, 1), before.flatten(0, 1), log_target=True, reduction="batchmean").item()
    same = (before.argmax(-1) == after.argmax(-1)).float().mean().item()
    return {"float32": losses[0], "int8": losses[1], "kl": kl, "same_likeliest": same, "tokens": text[:, 1:].numel()}


def _distributions(model: SleepingModel, text: torch.Tensor, config: SleepConfig) -> torch.Tensor:
    """Log probabilities [windows, T, vocab] of the next token."""
    rows = [token_by_token(model, row[None], Context.empty(model), config)[0] for row in text]
    return torch.cat(rows).float().log_softmax(-1)


def table(card: dict[str, Any]) -> str:
    plain = [
        [name, f"{x['float32']:.3f}", f"{x['int8']:.3f}", f"{x['kl']:.3f}", f"{100 * x['same_likeliest']:.1f}"]
        for name, x in card["plain_text"].items()
    ]
    asked = [
        [
            name,
            str(x["questions"]),
            *(f"{100 * x[k]:.1f}" for k in ("right_in_float32", "right_in_int8", "same_answer")),
        ]
        for name, x in card["questions"].items()
    ]
    heads = (
        ["plain text, nats a token", "float32", "int8", "KL", "same likeliest token, %"],
        ["right answers, %", "questions", "float32", "int8", "same answer"],
    )
    return "\n\n".join(markdown_table(head, rows) for head, rows in zip(heads, (plain, asked), strict=True))


if __name__ == "__main__":
    publish.run(main)
