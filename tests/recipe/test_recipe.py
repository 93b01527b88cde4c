"""Recipes: bases and overrides merge as documented, and every mistake is one sentence that says what would be right."""

import json
import math
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from reverie.errors import UserError
from reverie.recipe import Recipe, TrainConfig, changed, list_recipes, load_recipe

FULL = """
[task]
name = "rule110"
rollout_steps = 4
[model]
layers = ["attn", "gdn"]
width = 16
mlp_width = 32
num_heads = 2
fast_heads = 2
key_size = 8
value_size = 8
[sleep]
window_size = 24
[optim]
muon_lr = 1e-3
adamw_lr = 1e-3
[train]
steps = 10
batch_size = 4
"""


def write(folder: Path, **files: str) -> Path:
    """Recipes of these names and contents; returns the path of the first."""
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(files))}.toml"


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipes_load_and_survive_a_card(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.model.vocab_size == recipe.task.vocab_size
    card = json.dumps(recipe.model_dump(mode="json"))
    assert Recipe.model_validate(json.loads(card)) == recipe


def test_recipes_of_the_paper_have_its_numbers() -> None:
    deep, depo = load_recipe("rule110/paper-t32"), load_recipe("depo/paper")
    assert deep.train.steps * deep.train.batch_size * deep.task.sequence_length == pytest.approx(5e9, rel=1e-3)
    shallow = load_recipe("rule110/paper-depth")
    assert shallow.train.steps * shallow.train.batch_size * shallow.task.sequence_length == pytest.approx(4e7, rel=1e-3)
    assert (deep.task.sequence_length, deep.sleep.window_size) == (100, 24)
    assert (depo.task.sequence_length, depo.sleep.window_size, depo.train.steps) == (360, 75, 100_000)
    assert len(depo.hybrid.layers) == 10


@pytest.mark.parametrize("name", list_recipes())
def test_recipes_state_no_default(name: str) -> None:
    """What equals the default of its config class, or the value of the base, is noise in a recipe."""
    data = tomllib.loads((Path(__file__).parents[2] / "recipes" / f"{name}.toml").read_text(encoding="utf-8"))
    recipe = load_recipe(name)
    base = load_recipe(data["base"]) if "base" in data else None
    for section in data.keys() - {"base"}:
        config: BaseModel = getattr(recipe, section)
        for key in data[section].keys() - {"name"}:
            value = getattr(config, key)
            if base:
                assert value != getattr(getattr(base, section), key), f"{section}.{key}"
            else:
                assert value != type(config).model_fields[key].default, f"{section}.{key}"


def test_a_base_gives_what_the_recipe_leaves_out(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        top='base = "middle.toml"\n[train]\nsteps = 30',
        middle='base = "bottom.toml"\n[train]\nsteps = 20\nbatch_size = 8\n[task]\nrollout_steps = [1, 8]',
        bottom=FULL,
    )
    recipe = load_recipe(path)
    assert recipe.name == "top"
    assert (recipe.train.steps, recipe.train.batch_size) == (30, 8)
    assert recipe.model_dump()["task"]["rollout_steps"] == (1, 8)
    assert recipe.hybrid.width == 16
    assert recipe.model.vocab_size == 3 + 8


def test_a_base_may_be_a_shipped_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, mine='base = "rule110/base"\n[train]\nsteps = 3')
    mine, base = load_recipe(str(path)), load_recipe("rule110/base")
    assert mine == base.model_copy(update={"name": "mine", "train": mine.train})
    assert mine.train == base.train.model_copy(update={"steps": 3})


def test_a_base_is_found_from_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, full=FULL)
    assert load_recipe(write(tmp_path / "sub", top='base = "../full.toml"')).train.steps == 10


@pytest.mark.parametrize(
    ("override", "section", "expected"),
    [
        ("sleep.eviction=sliding", "sleep", {"eviction": "sliding"}),
        ('sleep.eviction="sliding"', "sleep", {"eviction": "sliding"}),
        (" sleep.num_sleep_passes = 4 ", "sleep", {"num_sleep_passes": 4}),
        ("sleep.looped_blocks=[1,3]", "sleep", {"looped_blocks": (1, 3)}),
        ("sleep={window_size=7, num_sleep_passes=2}", "sleep", {"window_size": 7, "num_sleep_passes": 2}),
        ("task.rollout_steps=[1,8]", "task", {"rollout_steps": (1, 8)}),
        ("task.held_out_fraction=0.5", "task", {"held_out_fraction": 0.5}),
        ("optim.muon_lr=1", "optim", {"muon_lr": 1.0}),
        ("train.steps=1_000", "train", {"steps": 1000}),
    ],
)
def test_an_override_changes_its_keys_alone(override: str, section: str, expected: dict[str, object]) -> None:
    before, after = load_recipe("rule110/base"), load_recipe("rule110/base", [override])
    assert getattr(after, section) == getattr(before, section).model_copy(update=expected)
    assert after.model.vocab_size == after.task.vocab_size
    others = {"name", "sleep", "optim", "train"} - {section}
    assert after.model_dump(include=others) == before.model_dump(include=others)


train_values = st.fixed_dictionaries({}, optional={key: st.integers(1, 9) for key in ("steps", "batch_size", "seed")})


