"""One way of training, measured: seconds of a step and of its parts, memory, and where the time goes."""

from __future__ import annotations

import gc
import statistics
import time
from itertools import product
from typing import Any, NamedTuple

import torch
from kernel_profile import profiler, slowest, time_by_kind
from linear_loss import linear_cross_entropy
from stopwatch import synchronise
from throughput_counts import Ceilings, counts, labels_of
from throughput_model import OnCopies
from throughput_study import Checkpoint, Configuration, Study, random_model
from torch import Tensor, nn

from reverie.model import State
from reverie.model.fast_weights import FastWeightMixer
from reverie.recipe import OptimConfig
from reverie.sleep import rollout_hidden
from reverie.sleep.gradients import Backward
from reverie.sleep.labels import in_labelled
from reverie.train.compiled import compile_blocks
from reverie.train.optim import build_optimizers

DATA_SHEET = 989.5e12  # dense bfloat16 operations a second of an H100 or H200: what MFU is a share of
STEPS = 3  # timed, behind one that compiles
# Nothing moves, at the same cost: every configuration starts from the same weights, and losses can be compared.
OPTIM = OptimConfig(muon_lr=1e-3, adamw_lr=1e-3, grad_clip=1.0)


class Setting(NamedTuple):
    """How a configuration is trained."""

    at_once: int  # texts in one backward pass
    checkpoint: Checkpoint


def settings(study: Study, configuration: Configuration, ceilings: Ceilings) -> list[Setting]:
    """What to try, the fastest by its counts first. A text in one forward has no windows to make again."""
    checkpoints = study.checkpoints if configuration.way != "parallel" else ("none",)
    found = [Setting(n, kind) for kind, n in product(checkpoints, study.at_once) if n <= study.texts]
    return sorted(found, key=lambda setting: counts(study, configuration, *setting).seconds(ceilings))


