"""The small vocabulary covers every problem of its worlds, and nothing else."""

from __future__ import annotations

import pytest
from problem_sets import ALL_WORLDS, padded_problems, plain_problems

from reverie.tasks.gsm_infinite.generator import INSTRUCTION, Problem
from reverie.tasks.gsm_infinite.words import END, PAD, WordTokenizer
from reverie.tasks.gsm_infinite.worlds import WORLDS, WorldName

each_world = pytest.mark.parametrize("world", ALL_WORLDS)
ALL = WordTokenizer(ALL_WORLDS)


def problems(world: WorldName) -> list[Problem]:
    return [problem for problem in (*plain_problems(), *padded_problems()) if problem.world == world]


def without_instruction(problem: Problem) -> list[str]:
    pieces = [*problem.context, *problem.cue]
    assert pieces[0].startswith(" " + INSTRUCTION[:20])
    return pieces[1:]


@each_world
@pytest.mark.parametrize("several", [False, True])
def test_a_prompt_comes_back_and_its_pieces_are_encoded_like_the_whole(world: WorldName, several: bool) -> None:
    words = ALL if several else WordTokenizer([world])
    for problem in problems(world)[several::2]:
        pieces = without_instruction(problem)
        text = "".join(pieces)[1:]
        ids = words.encode(text)
        assert words.decode(ids) == text
        assert ids == [token for piece in pieces for token in words.encode(piece)]


@each_world
def test_one_token_a_name(world: WorldName) -> None:
    words, names = WordTokenizer([world]), WORLDS[world]
    place, kind = names.place_groups[0][0], names.type_groups[0][0]
    ids = words.encode(f"The average number of {names.attribute} per {kind} in {place} equals 12.")
    printed = [words.token_names()[i] for i in ids]
    assert printed == ["The average number of", names.attribute, "per", kind, "in", place, "equals", "1", "2", "."]


def test_ids() -> None:
    names = ALL.token_names()
    assert len(set(names)) == len(names) == ALL.vocab_size
    assert ALL.special_ids == {PAD: names.index(PAD), END: names.index(END)}
    assert [ALL.encode(name) for name in names[2:]] == [[i] for i in range(2, len(names))]
    assert WordTokenizer(["film"]).vocab_size < 400


def test_decoding_leaves_out_padding_and_end() -> None:
    assert ALL.decode([0, 0, *ALL.encode("Answer: 4 0 7"), 1, 0]) == "Answer: 407"
    assert ALL.decode([]) == ALL.decode([0, 1]) == ""
    assert ALL.encode("  ") == []


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("The number of purple otter", "purple otter"),
        ("How many perch", "perch"),  # "per" does not end inside a word
        ("equals minus 3", "minus 3"),
        (PAD, r"\[pad\]"),
        ("The number of silent slapstick comedy", "silent slapstick comedy"),  # of another world
    ],
)
def test_other_words_are_an_error(text: str, rest: str) -> None:
    with pytest.raises(ValueError, match=f"^'{rest}' is not in the vocabulary of these worlds$"):
        WordTokenizer(["wildlife"]).encode(text)
