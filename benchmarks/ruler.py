"""RULER through lm-eval as it is: what a model that sleeps finds in a long text, beside its base that sees all of it.

    pip install lm-eval wonderwords nltk
    python benchmarks/ruler.py smollm2-notes --out results/ruler/smollm2-notes.json

asks the tasks that need no data set, at each length, in the model's chat template: of the adapter; of the same one when
it knows nothing but the window in which the question ends; and of its untouched base with the whole text in its
context. Leaves a card and a figure.
"""

import argparse
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import matplotlib
import publish
from matplotlib.figure import Figure

from reverie.bench.tables import markdown_table
from reverie.errors import UserError
from reverie.results.style import GREY, STYLE, look_of_settings, scale_shares, set_title

TASKS = {"niah_single_1": 0, "niah_multikey_2": 0, "ruler_vt": 1024}  # tokens below which lm-eval finds no text
LENGTHS = 512, 1024, 2048, 4096
MEMORY, EMPTIED, CONTEXT = "memory", "newest window alone", "untouched, all in context"


def main() -> None:
    arguments = _arguments()
    if any(find_spec(name) is None for name in ("lm_eval", "wonderwords", "nltk")):
        raise UserError("this needs lm-eval: pip install lm-eval wonderwords nltk")
    origin = publish.begin()
    scores, passes = _scores(arguments)
    card = {
        "kind": "ruler",
        "name": f"{arguments.model}, N = {passes}",
        "model": arguments.model,
        "num_sleep_passes": passes,
        "questions": arguments.questions,
        **origin(),
        "scores": scores,
    }
    publish.publish(arguments, card, table, lambda card: card["scores"], figure)


def _arguments() -> argparse.Namespace:
    parser = publish.options(__doc__)
    parser.add_argument("model", metavar="MODEL", help="an adapter that sleeps, as reverie.hf.load takes it")
    parser.add_argument("--base", default="smollm2", help="what it is an adapter of")
    parser.add_argument("--questions", type=int, default=50, help="for each task and length")
    parser.add_argument("--lengths", type=_numbers, default=LENGTHS, help="tokens of text, with commas between")
    return parser.parse_args()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _scores(arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """Shares of answers that hold what is asked for, by task, length and side; and N."""
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    from reverie.hf.bases import load_base, load_tokenizer
    from reverie.hf.load import load

    model: Any = load(arguments.model).eval()
    window: int = model.sleep_config.window_size

    class NewestWindow(HFLM):
        """The same model, of a prompt from where its last window begins."""

        def _model_generate(self, context: Any, max_length: int, stop: list[str], **options: Any) -> Any:
            import torch

            begins = (context.shape[1] - 1) // window * window
            options["attention_mask"] = options["attention_mask"][:, begins:]
            found = super()._model_generate(context[:, begins:], max_length - begins, stop, **options)
            return torch.cat([context[:, :begins], found], dim=1)

    base = load_base(arguments.base).eval()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_tokenizer(arguments.base)
        tokenizer.save_pretrained(folder)
        sides = {
            MEMORY: HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1),
            EMPTIED: NewestWindow(pretrained=model, tokenizer=tokenizer, batch_size=1),
            CONTEXT: HFLM(pretrained=base, tokenizer=tokenizer, batch_size=1),
        }
        scores: dict[str, Any] = {
            task: {str(length): {} for length in arguments.lengths if length >= fewest}
            for task, fewest in TASKS.items()
        }
        for length in arguments.lengths:
            for side, lm in sides.items():
                for task, share in _found(lm, folder, length, arguments.questions).items():
                    scores[task][str(length)][side] = share
    return scores, model.sleep_config.num_sleep_passes


def _found(lm: Any, tokenizer: str, length: int, questions: int) -> dict[str, float]:
    import lm_eval  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    tasks = [task for task, fewest in TASKS.items() if length >= fewest]
    manager = TaskManager(metadata={"max_seq_lengths": [length], "tokenizer": tokenizer, "pretrained": tokenizer})
    results = lm_eval.simple_evaluate(
        model=lm,
        tasks=tasks,
        task_manager=manager,
        limit=questions,
        apply_chat_template=True,
        bootstrap_iters=0,
        log_samples=False,
    )
    return {task: results["results"][task][f"{length},none"] for task in tasks}


def table(card: dict[str, Any]) -> str:
    """Shares in %."""
    sides = MEMORY, EMPTIED, CONTEXT
    rows = [
        [task, length, *(f"{100 * by_side[side]:.0f}" for side in sides)]
        for task, by_length in card["scores"].items()
        for length, by_side in by_length.items()
    ]
    return markdown_table(["task", "tokens", *sides], rows)


@matplotlib.rc_context(STYLE)
def figure(card: dict[str, Any]) -> Figure:
    """Shares over length, a panel for each task."""
    drawing = Figure(figsize=(9, 3.2), layout="constrained")
    panels: Sequence[Any] = drawing.subplots(1, len(card["scores"]), sharey=True)
    for axes, (task, by_length) in zip(panels, card["scores"].items(), strict=True):
        lengths = [int(length) for length in by_length]
        for i, side in enumerate((MEMORY, EMPTIED, CONTEXT)):
            colour = GREY if side == EMPTIED else look_of_settings(i, 3)[0]
            axes.plot(lengths, [by_length[str(length)][side] for length in lengths], "o-", color=colour, label=side)
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.set_title(task)
        axes.set_xlabel("tokens")
        scale_shares(axes)
    panels[0].legend(frameon=False, fontsize=8)
    set_title(drawing, f"{card['name']}: RULER through lm-eval, {card['questions']} questions each")
    return drawing


if __name__ == "__main__":
    publish.run(main)
