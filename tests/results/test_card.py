"""Cards keep what runs have found, and refuse what is not a card."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cards import comparison, run_card, summary
from pydantic import ValidationError

from reverie.errors import UserError
from reverie.results.card import Chance, ComparisonCard, CurvePoint, RunCard, load_card, save_card
from reverie.results.comparison import compare_runs
from reverie.tasks.base import Batch, score


def runs() -> list[RunCard]:
    """Out of order; question accuracy is the mean of the depths' 2 and 10."""
    return [
        run_card("sleep", 4, 0, summary({2: 1.0, 10: 0.8}, exact=0.7)),
        run_card("sleep", 2, 1, summary({2: 0.9, 10: 0.3}, exact=0.2)),
        run_card("hybrid", 1, 0, summary({2: 0.6, 10: 0.2}, exact=0.1)),
        run_card("sleep", 2, 0, summary({2: 0.7, 10: 0.1}, exact=0.1)),
        run_card("transformer", 1, 0, summary({2: 0.26, 10: 0.24}, exact=0.01)),
    ]


def test_the_score_of_a_task_fits_a_card():
    ones = torch.ones(2, 3, dtype=torch.int64)
    batch = Batch(ones, ones, ones.bool(), 4 * ones, ones)
    found = score(batch, torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 3)).summary()
    card = run_card("sleep", 2, 0, found)
    assert card.score == found
    assert card.depths == ["4"]


def test_groups_are_in_order_and_hold_means_over_seeds():
    card = compare_runs("fake", "question", runs())
    assert [(r.model, r.num_sleep_passes) for r in card.results] == [
        ("transformer", 1), ("hybrid", 1), ("sleep", 2), ("sleep", 4),
    ]  # fmt: skip
    two = card.results[2]
    assert two.seeds == [0, 1]
    assert two.accuracies == pytest.approx([0.4, 0.6])
    assert two.accuracy == pytest.approx(0.5)
    assert two.accuracy_std == pytest.approx(math.sqrt(0.02))
    assert two.by_depth["10"].values == [0.1, 0.3]
    assert two.by_depth["10"].mean == pytest.approx(0.2)
    assert two.by_depth["10"].std == pytest.approx(math.sqrt(0.02))
    assert card.results[3].accuracy_std == card.results[3].by_depth["2"].std == 0.0
    assert [run.seed for run in card.runs_of(two)] == [0, 1]
    assert card.depths == ["2", "10"]


def test_the_metric_chooses_accuracy_and_chance():
    by_question, exact = (compare_runs("fake", metric, runs()).results[3] for metric in ("question", "exact"))
    assert (by_question.accuracy, by_question.chance) == (pytest.approx(0.9), pytest.approx(0.25))
    assert (exact.accuracy, exact.chance) == (0.7, 0.01)


def test_chance_is_the_mean_over_the_depths_that_were_asked():
    chance = Chance(by_depth={"1": 0.9, "2": 0.1, "3": 0.9, "10": 0.3}, exact=0.01)
    card = compare_runs("fake", "question", [run.model_copy(update={"chance": chance}) for run in runs()])
    assert card.results[0].chance == pytest.approx(0.2)


def test_tokens_and_time_are_sums_and_means_per_run():
    card = compare_runs("fake", "question", runs())
    assert card.tokens == 5000
    assert card.wall_time_s == pytest.approx(100 * (4 + 2 + 1 + 2 + 1))
    assert (card.results[2].tokens_per_run, card.results[2].wall_time_s_per_run) == (1000, pytest.approx(200))
    assert card.seeds == [0, 1]


def test_the_recipe_is_what_all_runs_share():
    assert compare_runs("fake", "question", runs()).recipe == {
        "name": "fake", "task": {"name": "depo"}, "model": {}, "sleep": {}, "train": {"learning_rate": 2.0000001e-3},
    }  # fmt: skip


def test_commits_that_differ_are_all_named():
    mixed = [run.model_copy(update={"commit": commit}) for run, commit in zip(runs(), "aabab", strict=True)]
    assert compare_runs("fake", "question", mixed).commit == "b, a"


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"seed": 0}, r"^there are 2 runs of N = 4 \(sleep\) with seed 0; give one per seed$"),
        ({"recipe": {"task": {"name": "depo", "max_nodes": 5}}}, "cannot be compared: they differ in task"),
        ({"score": summary({2: 1.0}, exact=1.0)}, "cannot be compared: they differ in task, depths or chance"),
        ({"chance": Chance(by_depth={"2": 0.5, "10": 0.5}, exact=0.5)}, "cannot be compared"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(other, sentence: str):
    first = runs()[0]
    with pytest.raises(UserError, match=sentence):
        compare_runs("fake", "question", [first, first.model_copy(update={"seed": 1, **other})])


def test_no_runs_and_missing_chances_are_refused():
    with pytest.raises(UserError, match="no run"):
        compare_runs("fake", "question", [])
    lacking = runs()[0].model_copy(update={"chance": Chance(by_depth={"2": 0.5}, exact=0.5)})
    with pytest.raises(UserError, match=r"has no chance for depth 10$"):
        compare_runs("fake", "question", [lacking])


def test_a_saved_run_can_be_compared_with_a_fresh_one(tmp_path: Path):
    chance = Chance(by_depth={"2": 1 / 3, "10": 1 / 7}, exact=1 / 21)
    first, second = (run.model_copy(update={"chance": chance}) for run in runs()[:2])
    save_card(first, tmp_path / "run.json")
    loaded = load_card(tmp_path / "run.json")
    assert isinstance(loaded, RunCard)
    assert len(compare_runs("fake", "question", [loaded, second]).results) == 2


@pytest.mark.parametrize("card", [comparison(points=3), comparison(points=3).runs[0]])
def test_a_round_trip_keeps_everything_but_the_sixth_digit(tmp_path: Path, card):
    save_card(card, tmp_path / "card.json")
    once = load_card(tmp_path / "card.json")
    save_card(once, tmp_path / "again.json")
    assert load_card(tmp_path / "again.json") == once
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "card.json").read_bytes()
    assert once.recipe == card.recipe  # a rounded learning rate would be another recipe
    run, original = (c.runs[0] if isinstance(c, ComparisonCard) else c for c in (once, card))
    assert run.chance.by_depth["1"] == 0.013514
    assert run.wall_time_s == pytest.approx(original.wall_time_s, rel=1e-5)
    assert run.tokens == original.tokens == 3 * 4_608_000


