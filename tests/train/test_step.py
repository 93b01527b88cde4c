"""A step has its own learning rate, clips, computes in the recipe's precision, and does nothing if a number is bad."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_recipe import tiny_recipe
from torch import Tensor
from torch.optim import Optimizer

from reverie.errors import UserError
from reverie.model import HybridLM, new_model
from reverie.recipe import Recipe, changed
from reverie.train.checkpoint import checkpoint_tensors
from reverie.train.data import make_batch
from reverie.train.distributed import Processes
from reverie.train.optim import Muon, build_optimizers, lr_factor
from reverie.train.schedule import Schedule
from reverie.train.step import Step, micro_batches, not_finite, take_step

RECIPE = tiny_recipe()


def new_run(recipe: Recipe) -> tuple[HybridLM, list[Optimizer]]:
    model = new_model(recipe.hybrid, 0)
    return model, build_optimizers(model, recipe.optim)


def take_steps(recipe: Recipe, model: HybridLM, optimizers: list[Optimizer], count: int = 3) -> list[Step]:
    return [
        take_step(Schedule.of(recipe), model, optimizers, step, make_batch(recipe.task, recipe.train, step))
        for step in range(count)
    ]


def test_the_loss_is_that_of_a_labelled_token_and_falls_on_the_same_batch():
    model, optimizers = new_run(RECIPE)
    steps = [
        take_step(Schedule.of(RECIPE), model, optimizers, 4, make_batch(RECIPE.task, RECIPE.train, 0))
        for _ in range(20)
    ]
    assert steps[0].loss == pytest.approx(math.log(RECIPE.model.vocab_size), rel=1e-4)  # it knows nothing yet
    assert steps[-1].loss < 0.7 * steps[0].loss


def test_every_step_has_its_own_learning_rate(monkeypatch: pytest.MonkeyPatch):
    rates: list[float] = []
    step = Muon.step

    def watch(self: Muon, *arguments: Any) -> Any:
        rates.extend(group["lr"] for group in self.param_groups)
        return step(self, *arguments)

    monkeypatch.setattr(Muon, "step", watch)
    take_steps(RECIPE, *new_run(RECIPE), count=6)
    assert rates == [1e-2 * lr_factor(RECIPE.optim, step, 6) for step in range(6)]


def test_gradients_are_clipped_before_the_step_and_their_norm_is_from_before(monkeypatch: pytest.MonkeyPatch):
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def watch(self: torch.optim.AdamW, *arguments: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watch)
    recipe = tiny_recipe(optim={"grad_clip": 1e-3})
    steps = take_steps(recipe, *new_run(recipe))
    assert len(norms) == 3
    assert max(norms) <= 1e-3 * 1.001
    assert min(step.gradient_norm for step in steps) > 1e-2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bfloat16_is_for_the_rollout_and_leaves_the_parameters_in_float32(monkeypatch: pytest.MonkeyPatch, dtype: str):
    seen: set[torch.dtype] = set()
    head = HybridLM.head

    def watch(model: HybridLM, h: torch.Tensor) -> torch.Tensor:
        logits = head(model, h)
        seen.add(logits.dtype)
        return logits

    monkeypatch.setattr(HybridLM, "head", watch)
    recipe = tiny_recipe(train={"dtype": dtype})
    model, optimizers = new_run(recipe)
    assert all(math.isfinite(step.loss) for step in take_steps(recipe, model, optimizers))
    assert seen == {getattr(torch, dtype)}
    assert {tensor.dtype for tensor in checkpoint_tensors(model, optimizers).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("micro_batch", "checkpoint"), [(1, "none"), (3, "none"), (3, "window"), (8, "window"), (100, "none")]
)
def test_parts_of_a_batch_add_up_to_its_step(micro_batch: int, checkpoint: str):
    """Rows have different numbers of labels, so that a mean of means would be another loss."""
    whole = tiny_recipe(sleep={"num_sleep_passes": 3, "window_size": 5}, train={"activation_checkpoint": checkpoint})
    inside = changed(whole, train={"micro_batch": micro_batch})
    batch = make_batch(whole.task, whole.train, 0)
    batch.loss_mask[: len(batch.tokens) // 2] &= torch.arange(batch.tokens.shape[1]) % 3 == 0
    found: list[tuple[Step, HybridLM]] = []
    for recipe in (whole, inside):
        model, optimizers = new_run(recipe)
        with torch.no_grad():
            model.lm_head.weight.normal_(generator=torch.Generator().manual_seed(0))
        found.append((take_step(Schedule.of(recipe), model, optimizers, 0, batch, watch=True), model))
    (step, model), (other, like) = found
    assert other.loss == pytest.approx(step.loss, rel=1e-5)
    assert other.gradient_norm == pytest.approx(step.gradient_norm, rel=1e-4)
    assert step.passes is not None
    assert other.passes is not None
    for name, values in step.passes.model_dump().items():
        assert getattr(other.passes, name) == pytest.approx(values, rel=1e-3), name
    for (name, p), q in zip(model.named_parameters(), like.parameters(), strict=True):
        # Adam's first step is ±lr whatever the size of a gradient: one of rounding alone may go either way.
        assert (p - q).abs().mean() < 1e-4, name


def test_parts_are_as_even_as_can_be_and_as_many_in_all_processes():
    recipe = tiny_recipe(train={"batch_size": 8, "micro_batch": 3})
    batch = make_batch(recipe.task, recipe.train, 0)
    assert [len(part.tokens) for part in micro_batches(batch, 3, 8)] == [3, 3, 2]
    assert all(map(torch.equal, batch, map(torch.cat, zip(*micro_batches(batch, 3, 8), strict=True))))
    recipe = changed(recipe, train={"batch_size": 7})
    shares = [make_batch(recipe.task, recipe.train, 0, Processes(rank, 3, "ddp").share(7)) for rank in range(3)]
    assert [[len(part.tokens) for part in micro_batches(share, 3, 7 // 3)] for share in shares] == [[2], [2], [3]]
    assert micro_batches(batch, None, 8) == [batch]


def test_a_recorded_step_takes_its_batch_at_once():
    with pytest.raises(UserError, match="cuda_graph records a step that takes its batch at once"):
        changed(RECIPE, train={"micro_batch": 4, "cuda_graph": True})


@pytest.mark.parametrize("what", ["parameter", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_named_and_nothing_moves(what: str, value: float):
    model, optimizers = new_run(RECIPE)
    take_steps(RECIPE, model, optimizers)
    name = "layers.0.mlp.in_proj.weight"
    parameter = model.get_parameter(name)
    if what == "parameter":
        with torch.no_grad():
            parameter[1, 0] = value
    else:
        parameter.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([1]), value))
    before = {key: tensor.clone() for key, tensor in checkpoint_tensors(model, optimizers).items()}
    with pytest.raises(FloatingPointError, match=rf"^the loss is .*, and the {what} (of )?{name} is not finite$"):
        take_step(Schedule.of(RECIPE), model, optimizers, 3, make_batch(RECIPE.task, RECIPE.train, 3))
    after = checkpoint_tensors(model, optimizers)
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor.nan_to_num(), before[key].nan_to_num()) for key, tensor in after.items())


def test_the_first_tensor_that_is_not_finite_is_named():
    tensors: list[tuple[str, Tensor]] = [
        ("a", torch.ones(2)),
        ("b", torch.tensor([1, math.inf])),
        ("c", math.nan * torch.ones(1)),
    ]
    assert not_finite(tensors) == "b"
    assert not_finite(tensors[:1]) is None
