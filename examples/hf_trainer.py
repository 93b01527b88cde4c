"""A pretrained model gets fast weights, learns to use them in its sleep, and is saved: with transformers' own Trainer.

    python examples/hf_trainer.py --base smollm2 --steps 100 --out runs/trainer

Texts are facts in plain English over two windows, then questions about them in a third. Only the new layers train.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from reverie.hf import SleepConfig, add_sleep, freeze_pretrained, insert_fast_weights
from reverie.hf.bases import load_base, load_tokenizer
from reverie.tasks import Recall, Task


class Texts(Dataset[dict[str, Tensor]]):
    """Examples of a task as Trainer wants them: labels stand under the token that they are, the rest is −100."""

    def __init__(self, task: Task, size: int) -> None:
        self.task, self.size = task, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        batch = self.task.batch("train", 0, 0, range(i, i + 1))
        labels = torch.full_like(batch.tokens, -100)
        labels[:, 1:][batch.loss_mask[:, :-1]] = batch.targets[:, :-1][batch.loss_mask[:, :-1]]
        return {"input_ids": batch.tokens[0], "labels": labels[0]}


def fine_tune(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Texts, steps: int, out: Path
) -> list[float]:
    """Ten losses on the way. The adapter, with how the model sleeps, and the tokenizer are in `out` afterwards."""
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=max(steps // 10, 1),
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=texts, processing_class=tokenizer)
    trainer.train()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2", help="smollm2, or a folder with a model of its vocabulary")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/trainer"))
    options = parser.parse_args()
    model = load_base(options.base)
    inserted = insert_fast_weights(model, after=[11, 15], kind="jet")
    print(f"{inserted.added:,} new parameters, {100 * inserted.share:.1f} % of the model")
    add_sleep(model, SleepConfig(window_size=40, num_sleep_passes=2, looped_blocks=(11, 16)))
    freeze_pretrained(model)
    texts = Texts(Recall(num_facts=16, num_questions=8, num_values=8), 4 * options.steps)
    fine_tune(model, load_tokenizer(options.base), texts, options.steps, options.out)


if __name__ == "__main__":
    main()
