"""Optimisers that a recipe names: who moves what, runs on any of them that break off and go on, and who is refused."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from same_run import assert_same_run, read_run_card
from tiny_recipe import tiny_recipe
from together import together

from reverie.errors import UserError
from reverie.interrupts import Stopped
from reverie.model import HybridLM
from reverie.recipe import OptimConfig, Recipe, changed, load_recipe
from reverie.recipe.optim import optimizer_class
from reverie.results.checkpoint import FILE_NAME, find_checkpoint, load_checkpoint
from reverie.train.distributed import Processes
from reverie.train.optim import SHARDED, build_optimizers, check_optimizer
from reverie.train.run import train

FIT = [
    name
    for name, item in vars(torch.optim).items()
    if isinstance(item, type) and issubclass(item, torch.optim.Optimizer)
    if name not in ("Optimizer", "Muon", "LBFGS", "SparseAdam")
]
SHARDED_TOO = [name for name in FIT if name in SHARDED]
OLD = {"muon_lr": 1e-2, "adamw_lr": 1e-2, "pretrained_lr": None, "adamw_beta2": 0.999}


def model() -> HybridLM:
    return HybridLM(tiny_recipe().hybrid)


def old_form(recipe: Recipe) -> Recipe:
    """The recipe as a checkpoint of earlier has it."""
    data = json.loads(recipe.model_dump_json())
    for group in ("matrices", "rest", "pretrained"):
        del data["optim"][group]
    data["optim"] |= OLD
    return Recipe.model_validate_json(json.dumps(data))


def by(name: str) -> Recipe:
    """The tiny recipe with this optimiser for all, in two groups."""
    chosen = {"name": name, "lr": 1e-3, **({"momentum": 0.9} if name in ("SGD", "RMSprop") else {})}
    return tiny_recipe(optim={"matrices": chosen, "rest": {**chosen, "lr": 2e-3}})


class Killed(Exception):
    pass


def kill_at_5(progress: Any, loss: float) -> None:
    if progress.step == 5:
        raise Killed


def test_a_recipe_of_earlier_is_the_one_of_today():
    """So a run of earlier goes on, and what is done counts as done."""
    assert old_form(tiny_recipe()) == tiny_recipe()
    assert OptimConfig.model_validate({"adamw_lr": 1e-3, "pretrained_lr": 1e-4, "adamw_beta2": 0.98}) == (
        OptimConfig.model_validate(
            {"rest": {"name": "adamw", "lr": 1e-3, "betas": (0.9, 0.98)}, "pretrained": {"lr": 1e-4}}
        )
    )


@pytest.mark.slow
def test_a_run_by_the_old_form_has_the_curve_of_the_new_one(tmp_path: Path):
    train(tiny_recipe(), tmp_path / "new")
    train(old_form(tiny_recipe()), tmp_path / "old")
    assert_same_run(tmp_path / "new", tmp_path / "old")


def test_the_later_key_wins_whichever_form_it_has():
    def rates(*overrides: str) -> list[float]:
        return [chosen.lr for chosen in load_recipe("depo/nano", overrides).optim.optimizers.values()]

    assert rates("optim.muon_lr=0.5", "optim.matrices.lr=0.25") == [0.25, 5e-3]
    assert rates("optim.matrices.lr=0.25", "optim.muon_lr=0.5", "optim.adamw_lr=0.125") == [0.5, 0.125]
    with pytest.raises(
        UserError, match=r"^optim\.muon_lr is an earlier name for what optim\.matrices says: leave it out"
    ):
        load_recipe("depo/nano", ['optim={muon_lr=1, matrices={name="muon"}}'])


def test_another_name_keeps_the_rate_and_drops_the_arguments():
    recipe = changed(tiny_recipe(), optim={"rest": {"name": "adamw", "betas": (0.5, 0.75)}})
    rest = changed(recipe, optim={"rest": {"name": "SGD", "momentum": 0.5}}).optim.rest
    assert (rest.name, rest.lr, rest.arguments) == ("SGD", 1e-2, {"momentum": 0.5})
    assert changed(recipe, optim={"rest": {"eps": 1e-6}}).optim.rest.arguments == {"betas": (0.5, 0.75), "eps": 1e-6}


def test_a_group_without_a_name_is_moved_as_the_rest_at_a_rate_of_its_own():
    optim = load_recipe("hops/smollm2").optim
    assert optim.pretrained is not None
    assert (optim.pretrained.name, optim.pretrained.arguments) == (optim.rest.name, optim.rest.arguments)
    assert optim.pretrained.lr != optim.rest.lr


def test_groups_share_an_optimiser_if_all_but_its_rate_is_the_same():
    def kinds(**optim: Any) -> list[tuple[str, list[float]]]:
        built = build_optimizers(model(), OptimConfig.model_validate(optim))
        return [(type(one).__name__, [group["lr"] for group in one.param_groups]) for one in built]

    adamw, other = {"name": "adamw", "lr": 1e-3}, {"name": "adamw", "lr": 1e-4}
    assert kinds(rest=adamw) == [("AdamW", [1e-3])]
    assert kinds(rest=adamw, pretrained=other) == [("AdamW", [1e-3, 1e-4])]
    assert kinds(matrices=other, rest=adamw) == [("AdamW", [1e-4, 1e-3])]
    assert kinds(matrices={**other, "eps": 1e-6}, rest=adamw) == [("AdamW", [1e-4]), ("AdamW", [1e-3])]
    assert kinds(matrices={**other, "weight_decay": 0.1}, rest=adamw) == [("AdamW", [1e-4]), ("AdamW", [1e-3])]
    assert kinds(matrices={"name": "SGD", "lr": 1.0}, rest=adamw) == [("SGD", [1.0]), ("AdamW", [1e-3])]


def test_weight_decay_is_the_sections_unless_a_group_has_its_own():
    optim = {"matrices": {"name": "muon", "lr": 1e-2, "weight_decay": 0.0}, "rest": {"name": "adamw", "lr": 1e-2}}
    muon, adamw = build_optimizers(model(), OptimConfig.model_validate({**optim, "weight_decay": 0.25}))
    assert (muon.param_groups[0]["weight_decay"], adamw.param_groups[0]["weight_decay"]) == (0.0, 0.25)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIT)
def test_a_run_goes_on_to_the_last_bit(tmp_path: Path, name: str):
    recipe = by(name)
    train(recipe, tmp_path / "whole")
    with pytest.raises(Killed):
        train(recipe, tmp_path / "broken", report=kill_at_5)
    train(recipe, tmp_path / "broken", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def stop_at_3(progress: Any, loss: float) -> None:
    if progress.step == 3:
        signal.raise_signal(signal.SIGTERM)


def sharded(processes: Processes, folder: Path) -> None:
    processes = replace(processes, parallel="fsdp")
    for name in SHARDED_TOO:
        with pytest.raises(Stopped):  # the signal goes to one of them
            train(by(name), folder / name, report=stop_at_3, processes=processes)
        train(by(name), folder / name, resume=True, processes=processes)
    with pytest.raises(
        UserError, match=r"^optim\.matrices\.name is Rprop, which does not move parameters that are shared"
    ):
        train(by("Rprop"), folder / "Rprop", processes=processes)


@pytest.mark.slow
def test_steps_of_shared_out_parameters_are_those_of_whole_ones(tmp_path: Path):
    """And a run of them goes on. Losses hardly differ after six steps, so that states are compared too."""
    together(2, sharded, tmp_path / "two")
    for name in SHARDED_TOO:
        alone, two = train(by(name), tmp_path / name), read_run_card(tmp_path / "two" / name)
        assert [point.train_loss for point in two.curve] == pytest.approx([p.train_loss for p in alone.curve], rel=1e-4)
        own = load_checkpoint(tmp_path / name / FILE_NAME)
        place = find_checkpoint(tmp_path / "two" / name)
        assert place is not None
        shards = load_checkpoint(place)
        found = {key: torch.zeros_like(x) for key, x in own.tensors.items() if key != "rng"}
        shards.copy_into(found)
        assert any(key.startswith("optimizer.") and x.any() for key, x in found.items())
        for key, tensor in found.items():
            scale = own.tensors[key].abs().max().item() if tensor.numel() else 0.0
            assert torch.allclose(tensor, own.tensors[key], rtol=1e-2, atol=1e-2 * scale + 1e-9), (name, key)


@pytest.mark.parametrize("name", ["Adafactor", "Adagrad", "SGD"])
def test_a_step_that_cannot_be_recorded_or_shared_out_is_refused_by_name(name: str):
    with pytest.raises(UserError, match=f"^optim.rest.name is {name}, whose steps cannot be recorded"):
        check_optimizer("rest", name, capturable=True, sharded=False)
    if name not in SHARDED:
        with pytest.raises(
            UserError, match=f"^optim.rest.name is {name}, which does not move parameters that are shar"
        ):
            check_optimizer("rest", name, capturable=False, sharded=True)


@pytest.mark.parametrize("name", ["muon", "adamw", "NAdam", "Rprop"])
def test_for_a_graph_rates_are_tensors_and_counts_are_on_the_device(name: str):
    group = {"name": name, "lr": 0.25} if name == "muon" else {"name": "adamw", "lr": 0.25}
    rest = {**group, "name": "adamw" if name == "muon" else name}
    optim = OptimConfig.model_validate({"matrices": group, "rest": rest})
    for optimizer in build_optimizers(model(), optim, capturable=True):
        assert all(isinstance(part["lr"], torch.Tensor) for part in optimizer.param_groups)
        assert isinstance(optimizer, torch.optim.Muon) or optimizer.defaults["capturable"]


MISTAKES = {
    "optim.rest.name=sgd": 'optim.rest.name must be muon, adamw or a class of torch.optim, got "sgd"; '
    "did you mean SGD or ASGD?",
    "optim.rest.name=LBFGS": "optim.rest.name must be another one than LBFGS, which computes the loss several times a "
    "step, and a step of a recipe has it once",
    "optim.rest.name=SparseAdam": "optim.rest.name must be another one than SparseAdam, which takes sparse gradients "
    "alone",
    "optim.rest.name=muon": "optim.rest.name must be another one than muon, which moves matrices alone",
    "optim.rest.bettas=[0.9,0.99]": "optim.rest has bettas, which is no argument of adamw; did you mean betas?",
    "optim.rest.betas=[0.9]": "optim.rest is wrong: betas must be a list of 2, got [0.9]",
    "optim.rest.betas=[0.9,2]": "optim.rest is not what adamw takes: Invalid beta parameter at index 1: 2.0",
    "optim.rest.foreach=1": "optim.rest is wrong: foreach must be true or false, got 1",
    "optim.rest.capturable=true": "optim.rest has capturable, which is no argument of adamw; "
    "it has betas, eps, amsgrad, maximize, foreach, fused",
    "optim.rest.lr=0": "optim.rest.lr must be above 0, got 0",
    "optim.matrices.lr=1": "optim.matrices.name is missing; it has no default, so the recipe must set it",
    'optim.rest={name="Rprop", lr=1}': "optim.rest.name is Rprop, which has no weight decay: leave weight_decay out",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_is_one_sentence(override: str):
    with pytest.raises(UserError) as caught:
        load_recipe("notes/smollm2", [override])
    assert str(caught.value) == MISTAKES[override]


def test_names_in_the_case_of_torch_are_the_same_optimisers():
    assert changed(tiny_recipe(), optim={"rest": {"name": "AdamW"}, "matrices": {"name": "Muon"}}) == tiny_recipe()
    assert optimizer_class("muon") is torch.optim.Muon
