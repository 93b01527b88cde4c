"""What tells runs apart is named in few words, and the same words mean the same key."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tiny_recipe import tiny_recipe

from reverie.recipe import changed
from reverie.results.settings import differences, settings_label, short_names, shown_value

keys = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join)


@given(st.lists(keys, unique=True, max_size=6))
def test_short_names_are_ends_of_their_keys_and_no_two_are_the_same(some: list[str]):
    some = [f"{i % 2}.{key}" for i, key in enumerate(some)]  # of two sections, so that none ends with another one
    names = short_names(some)
    assert list(names) == some
    assert len(set(names.values())) == len(some)
    assert all(key == name or key.endswith(f".{name}") for key, name in names.items())


def test_a_label():
    assert settings_label({"optim.rest.lr": "0.01", "optim.matrices.lr": "0.1", "model.update_rule": "delta"}) == (
        "rest.lr = 0.01, matrices.lr = 0.1, update_rule = delta"
    )
    assert [shown_value(x) for x in ("a", 1e-5, 2, True, ["attn", "gdn"], {"a": [1]})] == [
        "a", "1e-05", "2", "true", "attn,gdn", '{"a":[1]}'
    ]  # fmt: skip


def test_recipes_differ_in_what_bears_on_what_is_learned():
    one = tiny_recipe()
    other = changed(
        one, train={"seed": 3, "eval_every": 1, "steps": 7}, sleep={"num_sleep_passes": 5}, model={"width": 8}
    )
    tables = [recipe.model_dump(mode="json") for recipe in (one, other)]
    assert differences(tables, but={"sleep.num_sleep_passes"}) == [
        {"model.width": "16", "train.steps": "6"}, {"model.width": "8", "train.steps": "7"}
    ]  # fmt: skip
    assert differences(tables[:1] * 2) == [{}, {}]


def test_a_key_that_a_recipe_lacks_is_left_out_there():
    one = tiny_recipe()
    other = changed(one, optim={"rest": {"name": "SGD", "momentum": 0.5}})
    assert differences([recipe.model_dump(mode="json") for recipe in (one, other)]) == [
        {"optim.rest.name": "adamw"}, {"optim.rest.name": "SGD", "optim.rest.momentum": "0.5"}
    ]  # fmt: skip
