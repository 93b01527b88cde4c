"""Evaluation asks everybody the same questions, counts right, and does not depend on how they are cut into batches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from tiny_recipe import tiny_recipe

import reverie.results.evaluate
from reverie.errors import UserError
from reverie.model import HybridLM
from reverie.recipe import Recipe, changed, load_recipe
from reverie.results.evaluate import evaluate, evaluate_batch
from reverie.sleep import Context, SleepConfig, rollout
from reverie.sleep.generate import greedy, log_probability, write
from reverie.tasks import Batch, Split, Task


def unsure_model(recipe: Recipe, seed: int = 0) -> HybridLM:
    """Random everywhere: at the start all logits are zero."""
    torch.manual_seed(seed)
    model = HybridLM(recipe.hybrid)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


RULE110 = tiny_recipe()
DEPO = changed(
    load_recipe("depo/nano"), model={"width": 16, "mlp_width": 24, "num_heads": 2, "key_size": 8, "value_size": 8}
)


# One answer of one to three digits behind up to 40 words.
GSM = Recipe.model_validate(
    {
        **RULE110.model_dump(exclude={"task": True, "model": {"vocab_size"}}),
        "task": {
            "name": "gsm_infinite", "length": (20, 40), "worlds": ("film",), "levels": ("medium",), "max_operations": 2,
            "max_value": 99, "tokenizer": "words", "instruction": False,
        },
        "sleep": {"window_size": 30, "num_sleep_passes": 2},
    }
)  # fmt: skip


@pytest.mark.parametrize("recipe", [RULE110, DEPO, GSM], ids=["rule110", "depo", "gsm_infinite"])
@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_the_batch_size_changes_nothing(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, batch_size: int):
    model = unsure_model(recipe)
    whole = evaluate(model, recipe.task, recipe.sleep, 40).score.summary()
    monkeypatch.setattr(reverie.results.evaluate, "LARGEST_BATCH", batch_size)
    cut = evaluate(model, recipe.task, recipe.sleep, 40).score.summary()
    assert whole["examples"] == 40
    assert cut["by_depth"].keys() == whole["by_depth"].keys()
    for depth, part in whole["by_depth"].items():
        assert cut["by_depth"][depth] == pytest.approx(part, rel=1e-5)
    assert {**cut, "by_depth": 0} == pytest.approx({**whole, "by_depth": 0}, rel=1e-5)


@pytest.mark.parametrize("recipe", [RULE110, DEPO], ids=["rule110", "depo"])
def test_it_is_what_counting_by_hand_gives(recipe: Recipe):
    model, asked, right, exact, losses = unsure_model(recipe), Counter[int](), Counter[int](), 0, []
    for example in range(30):
        batch = recipe.task.batch("test", 0, 0, range(example, example + 1))
        with torch.no_grad():
            logits, _ = rollout(model, batch.tokens, batch.loss_mask, recipe.sleep)
        wrong, places = 0, [t for t in range(recipe.task.sequence_length) if batch.loss_mask[0, t]]
        for row, t in enumerate(places):  # here every question is one token
            target, depth, answers = int(batch.targets[0, t]), int(batch.depth[0, t]), logits[row].tolist()
            asked[depth] += 1
            correct = answers.index(max(answers)) == target
            right[depth] += correct
            wrong += not correct
            losses.append(math.log(sum(map(math.exp, answers))) - answers[target])
        exact += not wrong
    summary = evaluate(model, recipe.task, recipe.sleep, 30).score.summary()
    assert {int(d): part["questions"] for d, part in summary["by_depth"].items()} == asked
    assert {int(d): part["accuracy"] for d, part in summary["by_depth"].items()} == pytest.approx(
        {d: right[d] / asked[d] for d in asked}
    )
    assert summary["question_accuracy"] == pytest.approx(right.total() / asked.total())
    assert summary["exact_accuracy"] == pytest.approx(exact / 30)
    assert summary["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert 0 < right.total() < asked.total()  # else this test would tell little


class Watched:
    """A task that remembers what it was asked for."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.asked: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def batch(self, split: Split, seed: int, step: int, examples: range, max_depth: int | None = None) -> Batch:
        self.asked.append((split, seed, step, max_depth, list(examples)))
        return self._task.batch(split, seed, step, examples, max_depth)


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("seed", [0, 7])
def test_everybody_gets_the_same_held_out_examples(monkeypatch: pytest.MonkeyPatch, seed: int, passes: int):
    monkeypatch.setattr(reverie.results.evaluate, "LARGEST_BATCH", 16)
    recipe = changed(RULE110, train={"seed": seed}, sleep={"num_sleep_passes": passes})
    task = Watched(recipe.task)
    evaluate(unsure_model(recipe, seed), cast(Task, task), recipe.sleep, 40)
    assert [asked[:4] for asked in task.asked] == [("test", 0, 0, None)] * 3
    assert [i for asked in task.asked for i in asked[4]] == list(range(40))


