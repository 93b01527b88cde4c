"""The source of randomness, and scores on batches written by hand."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from reverie.tasks import TASKS, AnyTask, Batch, Depo, DepthScore, KeyValue, Rule110, Score, Task, score
from reverie.tasks.base import draw, uniform

TASK_CASES: list[Task] = [
    Rule110(rollout_steps=4),
    Rule110(rollout_steps=(1, 8), num_states=2, width=16, held_out_fraction=0.25),
    Depo(),
    Depo(max_nodes=8, min_nodes=8, mini_vocab=8, max_name_tokens=1, max_hops=4, test_hops=(1, 4), reveal_answers=False),
    KeyValue(max_pairs=8, pairs_step=4, num_queries=3),
]
every_task = pytest.mark.parametrize("task", TASK_CASES, ids=str)


def rows(batch: Batch, at: slice) -> Batch:
    return Batch(*(field[at] for field in batch))


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class TestDraw:
    @settings(max_examples=30, deadline=None)
    @given(
        seed=st.integers(0, 2**64 - 1), step=st.integers(0, 2**40), start=st.integers(0, 2**40), words=st.integers(1, 9)
    )
    def test_a_row_depends_on_its_own_index_only(self, seed: int, step: int, start: int, words: int) -> None:
        whole = draw("train", seed, step, range(start, start + 6), words)
        alone = [draw("train", seed, step, range(e, e + 1), words)[0] for e in range(start, start + 6)]
        assert np.array_equal(whole, np.stack(alone))
        assert np.array_equal(draw("train", seed, step, range(start + 5, start - 1, -2), words), whole[::-2])

    def test_split_seed_step_and_example_all_matter(self) -> None:
        cases = [
            draw("train", 0, 0, range(4), 4).tobytes(),
            draw("test", 0, 0, range(4), 4).tobytes(),
            draw("train", 1, 0, range(4), 4).tobytes(),
            draw("train", 0, 1, range(4), 4).tobytes(),
        ]
        assert len(set(cases)) == len(cases)
        assert len(np.unique(draw("train", 0, 0, range(1000), 5))) == 5000

    def test_neighbouring_seeds_and_steps_share_no_words(self) -> None:
        parts = [
            draw(split, seed, step, range(20), 4)
            for split in ("train", "test")
            for seed in range(5)
            for step in range(5)
        ]
        assert len(np.unique(np.concatenate(parts))) == 2 * 5 * 5 * 20 * 4

    def test_uniform_covers_the_unit_interval(self) -> None:
        u = uniform(draw("test", 3, 1, range(5000), 4))
        assert u.min() >= 0
        assert u.max() < 1
        assert np.histogram(u, bins=10, range=(0, 1))[0] == pytest.approx(2000, rel=0.15)
        assert uniform(np.array([2**64 - 1], dtype=np.uint64))[0] < 1

    def test_no_examples(self) -> None:
        assert draw("train", 0, 0, range(5, 5), 7).shape == (0, 7)

    def test_bad_arguments(self) -> None:
        with pytest.raises(ValueError, match="seed is -1"):
            draw("train", -1, 0, range(2), 1)
        with pytest.raises(ValueError, match="step is -1"):
            draw("train", 0, -1, range(2), 1)
        with pytest.raises(ValueError, match="examples starts at -2"):
            draw("train", 0, 0, range(-2, 2), 1)


@every_task
class TestEveryTask:
    def test_shapes_types_and_unscored_values(self, task: Task) -> None:
        for split in ("train", "test"):
            batch = task.batch(split, 0, 0, range(5))
            assert {tuple(f.shape) for f in batch} == {(5, task.sequence_length)}
            assert [f.dtype for f in batch] == [torch.int64, torch.int64, torch.bool, torch.int64, torch.int64]
            assert int(batch.tokens.min()) >= 0
            assert int(batch.tokens.max()) < task.vocab_size
            assert int(batch.targets.max()) < task.vocab_size
            off = ~batch.loss_mask
            assert not batch.targets[off].any()
            assert not batch.depth[off].any()
            assert (batch.question[off] == -1).all()
            assert (batch.question[batch.loss_mask] >= 0).all()

    def test_order_and_batch_split_do_not_change_the_data(self, task: Task) -> None:
        whole = task.batch("train", 7, 3, range(12))
        assert same(task.batch("train", 7, 3, range(12)), whole)
        assert same(task.batch("train", 7, 3, range(5, 9)), rows(whole, slice(5, 9)))
        assert same(task.batch("train", 7, 3, range(1, 12, 4)), rows(whole, slice(1, 12, 4)))
        assert len(task.batch("train", 7, 3, range(0)).tokens) == 0

    def test_seed_step_and_split_change_the_data(self, task: Task) -> None:
        first = task.batch("train", 0, 0, range(8))
        others = [
            task.batch("train", 1, 0, range(8)),
            task.batch("train", 0, 1, range(8)),
            task.batch("test", 0, 0, range(8)),
        ]
        assert not any(same(first, other) for other in others)

    def test_names_and_sections_fit(self, task: Task) -> None:
        names = task.token_names()
        assert len(names) == len(set(names)) == task.vocab_size
        assert sum(section.length for section in task.sections()) == task.sequence_length

    def test_round_trip_through_the_discriminated_union(self, task: Task) -> None:
        assert isinstance(task, BaseModel)
        task.batch("train", 0, 0, range(1))  # fills caches, which must not leak into the dump
        again = TypeAdapter(AnyTask).validate_json(task.model_dump_json())
        assert again == task
        assert type(again) is TASKS[again.name]


def test_unknown_keys_and_assignment_are_refused() -> None:
    with pytest.raises(ValidationError, match="widht"):
        Rule110.model_validate({"rollout_steps": 4, "widht": 3})
    with pytest.raises(ValidationError, match="frozen"):
        Depo().max_nodes = 5  # type: ignore[misc]


def hand_made(depth: list[list[int]], question: list[list[int]]) -> Batch:
    q = torch.tensor(question)
    return Batch(torch.zeros_like(q), torch.zeros_like(q), q >= 0, torch.tensor(depth), q)


class TestScore:
    batch = hand_made(
        depth=[[0, 1, 1, 4], [0, 4, 0, 1], [0, 0, 0, 0]], question=[[-1, 0, 0, 1], [-1, 1, -1, 0], [-1, -1, -1, -1]]
    )
    correct = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 1], [1, 1, 1, 1]]).bool()
    loss = torch.tensor([[9, 1, 2, 3], [9, 5, float("nan"), 6], [9, 9, 9, 9]], dtype=torch.float32)

    def test_by_hand(self) -> None:
        got = score(self.batch, self.correct, self.loss)
        assert got == Score(
            examples=2,  # the third row asks nothing
            examples_correct=1,
            tokens_correct=4,
            by_depth={1: DepthScore(2, 1, 3, 9.0), 4: DepthScore(2, 2, 2, 8.0)},
        )
        assert got.token_accuracy == 4 / 5
        assert got.question_accuracy == 3 / 4
        assert got.exact_accuracy == 1 / 2
        assert got.loss == 17 / 5

    def test_summary_is_json(self) -> None:
        summary = json.loads(json.dumps(score(self.batch, self.correct, self.loss).summary()))
        assert summary["exact_accuracy"] == 0.5
        assert summary["by_depth"]["1"] == {"accuracy": 0.5, "loss": 3.0, "questions": 2}

    def test_adds_up_over_batches(self) -> None:
        task = Depo(max_nodes=6, mini_vocab=4, max_hops=4, test_hops=(1, 2, 4), num_queries=3)
        whole = task.batch("train", 0, 0, range(9))
        correct = torch.rand(whole.tokens.shape, generator=torch.Generator().manual_seed(0)) < 0.8
        loss = torch.arange(whole.tokens.numel()).reshape(whole.tokens.shape).float()
        cuts = [slice(0, 2), slice(2, 3), slice(3, 9)]
        parts = [score(rows(whole, cut), correct[cut], loss[cut]) for cut in cuts]
        assert sum(parts, Score()) == score(whole, correct, loss)
        assert parts[2] + parts[0] + parts[1] == score(whole, correct, loss)

    def test_against_plain_loops(self) -> None:
        batch = Depo().batch("test", 0, 0, range(6))
        correct = torch.rand(batch.tokens.shape, generator=torch.Generator().manual_seed(1)) < 0.9
        got = score(batch, correct, torch.zeros(batch.tokens.shape))
        answers: dict[tuple[int, int], list[bool]] = {}
        for row, position in batch.loss_mask.nonzero().tolist():
            at = (row, int(batch.question[row, position]))
            answers.setdefault(at, []).append(bool(correct[row, position]))
        assert got.total.questions == len(answers) == 60
        assert got.total.questions_correct == sum(all(a) for a in answers.values())
        assert got.examples_correct == sum(all(all(a) for (r, _), a in answers.items() if r == row) for row in range(6))

    def test_empty(self) -> None:
        nothing = rows(self.batch, slice(2, 3))
        assert score(nothing, self.correct[2:], self.loss[2:]) == Score()
        with pytest.raises(ValueError, match="holds no question"):
            Score().summary()

    def test_wrong_shape(self) -> None:
        with pytest.raises(ValueError, match=r"both must be \[3, 4\]"):
            score(self.batch, self.correct[:, :2], self.loss)
