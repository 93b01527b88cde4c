"""Depo: the tokens are parsed back to edges, the edges walked, and the targets compared."""

import itertools
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from reverie.tasks import Depo
from reverie.tasks.depo import _short_names

Word = tuple[str, ...]
NANO = dict(max_nodes=8, min_nodes=8, mini_vocab=8, max_name_tokens=1, max_hops=8, test_hops=(1, 2, 4, 8))


def words_of(names: list[str]) -> list[Word]:
    """Cut printed tokens into words: a token with a hyphen goes on, one without ends its word."""
    words, current = [], []
    for name in names:
        current.append(name)
        if not name.endswith("-"):
            words.append(tuple(current))
            current = []
    assert not current
    return words


def read_cycle(task: Depo, names: list[str]) -> dict[Word, Word]:
    text = list(itertools.dropwhile(lambda name: name == ".", names))
    assert "." not in text  # padding is on the left alone
    words = words_of(text)
    edges = dict(zip(words[::2], words[1::2], strict=True))
    assert len(edges) == len(words) // 2  # sources are distinct
    return edges


def read_queries(task: Depo, names: list[str], targets: list[str | None]) -> list[tuple[int, Word, Word, list[int]]]:
    """k, x, answer and the scored positions of each query."""
    starts = [i for i, name in enumerate(names) if name.startswith("k=")]
    last = len(names) - next(i for i, name in enumerate(reversed(names)) if name != ".")
    assert "." not in names[:last]  # padding is on the right alone
    found = []
    for start, stop in itertools.pairwise([*starts, last]):
        scored = [i for i in range(start, stop) if targets[i] is not None]
        answer = tuple(targets[i] or "" for i in scored)
        x = tuple(names[start + 1 : scored[0] + 1])
        text = [*x]
        if task.reveal_answers:
            text += [*answer, *(["|"] if task.max_name_tokens == 2 else [])]
        assert names[start + 1 : stop] == text
        assert scored == list(range(start + len(x), start + len(x) + len(answer)))
        assert len(words_of([*x])) == len(words_of([*answer])) == 1
        found.append((int(names[start].removeprefix("k=")), x, answer, scored))
    return found


def check_example(task: Depo, split: str, row: list[list[int]]) -> int:
    """All that holds for one example; returns its number of nodes."""
    ids, target_ids, mask, depth, question = row
    printed = task.token_names()
    names = [printed[i] for i in ids]
    targets = [printed[t] if m else None for t, m in zip(target_ids, mask, strict=True)]
    cut = task.cycle_length
    assert not any(mask[:cut])
    after = read_cycle(task, names[:cut])

    seen, node = [], next(iter(after))
    for _ in after:
        seen.append(node)
        node = after[node]
    assert node == seen[0]
    assert len(set(seen)) == len(after)  # one cycle through all nodes

    queries = read_queries(task, names[cut:], targets[cut:])
    assert len(queries) == task.num_queries
    for index, (hops, x, answer, scored) in enumerate(queries):
        node = x
        for _ in range(hops):
            node = after[node]
        assert node == answer
        assert {question[cut + i] for i in scored} == {index}
        assert {depth[cut + i] for i in scored} == {hops}
        assert hops in (task.test_hops if split == "test" else range(1, task.max_hops + 1))
    if task.reveal_answers:  # next-token form
        for i, target in enumerate(targets):
            assert target is None or names[i + 1] == target
    return len(after)


@st.composite
def tasks(draw: st.DrawFn) -> Depo:
    two = draw(st.booleans())
    mini_vocab = draw(st.integers(2, 12))
    max_nodes = draw(st.integers(2, min(20, mini_vocab + two * mini_vocab**2)))
    max_hops = draw(st.integers(1, 20))
    return Depo(
        max_nodes=max_nodes,
        min_nodes=draw(st.integers(2, max_nodes)),
        mini_vocab=mini_vocab,
        max_name_tokens=2 if two else 1,
        num_queries=draw(st.integers(1, 6)),
        max_hops=max_hops,
        test_hops=tuple(draw(st.sets(st.integers(1, max_hops), min_size=1, max_size=4))),
        reveal_answers=two or draw(st.booleans()),
    )


