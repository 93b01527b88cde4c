"""Rule 110 against its lookup table on strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reverie.tasks import Batch, Rule110, Split
from reverie.tasks.base import DeviceTask
from reverie.tasks.rule110 import evolve, ones_share

# The rule's number in binary, by neighbourhood from 111 down to 000.
TABLE: dict[str, str] = dict(zip(("111", "110", "101", "100", "011", "010", "001", "000"), "01101110", strict=True))


def step(state: str) -> str:
    ring = state[-1] + state + state[0]
    return "".join(TABLE[ring[i : i + 3]] for i in range(len(state)))


def label(state: str, steps: int) -> int:
    for _ in range(steps):
        state = step(state)
    return int(state[0])


def read(task: Rule110, tokens: list[int]) -> list[tuple[str, int]]:
    """State and t of each window, from tokens alone."""
    names, size = task.token_names(), task.context_window
    windows = [[names[i] for i in tokens[size * s : size * (s + 1)]] for s in range(task.num_states)]
    if isinstance(task.rollout_steps, int):
        return [("".join(w), task.rollout_steps) for w in windows]
    return [("".join(w[1:]), int(w[0].removeprefix("t="))) for w in windows]


def check_example(task: Rule110, batch_row: list[list[int]]) -> None:
    tokens, targets, mask, depth, question = batch_row
    context = task.num_states * task.context_window
    states = read(task, tokens)
    labels = [label(state, steps) for state, steps in states]
    assert all(len(state) == task.width for state, _ in states)
    assert targets[context:] == labels
    assert tokens[context:] == [2, *labels[:-1]]
    assert mask == [0] * context + [1] * task.num_states
    assert depth[context:] == [steps for _, steps in states]
    assert question[context:] == list(range(task.num_states))


@settings(max_examples=25, deadline=None)
@given(
    num_states=st.integers(1, 4),
    width=st.integers(3, 48),
    steps=st.integers(0, 20) | st.tuples(st.integers(0, 6), st.integers(6, 12)),
    held_out=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 2**32),
)
def test_labels_and_layout(
    num_states: int, width: int, steps: int | tuple[int, int], held_out: float, seed: int
) -> None:
    task = Rule110(num_states=num_states, width=width, rollout_steps=steps, held_out_fraction=held_out)
    for split in ("train", "test"):
        batch = task.batch(split, seed, 1, range(4))
        for row in range(4):
            check_example(task, [field[row].tolist() for field in batch])


@given(bits=st.text("01", min_size=3, max_size=48), steps=st.integers(0, 8))
def test_evolve_gives_the_whole_state(bits: str, steps: int) -> None:
    start = torch.tensor([int(bits[::-1], 2)])  # cell i is bit i
    end = int(evolve(start, torch.tensor([steps]), range(9), len(bits)))
    for _ in range(steps):
        bits = step(bits)
    assert f"{end:0{len(bits)}b}"[::-1] == bits


def test_paper_setting() -> None:
    task = Rule110(rollout_steps=32)
    assert task.sequence_length == 100
    assert task.context_window == 24
    assert task.vocab_size == 3
    assert task.num_states == 4
    assert 0.06 < task.chance_exact() < 0.11  # "guessing is about 6-10 %"


def test_range_of_steps_is_shown_and_uniform() -> None:
    task = Rule110(rollout_steps=(3, 6), width=8)
    assert task.context_window == 9
    assert task.sequence_length == 4 * 9 + 4
    assert task.token_names() == ["0", "1", "?", "t=3", "t=4", "t=5", "t=6"]
    depth = task.batch("train", 0, 0, range(1000)).depth[:, -4:]
    for steps in range(3, 7):
        assert (depth == steps).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_a_ladder_is_one_single_t_after_the_other() -> None:
    """In training that of the curriculum, in tests the last; the states are those of the single t."""
    ladder = Rule110(rollout_steps=(2, 6), ladder=True, held_out_fraction=0.25)
    for limit, steps in [(1, 2), (2, 2), (4, 4), (6, 6), (9, 6), (None, 6)]:
        single = Rule110(rollout_steps=steps, held_out_fraction=0.25)
        assert_same(ladder.batch("train", 3, 1, range(9), limit), single.batch("train", 3, 1, range(9)))
        assert_same(
            ladder.batch("test", 3, 1, range(9), limit),
            Rule110(rollout_steps=6, held_out_fraction=0.25).batch("test", 3, 1, range(9)),
        )
    single = Rule110(rollout_steps=6, held_out_fraction=0.25)
    for name in ("vocab_size", "context_window", "sequence_length"):
        assert getattr(ladder, name) == getattr(single, name)
    assert (ladder.chance(), ladder.chance_exact()) == (single.chance(), single.chance_exact())
    assert ladder.token_names() == single.token_names()
    assert ladder.depths() == range(2, 7)


def test_bits_of_a_state_are_fair_and_unrelated() -> None:
    bits = Rule110(rollout_steps=4).batch("train", 0, 0, range(4000)).tokens[:, :96].double()
    assert (bits.mean(dim=0) - 0.5).abs().max() < 0.04
    correlation = bits.T.corrcoef() - torch.eye(96)
    assert correlation.abs().max() < 0.09


CPU, META = torch.device("cpu"), torch.device("meta")


def stacked(task: Rule110, seed: int, steps: range, examples: range, max_depths: Sequence[int | None]) -> Batch:
    """The training batches of these steps from words of numpy, one after the other."""
    made = [task.batch("train", seed, s, examples, limit) for s, limit in zip(steps, max_depths, strict=True)]
    return Batch(*(torch.stack(fields) for fields in zip(*made, strict=True)))


def assert_same(found: Batch, expected: Batch) -> None:
    for name, a, b in zip(Batch._fields, found, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert torch.equal(a, b), name


class OpsOnDevice(TorchDispatchMode):
    """Counts kernels; refuses tensors on the host, for whose copy a device would have to wait."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.launched = device, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        assert {x.device for x in tensors} <= {self.device}, func
        self.launched += not any(out.alias_info for out in func._schema.returns)  # a view launches nothing
        return result


