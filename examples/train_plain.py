"""Train models that sleep in ordinary PyTorch: `python examples/train_plain.py [STEPS]`, minutes a model on one core.

A cycle of 8 nodes fills one window and is evicted; then come 16 questions, "which node is k hops after x?". One model
is trained for each number of passes N, on the same data in the same order, and is asked about cycles that it never saw.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F

from reverie import HybridConfig, HybridLM, SleepConfig, new_model, rollout
from reverie.tasks import Depo, score

PASSES = (1, 2, 4)
TASK = Depo.model_validate(
    {"max_nodes": 8, "min_nodes": 8, "mini_vocab": 8, "max_name_tokens": 1, "num_queries": 16}
    | {"max_hops": 4, "test_hops": (1, 2, 3, 4), "reveal_answers": False}
)
MODEL = HybridConfig.model_validate(
    {"vocab_size": TASK.vocab_size, "layers": ("attn", "gdn", "attn", "gdn"), "width": 64, "mlp_width": 168}
    | {"num_heads": 4, "fast_heads": 2, "key_size": 16, "value_size": 32}
)


def train(passes: int, steps: int, batch_size: int = 64) -> HybridLM:
    model, sleep = new_model(MODEL, seed=0), SleepConfig(window_size=16, num_sleep_passes=passes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        hops = 1 + min(int(step / (0.7 * steps) * 4), 3)  # questions grow deeper
        batch = TASK.batch("train", 0, step, range(batch_size), max_depth=hops)
        logits, _ = rollout(model, batch.tokens, batch.loss_mask, sleep)  # sleeps over the window without a label
        loss = F.cross_entropy(logits, batch.targets[batch.loss_mask])
        optimizer.zero_grad()
        loss.backward()  # through all windows and all passes
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"N = {passes}, step {step + 1}: {hops} hops, loss {loss.item():.3f}", flush=True)
    return model


@torch.no_grad()
def accuracy(model: HybridLM, passes: int) -> list[float]:
    """Of each number of hops, the share of 512 · 16 questions that are answered right."""
    batch = TASK.batch("test", 0, 0, range(512))
    logits, _ = rollout(model, batch.tokens, batch.loss_mask, SleepConfig(window_size=16, num_sleep_passes=passes))
    correct, no_loss = torch.zeros_like(batch.loss_mask), torch.zeros(batch.tokens.shape)
    correct[batch.loss_mask] = logits.argmax(-1) == batch.targets[batch.loss_mask]
    hops = score(batch, correct, no_loss).by_depth
    return [hops[k].questions_correct / hops[k].questions for k in sorted(hops)]


if __name__ == "__main__":
    torch.set_num_threads(1)  # small matrices: more threads are slower
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1500
    rows = {passes: accuracy(train(passes, steps), passes) for passes in PASSES}
    print("accuracy by hops  " + "  ".join(f"{hops:>5}" for hops in TASK.depths()))
    for passes, row in rows.items():
        print(f"N = {passes}             " + "  ".join(f"{share:5.1%}" for share in row))
