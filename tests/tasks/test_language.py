"""What a model of a task reads and is asked: the task's own tokens, in the task's own order."""

from __future__ import annotations

import pytest
from tiny_sleeper import FACTS, QUESTION, TASKS

from reverie.errors import UserError
from reverie.pretrained.smollm2 import load_smollm2
from reverie.recipe import load_recipe
from reverie.tasks import TASKS as KINDS
from reverie.tasks import GsmInfinite, Recall, Task


def task(name: str) -> Task:
    return KINDS[TASKS[name]["name"]].model_validate(TASKS[name])


@pytest.mark.parametrize("name", TASKS)
def test_texts_of_the_task_come_back(name: str) -> None:
    """The words of any example are its tokens again."""
    kind = task(name)
    language, names = kind.language(), kind.token_names()
    tokens = kind.batch("test", 0, 0, range(4)).tokens
    for row in tokens.tolist():
        if isinstance(kind, GsmInfinite):
            own = [i for i in row if i not in (kind.pad_id, kind.end_id)]
            assert language.encode(kind.text.decode(own)) == own
        else:
            assert language.encode(" ".join(names[i] for i in row)) == row


def test_facts_are_padded_in_front_as_in_training() -> None:
    """To windows that end where those of the task end."""
    kind = task("words")
    assert isinstance(kind, GsmInfinite)
    language = kind.language()
    row = kind.batch("test", 0, 0, range(1)).tokens[0, : kind.sections()[0].length].tolist()
    own = [i for i in row if i != kind.pad_id]
    padded = language.padded(language.encode(kind.text.decode(own)), 8)
    assert len(padded) % 8 == 0
    assert padded == [kind.pad_id] * (len(padded) - len(own)) + own
    assert row[-(len(row) // 8 * 8) :][-len(padded) :] == padded[-len(row) :]
    assert task("rule110").language().padded([0, 1, 1], 8) == [0, 1, 1]
    assert task("depo").language().padded([3, 1, 1], 8) == [0, 0, 0, 0, 0, 3, 1, 1]


def test_answers() -> None:
    many, one = task("words").language(), task("word").language()
    assert many.max_answer_tokens == 1
    assert many.question(f" {QUESTION}\n") == [0, *many.encode(QUESTION)]  # in a slot of 6 tokens
    assert many.question(FACTS) == many.encode(FACTS)
    assert many.question("") == []
    assert one.max_answer_tokens == 5  # 1000, and the end
    assert one.question(QUESTION) == one.encode(f"Question: {QUESTION} Answer:")
    assert one.question(f"Question: {QUESTION} Answer:") == one.question(QUESTION)
    digits = [*one.encode("42"), *one.end_ids]
    assert one.decode(digits) == "42"
    rule110 = task("rule110").language()
    assert (rule110.max_answer_tokens, rule110.end_ids) == (2, frozenset())
    assert rule110.decode(rule110.encode("0 1")) == "0 1"


def test_names_of_two_tokens_end_with_the_second() -> None:
    kind = load_recipe("depo/paper").task
    language, names = kind.language(), kind.token_names()
    assert language.max_answer_tokens == 2
    assert {names[i] for i in language.end_ids} == {str(i) for i in range(50)}
    assert language.decode(language.encode("3- 7")) == "3- 7"


def test_smollm2_tokens_of_facts_and_problems() -> None:
    """However the text is broken into lines."""
    try:
        text = load_smollm2()
    except UserError as error:
        pytest.skip(str(error))
    recall = Recall(num_facts=4, num_questions=2)
    row = recall.batch("test", 0, 0, range(1)).tokens[0].tolist()
    language = recall.language()
    assert language.encode(text.decode(row).replace(".", ".\n")) == row
    assert language.question("The apple is") == language.encode("The apple is red.")[:3]
    assert language.is_question("The apple is")
    assert not language.is_question("The apple is red.\n")
    assert language.decode(language.encode("red")) == "red"
    problems = GsmInfinite(length=(300, 500), question_position="last", instruction=False)
    row = problems.batch("test", 0, 0, range(1)).tokens[0, : problems.sections()[0].length].tolist()
    own = [i for i in row if i != problems.pad_id]
    facts, _, question = text.decode(own).partition(" Question: ")
    language = problems.language()
    assert language.encode(facts) + language.question(question.removesuffix(" Answer:")) == own
    assert language.padded(language.encode(facts), 8)[0] in (problems.pad_id, own[0])


def test_what_is_a_question() -> None:
    words, depo, rule110 = (task(name).language() for name in ("words", "depo", "rule110"))
    assert words.is_question(QUESTION)
    assert not words.is_question(FACTS)
    assert depo.is_question("k=2 3")
    assert not depo.is_question("3 4 4 5")
    assert rule110.is_question("0 1 1 ?")
    assert not rule110.is_question("t=3 0 1 1")


def test_words_that_it_does_not_know() -> None:
    with pytest.raises(UserError, match=r"'unicorn in Heron Marsh equals 3\.' is not in the vocabulary .* tasks show"):
        task("words").language().encode("The number of unicorn in Heron Marsh equals 3.")
    with pytest.raises(UserError, match=r"'2' is no token of this model's task: they are 0, 1, \?, … t=4"):
        task("rule110").language().encode("0 1 2")
    with pytest.raises(UserError, match="'k=4' is no token of"):
        task("depo").language().encode("k=4 3")
