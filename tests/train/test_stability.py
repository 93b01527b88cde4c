"""What is measured of the passes asleep, against states and gradients by hand; and that it changes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_recipe import tiny_recipe
from torch import Tensor

from reverie.model import HybridLM, State, new_model
from reverie.recipe import Recipe
from reverie.results.card import PassStatistics
from reverie.sleep import SleepConfig, rollout_hidden
from reverie.sleep.gradients import EXACT, Backward
from reverie.sleep.labels import in_labelled, labelled_windows
from reverie.train.data import make_batch
from reverie.train.optim import build_optimizers
from reverie.train.run import train
from reverie.train.schedule import Schedule
from reverie.train.stability import PassObserver
from reverie.train.step import Step, take_step

MakeModel = Callable[..., HybridLM]

L, T, N = 4, 14, 3  # three full windows and one of two tokens
LAYERS = ("gdn", "attn", "jet", "gdn")
LOOPS = {"all": None, "first": (0, 2), "middle": (1, 3), "last": (2, 4)}
# The blocks with fast weights that run in the first, second and last pass.
RUN = {
    None: ({0, 2, 3},) * 3,
    (0, 2): ({0}, {0}, {0, 2, 3}),
    (1, 3): ({0, 2}, {2}, {2, 3}),
    (2, 4): ({0, 2, 3},) + ({2, 3},) * 2,
}

each_eviction = pytest.mark.parametrize("eviction", ["hard", "sliding"])
each_loop = pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)


def asleep(eviction: str = "hard", loop: tuple[int, int] | None = None) -> SleepConfig:
    return SleepConfig.model_validate(
        {"window_size": L, "num_sleep_passes": N, "looped_blocks": loop, "eviction": eviction}
    )


def text() -> Tensor:
    return torch.randint(11, (2, T), generator=torch.Generator().manual_seed(0))


def labels(*windows: int) -> Tensor:
    """Labels on the second token of these windows."""
    mask = torch.zeros(2, T, dtype=torch.bool)
    mask[:, [window * L + 1 for window in windows]] = True
    return mask


def loss_of(model: HybridLM, mask: Tensor, config: SleepConfig, backward: Backward, observe: Any) -> Tensor:
    labelled = labelled_windows(mask, L)
    h, _ = rollout_hidden(model, text(), config, labelled, backward=backward, observe=observe)
    return model.head(h[in_labelled(mask, L, labelled)]).square().sum()


def measured(model: HybridLM, mask: Tensor, config: SleepConfig, backward: Backward = EXACT) -> PassStatistics:
    observer = PassObserver()
    loss_of(model, mask, config, backward, observer).backward()
    model.zero_grad()
    statistics = observer.statistics()
    assert statistics is not None
    return statistics


# Against measurements by hand


@each_eviction
@each_loop
@pytest.mark.parametrize("windows", [(3,), (0, 2)], ids=str)
def test_norms_and_changes_by_hand(
    tiny_model: MakeModel, eviction: str, loop: tuple[int, int] | None, windows: tuple[int, ...]
) -> None:
    """Means over heads, examples, the windows asleep, and the blocks that ran."""
    model, mask = tiny_model(*LAYERS), labels(*windows)
    norms: dict[int, list[Tensor]] = defaultdict(list)
    changes: dict[int, list[Tensor]] = defaultdict(list)

    def observe(window: int, n: int, h: Tensor, before: State, after: State) -> None:
        for block in RUN[loop][n - 1] if window not in windows else ():
            old, new = before.fast_weights[block], after.fast_weights[block]
            if new is not None and new is not old:
                norms[n].append(new.square().sum((-2, -1)).sqrt())
                difference = new if old is None else new - old
                changes[n].append(difference.square().sum((-2, -1)).sqrt() / norms[n][-1])

    with torch.no_grad():
        loss_of(model, mask, asleep(eviction, loop), EXACT, observe)
    statistics = measured(model, mask, asleep(eviction, loop))
    assert [len(norms[n]) for n in (1, 2, 3)] == [len(blocks) * (4 - len(windows)) for blocks in RUN[loop]]
    for n in (1, 2, 3):
        assert statistics.fast_weight_norm[n - 1] == pytest.approx(float(torch.stack(norms[n]).mean()), rel=1e-12)
        assert statistics.fast_weight_change[n - 1] == pytest.approx(float(torch.stack(changes[n]).mean()), rel=1e-12)


@pytest.mark.slow
@each_eviction
@each_loop
@pytest.mark.parametrize("windows", [(3,), (0, 2)], ids=str)
def test_gradient_norms_by_hand(
    tiny_model: MakeModel,
    eviction: str,
    loop: tuple[int, int] | None,
    windows: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of all that the blocks made in a pass, and that anybody may read."""
    model, mask, blocks = tiny_model(*LAYERS), labels(*windows), HybridLM.blocks
    outputs: list[bool] = []
    fast_weights: dict[int, list[Tensor]] = defaultdict(list)
    hidden: dict[int, list[Tensor]] = defaultdict(list)

    def recording(self: HybridLM, *arguments: Any, **options: Any) -> tuple[Tensor, State]:
        outputs.append(options["output"])
        return blocks(self, *arguments, **options)

    def observe(window: int, n: int, h: Tensor, before: State, after: State) -> None:
        if window in windows:
            return
        pairs = zip(before.fast_weights, after.fast_weights, strict=True)
        fast_weights[n] += [new for old, new in pairs if new is not None and new is not old]
        hidden[n] += [h] if outputs[-1] else []

    with monkeypatch.context() as patch:
        patch.setattr(HybridLM, "blocks", recording)
        loss = loss_of(model, mask, asleep(eviction, loop), EXACT, observe)

    def norm(tensors: list[Tensor]) -> float:
        tensors = [tensor for tensor in tensors if tensor.requires_grad]
        if not tensors:
            return 0.0
        parts = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
        return float(sum((part.square().sum() for part in parts if part is not None), start=torch.tensor(0.0)).sqrt())

    statistics = measured(model, mask, asleep(eviction, loop))
    for n in (1, 2, 3):
        assert statistics.fast_weight_gradient[n - 1] == pytest.approx(norm(fast_weights[n]), rel=1e-12)
        assert statistics.hidden_gradient[n - 1] == pytest.approx(norm(hidden[n]), rel=1e-12)
    assert min(statistics.fast_weight_gradient) > 0
    assert min(statistics.hidden_gradient[:-1]) > 0
    read_after_the_loop = loop in (LOOPS["first"], LOOPS["middle"])
    assert (statistics.hidden_gradient[-1] > 0) == read_after_the_loop


