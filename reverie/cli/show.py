"""A real example of a task as coloured text: by window, by what the model does there, and with its labels."""

from rich.text import Text

from reverie.errors import UserError
from reverie.recipe import Recipe, list_recipes

WINDOW_STYLES = ("cyan", "magenta", "blue", "yellow")
LABEL_STYLE = "bold green"


def recipe_of_task(name: str) -> str:
    """The smallest shipped recipe of a task: its nano, or the first one.

    Raises:
        UserError: no shipped recipe has this task.
    """
    shipped = [recipe for recipe in list_recipes() if recipe.startswith(f"{name}/")]
    if not shipped:
        raise UserError(f"no shipped recipe has the task {name!r}: give a recipe file that has it")
    return min(shipped, key=lambda recipe: not recipe.endswith("/nano"))


def show_example(recipe: Recipe, index: int = 0) -> Text:
    """Held-out example `index`, one paragraph a window; a label follows its position as "token→label"."""
    task, sleep = recipe.task, recipe.sleep
    batch = task.batch("test", seed=0, step=0, examples=range(index, index + 1))
    names = task.token_names()
    tokens, targets = batch.tokens[0].tolist(), batch.targets[0].tolist()
    scored, depths = batch.loss_mask[0].tolist(), batch.depth[0].tolist()
    passes = "1 pass" if sleep.num_sleep_passes == 1 else f"{sleep.num_sleep_passes} passes"
    text = Text()
    for number, start in enumerate(range(0, len(tokens), sleep.window_size)):
        window = range(start, min(start + sleep.window_size, len(tokens)))
        awake = any(scored[t] for t in window)
        does = "awake, one pass, labels in green" if awake else f"then sleep, {passes}"
        text.append(f"window {number + 1}: {len(window)} tokens, {does}\n", style="bold")
        for t in window:
            text.append(names[tokens[t]], style=WINDOW_STYLES[number % len(WINDOW_STYLES)])
            if scored[t]:
                text.append(f"→{names[targets[t]]}", style=LABEL_STYLE)
                text.append(f"({depths[t]})", style="dim")
            text.append(" ")
        text.append("\n")
    return text
