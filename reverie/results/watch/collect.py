"""Numbers on a text that is read: changes of the fast weights by window and pass, and answers after each window."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from reverie.errors import UserError
from reverie.memory.file import file_reader, read_memory
from reverie.memory.history import History, Window
from reverie.memory.memory import REMEMBERS, sleep_over
from reverie.model import LanguageModel, model_remembers, numbers
from reverie.results.card import Part, depth_name
from reverie.results.run import load_run, trained_model
from reverie.sleep import Context, SleepConfig, rollout
from reverie.sleep.labels import labelled_windows
from reverie.tasks import Batch, Score, score

MOST_EXAMPLES = 2**20
BATCH_TOKENS = 2**16  # texts are asked about in batches of that many


class Line(Part):
    """Questions of one depth, or those that come at the same place."""

    name: str
    questions: int
    chance: float
    accuracy: list[float]  # after 0, 1, … windows slept over


class Answers(Part):
    """All questions, by what sets them apart."""

    by: str  # the task's name for depth, or "question"
    lines: list[Line]


class Watch(Part):
    """A text that was read into a memory, and what was asked meanwhile."""

    name: str
    kind: Literal["run", "memory"]
    config: SleepConfig
    windows: list[Window]  # slept over
    num_windows: int  # of the whole text, of which a memory remembers the newest alone
    seconds: float  # for all of them
    texts: int = 0  # that were asked about
    accuracy: list[float] = Field(default_factory=list)  # of all questions, after 0, 1, … windows
    answers: list[Answers] = Field(default_factory=list)
    remembers: bool = True  # False: no answer can depend on this memory, since the model was never trained

    @property
    def fast_weight_blocks(self) -> list[int]:
        """Indices of the blocks whose fast weights changed."""
        return sorted({block for window in self.windows for row in window.change.values() for block in row})

    @property
    def num_passes(self) -> int:
        """The most passes that a window took."""
        return max((n for window in self.windows for n in window.change), default=0)

    @property
    def title(self) -> str:
        """The name of the text, and how it was read."""
        config, W = self.config, len(self.windows)
        passes = "1 pass" if config.num_sleep_passes == 1 else f"{config.num_sleep_passes} passes"
        if config.tolerance is not None:
            passes = f"up to {passes}, tolerance {config.tolerance:g}"
        newest = "" if self.num_windows == W else f"the newest {W:,} of "
        windows = f"{newest}{self.num_windows:,} {'window' if self.num_windows == 1 else 'windows'}"
        return f"{self.name}: {windows} of {config.window_size:,} tokens slept over, {passes}"


def watch_memory(path: Path) -> Watch:
    """The history of the memory in a file; raises UserError if it is no memory, or has no history."""
    content = read_memory(file_reader(path), str(path))
    history = content.recorded(str(path))
    if history is None or not history.windows:
        raise UserError(
            f"{path} has no history to watch: reverie read notes one, and in Python "
            f"sleep_over(model, tokens, config, history=History())"
        )
    notes, config = content.info.notes, content.info.config
    name, remembers = notes.get("source", path.name), notes.get(REMEMBERS) != "no"
    return Watch(name=name, kind="memory", config=config, remembers=remembers, **_recorded(history))


def _recorded(history: History) -> dict[str, Any]:
    """The fields of a `Watch` that a history holds."""
    return {"windows": history.windows, "num_windows": history.num_windows, "seconds": history.seconds}


@torch.no_grad()
def watch_run(
    run: Path,
    *,
    example: int = 0,
    examples: int = 64,
    num_sleep_passes: int | None = None,
    tolerance: float | None = None,
    device: torch.device | str = "cpu",
) -> Watch:
    """Numbers on the model of a run that reads a held-out text of its task and is asked after every window.

    Args:
        example: the text whose windows are watched.
        examples: texts from there on whose questions are asked.
        num_sleep_passes, tolerance: as trained if absent.

    Raises:
        UserError: there is no run, it never sleeps, or a number is out of range.
    """
    checkpoint = load_run(run)
    recipe = checkpoint.recipe
    if not recipe.model.has_fast_weights:
        raise UserError(f"{recipe.name} is a transformer without fast weights: it has no memory to watch")
    config = recipe.sleep.with_(num_sleep_passes=num_sleep_passes, tolerance=tolerance)
    if not 0 <= example < MOST_EXAMPLES or not 1 <= examples <= MOST_EXAMPLES:
        raise UserError(
            f"texts have numbers from 0 to {MOST_EXAMPLES - 1}, and at least one is asked about; got text {example}, "
            f"and {examples} to ask about"
        )
    batch = recipe.task.batch("test", seed=0, step=0, examples=range(example, example + examples))
    asked = labelled_windows(batch.loss_mask, config.window_size).any(dim=0).tolist()
    text = asked.index(True) * config.window_size  # tokens before the first window with a question
    if text == 0:
        raise UserError(f"{recipe.name} never sleeps: it has questions in the first window of {config.window_size}")
    model, history = trained_model(checkpoint, device), History()
    sleep_over(model, batch.tokens[:1, :text], config, history=history)
    parts = zip(*(x.to(device).split(max(BATCH_TOKENS // x.shape[1], 1)) for x in batch), strict=True)
    answered = zip(*(_ask(model, Batch(*part), text, config) for part in parts), strict=True)
    right = [torch.cat(after) for after in answered]
    return Watch(
        name=f"{recipe.name}, text {example}",
        kind="run",
        config=config,
        **_recorded(history),
        texts=examples,
        accuracy=[score.question_accuracy for score in _scores(batch, right)],
        answers=_answers(batch, right, depth_name(recipe.model_dump()), recipe.task.chance()),
        remembers=model_remembers(model),
    )


def _ask(model: LanguageModel, batch: Batch, text: int, config: SleepConfig) -> list[Tensor]:
    """Which labels are right after 0, 1, … windows of the first `text` tokens: each [B, T], on the CPU."""
    right: list[Tensor] = []
    rest = Batch(*(x[:, text:] for x in batch))

    def ask(windows_done: int, windows_total: int, tokens_done: int, context: Context) -> None:
        logits, _ = rollout(model, rest.tokens, rest.loss_mask, config, context=context)
        correct = torch.zeros_like(batch.loss_mask)
        correct[:, text:][rest.loss_mask] = numbers(logits).argmax(-1) == rest.targets[rest.loss_mask]
        right.append(correct.cpu())

    sleep_over(model, batch.tokens[:, :text], config, report=ask)
    return right


def _answers(batch: Batch, right: list[Tensor], depths: str, chance: Mapping[int, float]) -> list[Answers]:
    """Answers by depth, and where there are as many questions as windows, as in Rule 110, by question too."""
    answers = [Answers(by=depths, lines=_lines(_scores(batch, right), chance))]
    if len(right) > 2 and (batch.question.amax(dim=1) + 1 == len(right) - 1).all():
        by_place = _scores(batch._replace(depth=batch.question), right)
        answers.append(Answers(by="question", lines=_lines(by_place, _chance_by_question(batch, chance))))
    return answers


def _scores(batch: Batch, right: Iterable[Tensor]) -> list[Score]:
    nothing = torch.zeros(batch.tokens.shape)
    return [score(batch, correct, nothing) for correct in right]


def _lines(scores: Sequence[Score], chance: Mapping[int, float]) -> list[Line]:
    return [
        Line(
            name=str(kind),
            questions=part.questions,
            chance=chance[kind],
            accuracy=[by_kind.questions_correct / by_kind.questions for by_kind in (s.by_depth[kind] for s in scores)],
        )
        for kind, part in scores[0].by_depth.items()
    ]


def _chance_by_question(batch: Batch, chance: Mapping[int, float]) -> dict[int, float]:
    """The mean chance over texts, whose questions at one place differ in depth, by place."""
    mask = batch.loss_mask
    labels = torch.stack((mask.nonzero()[:, 0], batch.question[mask], batch.depth[mask]), dim=1)
    asked = labels.unique(dim=0).tolist()
    return {place: fmean(chance[d] for _, at, d in asked if at == place) for place in {at for _, at, _ in asked}}