@pytest.mark.slow
@each_eviction
@pytest.mark.parametrize("loop", [None, (1, 3)], ids=["all", "middle"])
@pytest.mark.parametrize("backward", [EXACT, Backward(bptt_passes=2, bptt_windows=2)], ids=["exact", "truncated"])
def test_windows_that_run_again_in_the_backward_count_once(
    tiny_model: MakeModel, eviction: str, loop: tuple[int, int] | None, backward: Backward
) -> None:
    model, config = tiny_model(*LAYERS), asleep(eviction, loop)
    kept = measured(model, labels(0, 3), config, backward)
    for checkpoint in ("pass", "window"):
        again = backward.model_copy(update={"activation_checkpoint": checkpoint})
        assert measured(model, labels(0, 3), config, again) == kept


@pytest.mark.parametrize("loop", [None, (1, 3)], ids=["all", "middle"])
@pytest.mark.parametrize("checkpoint", ["none", "window"])
def test_passes_that_gradients_do_not_reach_have_none(
    tiny_model: MakeModel, loop: tuple[int, int] | None, checkpoint: Literal["none", "window"]
) -> None:
    """And otherwise they are what they were."""
    model, mask, config = tiny_model(*LAYERS), labels(3), asleep("hard", loop)
    exact = measured(model, mask, config)
    for k in (1, 2):
        cut = measured(model, mask, config, Backward(bptt_passes=k, activation_checkpoint=checkpoint))
        assert (cut.fast_weight_norm, cut.fast_weight_change) == (exact.fast_weight_norm, exact.fast_weight_change)
        assert [norm > 0 for norm in cut.fast_weight_gradient] == [n > N - k for n in (1, 2, 3)]
        assert not any(cut.hidden_gradient[: N - k])
    nothing = measured(model, mask, config, Backward(bptt_windows=0, activation_checkpoint=checkpoint))
    assert nothing.fast_weight_norm == exact.fast_weight_norm
    assert nothing.fast_weight_gradient == nothing.hidden_gradient == [0.0] * N


