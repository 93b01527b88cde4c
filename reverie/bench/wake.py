"""`reverie bench wake`: what a token awake costs after more and more consolidated tokens, in time, bytes and memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from reverie.bench.card import Details, Findings, Panel, Report, Row
from reverie.bench.check import random_model, require_equal
from reverie.bench.full_cache import FullCache, available_bytes, cache_bytes, check_full_cache
from reverie.bench.machine import Peak, count_flops
from reverie.bench.sleeper import RESIDENT, Sleeper, Stop, check_sleep
from reverie.bench.timing import Timing, alternate
from reverie.model import HybridConfig, HybridLM
from reverie.model.hybrid import count_parameters
from reverie.sleep import SleepConfig, read

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

TIME_TARGET = 1.05  # a token awake behind the last stop, over one behind the first
PASSES_TARGET = 1.02  # a token awake at the largest N, over one at the smallest
MEMORY_TARGET = 1.02  # of the process, at the last stop over the first
CONTEXT_TARGET = 1.0

ROOM = 0.5  # of the memory that is free: the most that the transformer's cache may take
READ_BYTES = 2**29  # larger than any cache of the machine
TOLERANCE = 1e-4  # of the largest entry, in float32
SEED = 0
MB = 1e6


class Side(NamedTuple):
    """A model behind so many tokens: what decoding on from there is, and what it takes."""

    model: str
    tokens: int
    decode: Callable[[], object] | None  # None where there is no room for the cache
    decoded: int  # tokens a call
    read_bytes: int  # that one token must read
    context_bytes: int  # at most, apart from the parameters
    process_bytes: int | None = None

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
    """Decoding behind each of `stops` consolidated tokens, for every N of `passes`, and beside a transformer.

    Args:
        stops: rising; multiples of the window.
        seconds: that decoding is timed for, all sides together.

    Raises UserError where a result is wrong; then nothing is timed.
    """
    marks = _marks(stops, window_size)
    total = len(passes) * len(marks) + 2
    report(0, total, "check")
    for n in passes:
        check_sleep(config, window_size, n)
    transformer = config.model_copy(update={"layers": ("attn",) * len(config.layers)})
    check_full_cache(transformer)
    model = random_model(config, SEED)
    sleepers = {n: Sleeper(model, SleepConfig(window_size=window_size, num_sleep_passes=n)) for n in passes}
    reached: dict[int, list[Stop]] = {}
    for i, (n, sleeper) in enumerate(sleepers.items()):
        sleeper.consolidate(sleeper.start(), MARKS * window_size)  # what is set up at first use is there at all stops
        stop, reached[n] = sleeper.start(), []
        for j, mark in enumerate(marks):
            report(1 + i * len(marks) + j, total, f"N = {n}: consolidates up to {mark:,} tokens")
            stop = sleeper.consolidate(stop, mark)
            reached[n] += [stop] if mark in stops else []
    report(total - 1, total, "time of a token awake")
    sides = [_asleep(sleepers[n], stop, stops[-1]) for n in passes for stop in reached[n]]
    other = random_model(transformer, SEED)
    sides += _transformer_sides(other, stops)
    times = alternate({side.name: side.decode for side in sides if side.decode is not None}, seconds=seconds)
    limit = read_limit()
    consolidation = [_consolidation(sleepers[n], reached[n][-1], peak) for n in passes]
    return _findings(sides, times, limit, consolidation, _notes(model, other, window_size, limit, sides))


def _marks(stops: Sequence[int], window_size: int) -> list[int]:
    """The stops, and a few more on the way to the last one."""
    windows = stops[-1] // window_size
    return sorted({*stops, *(i * windows // MARKS * window_size for i in range(1, MARKS))} - {0})


# What is timed


@torch.no_grad()
def _asleep(sleeper: Sleeper, stop: Stop, last: int) -> Side:
    """Decodes a window behind the stop, the same tokens at every stop. Raises UserError where it does so wrongly."""
    n, L = sleeper.config.num_sleep_passes, sleeper.config.window_size
    fresh = sleeper.window(last // L)
    wanted, _ = read(sleeper.model, fresh, stop.context, sleeper.config)
    got, full = sleeper.decode(fresh, stop.context)
    require_equal(got, wanted, TOLERANCE, f"N = {n}, a window token by token behind {stop.tokens:,} tokens")
    _, half_full = sleeper.decode(fresh[:, : L // 2], stop.context)
    return Side(
        model=f"sleep, N = {n}",
        tokens=stop.tokens,
        decode=partial(sleeper.decode, fresh, stop.context),
        decoded=L,
        read_bytes=_parameter_bytes(sleeper.model) + tensor_bytes(half_full.state),
        context_bytes=tensor_bytes(full),
        process_bytes=stop.process_bytes,
    )


def _transformer_sides(model: HybridLM, stops: Sequence[int]) -> list[Side]:
    """One cache serves all stops that there is room for; behind a stop the same token is decoded again and again."""
    room = ROOM * available_bytes()
    fitting = [stop for stop in stops if cache_bytes(model.config, stop + 1) <= room]
    cache = FullCache(model, max(fitting, default=0) + 1)
    cache.fill(SEED)
    token = torch.zeros(1, 1, dtype=torch.long)
    return [
        Side(
            model="transformer",
            tokens=stop,
            decode=partial(cache.decode, token, stop) if stop in fitting else None,
            decoded=1,
            read_bytes=_parameter_bytes(model) + cache_bytes(model.config, stop),
            context_bytes=cache_bytes(model.config, stop),
        )
        for stop in stops
    ]


def _parameter_bytes(model: HybridLM) -> int:
    """That a token reads: of the embedding its own row alone."""
    unread = model.embedding.weight[1:].numel()
    return (count_parameters(model) - unread) * model.embedding.weight.element_size()


def tensor_bytes(tree: Any) -> int:
    """Of all tensors in it, as much as each keeps alive; what several share counts once."""
    storages = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


# What comes of it


def _findings(
    sides: Sequence[Side], times: Mapping[str, Timing], limit: float, consolidation: list[Row], notes: list[str]
) -> Findings:
    asleep = _by_model(side for side in sides if side.process_bytes is not None)
    *_, most = asleep.values()
    return Findings(
        name="wake",
        ratio=_over(times, most[-1], most[0]),
        target=TIME_TARGET,
        better="lower",
        details=Details(
            tables={
                "targets": _targets(list(asleep.values()), times),
                "a token awake": [row for own in _by_model(sides).values() for row in _token_rows(own, times, limit)],
                "memory": [_memory_row(side) for side in sides],
                "consolidation": consolidation,
            },
            panels=[
                Panel(title=title, table=title, x="tokens", y=(column,), by="model", y_label=unit, log=True)
                for title, column, unit in (("a token awake", "ms", "ms"), ("memory", "context_MB", "MB"))
            ],
            notes=notes,
        ),
    )


def _by_model(sides: Iterable[Side]) -> dict[str, list[Side]]:
    models: dict[str, list[Side]] = {}
    for side in sides:
        models.setdefault(side.model, []).append(side)
    return models


def _ratios(times: Mapping[str, Timing], side: Side, base: Side) -> list[float]:
    """Of the two times in each round, which were taken within seconds of each other."""
    return [a / b for a, b in zip(times[side.name].rounds, times[base.name].rounds, strict=True)]


def _over(times: Mapping[str, Timing], side: Side, base: Side) -> float:
    return statistics.median(_ratios(times, side, base))


def _targets(asleep: Sequence[Sequence[Side]], times: Mapping[str, Timing]) -> list[Row]:
    """Sides by N, in the order of the stops."""
    fewest, most = asleep[0], asleep[-1]
    of_passes = [ratio for pair in zip(most, fewest, strict=True) for ratio in _ratios(times, *pair)]
    rows = [_target(f"ms: {most[0].model} over {fewest[0].model}", statistics.median(of_passes), PASSES_TARGET)]
    for own in asleep:
        first, last = own[0], own[-1]
        what = f"{last.tokens:,} over {first.tokens:,} tokens, {first.model}"
        assert first.process_bytes
        assert last.process_bytes
        rows += [
            _target(f"ms: {what}", _over(times, last, first), TIME_TARGET),
            _target(f"memory of the process: {what}", last.process_bytes / first.process_bytes, MEMORY_TARGET),
            _target(f"memory of the context: {what}", last.context_bytes / first.context_bytes, CONTEXT_TARGET),
        ]
    return rows


def _target(what: str, ratio: float, target: float) -> Row:
    return {"what": what, "ratio": ratio, "target_at_most": target, "verdict": "met" if ratio <= target else "not met"}


def _token_rows(own: Sequence[Side], times: Mapping[str, Timing], limit: float) -> list[Row]:
    """Of one model, behind ever more tokens."""
    rows: list[Row] = []
    for side in own:
        row: Row = {"model": side.model, "tokens": side.tokens}
        if side.decode is not None:
            ms = 1e3 * times[side.name].median / side.decoded
            speed = side.read_bytes / ms / 1e6
            row |= {"ms": ms, "over_first": _over(times, side, own[0]), "tokens_per_s": 1e3 / ms}
            row |= {"read_MB": side.read_bytes / MB, "read_GB_per_s": speed, "%_of_read_limit": 100 * speed / limit}
        rows.append(row)
    return rows


def _memory_row(side: Side) -> Row:
    process = None if side.process_bytes is None else side.process_bytes / MB
    return {
        "model": side.model,
        "tokens": side.tokens,
        "context_MB": side.context_bytes / MB,
        "process_MB": process,
    }


def _consolidation(sleeper: Sleeper, stop: Stop, peak: Peak) -> Row:
    """What it cost to come there."""
    window = sleeper.config.window_size
    flops = count_flops(lambda: sleeper.consolidate(sleeper.start(), window)) / window * stop.tokens
    gflops = flops / stop.seconds / 1e9
    return {
        "N": sleeper.config.num_sleep_passes,
        "tokens": stop.tokens,
        "seconds": stop.seconds,
        "tokens_per_s": stop.tokens / stop.seconds,
        "ms_per_token": 1e3 * stop.seconds / stop.tokens,
        "GFLOPS": gflops,
        "%_of_matmul_peak": peak.share(gflops),
    }


def _notes(model: HybridLM, transformer: HybridLM, window_size: int, limit: float, sides: Sequence[Side]) -> list[str]:
    ours, theirs = (f"{count_parameters(one) / 1e6:.2f}M parameters" for one in (model, transformer))
    left_out = [
        f"{side.tokens:,} tokens ({side.context_bytes / 2**30:.1f} GiB)" for side in sides if side.decode is None
    ]
    return [
        f"Width {model.config.width}, {len(model.config.layers)} blocks, random parameters, one text, float32. sleep "
        f"({ours}): attention and Gated DeltaNet in turn, windows of {window_size}, hard eviction; the tokens that it "
        "slept over, and the mean ms over a fresh window behind them, token by token. "
        f"transformer ({theirs}): attention alone; tokens in its KV cache, and ms of the next one.",
        "over_first, and the ratios of ms: medians over rounds of the two times in the same round; of the two N over "
        "all stops.",
        "read_MB: what one token must read: parameters (of the embedding one row), fast weights, and the KV cache, for "
        f"sleep half a window of it. The limit is {limit:.1f} GB/s, the best round of a sum over "
        f"{READ_BYTES // 2**20} MiB; what fits into the processor's caches may be read faster.",
        "context_MB: all that outlives a call but the parameters, with the window full; for the transformer its KV "
        f"cache. process_MB: {RESIDENT}, right behind the last sleep.",
        "consolidation: waking pass and sleep over whole windows. A text that is decoded pays the other N − 1 passes "
        "at the end of each window, apart from ms.",
        "The headline is ms behind the last stop over the first, for the largest N. Lower is better.",
        *([f"No room in half of the free memory for the transformer at {', '.join(left_out)}."] if left_out else []),
    ]


def read_limit(size: int = READ_BYTES) -> float:
    """GB/s at which torch reads memory, with its threads."""
    source = torch.ones(size // 4)
    best = alternate({"read": source.sum}, seconds=1.0)["read"].best
    return source.nbytes / best / 1e9