@pytest.mark.parametrize(("tokens", "sizes"), [(1, [1] * 5), (50, [3, 2]), (10**6, [4, 1])])
def test_long_examples_come_in_smaller_batches(monkeypatch: pytest.MonkeyPatch, tokens: int, sizes: list[int]):
    monkeypatch.setattr(reverie.results.evaluate, "BATCH_TOKENS", tokens)
    monkeypatch.setattr(reverie.results.evaluate, "LARGEST_BATCH", 4)
    task = Watched(RULE110.task)
    assert task.sequence_length == 16
    evaluate(unsure_model(RULE110), cast(Task, task), RULE110.sleep, 5)
    assert [len(asked[4]) for asked in task.asked] == sizes


def test_it_leaves_no_trace_in_the_model():
    model = unsure_model(RULE110)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    evaluate(model, RULE110.task, RULE110.sleep, 8)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


# -- written by the model itself


def own_answers(model: HybridLM, sleep: SleepConfig, spoilt: dict[int, int], length: int = 12) -> Batch:
    """What the model writes after random prompts, two to four tokens, as the right answers; but in row r of `spoilt`
    not the token at spoilt[r]. The depth of a row's question is r."""
    prompt = torch.randint(11, (8, length), generator=torch.Generator().manual_seed(1))
    written = greedy(model, prompt, sleep, 4)
    for row, place in spoilt.items():
        written[row, place] = (written[row, place] + 1) % 11
    scored = torch.zeros(8, length + 3, dtype=torch.bool)
    for row in range(8):
        scored[row, length - 1 : length + 1 + row % 3] = True
    targets = torch.cat([torch.zeros_like(prompt[:, 1:]), written], dim=1)
    return Batch(
        torch.cat([prompt, written[:, :3]], dim=1),
        targets * scored,
        scored,
        scored * torch.arange(8)[:, None],
        1 * scored - 1,
    )


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
@pytest.mark.parametrize(("N", "window_size"), [(1, 8), (3, 8), (1, 6)])  # with 6, answers go on in the next window
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_writing_and_being_shown_the_answer_have_the_same_questions_right(
    tiny_model: Callable[..., HybridLM], seed: int, N: int, window_size: int, eviction: str
):
    model = tiny_model("attn", "gdn", "attn", seed=seed)
    sleep = SleepConfig.model_validate({"window_size": window_size, "num_sleep_passes": N, "eviction": eviction})
    batch = own_answers(model, sleep, {1: 0, 4: 1, 6: 1, 7: 2})
    shown, written = (evaluate_batch(model, batch, sleep, generate=generate).score for generate in (False, True))
    assert {row for row, found in written.by_depth.items() if found.questions_correct} == {0, 2, 3, 5}
    assert shown.by_depth == written.by_depth  # the loss too


