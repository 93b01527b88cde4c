"""`reverie compile`: a token awake, compiled, checked against the general path, and timed beside it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reverie.bench.check import SEED, require_equal
from reverie.bench.timer import alternate, clock
from reverie.errors import UserError
from reverie.model import HybridLM
from reverie.sleep import Context
from reverie.sleep.compiled import compile_awake
from reverie.sleep.generate import token_by_token
from reverie.talk.sleeper import Sleeper

_TOKENS = 24  # that are compared and timed, in one window


@dataclass(frozen=True)
class Compilation:
    """What compiling took, and what it gives."""

    file: Path
    rows: int
    seconds: float
    ms: float  # a token awake of all rows, compiled
    general_ms: float  # and as it was before
    difference: float  # largest of the logits, as a share of the largest logit

    def sentence(self) -> str:
        return (
            f"compiled in {self.seconds:,.0f} s: a token awake takes {self.ms:.2f} ms instead of "
            f"{self.general_ms:.2f}; logits differ by {self.difference:.0e} of the largest; "
            + ("ask, chat and generate use it from now on" if self.rows == 1 else "take_compiled takes it, in Python")
        )


def compile_and_measure(sleeper: Sleeper, batch_size: int) -> Compilation:
    """Compile a token awake of a model.

    Raises:
        UserError: it cannot be compiled, or is wrong compiled; then nothing is timed.
    """
    model, config = sleeper.sleeping, sleeper.sleep_config
    if not isinstance(model, HybridLM):
        raise UserError("what is compiled is a token awake of reverie's own models: one of transformers runs as it is")
    generator = torch.Generator().manual_seed(SEED)
    size = batch_size, min(_TOKENS, config.window_size)
    tokens = torch.randint(model.config.vocab_size, size, generator=generator)

    def general() -> Tensor:
        model.awake.clear()
        return token_by_token(model, tokens, Context.empty(model), config)[0]

    def compiled() -> Tensor:
        model.awake[batch_size] = awake
        return token_by_token(model, tokens, Context.empty(model), config)[0]

    wanted, begun = general(), clock()
    file = compile_awake(model, config, batch_size=batch_size)
    seconds, awake = clock() - begun, model.awake[batch_size]
    tolerance = 1e-4 if wanted.element_size() >= 4 else 0.05
    difference = require_equal(compiled(), wanted, tolerance, "of the logits, compiled, the worst")
    times = alternate({"general": general, "compiled": compiled}, seconds=2)
    ms, general_ms = (1e3 * times[name].median / size[1] for name in ("compiled", "general"))
    return Compilation(file, batch_size, seconds, ms, general_ms, difference)
