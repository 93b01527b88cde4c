"""`reverie bench wake`: what a token awake costs after more and more consolidated tokens, in time, bytes and memory.

`reverie bench decode` has it beside transformers' hybrids and its matrix products, for several texts at once.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from reverie.bench.card import Details, Findings, Row, at_most
from reverie.bench.check import SEED, random_model, require_equal
from reverie.bench.count import tensor_bytes
from reverie.bench.machine import RESIDENT, Peak, resident_bytes
from reverie.bench.timer import Timing, alternate, clock
from reverie.model import HybridConfig, HybridLM
from reverie.model.hybrid import count_parameters
from reverie.results.card import Report
from reverie.sleep import Context, SleepConfig, consolidate, read
from reverie.sleep.generate import token_by_token

# The proportions of rule110/base at half its width.
MODEL = HybridConfig(
    vocab_size=256,
    width=128,
    layers=("attn", "gdn", "attn", "gdn"),
    mlp_width=352,
    num_heads=4,
    fast_heads=2,
    key_size=48,
    value_size=96,
)
WINDOW = 500  # L: it divides the stops, so that exactly so many tokens have been slept over
STOPS = (1_000, 10_000, 100_000, 1_000_000)
PASSES = (1, 8)
MARKS = 10  # on the way to the last stop, so that minutes do not pass in silence

TIME_TARGET = 1.05  # a token awake after the last stop, over one after the first
PASSES_TARGET = 1.02  # a token awake at the largest N, over one at the smallest
MEMORY_TARGET = 1.02  # of the process, at the last stop over the first
CONTEXT_TARGET = 1.0

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of the largest entry
MB = 1e6


class Stop(NamedTuple):
    """The model has just slept over the newest of so many tokens."""

    tokens: int
    context: Context
    seconds: float  # of consolidation, from the start of the text
    process_bytes: int


class Side(NamedTuple):
    """A model after so many tokens: what decoding on from there is, and what it takes."""

    model: str
    tokens: int
    decode: Callable[[], object]
    decoded: int  # tokens a call
    context_bytes: int  # at most, apart from the parameters
    process_bytes: int

    @property
    def name(self) -> str:
        return f"{self.model}, {self.tokens}"


def measure(
    peak: Peak,
    report: Report,
    config: HybridConfig = MODEL,
    window_size: int = WINDOW,
    stops: Sequence[int] = STOPS,
    passes: Sequence[int] = PASSES,
    seconds: float = 150.0,
) -> Findings:
    """Decoding after each of `stops` consolidated tokens, for every N of `passes`.

    Args:
        stops: rising; multiples of the window.
        seconds: that decoding is timed for, all sides together.

    Raises:
        UserError: a result is wrong; then nothing is timed.
    """
    marks = _marks(stops, window_size)
    total = len(passes) * len(marks) + 2
    report(0, total, "check")
    configs = [SleepConfig(window_size=window_size, num_sleep_passes=n) for n in passes]
    for sleep_config in configs:
        check_sleep(config, sleep_config)
    model = random_model(config)
    reached: list[list[Stop]] = []
    for i, sleep_config in enumerate(configs):
        stop = start(model)
        sleep_on(model, sleep_config, stop, MARKS * window_size)  # what is set up at first use is there at all stops
        reached.append([])
        for j, mark in enumerate(marks):
            report(1 + i * len(marks) + j, total, f"N = {passes[i]}: consolidates up to {mark:,} tokens")
            stop = sleep_on(model, sleep_config, stop, mark)
            reached[i] += [stop] if mark in stops else []
    report(total - 1, total, "time of a token awake")
    runs = list(zip(configs, reached, strict=True))
    asleep = [[_asleep(model, sleep_config, stop, stops[-1]) for stop in own] for sleep_config, own in runs]
    sides = [side for own in asleep for side in own]
    times = alternate({side.name: side.decode for side in sides}, seconds=seconds)
    return Findings(
        name="wake",
        ratio=statistics.median(_ratios(times, asleep[-1][-1], asleep[-1][0])),
        target=TIME_TARGET,
        better="lower",
        details=Details(
            tables={
                "targets": _targets(asleep, times),
                "a token awake": [_token_row(side, own[0], times) for own in asleep for side in own],
                "memory": [_memory_row(side) for side in sides],
                "consolidation": [_consolidation(sleep_config.num_sleep_passes, own[-1]) for sleep_config, own in runs],
            },
            notes=_notes(model, window_size),
        ),
    )


def _marks(stops: Sequence[int], window_size: int) -> list[int]:
    """The stops, and a few more on the way to the last one."""
    step = max(stops[-1] // window_size // MARKS, 1) * window_size
    return sorted({*stops, *range(step, stops[-1], step)})


# A text of random tokens without an end


def window(model: HybridLM, config: SleepConfig, index: int) -> Tensor:
    """The tokens [1, L] of one window of the text."""
    random = torch.Generator().manual_seed(SEED + index)
    return torch.randint(model.config.vocab_size, (1, config.window_size), generator=random)


def start(model: HybridLM) -> Stop:
    return Stop(0, Context.empty(model), 0.0, resident_bytes())


@torch.no_grad()
def sleep_on(model: HybridLM, config: SleepConfig, stop: Stop, tokens: int) -> Stop:
    """Sleep over the text from a stop to so many tokens from its start."""
    windows = range(stop.tokens // config.window_size, tokens // config.window_size)
    text = torch.cat([window(model, config, i) for i in windows], dim=1)
    begun = clock()
    context = consolidate(model, text, stop.context, config)
    seconds = stop.seconds + clock() - begun
    del text  # it is not the model's memory
    return Stop(tokens, context, seconds, resident_bytes())


@torch.no_grad()
def check_sleep(config: HybridConfig, sleep_config: SleepConfig) -> None:
    """Raises UserError where a text token by token, or its windows one by one, leaves other logits or fast weights than
    the whole in one call on the specification's update rule."""
    specification = config.model_copy(update={"backend": "reference"})
    ours, theirs = (random_model(kind).double() for kind in (config, specification))
    L = sleep_config.window_size
    text = torch.cat([window(ours, sleep_config, i) for i in range(3)], dim=1)[:, : 2 * L + L // 2]
    wanted, end = read(theirs, text, Context.empty(theirs), sleep_config)
    begin = start(ours)
    for stop in (begin, sleep_on(ours, sleep_config, begin, 2 * L)):
        what = f"N = {sleep_config.num_sleep_passes}, token by token from {stop.tokens} on"
        got, context = token_by_token(ours, text[:, stop.tokens :], stop.context, sleep_config)
        require_equal(got, wanted[:, stop.tokens :], TOLERANCE[got.dtype], f"{what}, of the logits the worst")
        for mine, other in zip(context.state.fast_weights, end.state.fast_weights, strict=True):
            if mine is not None and other is not None:
                require_equal(mine, other, TOLERANCE[got.dtype], f"{what}, of the fast weights the worst")


# What is timed


@torch.no_grad()
def _asleep(model: HybridLM, config: SleepConfig, stop: Stop, last: int) -> Side:
    """Decodes a window after the stop, the same tokens at every stop. Raises UserError where it does so wrongly."""
    n, L = config.num_sleep_passes, config.window_size
    fresh = window(model, config, last // L)
    wanted, _ = read(model, fresh, stop.context, config)
    got, full = token_by_token(model, fresh, stop.context, config)
    require_equal(got, wanted, TOLERANCE[got.dtype], f"N = {n}, a window token by token after {stop.tokens:,} tokens")
    return Side(
        model=f"sleep, N = {n}",
        tokens=stop.tokens,
        decode=partial(token_by_token, model, fresh, stop.context, config),
        decoded=L,
        context_bytes=tensor_bytes(full),
        process_bytes=stop.process_bytes,
    )


# What comes of it


def _ratios(times: Mapping[str, Timing], side: Side, base: Side) -> list[float]:
    """Ratios of the two times in each round, which were taken within seconds of each other."""
    return [a / b for a, b in zip(times[side.name].rounds, times[base.name].rounds, strict=True)]


def _targets(asleep: Sequence[Sequence[Side]], times: Mapping[str, Timing]) -> list[Row]:
    """Sides by N, in the order of the stops."""
    fewest, most = asleep[0], asleep[-1]
    of_passes = [ratio for pair in zip(most, fewest, strict=True) for ratio in _ratios(times, *pair)]
    found = [(f"ms: {most[0].model} over {fewest[0].model}", statistics.median(of_passes), PASSES_TARGET)]
    for first, *_, last in asleep:
        what = f"{last.tokens:,} over {first.tokens:,} tokens, {first.model}"
        process = last.process_bytes / first.process_bytes
        found += [
            (f"ms: {what}", statistics.median(_ratios(times, last, first)), TIME_TARGET),
            (f"memory of the process: {what}", process, MEMORY_TARGET),
            (f"memory of the context: {what}", last.context_bytes / first.context_bytes, CONTEXT_TARGET),
        ]
    return [at_most(*row) for row in found]


def _token_row(side: Side, first: Side, times: Mapping[str, Timing]) -> Row:
    ms, over = 1e3 * times[side.name].median / side.decoded, statistics.median(_ratios(times, side, first))
    return {"model": side.model, "tokens": side.tokens, "ms": ms, "over_first": over, "tokens_per_s": 1e3 / ms}


def _memory_row(side: Side) -> Row:
    sizes: Row = {"context_MB": side.context_bytes / MB, "process_MB": side.process_bytes / MB}
    return {"model": side.model, "tokens": side.tokens, **sizes}


def _consolidation(N: int, stop: Stop) -> Row:
    """The cost of consolidating all tokens up to the last stop."""
    seconds, tokens = stop.seconds, stop.tokens
    speed: Row = {"tokens_per_s": tokens / seconds, "ms_per_token": 1e3 * seconds / tokens}
    return {"N": N, "tokens": tokens, "seconds": seconds, **speed}


def _notes(model: HybridLM, window_size: int) -> list[str]:
    return [
        f"Width {model.config.width}, {len(model.config.layers)} blocks, {count_parameters(model) / 1e6:.2f}M random "
        f"parameters, one text, float32: attention and Gated DeltaNet in turn, windows of {window_size}, hard "
        "eviction; the tokens that it slept over, and the mean ms over a fresh window after them, token by token.",
        "over_first, and the ratios of ms: medians over rounds of the two times in the same round; of the two N over "
        "all stops.",
        "context_MB: all that outlives a call but the parameters, with the window full. "
        f"process_MB: {RESIDENT}, right after the last sleep.",
        "consolidation: waking pass and sleep over whole windows. A text that is decoded pays the other N − 1 passes "
        "at the end of each window, apart from ms.",
        "The headline is ms after the last stop over the first, for the largest N. Lower is better.",
    ]
