"""What a model remembers of notes that it read and can no longer see, beside controls.

    python benchmarks/remembered_notes.py runs/notes/smollm2 … --out results/notes/remembered.json

takes runs of `reverie adapt` on notes, one for each seed. Held-out pages are slept over, and each question is asked by
itself. Beside it answers an empty memory; and the untouched model with the whole page in its context, or with the three
sentences of it that BM25 finds for the question. Then: more windows of facts, more other text between (Python's help,
of which training reads other windows, and a story written by hand), other numbers of passes, facts that the page has
changed, and two pages written by hand. Last, the story itself: what each of its windows costs after those before,
which were slept over, are unknown, or stand in the context. Leaves a card and a figure.

An answer is right if its words stand in the first 24 tokens that are written, since the untouched model answers in
sentences; and exact if it is nothing but these words, and ends.
"""

import argparse
import math
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import publish
import torch
from remembered_card import CONTEXT, EMPTY, MEMORY, SEARCH, figure, table

from reverie.errors import UserError
from reverie.hf.add import install
from reverie.hf.bases import load_base, load_tokenizer
from reverie.hf.causal_lm import SleepingCausalLM
from reverie.hf.load import load
from reverie.hf.reading import AWAKE
from reverie.memory.memory import sleep_over
from reverie.model import SleepingModel, select_rows
from reverie.pretrained.speaker import Speaker, speaker_of
from reverie.recipe import Recipe
from reverie.results.checkpoint import FILE_NAME, load_checkpoint
from reverie.sleep import Context, SleepConfig, consolidate, wake
from reverie.sleep.generate import write
from reverie.talk.shipped import load_example_text
from reverie.tasks.notes import Notes
from reverie.tasks.plain_text import plain_windows
from reverie.tasks.reading import TokenPage, TokenQuestion

WRITTEN = 24  # tokens of an answer
SENTENCES = 3  # that BM25 gives
PASSES = 1, 2, 4, 8
WINDOWS = 1, 2, 4, 8
BETWEEN = 0, 1, 4, 8, 16  # windows of other text
HELD_OUT = 24  # windows of plain text that training keeps back
BATCH = 32
BY_HAND = Path(__file__).parent / "by_hand"
PAGES_BY_HAND = "diary", "flat"


class Side(NamedTuple):
    """A model that is asked, how it sleeps, and its tokenizer."""

    model: SleepingModel
    config: SleepConfig
    speaker: Speaker
    tokenizer: Any

    def text(self, ids: Sequence[int], **how: Any) -> str:
        return str(self.tokenizer.decode(list(ids), **how))


class Asked(NamedTuple):
    """A question, the prompt that it is asked with, and the memory that it is asked of."""

    question: TokenQuestion
    prompt: tuple[int, ...]
    row: int


def main() -> None:
    arguments = _arguments()
    origin = publish.begin()
    found = [_of_run(run, arguments.pages) for run in arguments.runs]
    recipes = [load_checkpoint(run / FILE_NAME).recipe for run in arguments.runs]
    card = {
        "kind": "remembered_notes",
        "name": f"{recipes[0].name}, N = {recipes[0].sleep.num_sleep_passes}",
        "seeds": [recipe.train.seed for recipe in recipes],
        "recipe": recipes[0].model_dump(mode="json"),
        "pages": arguments.pages,
        **origin(),
        "scores": {name: [one[name] for one in found] for name in found[0]},
    }
    publish.publish(arguments, card, table, lambda card: card["scores"], figure)


