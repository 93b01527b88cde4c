"""A model that consolidates a text without an end: what `reverie bench wake` measures at its stops."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from reverie.bench.check import random_model, require_equal
from reverie.errors import UserError
from reverie.model import HybridConfig, HybridLM
from reverie.sleep import Context, SleepConfig, read, sleep, wake

TOLERANCE = 1e-9  # of the largest entry, in float64
SEED = 0


class Stop(NamedTuple):
    """The model has just slept over the newest of so many tokens."""

    tokens: int
    context: Context
    seconds: float  # of consolidation, from the start of the text
    process_bytes: int


class Sleeper(NamedTuple):
    """A model that reads a text of random tokens without an end, for one N."""

    model: HybridLM
    config: SleepConfig

    def window(self, index: int) -> Tensor:
        """The tokens [1, L] of one window of the text."""
        random = torch.Generator().manual_seed(SEED + index)
        return torch.randint(self.model.config.vocab_size, (1, self.config.window_size), generator=random)

    def start(self) -> Stop:
        return Stop(0, Context.empty(self.model), 0.0, resident_bytes())

    @torch.no_grad()
    def consolidate(self, stop: Stop, tokens: int) -> Stop:
        """On from a stop to that many tokens from the start of the text, window by window."""
        L, context, begun = self.config.window_size, stop.context, time.perf_counter()
        for i in range(stop.tokens // L, tokens // L):
            _, context = wake(self.model, self.window(i), context, self.config, output=False)
            context = sleep(self.model, context, self.config)
        return Stop(tokens, context, stop.seconds + time.perf_counter() - begun, resident_bytes())

    @torch.no_grad()
    def decode(self, tokens: Tensor, context: Context) -> tuple[Tensor, Context]:
        """One call a token, as in generation. Returns logits [1, T, vocab] and the context behind the last token."""
        logits = []
        for token in tokens.split(1, dim=1):
            new, context = read(self.model, token, context, self.config)
            logits.append(new)
        return torch.cat(logits, dim=1), context


@torch.no_grad()
def check_sleep(config: HybridConfig, window_size: int, passes: int) -> None:
    """Raises UserError where a text token by token, or its windows one by one, leaves other logits or fast weights than
    the whole in one call on the specification's update rule."""
    specification = config.model_copy(update={"backend": "reference"})
    sleep_config = SleepConfig(window_size=window_size, num_sleep_passes=passes)
    ours, theirs = (Sleeper(random_model(kind, SEED).double(), sleep_config) for kind in (config, specification))
    text = torch.cat([ours.window(i) for i in range(3)], dim=1)[:, : 2 * window_size + window_size // 2]
    wanted, end = read(theirs.model, text, Context.empty(theirs.model), sleep_config)
    start = ours.start()
    behind = {0: start.context, 2 * window_size: ours.consolidate(start, 2 * window_size).context}
    for begin, context in behind.items():
        what = f"N = {passes}, token by token from {begin} on"
        got, context = ours.decode(text[:, begin:], context)
        require_equal(got, wanted[:, begin:], TOLERANCE, f"{what}, of the logits the worst")
        for mine, other in zip(context.state.fast_weights, end.state.fast_weights, strict=True):
            if mine is not None and other is not None:
                require_equal(mine, other, TOLERANCE, f"{what}, of the fast weights the worst")


RESIDENT = "resident memory" if Path("/proc/self/statm").exists() else "the most resident memory so far"


def resident_bytes() -> int:
    """Of this process now, on Linux; elsewhere the most that it had so far. Raises UserError on Windows."""
    if sys.platform == "win32":
        raise UserError("reverie bench wake reads the memory of its process as Unix systems say it; Windows does not")
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