@settings(max_examples=60, deadline=None)
@given(task=tasks(), seed=st.integers(0, 2**32))
def test_text_and_targets(task: Depo, seed: int) -> None:
    for split in ("train", "test"):
        batch = task.batch(split, seed, 0, range(4))
        for row in range(4):
            nodes = check_example(task, split, [field[row].tolist() for field in batch])
            assert nodes == task.max_nodes if split == "test" else task.min_nodes <= nodes <= task.max_nodes


def test_paper_setting() -> None:
    task = Depo()
    assert task.sequence_length == 360
    assert [tuple(s) for s in task.sections()] == [("cycle", 300), ("queries", 60)]
    assert task.query_length == 6
    assert task.vocab_size == 1 + 50 + 50 + 1 + 16
    for split in ("train", "test"):
        batch = task.batch(split, 0, 0, range(20))
        nodes = [check_example(task, split, [field[row].tolist() for field in batch]) for row in range(20)]
        assert set(nodes) == {75} if split == "test" else 3 <= min(nodes) < 20


def test_small_setting_without_answers() -> None:
    task = Depo.model_validate({**NANO, "num_queries": 5, "reveal_answers": False})
    assert (task.cycle_length, task.query_length, task.sequence_length) == (16, 2, 26)
    batch = task.batch("train", 0, 0, range(3))
    assert batch.loss_mask[:, 16:].tolist() == [[False, True] * 5] * 3
    assert "|" not in task.token_names()


def test_ending_is_id_plus_mini_vocab() -> None:
    names = Depo().token_names()
    assert all(names[i + 50] == names[i].removesuffix("-") for i in range(1, 51))