def test_a_loss_that_is_not_a_number_survives(tmp_path: Path):
    bad = summary({2: 0.5}, exact=0.5, loss=math.nan)
    point = CurvePoint(step=1, tokens=1, wall_time_s=1.0, train_loss=math.inf, score=bad)
    save_card(run_card("sleep", 2, 0, bad, curve=[point]), tmp_path / "card.json")
    json.loads((tmp_path / "card.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    card = load_card(tmp_path / "card.json")
    assert isinstance(card, RunCard)
    assert card.curve[0].train_loss == math.inf
    assert math.isnan(card.score["by_depth"]["2"]["loss"])


def test_twelve_runs_make_a_small_file(tmp_path: Path):
    card = comparison()
    save_card(card, tmp_path / "card.json")
    assert len(card.runs) == 12
    assert (tmp_path / "card.json").stat().st_size < 420_000


def test_cards_are_frozen_and_refuse_unknown_fields():
    card = runs()[0]
    with pytest.raises(ValidationError):
        card.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="colour"):
        RunCard.model_validate({**card.model_dump(), "colour": "red"})
    with pytest.raises(ValidationError, match="exact_accuracy"):
        run_card("sleep", 2, 0, {"question_accuracy": 0.5, "by_depth": {}})


def _without(*names: str) -> str:
    content = runs()[0].model_dump(mode="json")
    return json.dumps({key: value for key, value in content.items() if key not in names})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "^there is no result card at "),
        ("{half", "is not a result card: it is not JSON"),
        ("[1]", "is not a result card: it holds no JSON object$"),
        ("{}", "is not a result card: it lacks kind, which must be 'run' or 'comparison'$"),
        ('{"kind": "walk"}', "is not a result card: its kind is 'walk', which must be"),
        (_without("steps", "chance"), "is not a run card: it lacks steps, chance$"),
        ('{"kind": "comparison", "name": "x"}', "it lacks metric, recipe, commit and 8 more$"),
        (_without()[:-1] + ', "seed": "many"}', "is not a run card: seed: input should be a valid integer"),
        (_without()[:-1] + ', "colour": "red"}', "is not a run card: it has an unknown field colour$"),
    ],
)
def test_what_is_no_card_is_named_in_one_sentence(tmp_path: Path, content: str | None, sentence: str):
    path = tmp_path / "card.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=sentence) as caught:
        load_card(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_folder_is_no_card(tmp_path: Path):
    with pytest.raises(UserError, match="cannot read"):
        load_card(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda card: card["score"]["by_depth"].update(x=card["score"]["by_depth"]["2"]), r"score\.by_depth\.x"),
        (lambda card: card["score"].update(question_accuracy=math.nan), r"score\.question_accuracy: .* or equal to 1"),
        (lambda card: card["score"].update(by_depth=[]), r"score\.by_depth: .* dictionary"),
        (lambda card: card["score"].update(by_depth={}), "it has no depth"),
        (lambda card: card["chance"].update(by_depth={}), "lacks depth 2"),
        (lambda card: card.update(tokens=10**30), "tokens: "),
        (lambda card: card.update(num_sleep_passes=10**12), "num_sleep_passes: .* 10000"),
        (lambda card: card.update(version=2), "newer reverie, in version 2 of the format: this one reads up to 1"),
        (lambda card: card.update(version=[]), "a version that no reverie writes"),
        (lambda card: card.update(name="\ud800"), "surrogates not allowed"),
        (lambda card: card["recipe"].update(deep=json.loads("[" * 100 + "]" * 100)), "nested too deeply"),
    ],
)
def test_what_no_figure_could_show_is_refused_by_file_and_field(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], sentence: str
):
    path = tmp_path / "card.json"
    save_card(runs()[0], path)
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=sentence) as caught:
        load_card(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_card_without_a_version_is_of_the_first(tmp_path: Path):
    save_card(runs()[0], tmp_path / "card.json")
    content = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    assert content.pop("version") == 1
    (tmp_path / "old.json").write_text(json.dumps(content), encoding="utf-8")
    assert load_card(tmp_path / "old.json") == load_card(tmp_path / "card.json")