@given(bottom=train_values, top=train_values, overrides=st.lists(train_values, max_size=3))
@settings(max_examples=25, deadline=None)
def test_later_wins(
    tmp_path_factory: pytest.TempPathFactory,
    bottom: dict[str, int],
    top: dict[str, int],
    overrides: list[dict[str, int]],
) -> None:
    def table(values: dict[str, int]) -> str:
        return "[train]\n" + "\n".join(f"{key} = {value}" for key, value in values.items())

    path = write(
        tmp_path_factory.mktemp("recipes"),
        top='base = "middle.toml"\n' + table(top),
        middle='base = "bottom.toml"\n' + table(bottom),
        bottom=FULL,
    )
    sets = [f"train.{key}={value}" for values in overrides for key, value in values.items()]
    expected: dict[str, int] = {"steps": 10, "batch_size": 4}
    for values in (bottom, top, *overrides):
        expected |= values
    assert load_recipe(path, sets).train == TrainConfig.model_validate(expected)


def stages(*changes: dict[str, object]) -> str:
    """An override that gives as many stages, each with these keys changed."""
    tables = [{"share": 1, "parameters": "all", "eviction": "hard", **change} for change in changes]
    rows = [", ".join(f"{key}={json.dumps(value)}" for key, value in table.items()) for table in tables]
    return f"train.stages=[{', '.join(f'{{{row}}}' for row in rows)}]".replace("Infinity", "inf")


BAD_OVERRIDES = {
    # unknown names
    "sleep.num_pases=3": "sleep.num_pases is not a known key; did you mean sleep.num_sleep_passes?",
    "task.rolout_steps=3": "task.rolout_steps is not a known key; did you mean task.rollout_steps?",
    "model.window_size=3": "model.window_size is not a known key; did you mean sleep.window_size?",
    "sleep.xyz=3": "sleep.xyz is not a known key; "
    "known are window_size, num_sleep_passes, looped_blocks, eviction, tolerance",
    "slep.window_size=3": "slep is not a known section; did you mean sleep?",
    "windwo_size=3": "windwo_size is not a known section; did you mean sleep.window_size?",
    "xyz.a=3": "xyz is not a known section; known are task, model, sleep, optim, train",
    "name=mine": "name is not a key of a recipe, which is named after its file; take it out",
    "task.name=rul110": 'task.name must be rule110, depo, gsm_infinite or recall, got "rul110"; did you mean rule110?',
    "task.name=[1]": "task.name must be rule110, depo, gsm_infinite or recall, got [1]",
    # out of range
    "sleep.window_size=0": "sleep.window_size must be at least 1, got 0",
    "task.width=100": "task.width must be at most 48, got 100",
    "optim.muon_lr=0": "optim.muon_lr must be above 0, got 0",
    "optim.muon_lr=inf": "optim.muon_lr must be a finite number, got Infinity",
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
    "optim.muon_lr=1979-05-27": 'optim.muon_lr must be a number, got "1979-05-27"',
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


@pytest.mark.parametrize("override", BAD_OVERRIDES)
def test_a_bad_override_is_one_sentence(override: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("rule110/base", [override])
    assert str(caught.value) == BAD_OVERRIDES[override]


STAGED = (
    FULL.replace("[sleep]", '[sleep]\neviction = "sliding"').replace("steps = 10", "steps = 9")
    + """
[[train.stages]]
share = 1
parameters = "fast_weights"
eviction = "hard"
[[train.stages]]
share = 2
parameters = "all"
eviction = "sliding"
"""
)


def test_stages_divide_the_steps_and_survive_a_card(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, staged=STAGED))
    assert [stage.parameters for stage in recipe.train.stages] == ["fast_weights", "all"]
    assert recipe.train.stage_ends == [3, 9]
    assert Recipe.model_validate(json.loads(recipe.model_dump_json())) == recipe
    assert changed(recipe, train={"steps": 12}).train.stage_ends == [4, 12]
    assert load_recipe("rule110/base").train.stage_ends == [load_recipe("rule110/base").train.steps]


def test_stages_are_replaced_as_a_whole(tmp_path: Path) -> None:
    base = write(tmp_path, top='base = "staged.toml"\n[train]\nstages = []', staged=STAGED)
    assert load_recipe(base).train.stages == ()


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
    FULL.replace("muon_lr = 1e-3\n", ""): "optim.muon_lr is missing; it has no default, so the recipe must set it",
    FULL.replace(
        "[sleep]\nwindow_size = 24\n", ""
    ): "section sleep is missing; a recipe needs task, model, sleep, optim, train",
    FULL.replace('name = "rule110"\n', ""): "task.name is missing; it must be rule110, depo, gsm_infinite or recall",
    FULL.replace(
        "rollout_steps = 4\n", ""
    ): "task.rollout_steps is missing; it has no default, so the recipe must set it",
    "base = 3\n" + FULL: "base must be the name or the path of a recipe, got 3 in bad.toml",
    'base = "rule110/bse"': "there is no recipe rule110/bse, the base of bad.toml; did you mean rule110/base",
    'base = "other.toml"': "there is no recipe other.toml, the base of bad.toml; there are demo, depo/any-n, depo/base",
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


def test_without_a_near_recipe_all_are_listed() -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("xyz")
    assert all(name in str(caught.value) for name in list_recipes())


KEYS = [f"{s}.{k}" for s in ("task", "model", "sleep", "optim", "train") for k in Recipe.model_fields]
KEYS += [f"{s}.{k}" for s, config in load_recipe("rule110/base") if s != "name" for k in type(config).model_fields]
leaves = st.integers() | st.floats() | st.booleans() | st.text(max_size=4)
values = st.recursive(leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=2))


@given(st.lists(st.tuples(st.sampled_from(KEYS), values), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_no_override_raises_anything_else(overrides: list[tuple[str, object]]) -> None:
    with suppress(UserError):
        load_recipe("rule110/base", [f"{key}={json.dumps(value)}" for key, value in overrides])
