"""The runs of a comparison of any keys: every combination once, in a folder of its own; mistakes come first."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_recipe import write_tiny

from reverie.errors import UserError
from reverie.recipe import load_recipe
from reverie.results.card import load_card
from reverie.results.run import CARD_NAME
from reverie.train.compare import compare
from reverie.train.plan import Run, load_variants, plan_runs, plan_variants
from reverie.train.run import train

VARIED = {"model.update_rule": ["hebbian", "delta"], "optim.muon_lr": ["0.01", "2e-2"]}


def planned(
    folder: Path, varied: dict[str, list[str]], seeds: tuple[int, ...] = (0,), *, transformer: bool = False
) -> list[Run]:
    variants = load_variants(write_tiny(folder), ["train.steps=2"], varied)
    return plan_variants(variants, None, seeds, folder / "out", transformer=transformer)


def test_the_plan_is_the_product_of_all_values_and_seeds(tmp_path: Path):
    runs = planned(tmp_path, VARIED, (0, 3))
    found = [(*run.settings.values(), run.recipe.train.seed) for run in runs]
    assert found == [*itertools.product(("hebbian", "delta"), ("0.01", "0.02"), (0, 3))]
    for run in runs:
        assert run.recipe == load_recipe(tmp_path / "tiny.toml", [
            "train.steps=2", f"model.update_rule={run.settings['model.update_rule']}",
            f"optim.matrices.lr={run.settings['optim.muon_lr']}", f"train.seed={run.recipe.train.seed}",
        ])  # fmt: skip
    assert runs[0].name == "sleep-2-update_rule-hebbian-muon_lr-0.01-seed-0"


def test_the_same_value_in_other_words_is_one_variant(tmp_path: Path):
    assert len(planned(tmp_path, {"optim.matrices.lr": ["0.01", "1e-2"], "model.update_rule": ["delta"] * 2})) == 1


def test_lists_and_tables_are_values(tmp_path: Path):
    varied = {"model.layers": ['["attn", "gdn"]', '["gdn", "gdn"]'], "optim.rest": ['{name="SGD", lr=1}', "{lr=2}"]}
    runs = planned(tmp_path, varied)
    assert [(run.recipe.hybrid.layers, run.recipe.optim.rest.name) for run in runs] == [
        *itertools.product((("attn", "gdn"), ("gdn", "gdn")), ("SGD", "adamw"))
    ]
    assert len({run.name for run in runs}) == 4
    assert all(run.out.parent == tmp_path / "out" for run in runs)


@given(st.lists(st.text(min_size=1), min_size=2, max_size=4, unique=True))
def test_names_of_folders_are_plain_and_one_of_a_kind(values: list[str]):
    recipe, seen = load_recipe("rule110/nano"), set[str]()
    for value in values:
        (run,) = plan_runs(recipe, [2], [0], Path("out"), transformer=False, settings={"model.x": value, "y": "1"})
        assert run.out.parent == Path("out")
        assert run.name.isascii()
        assert len(run.name.encode()) < 250
        assert run.name not in seen
        seen.add(run.name)


def test_other_passes_and_a_transformer_for_every_variant(tmp_path: Path):
    variants = load_variants(write_tiny(tmp_path), [], {"model.update_rule": ["hebbian", "delta"]})
    runs = plan_variants(variants, [1, 4], [0], tmp_path, transformer=True)
    kinds = [(run.name.split("-update_rule")[0], run.settings["model.update_rule"]) for run in runs]
    assert sorted(kinds) == sorted(itertools.product(("sleep-4", "hybrid", "transformer"), ("hebbian", "delta")))


@pytest.mark.parametrize(
    ("varied", "sentence"),
    [
        (
            {"sleep.window_size": ["14"], "model.update_rule": ["delta", "dleta"]},
            'the variant sleep.window_size=14 model.update_rule=dleta: model.update_rule must be "hebbian", "delta" or '
            '"gated_delta", got "dleta"',
        ),
        (
            {"task.width": ["6", "5"]},
            "the variants task.width=6 and task.width=5 cannot be compared: their tasks differ in name, depths or "
            "chance",
        ),
        (
            {"train.metric": ["question", "exact"]},
            "the variants train.metric=question and train.metric=exact cannot be compared: train.metric says how all "
            "runs of a comparison are scored",
        ),
    ],
)
def test_a_mistake_names_its_variant(tmp_path: Path, varied: dict[str, list[str]], sentence: str):
    with pytest.raises(UserError) as caught:
        planned(tmp_path, varied)
    assert str(caught.value) == sentence
    assert not (tmp_path / "out").exists()


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_what_is_done_is_not_run_again(tmp_path: Path):
    """One run is done, of another one a step; the card has both, told apart, and the folders' own cards do not."""

    def kill(progress: object, loss: float) -> None:
        raise Killed

    done, half = runs = planned(tmp_path, {"model.update_rule": ["hebbian", "delta"]})
    train(done.recipe, done.out)
    with pytest.raises(Killed):
        train(half.recipe, half.out, report=kill)
    before, told = (done.out / CARD_NAME).stat().st_mtime_ns, set[str]()
    card = compare("tiny", "question", runs, tmp_path / "out", jobs=2, report=lambda run, event: told.add(run.name))
    assert told == {half.name}
    assert (done.out / CARD_NAME).stat().st_mtime_ns == before
    assert [result.settings for result in card.results] == [{"model.update_rule": r} for r in ("hebbian", "delta")]
    assert [card.runs_of(result) for result in card.results] == [[run] for run in card.runs]
    assert load_card(tmp_path / "out" / CARD_NAME).model_dump()["results"][1]["settings"] == half.settings
    assert "settings" not in (done.out / CARD_NAME).read_text(encoding="utf-8")
