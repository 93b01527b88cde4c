"""Recall against its own text, decoded and read again with a regular expression."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from math import perm
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from reading_pages import needs_smollm2
from tiny_recipe import TOML

from reverie.errors import UserError
from reverie.model import HybridConfig, new_model
from reverie.pretrained.smollm2 import VOCAB_SIZE, load_smollm2
from reverie.recipe import Recipe, load_recipe
from reverie.results.evaluate import evaluate
from reverie.tasks import AnyTask, Batch, Recall, Split
from reverie.tasks.recall import NOUNS, SENTENCE_LENGTH, VALUES

SMALL = Recall(num_facts=12, num_questions=6, num_values=8, num_distances=3)
SENTENCE = re.compile(r" The (\w+) is (\w+)\.")


@st.composite
def tasks(draw: st.DrawFn) -> Recall:
    distances = draw(st.integers(1, 4))
    facts = distances * draw(st.integers(1, 32))
    return Recall(
        num_facts=facts,
        num_questions=draw(st.integers(1, facts)),
        num_values=draw(st.integers(2, 16)),
        num_distances=distances,
    )


def sentences(tokens: list[int]) -> list[tuple[str, str]]:
    """(noun, value) of every sentence of the decoded text, which holds nothing else."""
    text = load_smollm2().decode(tokens)
    assert SENTENCE.sub("", text) == ""
    return SENTENCE.findall(text)


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def check_example(task: Recall, row: list[list[int]], deepest: int) -> int:
    """Everything that an example promises; returns how many of its questions are scored."""
    tokens, targets, mask, depth, question = row
    read = sentences(tokens)
    facts, questions = read[: task.num_facts], read[task.num_facts :]
    nouns, asked = [noun for noun, _ in facts], [noun for noun, _ in questions]
    assert len(set(nouns)) == len(nouns)
    assert len(set(asked)) == len(asked) == task.num_questions
    assert {value for _, value in facts} <= set(VALUES[: task.num_values])

    scored = [t for t, is_scored in enumerate(mask) if is_scored]
    for t in scored:
        index = question[t]
        text = load_smollm2().decode(tokens[: t + 1])
        noun = re.search(r" The (\w+) is$", text)
        assert noun is not None
        assert noun[1] == asked[index]
        assert load_smollm2().decode([targets[t]]) == f" {dict(facts)[noun[1]]}"
        assert tokens[t + 1] == targets[t]
        back = task.num_facts - 1 - nouns.index(noun[1])  # 0 is the newest fact
        assert depth[t] == 1 + back * task.num_distances // task.num_facts
        assert depth[t] <= deepest
    assert [question[t] for t in scored] == list(range(len(scored)))
    return len(scored)


@needs_smollm2
class TestText:
    @settings(max_examples=25, deadline=None)
    @given(task=tasks(), seed=st.integers(0, 2**32), step=st.integers(0, 2**20), split=st.sampled_from(Split.__args__))
    def test_reading_it_again_gives_the_answers(self, task: Recall, seed: int, step: int, split: Split) -> None:
        batch = task.batch(split, seed, step, range(3))
        for row in range(3):
            fields = [field[row].tolist() for field in batch]
            assert check_example(task, fields, task.num_distances) == task.num_questions

    @settings(max_examples=25, deadline=None)
    @given(task=tasks(), seed=st.integers(0, 2**32), max_depth=st.integers(1, 5))
    def test_the_curriculum_asks_for_nothing_deeper(self, task: Recall, seed: int, max_depth: int) -> None:
        batch = task.batch("train", seed, 0, range(3), max_depth)
        near = min(max_depth * task.num_facts // task.num_distances, task.num_facts)
        for row in range(3):
            fields = [field[row].tolist() for field in batch]
            assert check_example(task, fields, max_depth) == min(task.num_questions, near)
        assert same(task.batch("test", seed, 0, range(3), max_depth), task.batch("test", seed, 0, range(3)))

    def test_each_word_is_one_token_and_each_fact_is_five(self) -> None:
        encode = load_smollm2().encode
        assert len(set(NOUNS)) == len(NOUNS) == 128
        assert len(set(VALUES)) == len(VALUES) == 16
        assert not set(NOUNS) & set(VALUES)
        for i, noun in enumerate(NOUNS):
            words = [" The", f" {noun}", " is", f" {VALUES[i % 16]}", "."]
            assert encode("".join(words)) == [token for word in words for token in encode(word)]
            assert len(encode("".join(words))) == SENTENCE_LENGTH == 5

    def test_the_tokens_are_those_of_the_text(self) -> None:
        """A pretrained model sees what its tokenizer would have made of it, wherever a window begins."""
        tokens = SMALL.batch("train", 0, 0, range(1)).tokens[0].tolist()
        assert load_smollm2().encode(load_smollm2().decode(tokens)) == tokens
        for t in range(0, len(tokens), SENTENCE_LENGTH):
            assert load_smollm2().decode(tokens[t:]).startswith(" The ")


@needs_smollm2
class TestDraw:
    def test_order_and_batch_split_do_not_change_the_data(self) -> None:
        for split in ("train", "test"):
            whole = SMALL.batch(split, 7, 3, range(12))
            assert same(SMALL.batch(split, 7, 3, range(12)), whole)
            assert same(SMALL.batch(split, 7, 3, range(5, 9)), Batch(*(x[5:9] for x in whole)))
            assert same(SMALL.batch(split, 7, 3, range(1, 12, 4)), Batch(*(x[1:12:4] for x in whole)))
            assert SMALL.batch(split, 7, 3, range(0)).tokens.shape == (0, SMALL.sequence_length)

    def test_seed_step_and_split_make_other_texts(self) -> None:
        places: list[tuple[Split, int, int]] = [("train", 0, 0), ("train", 1, 0), ("train", 0, 1), ("test", 0, 0)]
        facts = [tuple(x[:60].tolist()) for place in places for x in SMALL.batch(*place, range(500)).tokens]
        assert len(set(facts)) == len(facts)

    def test_as_many_texts_as_promised(self) -> None:
        assert perm(len(NOUNS), 8) * len(VALUES) ** 8 > 10**26

    def test_values_are_uniform_and_tell_nothing_of_each_other(self) -> None:
        task = Recall(num_facts=40, num_questions=1, num_values=4, num_distances=1)
        texts = [sentences(row)[:40] for row in task.batch("train", 0, 0, range(1000)).tokens.tolist()]
        by_place = [Counter(text[i][1] for text in texts) for i in range(40)]
        by_noun = [Counter(value for text in texts for noun, value in text if noun == of) for of in NOUNS]
        neighbours = Counter((a, b) for text in texts for (_, a), (_, b) in pairwise(text))
        for counts, tolerance in ((by_place, 0.07), (by_noun, 0.12)):
            for count in counts:
                assert all(count[value] / count.total() == pytest.approx(0.25, abs=tolerance) for value in VALUES[:4])
        assert len(neighbours) == 16
        assert all(n / neighbours.total() == pytest.approx(1 / 16, abs=0.005) for n in neighbours.values())

    def test_nouns_are_uniform(self) -> None:
        texts = [sentences(row) for row in SMALL.batch("test", 0, 0, range(2000)).tokens.tolist()]
        firsts = Counter(text[0][0] for text in texts)
        assert firsts.keys() == set(NOUNS)
        anywhere = Counter(noun for text in texts for noun, _ in text[:12])
        assert all(n / anywhere.total() == pytest.approx(1 / 128, rel=0.3) for n in anywhere.values())

    @pytest.mark.parametrize("questions", [1, 5, 6, 12])
    def test_tests_ask_for_each_depth_equally_at_each_place(self, questions: int) -> None:
        task = SMALL.model_copy(update={"num_questions": questions})
        batch = task.batch("test", 4, 0, range(30))
        depth = batch.depth[batch.loss_mask].reshape(30, questions)
        for place in range(questions):
            assert Counter(depth[:, place].tolist()) == {1: 10, 2: 10, 3: 10}

    def test_every_fact_is_asked_for_equally(self) -> None:
        for split in ("train", "test"):
            rows = [sentences(row) for row in SMALL.batch(split, 0, 0, range(1500)).tokens.tolist()]
            asked = Counter(row[:12].index(question) for row in rows for question in row[12:])
            assert all(asked[i] / asked.total() == pytest.approx(1 / 12, rel=0.1) for i in range(12))


@needs_smollm2
def test_chance_is_what_the_best_constant_guess_gets() -> None:
    assert SMALL.chance() == {1: 1 / 8, 2: 1 / 8, 3: 1 / 8}
    batch = SMALL.batch("test", 0, 0, range(6000))
    for depth, expected in SMALL.chance().items():
        targets = batch.targets[batch.depth == depth]
        commonest = targets.bincount().max().item() / len(targets)
        assert commonest == pytest.approx(expected, abs=0.015)
    two = Recall(num_facts=4, num_questions=3, num_values=2)
    targets = two.batch("test", 0, 0, range(6000))
    rows = targets.targets[targets.loss_mask].reshape(6000, 3)
    assert (rows == rows[0, 0]).all(dim=1).double().mean().item() == pytest.approx(two.chance_exact(), abs=0.015)


def test_sizes() -> None:
    assert SMALL.vocab_size == VOCAB_SIZE == 49152
    assert SMALL.sequence_length == 5 * (12 + 6)
    assert SMALL.sections() == [("facts", 60), ("questions", 30)]
    assert SMALL.depths() == range(1, 4)
    assert SMALL.chance_exact() == 8**-6
    assert not SMALL.answer_is_last


@needs_smollm2
def test_token_names() -> None:
    names = SMALL.token_names()
    assert len(names) == SMALL.vocab_size
    tokens = SMALL.batch("test", 0, 0, range(1)).tokens[0, :5].tolist()
    assert re.fullmatch(r"·The·\w+·is·\w+\.", "".join(names[token] for token in tokens))


def test_round_trip_through_the_discriminated_union() -> None:
    again = TypeAdapter(AnyTask).validate_json(SMALL.model_dump_json())
    assert again == SMALL
    assert isinstance(again, Recall)


RECIPE = re.sub(
    r"\[task\].*?\n\n", '[task]\nname = "recall"\nnum_facts = 6\nnum_questions = 4\n\n', TOML, flags=re.DOTALL
)


@pytest.fixture
def recipe_path(tmp_path: Path) -> str:
    path = tmp_path / "recall.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return str(path)


@needs_smollm2
def test_a_recipe_of_a_small_model(recipe_path: str) -> None:
    recipe = load_recipe(recipe_path, ["sleep.window_size=15"])
    assert isinstance(recipe.task, Recall)
    assert isinstance(recipe.model, HybridConfig)
    assert recipe.model.vocab_size == 49152
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    score = evaluate(new_model(recipe.model, seed=0), recipe.task, recipe.sleep, 4).score
    assert {depth: part.questions for depth, part in score.by_depth.items()} == {1: 8, 2: 8}


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ("num_facts=0", "task.num_facts must be at least 1, got 0"),
        ("num_facts=130", "task.num_facts must be at most 128, got 130"),
        ("num_facts=2.5", "task.num_facts must be an integer, got 2.5"),
        ("num_questions=0", "task.num_questions must be at least 1, got 0"),
        ("num_values=1", "task.num_values must be at least 2, got 1"),
        ("num_values=17", "task.num_values must be at most 16, got 17"),
        ("num_distances=0", "task.num_distances must be at least 1, got 0"),
        ("num_fact=5", "task.num_fact is not a known key; did you mean task.num_facts?"),
        ("num_questions=7", "task.num_questions 7 must not exceed num_facts 6: a fact is asked for once at most"),
        (
            "num_distances=4",
            "task.num_facts 6 must be a multiple of num_distances 4, so that all groups of facts are equal",
        ),
    ],
)
def test_bad_settings(recipe_path: str, bad: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe(recipe_path, [f"task.{bad}"])
    assert str(error.value) == sentence


@pytest.mark.parametrize("key", ["num_facts", "num_questions"])
def test_these_have_no_default(recipe_path: str, key: str) -> None:
    path = Path(recipe_path)
    path.write_text(re.sub(rf"{key} = \d+\n", "", RECIPE), encoding="utf-8")
    with pytest.raises(UserError, match=f"^task.{key} is missing; it has no default, so the recipe must set it$"):
        load_recipe(recipe_path)
