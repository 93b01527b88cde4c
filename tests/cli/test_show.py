"""What is printed is the batch: each token where it stands, its label and depth, and what the model does there."""

from __future__ import annotations

import re

import pytest
from rich.text import Text
from tiny_recipe import tiny_recipe

from reverie.cli.show import LABEL_STYLE, WINDOW_STYLES, recipe_of_task, show_example
from reverie.errors import UserError
from reverie.recipe import Recipe, load_recipe
from reverie.tasks import TASKS

RECIPES = [
    load_recipe("rule110/nano"),
    load_recipe("depo/nano", ["sleep.num_sleep_passes=3"]),
    load_recipe("depo/paper", ["sleep.num_sleep_passes=4"]),
    tiny_recipe(sleep={"window_size": 5}),  # windows across states and labels
]
HEADING = re.compile(r"window (\d+): (\d+) tokens, (.*)")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("index", [0, 3])
def test_it_prints_the_batch(recipe: Recipe, index: int):
    batch = recipe.task.batch("test", 0, 0, range(index, index + 1))
    names, L = recipe.task.token_names(), recipe.sleep.window_size
    lines = show_example(recipe, index).plain.splitlines()
    words = [(number, word) for number, line in enumerate(lines[1::2]) for word in line.split()]
    assert len(words) == recipe.task.sequence_length
    for t, (window, word) in enumerate(words):
        assert window == t // L
        expected = names[batch.tokens[0, t]]
        if batch.loss_mask[0, t]:
            expected += f"→{names[batch.targets[0, t]]}({int(batch.depth[0, t])})"
        assert word == expected


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_headings_tell_how_long_a_window_is_and_what_happens_there(recipe: Recipe):
    headings = [HEADING.fullmatch(line) for line in show_example(recipe).plain.splitlines()[::2]]
    mask = recipe.task.batch("test", 0, 0, range(1)).loss_mask[0]
    windows = mask.split(recipe.sleep.window_size)
    passes = recipe.sleep.num_sleep_passes
    asleep = f"then sleep, {passes} pass{'es' * (passes > 1)}"
    for number, (window, heading) in enumerate(zip(windows, headings, strict=True), start=1):
        assert heading is not None
        assert heading.groups()[:2] == (str(number), str(len(window)))
        assert heading[3] == ("awake, one pass, labels in green" if window.any() else asleep)


def test_windows_and_labels_have_colours_of_their_own():
    def styles(text: Text, part: str) -> set[str]:
        return {str(span.style) for span in text.spans if text.plain[span.start : span.end] == part}

    recipe = tiny_recipe(task={"num_states": 5}, sleep={"window_size": 7})
    text = show_example(recipe)
    used = [str(span.style) for span in text.spans if span.style in WINDOW_STYLES]
    assert list(dict.fromkeys(used)) == list(WINDOW_STYLES)
    assert used[:7] == [WINDOW_STYLES[0]] * 7
    labels = [span for span in text.spans if span.style == LABEL_STYLE]
    assert len(labels) == 5
    assert all(text.plain[span.start] == "→" for span in labels)
    assert styles(text, "?") <= set(WINDOW_STYLES)


def test_every_example_is_another_one():
    texts = {show_example(RECIPES[0], index).plain for index in range(5)}
    assert len(texts) == 5


def test_every_task_that_needs_no_files_has_a_recipe_to_show() -> None:
    of_yours = {"qa", "text", "mixture"}
    assert {name: recipe_of_task(name).split("/")[0] for name in TASKS if name not in of_yours} == {
        name: name for name in TASKS.keys() - of_yours
    }
    for name in of_yours:
        with pytest.raises(UserError, match=f"the task '{name}': give a recipe file"):
            recipe_of_task(name)
    assert recipe_of_task("depo") == "depo/nano"