class Clock:
    """Seconds between marks, on the device's own clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, Any]] = []

    def mark(self, name: str) -> None:
        """What ends here."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((name, event))
        else:
            self._marks.append((name, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """By name, all marks of it together; the first mark only begins."""
        synchronise(self._device)
        found: dict[str, float] = {}
        for (_, begin), (name, end) in zip(self._marks, self._marks[1:], strict=False):
            took = begin.elapsed_time(end) / 1e3 if self._device.type == "cuda" else end - begin
            found[name] = found.get(name, 0.0) + took
        return found


class Trainer:
    """The model, its optimisers and a batch, for any configuration."""

    def __init__(self, study: Study, device: torch.device, *, compiled: bool) -> None:
        self.study, self.device, self.compiled = study, device, compiled
        self.model = random_model(study.model, device)
        if compiled:
            compile_blocks(self.model, device)
            for layer in self.model.modules():
                if isinstance(layer, FastWeightMixer):  # whose chunks would be unrolled: 188 for 12,000 tokens
                    layer.rule = torch.compiler.disable(layer.rule)
        self.copies = OnCopies(self.model, study.dtype)
        self.optimizers = build_optimizers(self.model, OPTIM)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.0
        self.tokens, self.targets = study.batch(0, device)
        self._compiled_for: set[tuple[Configuration, Setting]] = set()

    def step(self, configuration: Configuration, setting: Setting, clock: Clock) -> tuple[Tensor, Tensor]:
        """Forward, backward, clip, Muon, AdamW, and the new copies. Returns the loss and the norm of the gradient."""
        clock.mark("begin")
        loss = self.gradients(configuration, setting)
        clock.mark("forward and backward")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), OPTIM.grad_clip)
        clock.mark("clip")
        for name, optimizer in zip(("Muon", "AdamW"), self.optimizers, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            clock.mark(name)
        self.copies.refresh()
        clock.mark("copies")
        return loss, norm

    def gradients(self, configuration: Configuration, setting: Setting) -> Tensor:
        """Leaves them in the parameters. Returns the loss, in nats a label."""
        if self.compiled and setting.checkpoint != "none" and (configuration, setting) not in self._compiled_for:
            with self.copies.cut():
                self._nats(configuration, setting._replace(checkpoint="none"), *self._part(setting, 0))
            self._compiled_for.add((configuration, setting))
        total = torch.zeros((), device=self.device)
        for first in range(0, self.study.texts, setting.at_once):
            total += self.backward(configuration, setting, first)
        return total

    def backward(self, configuration: Configuration, setting: Setting, first: int = 0) -> Tensor:
        """Of `at_once` texts. Returns their share of the loss."""
        labels = self.study.texts * labels_of(self.study, configuration)
        loss = self._nats(configuration, setting, *self._part(setting, first)) / labels
        loss.backward()
        return loss.detach()

    def _part(self, setting: Setting, first: int) -> tuple[Tensor, Tensor]:
        """Tokens and targets of the texts of one backward pass."""
        return self.tokens[first : first + setting.at_once], self.targets[first : first + setting.at_once]

    def _nats(self, configuration: Configuration, setting: Setting, tokens: Tensor, targets: Tensor) -> Tensor:
        labelled, model = configuration.labelled(self.study.text), self.copies
        if configuration.way == "parallel":
            empty = State.empty(model.num_blocks)
            h, _ = model.blocks(model.embed(tokens), empty, 0, model.num_blocks, span=configuration.window)
        else:
            backward = Backward(activation_checkpoint=setting.checkpoint)
            h, _ = rollout_hidden(model, tokens, configuration.sleep, labelled, backward=backward)
            targets = in_labelled(targets, configuration.window, labelled)
        x = model.head(h).flatten(0, 1)
        return linear_cross_entropy(x, self.model.lm_head.weight, targets.flatten(), compiled=self.compiled)

    def let_go(self) -> None:
        """Of what a step that failed has left."""
        for parameter in self.model.parameters():
            parameter.grad = None
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def measure(
    trainer: Trainer, configuration: Configuration, setting: Setting, ceilings: Ceilings, steps: int = STEPS
) -> dict[str, Any]:
    """A row of the card. Raises torch.OutOfMemoryError where the setting does not fit."""
    device, begun = trainer.device, time.perf_counter()
    trainer.step(configuration, setting, Clock(device))
    synchronise(device)
    compiling = time.perf_counter() - begun
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    parts, results = [], []
    for _ in range(steps):
        clock = Clock(device)
        results.append(trainer.step(configuration, setting, clock))
        parts.append(clock.seconds())
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    loss, norm = (float(x) for x in results[-1])
    if not (loss < float("inf") and norm < float("inf")):  # nor NaN
        raise FloatingPointError(f"the loss is {loss}, the norm of the gradient {norm}")
    clock = Clock(device)
    with profiler(
        device
    ) as found:  # of one of several passes alone: reading tens of thousands of kernels takes a while
        clock.mark("begin")
        trainer.backward(configuration, setting)
        clock.mark("profiled")
        seconds = clock.seconds()["profiled"]
    return {
        **_rates(trainer.study, configuration, setting, parts, ceilings),
        "first_step_s": compiling,
        "peak_gib": None if peak is None else peak / 2**30,
        "loss": loss,
        "gradient_norm": norm,
        "profile_of": f"forward and backward of {setting.at_once} texts",
        "profile": time_by_kind(found, device, 1, seconds),
        "slowest": slowest(found, device, 1),
    }


def _rates(
    study: Study, configuration: Configuration, setting: Setting, parts: list[dict[str, float]], ceilings: Ceilings
) -> dict[str, Any]:
    by_part = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
    totals = [sum(part.values()) for part in parts]
    seconds, count = statistics.median(totals), counts(study, configuration, *setting)
    done = count.model + count.again + count.muon
    return {
        "tokens_per_s": study.texts * study.text / seconds,
        "seconds": seconds,
        "spread": (max(totals) - min(totals)) / seconds,
        "parts_s": by_part,
        "optimiser_share": 1 - by_part["forward and backward"] / seconds,
        "mfu": count.model / seconds / DATA_SHEET,
        "model_share_of_peak": count.model / seconds / ceilings.operations,
        "done_share_of_peak": done / seconds / ceilings.operations,
        "predicted_tokens_per_s": study.texts * study.text / count.seconds(ceilings),
        "floor_tokens_per_s": study.texts * study.text / count.floor(ceilings),
        "predicted_gib": count.memory / 2**30,
    }
