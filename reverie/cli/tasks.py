"""`reverie tasks`: parses and calls; no logic."""

from typing import Annotated

import typer

from reverie.cli.options import Overrides
from reverie.cli.terminal import out_console

app = typer.Typer(help="Look at the tasks.", no_args_is_help=True, rich_markup_mode=None)


@app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A task (its smallest recipe) or a recipe.")],
    overrides: Overrides = None,
    example: Annotated[int, typer.Option(min=0, help="Which held-out example.")] = 0,
) -> None:
    """Print a real example, coloured by window, phase and label."""
    from reverie.cli.show import recipe_of_task, show_example
    from reverie.recipe import load_recipe
    from reverie.tasks import task_names

    resolved = load_recipe(recipe_of_task(name) if name in task_names() else name, overrides or [])
    out_console.print(show_example(resolved, example), soft_wrap=False)


@app.callback()
def _options() -> None:
    """Nothing to set for all commands; without it the only one would go without its name."""
