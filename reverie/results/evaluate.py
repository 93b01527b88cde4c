"""Accuracy of a model on held-out examples, through the same rollout that trained it."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from reverie.model import SleepingModel, numbers
from reverie.results.reading import FedPage, examine_pages
from reverie.sleep import SleepConfig, rollout
from reverie.sleep.generate import greedy
from reverie.sleep.labels import labelled_windows
from reverie.tasks import Batch, Score, Task, score
from reverie.tasks.reading import ReadingTask

# Of evaluation; it changes no result. Long examples of large models come in smaller batches.
BATCH_TOKENS = 2**16
LARGEST_BATCH = 512


class Evaluation(NamedTuple):
    """A score, and what sleep it took."""

    score: Score = Score()
    windows: int = 0  # slept over, of all examples
    passes: int = 0  # spent on them; pass 1 counts

    @property
    def mean_passes(self) -> float:
        """Passes per window slept over; NaN if none was."""
        return self.passes / self.windows if self.windows else float("nan")


@torch.no_grad()
def evaluate(
    model: SleepingModel,
    task: Task,
    sleep: SleepConfig,
    num_examples: int,
    *,
    generate: bool = False,
    device: torch.device | str = "cpu",
    share: tuple[int, int] = (0, 1),
) -> Evaluation:
    """The score on `num_examples` held-out examples, always the same ones, and the sleep that they took.

    Args:
        generate: where the task has one answer at the end of its text, the model writes it token by token. Else it is
            shown the right tokens so far, which is faster and has the same questions right unless an answer begins in
            one window and ends in the next: writing, the model would sleep between the two. Of a task of reading,
            questions are asked again after the next page.
        share: (i, n) scores the i-th of every n batches alone; n such scores add up to that of all.
    """
    if isinstance(task, ReadingTask):
        own = range(num_examples)[share[0] :: share[1]]

        def page(example: int) -> FedPage:
            return FedPage.of(task.pages("test", 0, 0, range(example, example + 1))[0], device)

        later = [page((i + 1) % num_examples) for i in own] if generate and num_examples > 1 else []
        found, passes = examine_pages(model, task, sleep, [page(i) for i in own], later)
        return Evaluation(found, len(own) * task.text_tokens // sleep.window_size, passes)
    total = Evaluation()
    size = min(max(BATCH_TOKENS // task.sequence_length, 1), LARGEST_BATCH)
    for first in range(size * share[0], num_examples, size * share[1]):
        examples = range(first, min(first + size, num_examples))
        batch = Batch(*(x.to(device) for x in task.batch("test", seed=0, step=0, examples=examples)))
        found = evaluate_batch(model, batch, sleep, generate=generate and task.answer_is_last)
        total = Evaluation(total.score + found.score, total.windows + found.windows, total.passes + found.passes)
    return total


def evaluate_batch(model: SleepingModel, batch: Batch, sleep: SleepConfig, *, generate: bool = False) -> Evaluation:
    """Score one batch: greedy answers, and cross entropy in nats, at the labelled positions."""
    labelled = labelled_windows(batch.loss_mask, sleep.window_size)
    logits, context = rollout(model, batch.tokens, batch.loss_mask, sleep, labelled=labelled)
    targets = batch.targets[batch.loss_mask]
    correct = torch.zeros_like(batch.loss_mask)
    correct[batch.loss_mask] = numbers(logits).argmax(-1) == targets
    loss = torch.zeros(batch.tokens.shape, device=batch.tokens.device)
    loss[batch.loss_mask] = F.cross_entropy(logits.float(), targets, reduction="none")
    if generate:  # what the model writes from its own words; the first label stands at one place in all rows
        begin = int(batch.loss_mask.any(dim=0).nonzero()[0])
        written = greedy(model, batch.tokens[:, : begin + 1], sleep, batch.tokens.shape[1] - begin)
        correct[:, begin:] = written == batch.targets[:, begin:]
    scored = score(batch, correct, loss)
    passes = torch.as_tensor(context.passes).expand(len(batch.tokens))
    return Evaluation(scored, int((~labelled).sum()), int(passes.sum()))
