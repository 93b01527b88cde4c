"""The interface of tasks: `Task` makes batches that depend on a seed alone, `score` scores answers to them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from operator import add
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from reverie.tasks.language import Language, TokenNames

Split = Literal["train", "test"]

STREAMS: dict[Split, int] = {"train": 0, "test": 1}  # the stream of random words that a split draws from


class Batch(NamedTuple):
    """B examples of T tokens; all fields are [B, T]. Positions are scored where `loss_mask` is true."""

    tokens: Tensor  # int64: the input
    targets: Tensor  # int64: the right output at this position; 0 where unscored
    loss_mask: Tensor  # bool: the scored positions
    depth: Tensor  # int64: hops k or rollout steps t of the question answered here; 0 where unscored
    question: Tensor  # int64: index of that question within its example; -1 where unscored


class Section(NamedTuple):
    """A named part of the sequence, for printing examples."""

    name: str
    length: int


class Task(Protocol):
    """A synthetic task with unlimited data; an example is a function of (split, seed, step, index in the step)."""

    depth_name: ClassVar[str]
    """What depth counts, in a few words, as plots and tables say it."""

    @property
    def name(self) -> str:
        """By which a recipe asks for it: its own, or "module:Class"."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        ...

    @property
    def sequence_length(self) -> int:
        """T, the same for every example."""
        ...

    @property
    def answer_is_last(self) -> bool:
        """True if an example is a prompt and one answer, which begins at the same position in all examples."""
        ...

    def batch(self, split: Split, seed: int, step: int, examples: range, max_depth: int | None = None) -> Batch:
        """Make the examples with these indices of one step's batch, in this order.

        With `max_depth` (a curriculum) training asks no deeper questions than that; the test split ignores it.
        """
        ...

    def depths(self) -> range:
        """Depths of the questions in training, shallowest first."""
        ...

    def chance(self) -> dict[int, float]:
        """Accuracy per question, by depth, of the best guesser that has not read the context."""
        ...

    def chance_exact(self) -> float:
        """Share of examples of which that guesser answers all questions rightly."""
        ...

    def token_names(self) -> list[str]:
        """Printable name of each token id; `vocab_size` entries."""
        ...

    def sections(self) -> list[Section]:
        """Parts of the sequence, first to last; their lengths sum to `sequence_length`."""
        ...

    def language(self) -> Language:
        """The language of models that were trained on it.

        Raises:
            UserError: it has none, or its tokenizer is not installed.
        """
        ...


class TaskSettings(BaseModel):
    """Base of tasks, which are their own settings: what follows from their other members."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    depth_name: ClassVar[str] = "depth"
    data_recipe: ClassVar[str | None] = None  # whose settings `reverie data` takes if it is given none

    if TYPE_CHECKING:
        name: Any = ""  # a field of those that are registered; else "module:Class", as a recipe asks for it

    @abstractmethod
    def sections(self) -> list[Section]: ...

    @property
    def sequence_length(self) -> int:
        return sum(section.length for section in self.sections())

    @property
    def answer_is_last(self) -> bool:
        return False

    def language(self) -> Language:
        """Token names with spaces between; an answer has as many tokens as the longest of a held-out example."""
        task = cast(Task, self)
        question = task.batch("test", 0, 0, range(1)).question[0]
        return TokenNames(task.token_names(), longest=int(question[question >= 0].bincount().max()))


@runtime_checkable
class DeviceTask(Protocol):
    """A task that can make its training data on any device, so that a fast GPU need not wait for the CPU."""

    def batches_on(
        self, device: torch.device, seed: int, steps: range, examples: range, max_depths: Sequence[int | None]
    ) -> Batch:
        """Make the training batches of several steps at once, as fields [steps, B, T] on `device`.

        They equal `Task.batch("train", …)` of each step, with its entry of `max_depths`, bit for bit. The host only
        launches kernels, about as many for hundreds of steps as for one, and never waits for the device.
        """
        ...


@runtime_checkable
class TextTask(Protocol):
    """A task that can show what it is about as text."""

    def held_out_text(self, index: int) -> tuple[str, tuple[tuple[str, str], ...]]:
        """The text of a held-out example, and what is asked about it: questions with the right answers.

        Raises:
            UserError: these settings have none.
        """
        ...


def draw(split: Split, seed: int, step: int, examples: range, words: int) -> np.ndarray:
    """Draw 64-bit words, uint64 [len(examples), words]; a row depends on (split, seed, step, example) alone.

    Philox is a counter-based generator: the key is (seed, step, split), and every example has a fixed range of
    counters. So an example depends neither on the order or division of a batch nor on the number of processes.

    Raises:
        ValueError: seed, step or examples are out of range.
    """
    check_draw(seed, step, examples)
    if not examples:
        return np.empty((0, words), dtype=np.uint64)
    first, last = min(examples), max(examples)
    blocks = -(-words // 4)  # one step of the counter yields four words
    key = np.array([seed, step * len(STREAMS) + STREAMS[split]], dtype=np.uint64)
    source = np.random.Philox(key=key, counter=first * blocks)
    rows = source.random_raw((last - first + 1) * blocks * 4).reshape(-1, blocks * 4)[:, :words]
    return rows if examples.step == 1 else rows[np.asarray(examples) - first]


def check_draw(seed: int, step: int, examples: range) -> None:
    """Check the arguments of `draw`. Raises ValueError if one is out of range."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}, it must be in 0..2**64-1")
    if not 0 <= step < 2**62:
        raise ValueError(f"step is {step}, it must be in 0..2**62-1")
    if examples and min(examples) < 0:
        raise ValueError(f"examples starts at {min(examples)}, indices of examples must not be negative")


