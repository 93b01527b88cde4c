"""What a model answers about pages, against a plain loop that reads, writes greedily and compares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from reverie.model import HybridLM
from reverie.results.evaluate import evaluate
from reverie.results.reading import FedPage, ReadingScore, examine_pages
from reverie.sleep import Context, SleepConfig, consolidate, read
from reverie.tasks import Score
from reverie.tasks.reading import ReadingTask, TokenPage, TokenQuestion

L, W, VOCAB = 8, 2, 11
TinyModel = Callable[..., HybridLM]


class Pages(ReadingTask):
    """Pages of random tokens; the answers are what the model below says, or not."""

    name: str = "pages"
    window_tokens: int = 8
    num_windows: int = W
    made: list[TokenPage] = []  # noqa: RUF012

    def pages(self, split: Any, seed: int, step: int, examples: range, max_depth: int | None = None) -> list[TokenPage]:
        return [self.made[i] for i in examples]


@pytest.fixture
def model(tiny_model: TinyModel) -> HybridLM:
    return tiny_model("attn", "gdn", "attn", "gdn", value_embedding=True)


SLEEP = SleepConfig(window_size=L, num_sleep_passes=2)


def written(model: HybridLM, context: Context, prompt: tuple[int, ...], length: int) -> list[int]:
    """Greedily, token by token."""
    ids = list(prompt)
    for _ in range(length):
        logits, _ = read(model, torch.tensor([ids]), context, SLEEP)
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


def memory(model: HybridLM, page: TokenPage, context: Context | None = None) -> Context:
    return consolidate(model, torch.tensor([page.tokens]), context or Context.empty(model), SLEEP)


def some_pages(model: HybridLM, count: int) -> list[TokenPage]:
    """Questions whose answers are what the model writes: from memory, from none, after the next page, or anything."""
    random = torch.Generator().manual_seed(1)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(VOCAB, (n,), generator=random).tolist())

    texts = [TokenPage(draw(L * W), ()) for _ in range(count)]
    pages = []
    for i, page in enumerate(texts):
        known = memory(model, page)
        after = memory(model, texts[(i + 1) % count], known)
        questions = []
        for j, context in enumerate((known, Context.empty(model), after, None, known, known)):
            prompt, length = draw(2 + j % 3), 2 + j % 2
            answer = draw(length) if context is None else tuple(written(model, context, prompt, length))
            if j == 4:  # right, but it does not end there
                answer = (*answer[:-1], (answer[-1] + 1) % VOCAB)
            own = 1 if j == 5 else None
            source = None if j == 3 else (j * 2, j * 2 + 1)
            questions.append(TokenQuestion(prompt, answer, "ab"[j % 2], f"fact {i} {j}", source, own, ends=j != 2))
        long = TokenQuestion(draw(L), draw(2), "too long", "", None, None)
        pages.append(page._replace(questions=(*questions, long), facts=frozenset({f"fact {i} 0", f"fact {i - 1} 0"})))
    return pages


def counted(model: HybridLM, pages: list[TokenPage], task: ReadingTask) -> tuple[dict[str, Counter[str]], float]:
    """Counts by kind, and the loss of all words; questions are asked after the next page unless that says the same."""
    kinds: dict[str, Counter[str]] = {}
    loss = 0.0
    for i, page in enumerate(pages):
        known, other = memory(model, page), pages[(i + 1) % len(pages)]
        after = memory(model, other, known)
        for q in (q for q in page.questions if q.kind != "too long"):
            words, kind = list(q.words), kinds.setdefault(q.kind, Counter())
            said = written(model, known, q.prompt, len(q.answer))
            kind["questions"] += 1
            kind["right"] += said[: len(words)] == words
            kind["begun"] += said[0] == words[0]
            kind["ended"] += said == list(q.answer)
            kind["right_when_empty"] += written(model, Context.empty(model), q.prompt, len(words)) == words
            if q.depth is None and q.about not in other.facts:
                kind["asked_later"] += 1
                kind["right_later"] += written(model, after, q.prompt, len(words)) == words
            ids = torch.tensor([[*q.prompt, *words[:-1]]])
            logits = read(model, ids, known, SLEEP)[0][0, len(q.prompt) - 1 :]
            loss += float(F.cross_entropy(logits, torch.tensor(words), reduction="sum").detach())
    return kinds, loss


@pytest.mark.parametrize("count", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_counts_are_those_of_a_plain_loop(model: HybridLM, count: int) -> None:
    pages, task = some_pages(model, count), Pages()
    later = [*pages[1:], pages[0]]
    score, passes = examine_pages(model, task, SLEEP, *([FedPage.of(page) for page in some] for some in (pages, later)))
    wanted, loss = counted(model, pages, task)
    assert {name: Counter(kind._asdict()) for name, kind in score.by_kind.items()} == wanted
    assert score.total.loss_sum == pytest.approx(loss, rel=1e-5)
    total = sum(wanted.values(), Counter[str]())
    assert 0 < total["ended"] < total["right"] < total["begun"] < total["questions"] == count * 6
    assert total["right_when_empty"] not in (0, total["right"])
    assert 0 < total["asked_later"] < total["questions"]
    summary = score.summary()
    assert summary["question_accuracy"] == total["right"] / total["questions"]
    assert summary["accuracy_when_empty"] == total["right_when_empty"] / total["questions"]
    assert summary["accuracy_later"] == total["right_later"] / total["asked_later"]
    assert summary["by_kind"]["a"]["right"] == pytest.approx(wanted["a"]["right"] / wanted["a"]["questions"], abs=1e-5)
    by_depth = {d: x.questions for d, x in score.by_depth.items()}
    depths = Counter(task.depth_of(q) for page in pages for q in page.questions if q.kind != "too long")
    assert by_depth == depths
    assert score.examples == count
    assert passes == count * W * SLEEP.num_sleep_passes
    assert evaluate(model, Pages(made=pages), SLEEP, count).mean_passes == SLEEP.num_sleep_passes


def test_embeddings_say_the_same_as_tokens(model: HybridLM) -> None:
    pages = some_pages(model, 3)
    fed = [FedPage.of(page) for page in pages]
    embedded = [
        FedPage(one.page, model.embed(one.text).detach(), tuple(model.embed(x).detach() for x in one.asked))
        for one in fed
    ]
    assert examine_pages(model, Pages(), SLEEP, fed) == examine_pages(model, Pages(), SLEEP, embedded)


def test_processes_share_the_pages_out(model: HybridLM) -> None:
    """And read the same page later, whoever has which."""
    task = Pages(made=some_pages(model, 5))
    whole = evaluate(model, task, SLEEP, 5, generate=True).score
    parts = [evaluate(model, task, SLEEP, 5, generate=True, share=(i, 2)).score for i in range(2)]
    assert isinstance(whole, ReadingScore)
    both = sum(parts, Score())
    assert isinstance(both, ReadingScore)
    assert (both.by_kind, both.examples, both.later) == (whole.by_kind, 5, True)
    assert both.loss == pytest.approx(whole.loss)
    one = evaluate(model, task, SLEEP, 1, generate=True).score
    assert "accuracy_later" not in one.summary()  # there is no other page
    assert "accuracy_later" not in evaluate(model, task, SLEEP, 5).score.summary()


def test_pages_without_a_question_count_for_nothing(model: HybridLM) -> None:
    (page,) = some_pages(model, 1)
    score, _ = examine_pages(model, Pages(), SLEEP, [FedPage.of(page._replace(questions=page.questions[-1:]))])
    assert (score.examples, score.total.questions) == (0, 0)
