"""How much of a task a model gets right: held-out examples through the same rollout that trained it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from reverie.sleep import SleepConfig, SleepingModel, rollout
from reverie.tasks import Batch, Score, Task, score

BATCH_SIZE = 512  # of evaluation; it changes no result


@torch.no_grad()
def evaluate(
    model: SleepingModel, task: Task, sleep: SleepConfig, num_examples: int, *, device: torch.device | str = "cpu"
) -> Score:
    """Score `num_examples` held-out examples: always the same ones, whatever the seed of training and the passes."""
    total = Score()
    for first in range(0, num_examples, BATCH_SIZE):
        examples = range(first, min(first + BATCH_SIZE, num_examples))
        batch = Batch(*(x.to(device) for x in task.batch("test", seed=0, step=0, examples=examples)))
        total = total + score_batch(model, batch, sleep)
    return total


def score_batch(model: SleepingModel, batch: Batch, sleep: SleepConfig) -> Score:
    """Score one batch: greedy answers, and cross entropy in nats, at the labelled positions."""
    logits, _ = rollout(model, batch.tokens, batch.loss_mask, sleep)
    targets = batch.targets[batch.loss_mask]
    correct = torch.zeros_like(batch.loss_mask)
    correct[batch.loss_mask] = logits.argmax(-1) == targets
    loss = torch.zeros(batch.tokens.shape, device=batch.tokens.device)
    loss[batch.loss_mask] = F.cross_entropy(logits.float(), targets, reduction="none")
    return score(batch, correct, loss)
