"""A pretrained model in a recipe: trained, resumed and evaluated as our own are."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import text, tiny
from tiny_recipe import tiny_recipe
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reverie.errors import UserError
from reverie.hf.blocks import inserted_parameters
from reverie.hf.causal_lm import PretrainedLM
from reverie.model import State
from reverie.pretrained.config import PretrainedModelConfig
from reverie.recipe import Recipe
from reverie.recipe.build import build_model
from reverie.results.run import evaluate_run
from reverie.sleep import Context, SleepConfig, read, rollout, rollout_hidden
from reverie.sleep.gradients import Backward
from reverie.train.run import train

pytestmark = pytest.mark.hf


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny("llama", dtype=torch.float32, tie_word_embeddings=True).save_pretrained(folder)
    return folder


def pretrained(base: Path, **sections: dict[str, Any]) -> Recipe:
    plain = tiny_recipe(**sections).model_dump(mode="json")
    plain["model"] = {
        "pretrained": str(base),
        "after": [1, 3],
        "kind": "gdn",
        "vocab_size": plain["model"]["vocab_size"],
    }
    return Recipe.model_validate(plain)


def test_rollout_is_what_the_model_itself_computes(base: Path) -> None:
    recipe = pretrained(base)
    model = build_model(recipe.model, 0)
    assert isinstance(model, PretrainedLM)
    tokens, config = text(19), SleepConfig(window_size=8, num_sleep_passes=2)
    mask = torch.zeros(2, 19, dtype=torch.bool)
    mask[0, 17], mask[1, 16:] = True, True
    with torch.no_grad():
        rolled, _ = rollout(model, tokens, mask, config)
        logits, _ = read(model, tokens, Context.empty(model), config)
    torch.testing.assert_close(rolled, logits[mask])


def test_a_run_goes_on_as_without_a_break(base: Path, tmp_path: Path) -> None:
    recipe = pretrained(base, train={"steps": 4, "checkpoint_every": 2, "eval_every": 2})
    whole = train(recipe, tmp_path / "whole")
    from reverie.train import run

    class Break(Exception):
        pass

    def stop(progress: run.Progress, loss: float) -> None:
        if progress.step == 3:
            raise Break

    with pytest.raises(Break):
        train(recipe, tmp_path / "broken", report=stop)
    resumed = train(recipe, tmp_path / "broken", resume=True)
    assert [p.train_loss for p in resumed.curve] == [p.train_loss for p in whole.curve]
    assert resumed.score == whole.score
    assert evaluate_run(tmp_path / "whole").score == whole.score


def test_a_stage_of_fast_weights_leaves_the_pretrained_part_alone(base: Path, tmp_path: Path) -> None:
    stage = {"share": 1.0, "parameters": "fast_weights", "eviction": "hard"}
    recipe = pretrained(base, train={"steps": 2, "stages": [stage]})
    model = build_model(recipe.model, recipe.train.seed)
    assert isinstance(model, PretrainedLM)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(recipe, tmp_path / "run")
    from reverie.results.checkpoint import find_checkpoint, load_checkpoint

    place = find_checkpoint(tmp_path / "run")
    assert place is not None
    load_checkpoint(place).restore_model(model)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert moved <= {f"lm.{name}" for name in inserted_parameters(model.lm)}


def test_new_layers_run_on_the_backend_that_is_asked_for(base: Path) -> None:
    config = PretrainedModelConfig(vocab_size=9, pretrained=str(base), after=(1,), backend="fla")
    model = build_model(config, 0)
    with pytest.raises(UserError, match=r"^backend 'fla' needs"):
        model.blocks(torch.zeros(1, 2, 32), State.empty(4), 0, 4, span=9)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"after": [1, 1]}, "after must be different indices of blocks"),
        ({"after": [9]}, "has blocks 0 to 3, so nothing can be inserted after block 9"),
        ({"pretrained": "no/such/folder"}, "no/such/folder"),
        ({"after": ()}, "has no fast weights: say with model.after where to insert some"),
        ({"vocab_size": 99}, "the task has 99 tokens, and .* knows 61"),
    ],
)
def test_what_cannot_be_built(base: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises((UserError, ValueError), match=sentence):
        build_model(PretrainedModelConfig(**{"vocab_size": 9, "pretrained": str(base), "after": (1,)} | changes), 0)


def test_the_earlier_name_of_after() -> None:
    """In recipes, and in what old runs and cards say of theirs."""
    with pytest.warns(FutureWarning, match="model.behind of recipes is called model.after now"):
        config = PretrainedModelConfig.model_validate({"vocab_size": 9, "pretrained": "x", "behind": [1, 3]})
    assert config == PretrainedModelConfig(vocab_size=9, pretrained="x", after=(1, 3))
    assert "behind" not in config.model_dump()
    with pytest.raises(ValueError, match="behind is the earlier name of after: give one of them"):
        PretrainedModelConfig.model_validate({"vocab_size": 9, "pretrained": "x", "behind": [1], "after": [1]})


class Places(TorchDispatchMode):
    """Devices of all that is computed, but for which windows hold labels, which the CPU knows.

    Without content no number can be read: to wait for one is an error here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = ([x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)] for tree in ((args, kwargs), out))
        on_device = any(x.device.type != "cpu" for x in given)
        # Of no size are those that checkpointing of torch 2.11 hangs its hooks on.
        self.found |= {x.device.type for x in made if x.numel() and (on_device or x.is_floating_point())}
        return out


@pytest.mark.slow
@pytest.mark.parametrize(("eviction", "checkpoint"), [("hard", "none"), ("sliding", "window")])
def test_a_step_stays_on_its_device_and_waits_for_nothing(
    base: Path, monkeypatch: pytest.MonkeyPatch, eviction: Any, checkpoint: Any
) -> None:
    """As it must on a GPU; tensors without content have a device of their own."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())  # which has none for it
    model = build_model(pretrained(base).model, 0).to("meta")
    config = SleepConfig(window_size=8, num_sleep_passes=2, eviction=eviction)
    tokens, backward = text(12).to("meta"), Backward(activation_checkpoint=checkpoint)
    labelled = torch.tensor([False, True]).expand(len(tokens), -1)
    with Places() as places:
        h, _ = rollout_hidden(model, tokens, config, labelled, backward=backward)
        model.head(h[:, -2:]).square().mean().backward()
    assert places.found == {"meta"}
    assert all(p.grad is not None for p in model.parameters())
