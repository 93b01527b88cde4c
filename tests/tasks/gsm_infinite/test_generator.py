"""Whole problems: the solver agrees, lengths are as wanted, and indices alone decide which problem it is."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from problem_sets import ALL_WORLDS, MODES, PADDED_LENGTH, config, padded_problems, plain_problems, values_in_text
from pydantic import ValidationError

from reverie.errors import UserError
from reverie.pretrained.smollm2 import SmolLM2Tokenizer, load_smollm2
from reverie.tasks.base import Split
from reverie.tasks.gsm_infinite import generator
from reverie.tasks.gsm_infinite.generator import INSTRUCTION, Problem, ProblemConfig, QuestionPosition, draw_problem
from reverie.tasks.gsm_infinite.parser import parse
from reverie.tasks.gsm_infinite.solver import count_operations, solve, work_out
from reverie.tasks.gsm_infinite.task import token_counter
from reverie.tasks.gsm_infinite.text import core_sentences, name
from reverie.tasks.gsm_infinite.words import WordTokenizer


def draw(index: int = 0, operations: int = 4, split: Split = "train", step: int = 0, **changes: Any) -> Problem:
    return draw_problem(ProblemConfig(**changes), split, 0, step, index, operations)


@pytest.fixture(scope="module")
def smollm2() -> SmolLM2Tokenizer:
    try:
        return load_smollm2()
    except UserError as error:
        pytest.skip(str(error))


# The answer


@pytest.mark.parametrize("problems", [plain_problems, padded_problems], ids=["plain", "padded"])
def test_the_solver_finds_the_answer_and_counts_the_operations(problems: Callable[[], list[Problem]]) -> None:
    for problem in problems():
        assert solve(problem.problem, problem.question) == problem.answer
        assert count_operations(problem.problem, problem.question) == problem.operations


def test_every_problem_is_of_the_kind_that_was_asked_for() -> None:
    for problem in plain_problems():
        assert (problem.world, problem.level) == (problem.core.world.name, problem.core.level)
        assert problem.mode == ("forward" if problem.core.unknown is None else "reverse")
    kinds = Counter((problem.world, problem.level, problem.mode) for problem in plain_problems())
    assert len(kinds) == 12
    assert all(n == (29 if mode == "reverse" else 31) for (_, _, mode), n in kinds.items())  # one operation is forward


def test_the_text_says_what_the_core_holds() -> None:
    """Of all that it names, needed or not."""
    for problem in plain_problems():
        said, core = values_in_text(problem), problem.core
        for quantity, value in core.values.items():
            assert said.get(name(core.quantities[quantity], core.world), value) == value


def test_the_answer_of_a_reverse_problem_is_a_number_of_the_text() -> None:
    assert {p.answer for p in plain_problems() if p.mode == "reverse"} == {1, 2, 3, 4}


def test_without_its_decoy_a_problem_is_the_same() -> None:
    with_decoy = [problem for problem in plain_problems() if problem.core.decoy is not None]
    assert len(with_decoy) > 30
    for problem in with_decoy:
        decoy = "".join(core_sentences(problem.core)[-1])
        assert problem.problem.count(decoy[1:]) == 1
        without = (" " + problem.problem).replace(decoy, "")[1:]
        whole = work_out(parse(problem.problem, problem.question))
        assert work_out(parse(without, problem.question)) == whole


def test_worlds_and_modes_are_all_drawn() -> None:
    drawn = [draw(i, 6) for i in range(200)]
    worlds = Counter(problem.world for problem in drawn)
    assert all(worlds[world] / 200 == pytest.approx(1 / 3, abs=0.12) for world in ALL_WORLDS)
    modes = Counter((problem.mode, problem.level) for problem in drawn)
    assert all(modes[kind] > 20 for kind in product(MODES, ("medium", "hard")))


# The prompt


@pytest.mark.parametrize("position", ["first", "last"])
@pytest.mark.parametrize("instruction", [True, False])
def test_the_prompt(position: QuestionPosition, instruction: bool) -> None:
    problem = draw(worlds=("wildlife",), question_position=position, instruction=instruction)
    question, text = f"Question: {problem.question}", f"Problem: {problem.problem}"
    body = f"{question} {text}" if position == "first" else f"{text} {question}"
    told = INSTRUCTION.format(plain="grown animals", weighted="young animals", attribute="young ones")
    assert problem.prompt == (f"{told} " if instruction else "") + f"{body} Answer:"
    assert problem.cue == ((" Answer:",) if position == "first" else (" Question:", f" {problem.question}", " Answer:"))
    assert "".join(problem.context) + "".join(problem.cue) == " " + problem.prompt


def test_position_and_instruction_change_nothing_else() -> None:
    drawn = [draw(question_position=position, instruction=told) for position in ("first", "last") for told in (1, 0)]
    assert len({problem.prompt for problem in drawn}) == 4
    assert len({(problem.problem, problem.question, problem.solution) for problem in drawn}) == 1


def test_facts_stand_in_any_order() -> None:
    """The needed ones are not first, nor in the order of the solution."""
    places = Counter()
    for problem in (draw(i, 6, worlds=("film",), levels=("hard",), modes=("forward",)) for i in range(150)):
        facts = parse(problem.problem, problem.question).facts
        first = problem.core.needed[0]
        subjects = [fact.subject for fact in facts]
        places[4 * subjects.index(name(problem.core.quantities[first], problem.core.world)) // len(subjects)] += 1
    assert all(places[quarter] > 20 for quarter in range(4))


# Its length


def test_length_in_characters() -> None:
    low, high = PADDED_LENGTH
    lengths = [len(problem.prompt) for problem in padded_problems()]
    assert all(low <= length <= high for length in lengths)
    assert min(lengths) < low + 0.2 * (high - low) < high - 0.2 * (high - low) < max(lengths)


@pytest.mark.parametrize("position", ["first", "last"])
def test_length_in_words(position: QuestionPosition) -> None:
    words = WordTokenizer(ALL_WORLDS)
    asked = ProblemConfig(length=(290, 300), question_position=position, instruction=False)
    for i in range(32):
        problem = draw_problem(asked, "train", 0, 0, i, 1 + i % 8, measure=lambda piece: len(words.encode(piece)))
        assert 290 <= len(words.encode(problem.prompt)) <= 300


def test_length_in_tokens(smollm2: SmolLM2Tokenizer) -> None:
    """Of the whole prompt as one text; but for the first token, its ids are those of the pieces."""
    for i in range(24):
        position: QuestionPosition = "first" if i % 2 else "last"
        asked = ProblemConfig(length=(1000, 1030), question_position=position, instruction=bool(i % 3))
        problem = draw_problem(asked, "train", 0, 0, i, 1 + i % 8, measure=token_counter(smollm2))
        whole = smollm2.encode(problem.prompt)
        pieces = [token for piece in (*problem.context, *problem.cue) for token in smollm2.encode(piece)]
        assert 1000 <= len(whole) <= 1030
        assert pieces == smollm2.encode(" " + problem.prompt)
        assert pieces[1:] == whole[1:]


def test_a_narrow_range() -> None:
    lengths = [len(draw(i, length=(5000, 5010)).prompt) + 1 for i in range(8)]  # here with the first piece's space
    assert all(5000 <= length <= 5010 for length in lengths)


def test_what_is_reserved_is_left_free() -> None:
    problem = draw_problem(ProblemConfig(length=(3000, 3200)), "train", 0, 0, 0, 4, reserved=1000)
    assert 2000 <= len(problem.prompt) + 1 <= 2200


# The same everywhere


def digest() -> str:
    """Hash of problems of every kind, padded and not."""
    found = hashlib.sha256()
    for i in range(24):
        length = (6000, 7000) if i % 2 else None
        kind = (ALL_WORLDS[i % 3], "hard" if i % 4 < 2 else "medium", MODES[i % 2])
        split: Split = "test" if i % 5 == 0 else "train"
        problem = draw_problem(config(*kind, length=length), split, 3, 1, i, 1 + i)  # type: ignore[arg-type]
        found.update(repr((problem.prompt, problem.solution, problem.answer)).encode())
    return found.hexdigest()


@pytest.mark.slow
def test_another_process_with_other_hashes_draws_the_same() -> None:
    here = os.path.dirname(__file__)
    other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    command = [sys.executable, "-c", "import test_generator; print(test_generator.digest())"]
    environment = {**os.environ, "PYTHONHASHSEED": other, "PYTHONPATH": here}
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == digest()


def test_a_problem_depends_on_its_own_indices_alone() -> None:
    alone = draw(7, 5, "train", 3)
    for i in range(5):
        draw(i, 3)
    assert draw(7, 5, "train", 3) == alone
    others = [draw(7, 5, "test", 3), draw(7, 5, "train", 4), draw(8, 5, "train", 3)]
    others.append(draw_problem(ProblemConfig(), "train", 1, 3, 7, 5))
    assert alone.prompt not in [problem.prompt for problem in others]
    assert len({problem.prompt for problem in others}) == 4


# Held out


def test_training_never_sees_a_held_out_core() -> None:
    """Not even where few problems exist, so that each split repeats its own, nor with padding around them."""

    def core_facts(split: Split, index: int, length: tuple[int, int] | None) -> frozenset[str]:
        problem = draw(index, 1 + index % 2, split, worlds=("education",), levels=("medium",), length=length)
        return frozenset("".join(pieces) for pieces in core_sentences(problem.core))

    train = [core_facts("train", i, None) for i in range(500)]
    test = [core_facts("test", i, (500, 2000)) for i in range(100)]
    assert not set(train) & set(test)
    assert len(set(train)) < len(train)
    assert len(set(test)) < len(test)


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"worlds": ("zoo",)}, r"worlds.0\n  Input should be 'wildlife', 'education' or 'film'"),
        ({"worlds": ()}, "worlds"),
        ({"worlds": ("film", "film")}, "names film twice, each must occur once"),
        ({"levels": ("easy",)}, "levels"),
        ({"modes": ("forward", "forward")}, "names forward twice"),
        ({"min_operations": 0}, "min_operations\n  Input should be greater than or equal to 1"),
        ({"max_operations": 0}, "max_operations\n  Input should be greater than or equal to 1"),
        ({"max_operations": 31}, "max_operations\n  Input should be less than or equal to 30"),
        ({"min_operations": 5, "max_operations": 4}, "min_operations 5 must not exceed max_operations 4"),
        ({"length": (300, 200)}, r"length \[300, 200\] must be \[shortest, longest\] with 1 <= shortest <= longest"),
        ({"length": (0, 200)}, r"length \[0, 200\] must be"),
        ({"max_value": 3}, "max_value"),
        ({"padding": 3}, "padding"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ProblemConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "operations", "message"),
    [
        (
            {"length": (50, 100), "worlds": ("film",)},
            2,
            r"^a (medium|hard) (forward|reverse) problem with 2 operations \(film\) takes \d{3} or more before "
            "padding, so length must allow that, got 50-100$",
        ),
        (
            {"max_value": 4, "modes": ("forward",), "levels": ("medium",)},
            28,
            r"^a medium forward problem with 28 operations \(.*\) cannot keep all its values at or below max_value 4; ",
        ),
    ],
)
def test_no_such_problem(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], operations: int, message: str
) -> None:
    monkeypatch.setattr(generator, "_TRIES", 500)
    with pytest.raises(UserError, match=message):
        draw(operations=operations, **changes)


def test_no_padding_of_that_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "_MISFITS", 100)
    message = "cannot be padded to a length within 1000-1000: allow a wider range, or less than 1000$"
    with pytest.raises(UserError, match=message):  # 1000 is no multiple of 7
        draw_problem(ProblemConfig(length=(1000, 1000)), "train", 0, 0, 0, 2, measure=lambda piece: 7)