class TestDistributions:
    def test_number_of_nodes(self) -> None:
        task = Depo(max_nodes=6, mini_vocab=6, max_name_tokens=1, max_hops=1, test_hops=(1,))
        tokens = task.batch("train", 0, 0, range(8000)).tokens[:, :12]
        got = Counter(((tokens != 0).sum(dim=1) // 2).tolist())
        weights = {n: 1 / (n + 6**0.5) for n in range(3, 7)}
        for n, weight in weights.items():
            assert got[n] / 8000 == pytest.approx(weight / sum(weights.values()), abs=0.02)

    def test_hops(self) -> None:
        task = Depo.model_validate({**NANO, "num_queries": 8})
        train = task.batch("train", 0, 0, range(1000))
        got = Counter(train.depth[train.loss_mask].tolist())
        assert all(got[k] / 8000 == pytest.approx(1 / 8, abs=0.015) for k in range(1, 9))
        test = task.batch("test", 0, 0, range(1000))
        for depth, mask in zip(test.depth, test.loss_mask, strict=True):
            assert Counter(depth[mask].tolist()) == {1: 2, 2: 2, 4: 2, 8: 2}
        first = Counter(test.depth[:, 17].tolist())  # with answers a query is k, x, answer: x of query 0
        assert all(first[k] / 1000 == pytest.approx(1 / 4, abs=0.05) for k in (1, 2, 4, 8))

    def test_all_cycles_edge_orders_and_questions_are_equally_likely(self) -> None:
        task = Depo(
            max_nodes=4, min_nodes=4, mini_vocab=4, max_name_tokens=1, num_queries=1, max_hops=1, test_hops=(1,)
        )
        tokens = task.batch("train", 0, 0, range(6000)).tokens.tolist()
        edges = Counter(tuple(row[:8]) for row in tokens)
        assert len(edges) == 6 * 24  # (4-1)! cycles, 4! orders
        assert max(edges.values()) < 3 * 6000 / 144
        asked = Counter(row[9] for row in tokens)
        assert all(count == pytest.approx(1500, rel=0.1) for count in asked.values())

    def test_names_are_drawn_length_first_and_anew_when_taken(self) -> None:
        task = Depo(max_nodes=6, min_nodes=6, mini_vocab=4, num_queries=1, max_hops=1, test_hops=(1,))
        printed = task.token_names()
        got: Counter[int] = Counter()
        for row in task.batch("train", 0, 0, range(2000)).tokens[:, : task.cycle_length].tolist():
            got[sum(len(word) == 1 for word in read_cycle(task, [printed[i] for i in row]))] += 1
        rng, want = random.Random(0), Counter[int]()
        for _ in range(4000):
            names: set[tuple[int, ...]] = set()
            while len(names) < 6:
                names.add(tuple(rng.randrange(4) for _ in range(rng.randint(1, 2))))
            want[sum(len(name) == 1 for name in names)] += 1
        exact = _short_names(6, 4)
        for short in range(7):
            assert got[short] / 2000 == pytest.approx(exact[short], abs=0.04)
            assert want[short] / 4000 == pytest.approx(exact[short], abs=0.03)

    def test_place_on_the_cycle_says_nothing_about_a_name(self) -> None:
        task = Depo(max_nodes=20, min_nodes=20, mini_vocab=4, num_queries=1, max_hops=1, test_hops=(1,))
        printed = task.token_names()
        neighbours = 0  # all 20 words are names; how often does one of the four short ones follow another?
        for row in task.batch("train", 0, 0, range(2000)).tokens[:, : task.cycle_length].tolist():
            edges = read_cycle(task, [printed[i] for i in row])
            neighbours += sum(len(x) == len(answer) == 1 for x, answer in edges.items())
        assert neighbours / 2000 == pytest.approx(4 * 3 / 19, abs=0.06)


class TestChance:
    def test_known_names(self) -> None:
        task = Depo.model_validate({**NANO, "num_queries": 2, "reveal_answers": False})
        assert task.chance() == {k: 1 / 7 for k in range(1, 8)} | {8: 1.0}
        # two queries of (1, 2, 4, 8) from a random start: the identity takes part in half of the starts
        assert task.chance_exact() == pytest.approx((2 * (1 / 7) ** 2 + 2 / 7) / 4)

    def test_unknown_names(self) -> None:
        task = Depo(max_nodes=8, mini_vocab=20, max_name_tokens=1, max_hops=2, test_hops=(1,))
        assert task.chance() == {1: 1 / 19, 2: 1 / 19}

    @pytest.mark.parametrize(("nodes", "mini_vocab"), [(6, 3), (4, 4), (12, 3), (2, 1)])
    def test_best_guess_by_simulation(self, nodes: int, mini_vocab: int) -> None:
        task = Depo(max_nodes=nodes, min_nodes=2, mini_vocab=mini_vocab, max_hops=1, test_hops=(1,))
        printed = task.token_names()
        lengths: Counter[tuple[int, int]] = Counter()
        for row in task.batch("test", 0, 0, range(3000)).tokens[:, : task.cycle_length].tolist():
            edges = read_cycle(task, [printed[i] for i in row])
            lengths.update((len(x), len(answer)) for x, answer in edges.items())
        # Words of one length are alike, so a guess of that length is right in this share of its cases.
        words = {1: mini_vocab, 2: mini_vocab**2}
        right = sum(max(lengths[a, b] / max(words[b] - (a == b), 1) for b in (1, 2)) for a in (1, 2))
        assert task.chance()[1] == pytest.approx(right / lengths.total(), abs=0.01)

    def test_paper_setting_lies_between_long_and_short_names(self) -> None:
        assert 1 / 2549 < Depo().chance()[1] < 1 / 49

    def test_exact_in_the_paper_setting(self) -> None:
        task = Depo()
        assert task.chance_exact() == pytest.approx(task.chance()[1] ** 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_nodes": 9}, "min_nodes 9 must not exceed max_nodes 8"),
        ({"mini_vocab": 7}, "max_nodes 8 nodes need distinct names, but mini_vocab 7 .* gives only 7"),
        ({"max_hops": 4}, "test_hops contains 8, it must stay within max_hops 4"),
        ({"test_hops": (1, 1)}, "names a number of hops twice"),
        ({"test_hops": ()}, "test_hops"),
        ({"test_hops": (0,)}, "test_hops"),
        ({"max_name_tokens": 2, "reveal_answers": False}, "reveal_answers = false needs max_name_tokens = 1"),
        ({"max_name_tokens": 3}, "max_name_tokens"),
        ({"min_nodes": 1}, "min_nodes"),
        ({"hops": 3}, "hops"),
    ],
)
def test_bad_parameters(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Depo.model_validate({**NANO, **change})