def _arguments() -> argparse.Namespace:
    parser = publish.options(__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folders of reverie adapt, one a seed")
    parser.add_argument("--pages", type=int, default=24, help="of each kind")
    return parser.parse_args()


@torch.no_grad()
def _of_run(run: Path, pages: int) -> dict[str, Any]:
    recipe = load_checkpoint(run / FILE_NAME).recipe
    task, base = recipe.task, str(getattr(recipe.model, "pretrained", ""))
    if not isinstance(task, Notes):
        raise UserError(f"{run} is a run of {task.name}: give runs of reverie adapt on notes")
    model, untouched = _side(load(run / "adapter"), recipe, task), load_base(base).eval()
    install(untouched)
    plain = _side(untouched, recipe, task)._replace(config=AWAKE)
    read = task.pages("test", 0, 0, range(pages))
    found: dict[str, Any] = {"sides": _beside(model, plain, read, _slept(model, read)), "windows": {}, "between": {}}
    found |= {"passes": {}, "between_story": {}}
    for name in PAGES_BY_HAND:
        by_hand = page_by_hand(model.speaker, name)
        memory = sleep_over(model.model, [torch.tensor(by_hand.tokens)], model.config)
        for side, by_kind in _beside(model, plain, [by_hand], memory.context).items():
            found["sides"][side] |= by_kind
    for windows in WINDOWS:
        longer = _pages(task, max(pages // windows, min(pages, 3)), num_windows=windows)
        found["windows"][str(windows)] = _all(model, longer, _slept(model, longer))
    story = story_windows(model.speaker, task.window_tokens)
    others = {"between": plain_windows("", task.tokenizer, task.window_tokens)[-HELD_OUT:], "between_story": story}
    for name, other in others.items():
        for windows in BETWEEN:
            found[name][str(windows * task.window_tokens)] = _all(model, read, _slept(model, read, other[:windows]))
    found["story"] = _nats(model, plain, story)
    for passes in PASSES:
        changed = model._replace(config=model.config.model_copy(update={"num_sleep_passes": passes}))
        found["passes"][str(passes)] = _all(changed, read, _slept(changed, read))
    told_anew = _pages(task, 2 * pages, facts_changed=1.0, unknown=0.0)
    of_changed = [one._replace(questions=tuple(q for q in one.questions if q.kind == "changed")) for one in told_anew]
    found["changed"] = _all(model, of_changed, _slept(model, told_anew))
    return found


def _beside(model: Side, plain: Side, pages: Sequence[TokenPage], memories: Context) -> dict[str, Any]:
    """Shares by side and kind of question."""
    return {
        MEMORY: _by_kind(model, pages, memories),
        EMPTY: _by_kind(model, pages, Context.empty(model.model)),
        CONTEXT: _by_kind(plain, pages, None, lambda page, question: page),
        SEARCH: _by_kind(plain, pages, None, best_sentences),
    }


def page_by_hand(speaker: Speaker, name: str) -> TokenPage:
    """A page that no generator wrote, whose questions are asked in the model's chat template, as `reverie ask` does."""
    page, questions = load_example_text(BY_HAND / name)
    asked = [
        TokenQuestion(
            tuple(speaker.encode(speaker.turn(question))[0]),
            (*speaker.encode(f" {answer}")[0], speaker.end_id),
            *(f"by hand: {name}", question, None, None),
        )
        for question, answer in questions
    ]
    return TokenPage(tuple(speaker.encode(page)[0]), tuple(asked))


def story_windows(speaker: Speaker, window_tokens: int) -> list[list[int]]:
    """Whole windows of a story, in their order."""
    text = (BY_HAND / "story.txt").read_text(encoding="utf-8")
    ids, _ = speaker.encode(" ".join(text.split()))
    return [ids[i : i + window_tokens] for i in range(0, len(ids) - window_tokens + 1, window_tokens)]


def _nats(side: Side, untouched: Side, windows: Sequence[Sequence[int]]) -> dict[str, list[float]]:
    """Nats a token of each window but the first, without its first token."""
    found: dict[str, list[float]] = {MEMORY: [], EMPTY: [], "untouched, empty": [], "untouched, all in context": []}
    context = empty = Context.empty(side.model)
    nothing = Context.empty(untouched.model)
    for i, window in enumerate(windows):
        tokens = torch.tensor([window])
        if i:
            found[MEMORY].append(_loss(side, tokens, context))
            found[EMPTY].append(_loss(side, tokens, empty))
            found["untouched, empty"].append(_loss(untouched, tokens, nothing))
            all_before = torch.tensor([[token for one in windows[: i + 1] for token in one]])
            found["untouched, all in context"].append(_loss(untouched, all_before, nothing, tokens.shape[1]))
        context = consolidate(side.model, tokens, context, side.config)
    return found


def _loss(side: Side, tokens: torch.Tensor, context: Context, newest: int | None = None) -> float:
    """Nats a token awake, of the `newest` tokens, or of all, but the first of them."""
    config = side.config.model_copy(update={"window_size": tokens.shape[1]})
    h, _ = wake(side.model, tokens, context, config)
    newest = (newest or tokens.shape[1]) - 1
    logits = side.model.head(h[:, -newest - 1 : -1])
    return torch.nn.functional.cross_entropy(logits[0].float(), tokens[0, -newest:]).item()


def _pages(task: Notes, count: int, **changes: Any) -> list[TokenPage]:
    return Notes.model_validate(task.model_dump() | changes).pages("test", 0, 0, range(count))


def _side(lm: Any, recipe: Recipe, task: Notes) -> Side:
    sleeping = cast(SleepingCausalLM, lm).sleeping
    return Side(sleeping, recipe.sleep, speaker_of(task.tokenizer), load_tokenizer(task.tokenizer))


def _slept(side: Side, pages: Sequence[TokenPage], after: Iterable[Sequence[int]] = ()) -> Context:
    """Memories of pages of equal length, and of other windows that were read after each."""
    context = Context.empty(side.model)
    texts = [torch.tensor([page.tokens for page in pages])]
    texts += [torch.tensor([window]).expand(len(pages), -1) for window in after]
    for tokens in texts:
        context = consolidate(side.model, tokens, context, side.config)
    return context


def _all(side: Side, pages: Sequence[TokenPage], memories: Context) -> dict[str, float]:
    """Shares over all questions that the page answers."""
    by_kind = _by_kind(side, pages, memories)
    known = [one for kind, one in by_kind.items() if not kind.startswith("unknown")]
    count = sum(one["questions"] for one in known)
    return {"questions": count} | {
        key: sum(one[key] * one["questions"] for one in known) / count for key in ("right", "exact")
    }


def _by_kind(
    side: Side, pages: Sequence[TokenPage], memories: Context | None, shown: Callable[[str, str], str] | None = None
) -> dict[str, dict[str, float]]:
    """Shares of right and exact answers by kind of question.

    Args:
        memories: a row for each page, or one of nothing; None: none is had.
        shown: what stands in the context before a question, of the page and the question as texts.
    """
    asked = list[Asked]()
    for row, page in enumerate(pages):
        text = side.text(page.tokens)
        for question in page.questions:
            prompt = question.prompt if shown is None else _with_text(side, text, question, shown)
            asked.append(Asked(question, prompt, row))
    several = memories is not None and any(x is not None for x in memories.state.fast_weights)
    right, exact, count = Counter[str](), Counter[str](), Counter[str]()
    for done, part in enumerate(batches := list(_batches(asked))):
        print(f"\r{len(pages)} pages: {done + 1}/{len(batches)} batches of questions ", end="", file=sys.stderr)
        context = Context.empty(side.model) if memories is None or not several else memories
        if several:
            context = select_rows(context, torch.tensor([one.row for one in part]))
        prompts = torch.tensor([one.prompt for one in part])
        written, _ = write(side.model, prompts, context, side.config, WRITTEN, end_ids=[side.speaker.end_id])
        for one, ids in zip(part, written.tolist(), strict=True):
            kind, wanted = one.question.kind, one.question.answer
            count[kind] += 1
            said = side.text(_up_to_end(ids, side.speaker.end_id), skip_special_tokens=True)
            right[kind] += says(said, side.text(one.question.words))
            exact[kind] += tuple(ids[: len(wanted)]) == wanted
    return {
        kind: {"questions": n, "right": right[kind] / n, "exact": exact[kind] / n} for kind, n in sorted(count.items())
    }


def _up_to_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


def says(written: str, words: str) -> bool:
    """Whether these words stand in what was written, as words."""
    return re.search(rf"(?<!\w){re.escape(words.strip().casefold())}(?!\w)", written.casefold()) is not None


def _batches(asked: list[Asked]) -> Iterable[list[Asked]]:
    """Questions whose prompts are of equal length, so that nothing is padded."""
    by_length: dict[int, list[Asked]] = {}
    for one in asked:
        by_length.setdefault(len(one.prompt), []).append(one)
    for some in by_length.values():
        yield from (some[i : i + BATCH] for i in range(0, len(some), BATCH))


# The untouched model


def _with_text(side: Side, page: str, question: TokenQuestion, shown: Callable[[str, str], str]) -> tuple[int, ...]:
    """A prompt with text before the question, in the user's turn where it is asked in a chat."""
    start, _, stop = side.speaker.turn("\0").partition("\0")
    prompt = side.text(question.prompt)
    if start and prompt.startswith(start):
        asked = prompt.removeprefix(start).removesuffix(stop)
        return tuple(side.speaker.encode(side.speaker.turn(f"{shown(page, asked)}\n{asked}"))[0])
    return tuple(side.speaker.encode(f"{shown(page, prompt)}{prompt}")[0])


def best_sentences(page: str, question: str) -> str:
    """The sentences of a page that suit a question best by BM25 (Okapi, k1 = 1.5, b = 0.75), in their order."""
    sentences = [s for s in re.split(r"(?<=[.!?])\s+|\n", page) if s.strip()]
    documents = [Counter(_words(s)) for s in sentences]
    mean = statistics.fmean(document.total() for document in documents) or 1.0

    def score(document: Counter[str]) -> float:
        total = 0.0
        for word in set(_words(question)):
            holding = sum(word in other for other in documents)
            rarity = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            often = document[word]
            total += rarity * often * 2.5 / (often + 1.5 * (0.25 + 0.75 * document.total() / mean))
        return total

    best = sorted(range(len(sentences)), key=lambda i: -score(documents[i]))[:SENTENCES]
    return " ".join(sentences[i] for i in sorted(best))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


if __name__ == "__main__":
    publish.run(main)
