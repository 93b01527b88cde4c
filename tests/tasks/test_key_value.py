"""Key-value recall: the tokens are parsed back to pairs, and the targets looked up in them."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from reverie.tasks import KeyValue, Split

Word = tuple[str, ...]


@st.composite
def tasks(draw: st.DrawFn) -> KeyValue:
    symbols, key_tokens = draw(st.integers(2, 20)), draw(st.integers(1, 3))
    step = draw(st.integers(1, min(6, symbols**key_tokens)))
    return KeyValue(
        symbols=symbols,
        key_tokens=key_tokens,
        value_tokens=draw(st.integers(1, 3)),
        pairs_step=step,
        max_pairs=step * draw(st.integers(1, max(min(symbols**key_tokens // step, 4), 1))),
        num_queries=draw(st.integers(1, step)),
    )


def pairs_of(names: list[str], key_tokens: int) -> list[tuple[Word, Word]]:
    """The pairs that a text consists of: each a mark, a key, a mark and a value."""
    starts = [i for i, name in enumerate(names) if name == "!"]
    found = []
    for start, stop in zip(starts, [*starts[1:], len(names)], strict=True):
        assert names[start + 1 + key_tokens] == ":"
        found.append((tuple(names[start + 1 : start + 1 + key_tokens]), tuple(names[start + 2 + key_tokens : stop])))
    return found


@settings(max_examples=60, deadline=None)
@given(task=tasks(), seed=st.integers(0, 2**32), deepest=st.integers(1, 30))
def test_targets_are_in_the_text(task: KeyValue, seed: int, deepest: int) -> None:
    printed, cut = task.token_names(), task.sections()[0].length
    splits: list[tuple[Split, int | None]] = [("train", None), ("train", deepest), ("test", deepest)]
    for split, most in splits:
        batch = task.batch(split, seed, 0, range(4), max_depth=most)
        for tokens, targets, mask, depth, question in zip(*(field.tolist() for field in batch), strict=True):
            names = [printed[i] for i in tokens]
            text = [name for name in names[:cut] if name != "."]
            assert names[:cut] == ["."] * (cut - len(text)) + text
            known = pairs_of(text, task.key_tokens)
            values = dict(known)
            assert len(values) == len(known)  # keys are distinct
            assert {len(value) for value in values.values()} == {task.value_tokens}
            assert len(known) in task.depths()
            if split == "train" and most is not None:
                assert len(known) <= max(most, task.pairs_step)
            asked = pairs_of(names[cut:], task.key_tokens)
            assert len({key for key, _ in asked}) == len(asked) == task.num_queries
            for i, (key, value) in enumerate(asked):
                at = [place for place, one in enumerate(question) if one == i]
                assert tuple(printed[targets[place]] for place in at) == values[key] == value
                assert names[at[0]] == ":"
                assert {depth[place] for place in at} == {len(known)}
            assert sum(mask) == task.num_queries * task.value_tokens
            for place, scored in enumerate(mask):
                assert not scored or tokens[place + 1] == targets[place]  # next-token form


def test_every_number_of_pairs_and_every_symbol_is_as_frequent() -> None:
    task = KeyValue(symbols=10, max_pairs=32, pairs_step=8, num_queries=8)
    splits: list[Split] = ["train", "test"]
    for split in splits:
        batch = task.batch(split, 0, 0, range(600))
        pairs = Counter(batch.depth.amax(dim=1).tolist())
        assert set(pairs) == {8, 16, 24, 32}
        assert min(pairs.values()) > 100
        values = Counter(batch.targets[batch.loss_mask].tolist())
        assert len(values) == 10
        assert min(values.values()) > 0.9 * 600 * 16 / 10


def test_chance() -> None:
    task = KeyValue(symbols=4, key_tokens=2, value_tokens=2, max_pairs=8, pairs_step=4, num_queries=2)
    assert task.chance() == {4: 1 / 16, 8: 1 / 16}
    assert task.chance_exact() == 1 / 256


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"max_pairs": 20}, "max_pairs 20 must be a multiple of pairs_step 16"),
        ({"num_queries": 17}, "num_queries 17 must not exceed pairs_step 16"),
        ({"symbols": 4}, "give 16 keys: they must be at least max_pairs 96"),
        ({"symbols": 1000}, "at most 100000"),
    ],
)
def test_what_does_not_fit_is_refused(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        KeyValue(**settings_)
