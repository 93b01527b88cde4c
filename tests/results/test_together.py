"""Several cards in one figure: each run once, labelled by what tells it apart, and what cannot share one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_cards import comparison, passes_card, run_card, summary

from reverie.errors import UserError
from reverie.results.card import RunCard, save_card
from reverie.results.comparison import compare_runs
from reverie.results.plots import figure
from reverie.results.together import joined, plot_together


def run(rule: str, seed: int = 0, **changes: Any) -> RunCard:
    card = run_card("sleep", 2, seed, summary({1: 0.9, 2: 0.5}, 0.4), **changes)
    return card.model_copy(update={"recipe": {**card.recipe, "model": {"update_rule": rule}}})


def test_runs_are_told_apart_by_the_keys_in_which_they_differ():
    card = joined([run("delta"), run("hebbian"), run("delta", seed=1)])
    assert [(result.settings, result.seeds) for result in card.results] == [
        ({"model.update_rule": "delta"}, [0, 1]), ({"model.update_rule": "hebbian"}, [0])
    ]  # fmt: skip
    left, _ = figure(card).axes
    assert left.get_legend_handles_labels()[1] == ["update_rule = delta", "update_rule = hebbian", "chance"]


def test_a_baseline_differs_by_what_it_is():
    fake = comparison(points=2)
    runs = [
        run.model_copy(update={"recipe": {**run.recipe, "model": {"layers": run.model == "transformer"}}})
        for run in fake.runs
    ]
    card = compare_runs(fake.name, fake.metric, runs)
    assert joined([card]) == card
    assert joined([card, *card.runs]) == card  # each run once


def test_the_figure_is_beside_the_first_card_or_in_a_folder(tmp_path: Path):
    for rule in ("delta", "hebbian"):
        save_card(run(rule), tmp_path / rule / "card.json")
    cards = [tmp_path / rule / "card.json" for rule in ("delta", "hebbian")]
    assert plot_together(cards) == tmp_path / "delta" / "together.png"
    assert plot_together(cards, tmp_path / "out") == tmp_path / "out" / "together.png"
    assert (tmp_path / "out" / "together.png").read_bytes() == (tmp_path / "delta" / "together.png").read_bytes()


def test_what_cannot_share_a_figure(tmp_path: Path):
    other = run("delta", seed=1)
    with pytest.raises(UserError, match="cannot be compared: they differ in task, depths or chance"):
        joined([run("delta"), other.model_copy(update={"recipe": {**other.recipe, "task": {"name": "recall"}}})])
    with pytest.raises(UserError, match=r"there are 2 runs of N = 2 \(sleep\) with seed 0; give one per seed"):
        joined([run("delta"), run("delta", date="2027-01-01")])
    metrics = [comparison(points=2), comparison(points=2).model_copy(update={"metric": "exact"})]
    with pytest.raises(UserError, match="by question and exact accuracy cannot be in one figure"):
        joined(metrics)
    save_card(passes_card([2]), tmp_path / "passes.json")
    with pytest.raises(UserError, match="its kind is 'passes', which must be 'run' or 'comparison'"):
        plot_together([tmp_path / "passes.json"])