class TestBatchesOnADevice:
    @settings(max_examples=25, deadline=None)
    @given(data=st.data())
    def test_they_are_those_of_numpy(self, data: st.DataObject) -> None:
        low = data.draw(st.integers(0, 6))
        steps = data.draw(st.sampled_from([low, (low, low), (low, low + 1), (low, low + 9)]))
        task = Rule110(
            num_states=data.draw(st.integers(1, 5)),
            width=data.draw(st.integers(3, 48)),
            rollout_steps=steps,
            held_out_fraction=data.draw(st.sampled_from([0.0, 0.2, 0.7])),
            ladder=isinstance(steps, tuple) and steps[0] < steps[1] and data.draw(st.booleans()),
        )
        first, many = data.draw(st.integers(0, 2**40)), data.draw(st.integers(1, 4))
        limits = data.draw(st.lists(st.none() | st.integers(0, 20), min_size=many, max_size=many))
        start, seed = data.draw(st.integers(0, 10_000)), data.draw(st.integers(0, 2**64 - 1))
        examples = range(start, start + 5, data.draw(st.integers(1, 2)))
        at = (seed, range(first, first + many), examples, limits)
        assert_same(task.batches_on(CPU, *at), stacked(task, *at))

    def test_the_paper_setting(self) -> None:
        task = Rule110(rollout_steps=32)
        at = (0, range(97_000, 97_003), range(128, 256), [None] * 3)
        assert_same(task.batches_on(CPU, *at), stacked(task, *at))

    @pytest.mark.parametrize("steps", [range(3, 3), range(2)])
    def test_no_examples_or_no_steps(self, steps: range) -> None:
        task = Rule110(rollout_steps=(1, 4))
        batch = task.batches_on(CPU, 0, steps, range(2, 2), [None] * len(steps))
        assert {tuple(field.shape) for field in batch} == {(len(steps), 0, task.sequence_length)}

    @pytest.mark.parametrize(
        "task", [Rule110(rollout_steps=32), Rule110(rollout_steps=(1, 16), held_out_fraction=0.1, width=48)]
    )
    def test_nothing_waits_and_launches_are_few(self, task: Rule110) -> None:
        """A meta tensor has no values to wait for, and what it cannot tell cannot decide a shape or a branch."""
        launched = []
        for steps in (1, 200):
            with OpsOnDevice(META) as ops:
                batch = task.batches_on(META, 5, range(steps), range(512), [None] * steps)
            assert batch.tokens.shape == (steps, 512, task.sequence_length)
            launched.append(ops.launched)
        assert launched[0] == launched[1] < 800

    def test_a_limit_for_every_step(self) -> None:
        with pytest.raises(ValueError, match="2 entries for 3 steps"):
            Rule110(rollout_steps=4).batches_on(CPU, 0, range(3), range(2), [None, None])

    def test_it_is_a_device_task(self) -> None:
        assert isinstance(Rule110(rollout_steps=4), DeviceTask)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_on_cuda(self) -> None:
        task, cuda = Rule110(rollout_steps=(1, 9), width=47, held_out_fraction=0.3), torch.device("cuda")
        at = (2**64 - 5, range(7, 12), range(40, 90), [None, 3, 3, 5, 20])
        torch.cuda.set_sync_debug_mode("error")
        try:
            batch = task.batches_on(cuda, *at)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert_same(Batch(*(field.cpu() for field in batch)), stacked(task, *at))