@pytest.mark.parametrize(("layers", "windows"), [(LAYERS, (0, 1, 2, 3)), (("attn", "attn"), (3,))])
def test_without_a_window_or_a_memory_that_sleeps_there_is_nothing(
    tiny_model: MakeModel, layers: tuple[str, ...], windows: tuple[int, ...]
) -> None:
    observer = PassObserver()
    loss_of(tiny_model(*layers), labels(*windows), asleep(), EXACT, observer).backward()
    assert observer.statistics() is None


# In training


def steps(recipe: Recipe, *, watch: bool, noise: float, count: int = 2) -> tuple[list[Step], dict[str, list[Tensor]]]:
    """That many steps, and per parameter its gradients (clipped) and its values behind each of them."""
    model, random = new_model(recipe.hybrid, 0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=random))
    optimizers, taken, seen = build_optimizers(model, recipe.optim), list[Step](), defaultdict[str, list[Tensor]](list)
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: seen[name].append(p.grad.clone()))
    for step in range(count):
        taken.append(
            take_step(
                Schedule.of(recipe), model, optimizers, step, make_batch(recipe.task, recipe.train, step), watch=watch
            )
        )
        for name, parameter in model.named_parameters():
            seen[name].append(parameter.detach().clone())
    return taken, seen


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation_checkpoint": "pass", "dtype": "bfloat16"},
        {"activation_checkpoint": "window", "bptt_passes": 2, "bptt_windows": 1},
    ],
)
def test_a_step_that_is_watched_is_the_same_step(changes: dict[str, Any]) -> None:
    """Loss, gradients and weights, to the last bit."""
    recipe = tiny_recipe(sleep={"num_sleep_passes": 3, "window_size": 5}, train=changes)
    (watched, seen), (unwatched, wanted) = (steps(recipe, watch=watch, noise=0.1) for watch in (True, False))
    assert all(step.passes is not None and min(step.passes.fast_weight_norm) > 0 for step in watched)
    assert [step._replace(passes=None) for step in watched] == unwatched
    assert seen.keys() == wanted.keys()
    for name, tensors in seen.items():
        assert len(tensors) == len(wanted[name]) == 4
        assert all(map(torch.equal, tensors, wanted[name])), name


def test_the_curve_has_them_at_every_evaluation(tmp_path: Path) -> None:
    """As the newest step left them, on the card and in TensorBoard."""
    recipe = tiny_recipe(sleep={"num_sleep_passes": 3}, train={"steps": 5, "eval_every": 3})
    card = train(recipe, tmp_path)
    taken, _ = steps(recipe, watch=True, noise=0.0, count=5)
    assert [point.step for point in card.curve] == [3, 5]
    assert [point.passes for point in card.curve] == [taken[2].passes, taken[4].passes]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in PassStatistics.model_fields:
        for n in (1, 2, 3):
            written = [(event.step, event.value) for event in board.Scalars(f"sleep/{name}, pass {n}")]
            wanted = [(point.step, getattr(point.passes, name)[n - 1]) for point in card.curve]
            assert [step for step, _ in written] == [step for step, _ in wanted]
            assert [value for _, value in written] == pytest.approx([value for _, value in wanted], rel=1e-6)


def test_a_run_that_never_sleeps_has_no_passes_on_its_curve(tmp_path: Path) -> None:
    card = train(tiny_recipe(model={"layers": ["attn"]}, train={"steps": 1}), tmp_path)
    assert [point.passes for point in card.curve] == [None]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert not [tag for tag in board.Tags()["scalars"] if tag.startswith("sleep/")]
