"""Tokens/s of a training step at the sizes of Ouro 1.4B (the paper's Figure 6), for the ways to train on 12,000 tokens.

A step is forward, backward, clip, Muon and AdamW, under bfloat16 autocast, with compiled blocks, as `reverie train`
makes it; the rates are zero, so that every way starts from the same weights.
"""

import contextlib
import gc
import statistics
from typing import Any, Literal, NamedTuple

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.benchmark import timer as clock  # on a GPU it waits until all that was launched is done
from torch.utils.checkpoint import checkpoint

from reverie.bench.account import Work, operations
from reverie.model import HybridConfig, HybridLM, State
from reverie.model.config import BlockKind
from reverie.model.fast_weights import FastWeightMixer
from reverie.ops import fla
from reverie.recipe import OptimConfig, OptimizerConfig
from reverie.results.style import INK, STYLE
from reverie.sleep import SleepConfig
from reverie.sleep.gradients import EXACT
from reverie.sleep.labels import in_labelled
from reverie.sleep.rollouts import rollout_hidden
from reverie.train.compiled import compile_blocks
from reverie.train.optim import build_optimizers

PAPER = 30_000  # tokens/s at N = 1 on one H200, as read off its Figure 6: the order of it
DATA_SHEET = 989.5e12  # dense bfloat16 operations a second of an H100 or H200
TOLERANCES = {"loss": 0.003, "gradient_norm": 0.03}  # between "sliding" and "parallel", one function
STEPS = 3  # timed, after one that compiles
LOGITS_AT_ONCE = 2**27  # half a gigabyte of float32
BLOCKS, JET_EVERY = 24, 4


class Way(NamedTuple):
    """One way to train on a text."""

    kind: Literal["parallel", "sliding", "hard", "asleep"]
    passes: int = 1

    @property
    def name(self) -> str:
        what = {
            "parallel": "one forward, band of L",
            "sliding": "window by window, the same function",
            "hard": "window by window, hard eviction",
        }
        return what.get(self.kind, f"asleep, N = {self.passes}")


WAYS = (Way("parallel"), Way("sliding"), Way("hard"), *(Way("asleep", N) for N in (1, 2, 4)))


class Study(NamedTuple):
    model: HybridConfig
    text: int = 12_000  # tokens
    texts: int = 8  # of an optimiser step
    window: int = 2_000
    at_once: tuple[int, ...] = (4, 2, 1)  # texts in one backward pass: the most that fit


def ouro() -> HybridConfig:
    """Ouro 1.4B with six Jet layers, each 19.4M parameters: values of 256 as in Jet-Nemotron 2B, keys of 128.

    "triton" would run 32 small kernels a window, one after the other.
    """
    pattern: list[BlockKind] = []
    for block in range(BLOCKS):
        pattern.append("attn")
        if (block + 1) % JET_EVERY == 0:
            pattern.append("jet-only")
    return HybridConfig(
        vocab_size=49_152,
        width=2048,
        layers=tuple(pattern),
        mlp_width=5632,
        num_heads=16,
        fast_heads=8,
        key_size=128,
        value_size=256,
        backend="fla" if fla.installed() and not fla.miscompiled() else "chunked",
    )