def test_what_is_written_follows_from_what_was_written_before(tiny_model: Callable[..., HybridLM]):
    """Where only the first of its tokens is not the answer's, the others are right again. The question stays wrong."""
    model, sleep = tiny_model("attn", "gdn", "attn"), SleepConfig(window_size=8)
    batch = own_answers(model, sleep, dict.fromkeys(range(8), 0))
    shown, written = (evaluate_batch(model, batch, sleep, generate=generate).score for generate in (False, True))
    assert shown.examples_correct == written.examples_correct == 0
    assert written.tokens_correct == 3 * 1 + 3 * 2 + 2 * 3


def test_the_same_for_a_model_that_has_learned_something():
    """Some steps teach it to answer with one likely digit, and an end."""
    model, task, sleep = unsure_model(GSM), GSM.task, GSM.sleep
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    for step in range(15):
        batch = task.batch("train", 0, step, range(8))
        logits, _ = rollout(model, batch.tokens, batch.loss_mask, sleep)
        optimizer.zero_grad()
        F.cross_entropy(logits, batch.targets[batch.loss_mask]).backward()
        optimizer.step()
    shown, written = (evaluate(model, task, sleep, 32, generate=generate).score for generate in (False, True))
    assert shown.by_depth == written.by_depth
    assert 3 < written.examples_correct < 25


def test_only_a_task_with_one_answer_at_its_end_is_written():
    model = unsure_model(RULE110)
    shown, written = (
        evaluate(model, RULE110.task, RULE110.sleep, 8, generate=generate).score for generate in (False, True)
    )
    assert shown == written


# -- the sleep it takes


@pytest.mark.parametrize("recipe", [RULE110, DEPO], ids=["rule110", "depo"])
def test_a_fixed_number_of_passes_is_spent_on_every_window(recipe: Recipe):
    task, sleep = recipe.task, recipe.sleep.model_copy(update={"num_sleep_passes": 3})
    found = evaluate(unsure_model(recipe), task, sleep, 20)
    batch = task.batch("test", 0, 0, range(20))
    labelled = [bool(mask.any()) for mask in batch.loss_mask.split(sleep.window_size, dim=1)]
    assert found.windows == 20 * labelled.count(False) > 0
    assert found.mean_passes == 3


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_adaptive_sleep_is_scored_text_by_text(monkeypatch: pytest.MonkeyPatch, batch_size: int):
    """How the examples are cut into batches changes neither passes nor score."""
    model, sleep = unsure_model(RULE110), RULE110.sleep.model_copy(update={"num_sleep_passes": 6, "tolerance": 0.4})
    whole = evaluate(model, RULE110.task, sleep, 40)
    monkeypatch.setattr(reverie.results.evaluate, "LARGEST_BATCH", batch_size)
    cut = evaluate(model, RULE110.task, sleep, 40)
    assert (cut.passes, cut.windows) == (whole.passes, whole.windows)
    assert cut.score.tokens_correct == whole.score.tokens_correct
    assert 2 < whole.mean_passes < 6  # else this test would tell little


def test_no_window_no_passes():
    sleep = RULE110.sleep.model_copy(update={"window_size": RULE110.task.sequence_length})
    found = evaluate(unsure_model(RULE110), RULE110.task, sleep, 4)
    assert (found.windows, found.passes) == (0, 0)
    assert math.isnan(found.mean_passes)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("recipe", [RULE110, GSM], ids=["rule110", "gsm_infinite"])
def test_a_model_that_has_diverged_has_no_accuracy(recipe: Recipe, value: float):
    """Nor does it write anything, and nothing it says is likely."""
    model = unsure_model(recipe)
    next(model.lm_head.parameters()).data[0] = value
    tokens = torch.zeros(1, 4, dtype=torch.long)
    for use in (
        lambda: evaluate(model, recipe.task, recipe.sleep, 8),
        lambda: evaluate(model, recipe.task, recipe.sleep, 8, generate=True),
        lambda: write(model, tokens, Context.empty(model), recipe.sleep, 2),
        lambda: log_probability(model, tokens, tokens, Context.empty(model), recipe.sleep),
    ):
        with pytest.raises(UserError, match="the model's logits are not finite"):
            use()