class TestHeldOut:
    def seen(self, task: Rule110, split: Split) -> set[str]:
        tokens = task.batch(split, 5, 0, range(3000)).tokens.tolist()
        return {state for row in tokens for state, _ in read(task, row)}

    @pytest.mark.parametrize(("fraction", "width"), [(0.25, 8), (0.5, 9), (0.9, 6)])
    def test_the_splits_share_no_state_and_cover_all(self, fraction: float, width: int) -> None:
        task = Rule110(rollout_steps=1, width=width, held_out_fraction=fraction)
        train, test = self.seen(task, "train"), self.seen(task, "test")
        assert not train & test
        assert len(test) == round(fraction * 2**width)
        assert len(train | test) == 2**width

    def test_which_states_does_not_depend_on_the_seed(self) -> None:
        task = Rule110(rollout_steps=1, width=8, held_out_fraction=0.25)
        other = task.batch("test", 99, 7, range(3000)).tokens.tolist()
        assert {state for row in other for state, _ in read(task, row)} == self.seen(task, "test")

    def test_held_out_bits_are_not_lopsided(self) -> None:
        task = Rule110(rollout_steps=1, width=24, held_out_fraction=0.1)
        bits = task.batch("test", 0, 0, range(3000)).tokens[:, :96].double()
        assert (bits.mean(dim=0) - 0.5).abs().max() < 0.05

    def test_nothing_is_held_out_by_default(self) -> None:
        task = Rule110(rollout_steps=1, width=6)
        assert len(self.seen(task, "train")) == len(self.seen(task, "test")) == 64


class TestChance:
    @pytest.mark.parametrize(("width", "steps"), [(3, 1), (5, 0), (5, 4), (8, 2), (9, 3), (10, 6)])
    def test_small_rings_by_counting(self, width: int, steps: int) -> None:
        labels = [label(f"{state:0{width}b}", steps) for state in range(2**width)]
        assert ones_share(width, steps) == pytest.approx(sum(labels) / len(labels), abs=1e-12)

    def test_large_rings_by_simulation(self) -> None:
        task = Rule110(rollout_steps=(9, 16))
        batch = task.batch("train", 1, 0, range(20_000))
        for steps, expected in task.chance().items():
            labels = batch.targets[(batch.depth == steps) & batch.loss_mask].double()
            assert max(labels.mean(), 1 - labels.mean()) == pytest.approx(expected, abs=0.02)

    def test_exact(self) -> None:
        task = Rule110(rollout_steps=4, width=10)
        assert task.chance_exact() == pytest.approx(task.chance()[4] ** 4)
        task = Rule110(rollout_steps=(1, 2), width=8, num_states=2)
        labels = task.batch("train", 0, 0, range(20_000)).targets[:, -2:]
        assert labels.bool().all(dim=1).double().mean().item() == pytest.approx(task.chance_exact(), abs=0.015)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"rollout_steps": (5, 2)}, r"range 5\.\.2, its first number must not exceed"),
        ({"rollout_steps": -1}, "greater than or equal to 0"),
        ({"rollout_steps": 4, "width": 2}, "width"),
        ({"rollout_steps": 4, "width": 49}, "width"),
        ({"rollout_steps": 4, "held_out_fraction": 1.0}, "held_out_fraction"),
        ({"rollout_steps": 4, "width": 4, "held_out_fraction": 0.01}, "both splits need at least one"),
        ({}, "rollout_steps"),
        ({"rollout_steps": 4, "ladder": True}, r"ladder climbs a range of rollout_steps, like \[1, 4\], got 4 alone"),
        ({"rollout_steps": (3, 3), "ladder": True}, "got 3 alone"),
    ],
)
def test_bad_parameters(bad: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Rule110.model_validate(bad)


def test_chance_is_that_of_the_states_that_tests_show() -> None:
    """With few states held out, the commoner label among them is what a blind guesser gets right."""
    task = Rule110(num_states=2, width=12, rollout_steps=(1, 3), held_out_fraction=0.25)
    batch = task.batch("test", seed=0, step=0, examples=range(20_000))
    for steps, expected in task.chance().items():
        ones = batch.targets[batch.depth == steps].double().mean().item()
        assert max(ones, 1 - ones) == pytest.approx(expected, abs=0.015)
    everywhere = Rule110(num_states=2, width=12, rollout_steps=(1, 3)).chance()
    assert abs(task.chance()[1] - everywhere[1]) > 0.02