class Trainer:
    """A random model, its optimisers and one batch, for any way."""

    def __init__(self, study: Study, device: torch.device) -> None:
        self.study, self.device = study, device
        torch.manual_seed(0)
        with torch.device(device):
            self.model = HybridLM(study.model)
        for name, parameter in self.model.named_parameters():
            if name.endswith(("out_proj.weight", "head.weight")):  # zero in a new model; products of zeros run faster
                nn.init.normal_(parameter, std=0.1 * parameter.shape[1] ** -0.5)
        if device.type == "cuda":
            compile_blocks(self.model, device)
            for layer in self.model.modules():
                if isinstance(layer, FastWeightMixer):  # whose chunks would be unrolled: 188 for 12,000 tokens
                    layer.rule = torch.compiler.disable(layer.rule)  # pyright: ignore[reportAttributeAccessIssue]
        muon, adamw = (OptimizerConfig(name=name, lr=1e-3) for name in ("muon", "adamw"))
        self.optimizers = build_optimizers(self.model, OptimConfig(matrices=muon, rest=adamw))
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = 0.0
        tokens = torch.randint(study.model.vocab_size, (study.texts, study.text + 1), device=device)
        self.tokens, self.targets = tokens[:, :-1], tokens[:, 1:]

    def step(self, way: Way, at_once: int) -> dict[str, float]:
        """Take a step. Returns the loss, in nats a label, and the norm of the gradient."""
        loss = torch.zeros((), device=self.device)
        for tokens, targets in zip(self.tokens.split(at_once), self.targets.split(at_once), strict=True):
            with torch.autocast(self.device.type, torch.bfloat16):
                part = self._nats(way, tokens, targets) / (self.study.texts * self.labels(way))
            part.backward()
            loss += part.detach()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return {"loss": loss.item(), "gradient_norm": norm.item()}

    def labels(self, way: Way) -> int:
        """Labels of a text: of the last window alone where the others are slept over."""
        text, window = self.study.text, self.study.window
        return text if way.kind != "asleep" else text - window * ((text - 1) // window)

    def labelled(self, way: Way) -> list[bool]:
        windows = -(-self.study.text // self.study.window)
        return [way.kind != "asleep"] * (windows - 1) + [True]

    def _nats(self, way: Way, tokens: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy, summed."""
        model, window = self.model, self.study.window
        if way.kind == "parallel":
            state = State.empty(model.num_blocks)
            h, _ = model.blocks(model.embed(tokens), state, 0, model.num_blocks, span=window)
        else:
            eviction = "sliding" if way.kind == "sliding" else "hard"
            sleep = SleepConfig(window_size=window, num_sleep_passes=way.passes, eviction=eviction)
            labelled = torch.tensor(self.labelled(way)).expand(len(tokens), -1)
            h, _ = rollout_hidden(model, tokens, sleep, labelled, to_end=False)
            targets = in_labelled(targets, window, labelled)
        rows = max(1, LOGITS_AT_ONCE // self.study.model.vocab_size)
        parts = zip(h.flatten(0, 1).split(rows), targets.flatten().split(rows), strict=True)
        return torch.stack([checkpoint(self._nats_of, *part, use_reentrant=False) for part in parts]).sum()

    def _nats_of(self, h: Tensor, targets: Tensor) -> Tensor:
        """For some positions, whose logits are made again in the backward pass: those of all would take 19 GB."""
        return F.cross_entropy(self.model.head(h).float(), targets, reduction="sum")

    def let_go(self) -> None:
        """Free what a step that failed has left."""
        self.model.zero_grad()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def measure(trainer: Trainer, way: Way) -> dict[str, Any]:
    """Return a row of the card: the most texts at once that fit; or why none did."""
    for at_once in trainer.study.at_once:
        with contextlib.suppress(torch.OutOfMemoryError):
            return _measured(trainer, way, at_once)
        trainer.let_go()  # outside of the handler, which keeps the tensors of what failed alive
    return {"way": way.name, "failed": "out of memory"}


def _measured(trainer: Trainer, way: Way, at_once: int) -> dict[str, Any]:
    study, cuda = trainer.study, trainer.device.type == "cuda"
    begun = clock()
    trainer.step(way, at_once)
    compiling = clock() - begun
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times, found = [], {}
    for _ in range(STEPS):
        begun = clock()
        found = trainer.step(way, at_once)
        times.append(clock() - begun)
    seconds = statistics.median(times)
    return {
        "way": way.name,
        "texts_at_once": at_once,
        "tokens_per_s": study.texts * study.text / seconds,
        "share_of_data_sheet": model_operations(trainer, way) / seconds / DATA_SHEET,
        "first_step_s": compiling,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
        **found,
    }


def model_operations(trainer: Trainer, way: Way) -> int:
    """Operations of a step, forward and backward, without Muon's; attention as within windows."""
    study = trainer.study
    sleep = SleepConfig(window_size=study.window, num_sleep_passes=way.passes)
    scored = study.texts * trainer.labels(way)
    work = Work(study.model, sleep, EXACT, study.texts, tuple(trainer.labelled(way)), scored, tokens=study.text)
    return operations(work).total


def disagreement(rows: dict[str, dict[str, Any]]) -> str | None:
    """A sentence if "parallel" and "sliding", which are one function, differ; else None."""
    one, other = (rows.get(way.name, {}) for way in WAYS[:2])
    for key, tolerance in TOLERANCES.items():
        if key in one and key in other and not abs(one[key] - other[key]) <= tolerance * abs(one[key]):
            return f"{key} is {one[key]:.5g} in {WAYS[0].name!r} and {other[key]:.5g} in {WAYS[1].name!r}"
    return None


def figure(card: dict[str, Any]) -> Figure:
    """Draw a bar for each way, and what the paper reached."""
    rows = [row for row in card["rows"].values() if "failed" not in row]
    with matplotlib.rc_context(STYLE):
        drawing = Figure(figsize=(6.4, 2.8), layout="constrained")
        axes = drawing.subplots()
        axes.barh([row["way"] for row in rows], [row["tokens_per_s"] for row in rows], color="#3a76af", height=0.6)
        axes.axvline(PAPER, linestyle="--", color=INK, linewidth=1, label="paper, N = 1, about")
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
        axes.set_xlabel(f"tokens/s of a training step, L = {card['window']:,}")
        axes.set_title(f"{card['parameters'] / 1e9:.2f}B parameters, {card['hardware']['gpu'] or 'CPU'}")
        axes.legend(loc="lower right")
    return drawing