def uniform(words: np.ndarray) -> np.ndarray:
    """Uniform float64 in [0, 1) from random 64-bit words, of the same shape."""
    return (words >> np.uint64(11)) * 2.0**-53


def as_batch(tokens: np.ndarray, targets: np.ndarray, depth: np.ndarray, question: np.ndarray) -> Batch:
    """A `Batch` of integer arrays [B, T]; positions are scored where `question` is not -1."""
    tensors = [torch.from_numpy(np.ascontiguousarray(a, dtype=np.int64)) for a in (tokens, targets, depth, question)]
    return Batch(tensors[0], tensors[1], tensors[3] >= 0, tensors[2], tensors[3])


@dataclass(frozen=True)
class DepthScore:
    """Counts of the questions of one depth and their tokens; `loss_sum` is over scored tokens."""

    questions: int = 0
    questions_correct: int = 0
    tokens: int = 0
    loss_sum: float = 0.0

    def __add__(self, other: DepthScore) -> DepthScore:
        return DepthScore(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True)
class Score:
    """Counts of right answers, and losses; scores of several batches add up: `a + b`, `sum(scores, Score())`."""

    examples: int = 0
    examples_correct: int = 0
    tokens_correct: int = 0
    by_depth: dict[int, DepthScore] = field(default_factory=dict)

    def __add__(self, other: Score) -> Score:
        depths = sorted(self.by_depth.keys() | other.by_depth.keys())
        none = DepthScore()
        return Score(
            self.examples + other.examples,
            self.examples_correct + other.examples_correct,
            self.tokens_correct + other.tokens_correct,
            {d: self.by_depth.get(d, none) + other.by_depth.get(d, none) for d in depths},
        )

    @property
    def total(self) -> DepthScore:
        """The sum over depths."""
        return sum(self.by_depth.values(), DepthScore())

    @property
    def token_accuracy(self) -> float:
        """Share of scored tokens that are right (per bit, in Rule 110)."""
        return _share(self.tokens_correct, self.total.tokens)

    @property
    def question_accuracy(self) -> float:
        """Share of questions all of whose tokens are right."""
        return _share(self.total.questions_correct, self.total.questions)

    @property
    def exact_accuracy(self) -> float:
        """Share of examples all of whose questions are right."""
        return _share(self.examples_correct, self.examples)

    @property
    def loss(self) -> float:
        """Mean loss over scored tokens."""
        return _share(self.total.loss_sum, self.total.tokens)

    def summary(self) -> dict[str, Any]:
        """Means as a JSON object; depths are strings. Raises ValueError if no question was scored."""
        return {
            "loss": self.loss,
            "token_accuracy": self.token_accuracy,
            "question_accuracy": self.question_accuracy,
            "exact_accuracy": self.exact_accuracy,
            "examples": self.examples,
            "by_depth": {
                str(depth): {
                    "accuracy": _share(part.questions_correct, part.questions),
                    "loss": _share(part.loss_sum, part.tokens),
                    "questions": part.questions,
                }
                for depth, part in self.by_depth.items()
            },
        }


def _share(part: float, whole: int) -> float:
    if whole == 0:
        raise ValueError("the score holds no question, so it has no mean; score a batch with scored positions first")
    return part / whole


def score(batch: Batch, correct: Tensor, loss: Tensor) -> Score:
    """Score a batch; only scored positions of `correct` [B, T] bool and `loss` [B, T] float are read.

    A question is right if all its tokens are, an example if all its questions are. Examples without a question do not
    count.

    Raises:
        ValueError: the shapes differ from those of the batch.
    """
    if correct.shape != batch.tokens.shape or loss.shape != batch.tokens.shape:
        shapes = f"{list(correct.shape)} and {list(loss.shape)}"
        raise ValueError(f"correct and loss have shapes {shapes}, both must be {list(batch.tokens.shape)} like tokens")
    mask = batch.loss_mask
    if not mask.any():
        return Score()
    right, depth = correct[mask].bool().cpu(), batch.depth[mask].cpu()
    losses = loss[mask].detach().cpu().double()
    row, question = mask.nonzero()[:, 0].cpu(), batch.question[mask].cpu()

    # A question is a pair (row, index); `at` numbers the pairs that occur.
    pairs, at = torch.unique(row * (question.max() + 1) + question, return_inverse=True)
    question_right = torch.ones(len(pairs), dtype=torch.bool).index_put_((at[~right],), torch.tensor(False))
    question_depth = torch.zeros(len(pairs), dtype=torch.int64).index_put_((at,), depth)
    by_depth = {}
    for d in depth.unique().tolist():
        asked = question_depth == d
        by_depth[d] = DepthScore(
            questions=int(asked.sum()),
            questions_correct=int(question_right[asked].sum()),
            tokens=int((depth == d).sum()),
            loss_sum=float(losses[depth == d].sum()),
        )
    asked_rows = row.unique()
    return Score(
        examples=len(asked_rows),
        examples_correct=len(asked_rows) - len(row[~right].unique()),
        tokens_correct=int(right.sum()),
        by_depth=by_depth,
    )
