"""Do the fast weights of a pretrained model take up what its cache has lost?

    python benchmarks/pretrained_recall.py recall/smollm2 --seeds 0,1,2 --out results/recall/smollm2.json

trains the recipe with each seed, one after the other (a run that is there already goes on, or is taken as it is), and
scores the same held-out texts several ways: asleep as trained, with other numbers of passes, and with the fast weights
set to zero at every end of a window; beside the model before training, with and without its cache cleared. Leaves a
card and a figure.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import matplotlib
import publish
import torch
from matplotlib.figure import Figure
from torch import Tensor

from reverie.bench.tables import markdown_table
from reverie.model import LanguageModel, SleepingModel, State
from reverie.recipe import Recipe, changed, load_recipe
from reverie.recipe.build import build_model
from reverie.results.card import RunCard, read_card
from reverie.results.checkpoint import FILE_NAME, load_checkpoint
from reverie.results.evaluate import evaluate
from reverie.results.run import CARD_NAME
from reverie.results.style import GREY, INK, STYLE, look_of, look_of_settings, set_title
from reverie.sleep import SleepConfig
from reverie.train.run import train

WITHIN = "before training, nothing cleared"
CLEARED = "before training, cleared"
ZEROED = "trained, fast weights zeroed"


class Forgetful:
    """A model whose fast weights are zero again where a window begins: what is left is what its cache still holds."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.num_blocks, self.fast_weight_blocks = model.num_blocks, model.fast_weight_blocks
        self.embed, self.head = model.embed, model.head

    def blocks(
        self, h: Tensor, state: State, start: int, stop: int, *, span: int, output: bool = True
    ) -> tuple[Tensor, State]:
        """Evaluation gives it whole windows, so what comes in is what earlier windows left."""
        empty = state._replace(fast_weights=(None,) * len(state.fast_weights))
        return self.model.blocks(h, empty, start, stop, span=span, output=output)


def main() -> None:
    arguments = _arguments()
    recipe = load_recipe(arguments.recipe, arguments.set)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    runs = {seed: _trained(changed(recipe, train={"seed": seed}), arguments.runs / f"seed-{seed}") for seed in seeds}
    origin = publish.begin()
    scores = [_scores(run, recipe.train.eval_examples) for run in runs.values()]
    cards = [read_card(run / CARD_NAME, {"run": RunCard}) for run in runs.values()]
    card = {
        "kind": "pretrained_recall",
        "name": recipe.name,
        "seeds": seeds,
        "recipe": recipe.model_dump(mode="json"),
        **origin(),
        "commits_of_runs": sorted({card.commit for card in cards}),
        "wall_time_s_of_runs": [card.wall_time_s for card in cards],
        "tokens_of_a_run": cards[0].tokens,
        "parameters": cards[0].parameters,
        "chance": recipe.task.chance(),
        "scores": {name: [score[name] for score in scores] for name in scores[0]},
        "curves": [[point.model_dump(mode="json") for point in card.curve] for card in cards],
    }
    publish.publish(arguments, card, table, lambda card: card["scores"], figure)


def _arguments() -> argparse.Namespace:
    parser = publish.options(__doc__)
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", default="recall/smollm2")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override of the recipe")
    parser.add_argument("--runs", type=Path, default=Path("runs/recall/smollm2"), help="where the runs are, or will be")
    return parser.parse_args()


def _trained(recipe: Recipe, out: Path) -> Path:
    if not (out / CARD_NAME).exists():
        train(recipe, out, resume=(out / FILE_NAME).exists())
    return out


@torch.no_grad()
def _scores(run: Path, examples: int) -> dict[str, dict[str, Any]]:
    """Scores of a trained run, by the name of the way in which the texts were read."""
    checkpoint = load_checkpoint(run / FILE_NAME)
    recipe = checkpoint.recipe
    model = build_model(recipe.model, recipe.train.seed)

    def score(model: SleepingModel, **sleep: Any) -> dict[str, Any]:
        config = SleepConfig.model_validate({**recipe.sleep.model_dump(), **sleep})
        return evaluate(model, recipe.task, config, examples).score.summary()

    scores = {
        WITHIN: score(model, window_size=recipe.task.sequence_length, num_sleep_passes=1),
        CLEARED: score(model, num_sleep_passes=1),
    }
    checkpoint.restore_model(model)
    scores[ZEROED] = score(Forgetful(model))
    for N in sorted({1, 2, 4, recipe.sleep.num_sleep_passes}):
        scores[asleep(N)] = score(model, num_sleep_passes=N)
    return scores


def asleep(passes: int) -> str:
    return f"trained, asleep, N = {passes}"


def table(card: dict[str, Any]) -> str:
    """Loss in nats and accuracy in %, mean ± standard deviation over seeds."""
    rows = [
        [name, _spread([s["loss"] for s in scores], 2), _spread([100 * s["question_accuracy"] for s in scores], 0)]
        for name, scores in card["scores"].items()
    ]
    return markdown_table(["", "loss", "accuracy"], rows)


def _spread(values: list[float], digits: int) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.{digits}f}" + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


@matplotlib.rc_context(STYLE)
def figure(card: dict[str, Any]) -> Figure:
    """Loss by way of scoring, and held-out loss over the steps of training."""
    drawing = Figure(figsize=(8.4, 3.2), layout="constrained")
    left, right = drawing.subplots(1, 2, width_ratios=[3, 2])
    names = list(card["scores"])
    for place, name in enumerate(names):
        losses, asleep_with = [score["loss"] for score in card["scores"][name]], name.partition("N = ")[2]
        colour = look_of(int(asleep_with))[0] if asleep_with else GREY
        left.barh(place, statistics.fmean(losses), color=colour, alpha=0.7)
        left.plot(losses, [place] * len(losses), ".", color=INK, markersize=5)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.grid(axis="y", visible=False)
    left.grid(axis="x")
    left.set_xlabel("nats per answer; a dot a seed")
    left.set_title("answers to what the cache has lost")
    for i, (seed, curve) in enumerate(zip(card["seeds"], card["curves"], strict=True)):
        colour = look_of_settings(i, len(card["seeds"]))[0]
        right.plot([p["step"] for p in curve], [p["score"]["loss"] for p in curve], color=colour, label=f"seed {seed}")
    right.set_title("held-out loss in training, asleep")
    right.set_xlabel("step")
    right.set_ylim(bottom=0)
    right.legend(frameon=False)
    set_title(drawing, card["name"])
    return drawing


if __name__ == "__main__":
    publish.run(main)
