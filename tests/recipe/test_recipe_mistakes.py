"""Every mistake in a recipe is one sentence that says what would be right."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from recipe_files import FULL, STAGED, write

from reverie.errors import UserError
from reverie.recipe import Recipe, list_recipes, load_recipe
from reverie.recipe.adapt import AdaptConfig


def stages(*changes: dict[str, object]) -> str:
    """An override that gives as many stages, each with these keys changed."""
    tables = [{"share": 1, "parameters": "all", "eviction": "hard", **change} for change in changes]
    rows = [", ".join(f"{key}={json.dumps(value)}" for key, value in table.items()) for table in tables]
    return f"train.stages=[{', '.join(f'{{{row}}}' for row in rows)}]".replace("Infinity", "inf")


TASK_NAMES = "rule110, depo, gsm_infinite, recall, key_value, notes, hops, gsm_pages, qa, text or mixture"
BAD_OVERRIDES = {
    # unknown names
    "sleep.num_pases=3": "sleep.num_pases is not a known key; did you mean sleep.num_sleep_passes?",
    "task.rolout_steps=3": "task.rolout_steps is not a known key; did you mean task.rollout_steps?",
    "model.window_size=3": "model.window_size is not a known key; did you mean sleep.window_size?",
    "sleep.xyz=3": "sleep.xyz is not a known key; "
    "known are window_size, num_sleep_passes, looped_blocks, eviction, bidirectional_sleep, tolerance",
    "slep.window_size=3": "slep is not a known section; did you mean sleep?",
    "windwo_size=3": "windwo_size is not a known section; did you mean sleep.window_size?",
    "xyz.a=3": "xyz is not a known section; known are task, model, sleep, optim, train, adapt",
    "name=mine": "name is not a key of a recipe, which is named after its file; take it out",
    "task.name=rul110": f'task.name must be {TASK_NAMES}, got "rul110"; did you mean rule110?',
    "task.name=[1]": f"task.name must be {TASK_NAMES}, got [1]",
    # out of range
    "sleep.window_size=0": "sleep.window_size must be at least 1, got 0",
    "task.width=100": "task.width must be at most 48, got 100",
    "optim.matrices.lr=0": "optim.matrices.lr must be above 0, got 0",
    "optim.muon_lr=inf": "optim.matrices.lr must be a finite number, got Infinity",
    "task.held_out_fraction=1": "task.held_out_fraction must be below 1, got 1",
    "train.seed=9999999999": "train.seed must be below 4294967296, got 9999999999",
    "task.rollout_steps=-1": "task.rollout_steps must be at least 0, got -1",
    "task.rollout_steps=[1,-2]": "task.rollout_steps[1] must be at least 0, got -2",
    "model.layers=[]": "model.layers must be a list of 1 or more, got []",
    "sleep.looped_blocks=[]": "sleep.looped_blocks must be a list of 2, got []",
    "sleep.looped_blocks=[1,2,3]": "sleep.looped_blocks must be a list of 2, got [1, 2, 3]",
    "train.dtype=float16": 'train.dtype must be "float32" or "bfloat16", got "float16"',
    'model.layers=["attn","gdm"]': 'model.layers[1] must be "attn", "gdn", "jet" or "jet-only", got "gdm"',
    # wrong type: nothing is quietly converted
    "sleep.window_size=many": 'sleep.window_size must be an integer, got "many"',
    'sleep.window_size="3"': 'sleep.window_size must be an integer, got "3"',
    "sleep.window_size=true": "sleep.window_size must be an integer, got true",
    "sleep.window_size=": 'sleep.window_size must be an integer, got ""',
    "sleep.window_size=1\nb=2": 'sleep.window_size must be an integer, got "1\\nb=2"',
    "sleep.window_size.a=3": 'sleep.window_size must be an integer, got {"a": 3}',
    "optim.matrices.lr=1979-05-27": 'optim.matrices.lr must be a number, got "1979-05-27"',
    "task.rollout_steps=it's": 'task.rollout_steps must be an integer or a list, got "it\'s"',
    "sleep=3": "sleep must be a table, got 3",
    "task=3": "task must be a table, got 3",
    "train.dtype=\udcff": "train.dtype is wrong: Input should be a valid string, "
    "unable to parse raw data as a unicode string",
    # values that contradict each other
    "sleep.looped_blocks=[3,1]": "sleep.looped_blocks must be [a, b] with 0 <= a < b, got [3, 1]",
    "model.width=250": "model.width 250 must be an even multiple of num_heads 4 (rotary needs pairs)",
    "model.vocab_size=9": "model.vocab_size is 9, but task rule110 has 3 tokens; leave it out, the task decides it",
    # a stage is a table in a list, and its keys are named with its place
    "train.stages=3": "train.stages must be a list, got 3",
    "train.stages=[3]": "train.stages[0] must be a table, got 3",
    "train.stages=[{}]": "train.stages[0].share is missing; it has no default, so the recipe must set it "
    "(and 2 other errors)",
    stages({"shar": 1}): "train.stages[0].shar is not a known key; did you mean train.stages[0].share?",
    stages({}, {"xyz": 1}): "train.stages[1].xyz is not a known key; known are share, parameters, eviction",
    stages({"steps": 1}): "train.stages[0].steps is not a known key; did you mean train.steps?",
    "train.share=3": "train.share is not a known key; did you mean train.stages.share?",
    stages({}, {"share": 0}): "train.stages[1].share must be above 0, got 0",
    stages({"share": "1"}): 'train.stages[0].share must be a number, got "1"',
    stages({"share": math.inf}): "train.stages[0].share must be a finite number, got Infinity",
    stages({"parameters": "mlp"}): 'train.stages[0].parameters must be "all" or "fast_weights", got "mlp"',
    stages({"eviction": "soft"}, {}): 'train.stages[0].eviction must be "hard" or "sliding", got "soft"',
    stages({}, {"share": 0}, {"share": -1}): "train.stages[1].share must be above 0, got 0 (and 1 other error)",
    stages({}, {"share": 1e-9}): "train.stages[1].share 1e-09 is too small for a single one of 781 steps; "
    "raise it, or train.steps",
    stages({}, {"eviction": "sliding"}): 'train.stages[1].eviction is "sliding", but sleep.eviction is "hard"; '
    "the last stage must train what is used afterwards",
    "train.data_workers=-1": "train.data_workers must be at least 0, got -1",
    # not of the form section.key=value
    "sleep.window_size": 'the override "sleep.window_size" is not of the form section.key=value, '
    "like sleep.window_size=24",
    "=3": 'the override "=3" is not of the form section.key=value, like sleep.window_size=24',
    "sleep.=3": 'the override "sleep.=3" is not of the form section.key=value, like sleep.window_size=24',
}


BAD_ADAPTERS = {
    "adapt.loss.answre=1": "adapt.loss.answre is not a known key; did you mean adapt.loss.answer?",
    "adapt.start.page=1": "adapt.start.page is not a known key; did you mean adapt.start.pages?",
    "adapt.loss.answer=-1": "adapt.loss.answer must be at least 0, got -1",
    "adapt.pages=[2, 1]": "adapt.pages must be [fewest, most] with 1 <= fewest <= most, got [2, 1]",
    "adapt.trained_blocks=[[3, 2]]": "adapt.trained_blocks must be ranges [a, b] with 0 <= a < b, got [3, 2]",
    "sleep.window_size=64": "task.window_tokens is 128, but sleep.window_size is 64; they must be equal",
    "sleep.eviction=sliding": 'sleep.eviction must be "hard" in a recipe with the section adapt',
    "train.compile=true": "train.compile must be left out of a recipe with the section adapt",
    "train.bptt_windows=1": "train.bptt_windows must be left out of a recipe with the section adapt",
}


@pytest.mark.parametrize("override", BAD_ADAPTERS)
def test_a_bad_override_of_an_adapter_is_one_sentence(override: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("notes/smollm2", [override])
    assert str(caught.value) == BAD_ADAPTERS[override]


def test_an_adapter_is_of_a_pretrained_model() -> None:
    with pytest.raises(UserError, match="section adapt is for a pretrained model and a task of pages and questions"):
        load_recipe("rule110/base", ["adapt.pool=3"])


@pytest.mark.parametrize("override", BAD_OVERRIDES)
def test_a_bad_override_is_one_sentence(override: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("rule110/base", [override])
    assert str(caught.value) == BAD_OVERRIDES[override]


def test_a_model_without_fast_weights_has_none_to_train_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(write(tmp_path, staged=STAGED), ['model.layers=["attn", "attn"]'])
    assert str(caught.value) == (
        'train.stages[0].parameters is "fast_weights", but model.layers has attention layers alone'
    )


def test_a_contradiction_names_its_section() -> None:
    with pytest.raises(UserError, match=r"^task\.reveal_answers = false needs max_name_tokens = 1"):
        load_recipe("depo/base", ["task.reveal_answers=false"])


def test_of_several_mistakes_an_unknown_key_comes_first_and_the_others_are_counted() -> None:
    bad = ["train.steps=0", "sleep.window_size=0", "sleep.num_pases=2"]
    with pytest.raises(UserError) as caught:
        load_recipe("rule110/base", bad[:2])
    assert str(caught.value) == "sleep.window_size must be at least 1, got 0 (and 1 other error)"
    with pytest.raises(UserError, match=r"^sleep\.num_pases .* sleep\.num_sleep_passes\? \(and 2 other errors\)$"):
        load_recipe("rule110/base", bad)


BAD_FILES = {
    FULL.replace(
        'rest = { name = "adamw", lr = 1e-3 }\n', ""
    ): "optim.rest is missing; it has no default, so the recipe must set it",
    FULL.replace(
        "[sleep]\nwindow_size = 24\n", ""
    ): "section sleep is missing; a recipe needs task, model, sleep, optim, train",
    FULL.replace('name = "rule110"\n', ""): f"task.name is missing; it must be {TASK_NAMES}",
    FULL.replace(
        "rollout_steps = 4\n", ""
    ): "task.rollout_steps is missing; it has no default, so the recipe must set it",
    "base = 3\n" + FULL: "base must be the name or the path of a recipe, got 3 in bad.toml",
    'base = "rule110/bse"': "there is no recipe rule110/bse, the base of bad.toml; did you mean rule110/base",
    'base = "other.toml"': "there is no recipe other.toml, the base of bad.toml; did you mean depo/paper, notes/smol",
    'base = "bad.toml"': "the bases run in a circle, bad -> bad; one of these recipes must do without a base",
    "[sleep]\nwindow_size == 3": "bad.toml is not valid TOML: Invalid value (at line 2, column 14)",
    "[sleep]\n[sleep]": "bad.toml is not valid TOML: Cannot declare ('sleep',) twice (at line 2, column 7)",
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_a_bad_file_is_one_sentence(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(tmp_path, bad=text).parent)
    with pytest.raises(UserError) as caught:
        load_recipe("bad.toml")
    assert str(caught.value).startswith(BAD_FILES[text])
    assert "\n" not in str(caught.value)


def test_bases_in_a_circle_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, a='base = "b.toml"', b='base = "c.toml"', c='base = "./b.toml"')
    with pytest.raises(UserError, match=r"^the bases run in a circle, b -> c -> b; "):
        load_recipe(path)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not valid TOML: 'utf-8' codec"):
        load_recipe(tmp_path / "bad.toml")


@pytest.mark.parametrize("name", ["depo/nan", "depo/nano.toml", "dpo/nano", "recipes/depo/nano"])
def test_a_recipe_that_does_not_exist_gets_the_nearest(name: str) -> None:
    with pytest.raises(UserError, match=f"^there is no recipe {name}; did you mean depo/nano"):
        load_recipe(name)


def test_without_a_near_recipe_three_are_suggested() -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("xyz")
    assert sum(name in str(caught.value) for name in list_recipes()) == 3


KEYS = [f"{s}.{k}" for s in ("task", "model", "sleep", "optim", "train") for k in Recipe.model_fields]
KEYS += [f"{s}.{k}" for s, x in load_recipe("rule110/base") if isinstance(x, BaseModel) for k in type(x).model_fields]
KEYS += [f"adapt.{k}" for k in (*AdaptConfig.model_fields, "loss.answer", "start.pages", "start.xyz")]
leaves = st.integers() | st.floats() | st.booleans() | st.text(max_size=4)
values = st.recursive(leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=2))


@given(st.lists(st.tuples(st.sampled_from(KEYS), values), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_no_override_raises_anything_else(overrides: list[tuple[str, object]]) -> None:
    with suppress(UserError):
        load_recipe("rule110/base", [f"{key}={json.dumps(value)}" for key, value in overrides])
