"""Sleep, awake and asleep: against Algorithm 1 written out, against itself in pieces, against its promises.

Small models in float64, so that "the same up to rounding" can mean 1e-9.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from reverie.errors import UserError
from reverie.model import CacheEntry, ConvTail, HybridLM, KVCache, State
from reverie.model.rotary import shift
from reverie.sleep import Context, SleepConfig, forget, plan, read, rollout, sleep, wake

MakeModel = Callable[..., HybridLM]

L, T = 5, 17  # three full windows and one of two tokens
LAYERS = {"gdn": ("attn", "gdn", "attn", "gdn", "attn"), "jet": ("attn", "jet", "jet", "attn", "jet")}
LOOPS = {"all": None, "start": (0, 2), "middle": (1, 3), "end": (3, 5), "last": (4, 5)}

each_kind = pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
each_eviction = pytest.mark.parametrize("eviction", ["hard", "sliding"])
each_loop = pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
some_passes = pytest.mark.parametrize("N", [1, 2, 3])


def asleep(N: int, eviction: str = "hard", loop: tuple[int, int] | None = None, window_size: int = L) -> SleepConfig:
    return SleepConfig.model_validate(
        {"window_size": window_size, "num_sleep_passes": N, "looped_blocks": loop, "eviction": eviction}
    )


def text(length: int = T) -> Tensor:
    return torch.randint(11, (2, length), generator=torch.Generator().manual_seed(0))


def labels(*windows: int, length: int = T) -> Tensor:
    """Labels in these windows, at places that differ from row to row; none of row 1 in the first of them."""
    random, mask = torch.Generator().manual_seed(1), torch.zeros(2, length, dtype=torch.bool)
    for window in windows:
        place = slice(window * L, (window + 1) * L)
        mask[:, place] = torch.rand(mask[:, place].shape, generator=random) < 0.6
        mask[0, window * L] = True
    mask[1, windows[0] * L : (windows[0] + 1) * L] = False
    return mask


def one_block(
    model: HybridLM, i: int, h: Tensor, S: Tensor | None, cache: CacheEntry | None
) -> tuple[Tensor, Tensor | None, CacheEntry | None]:
    slots = [None] * model.num_blocks
    fast_weights, caches = [*slots[:i], S, *slots[i + 1 :]], [*slots[:i], cache, *slots[i + 1 :]]
    h, state = model.blocks(h, State(tuple(fast_weights), tuple(caches)), i, i + 1, span=L)
    return h, state.fast_weights[i], state.cache[i]


def algorithm_1(
    model: HybridLM, tokens: Tensor, config: SleepConfig, sleeps: Sequence[bool]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The logits of every token, and the fast weights at the end; window i is slept over where sleeps[i]."""
    n = model.num_blocks
    a, b = config.looped_blocks or (0, n)
    S, kept, logits = [None] * n, [None] * n, []
    for window, sleeps_here in zip(tokens.split(L, 1), sleeps, strict=True):
        h = model.embed(window)  # awake: one pass, nothing of it stays
        for i in range(n):
            h, _, _ = one_block(model, i, h, S[i], kept[i])
        logits.append(model.head(h))

        h, new_S, cache = model.embed(window), list[Any](S), list[Any](kept)
        for i in range(a):
            h, new_S[i], cache[i] = one_block(model, i, h, S[i], kept[i])
        for _ in range(config.num_sleep_passes if sleeps_here else 1):
            for i in range(a, b):
                h, new_S[i], cache[i] = one_block(model, i, h, new_S[i], kept[i])
        for i in range(b, n):
            h, new_S[i], cache[i] = one_block(model, i, h, S[i], kept[i])
        S, kept = new_S, [newest(entry) if config.eviction == "sliding" else None for entry in cache]
    return torch.cat(logits, 1), tuple(S)


def newest(entry: KVCache | ConvTail) -> KVCache | ConvTail:
    """The L − 1 newest tokens, from position 0 on."""
    if isinstance(entry, ConvTail):
        return entry
    gone = max(0, entry.k.shape[1] - (L - 1))
    return KVCache(shift(entry.k, -gone, entry.rope_base)[:, gone:], entry.v[:, gone:], entry.rope_base)


def assert_same(got: Any, wanted: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def tensors(x: Any) -> list[Tensor]:
    """All tensors in a Context or State."""
    if isinstance(x, Tensor):
        return [x]
    return [tensor for part in x for tensor in tensors(part)] if isinstance(x, tuple) else []


# The algorithm


@each_kind
@each_eviction
@each_loop
@some_passes
def test_rollout_is_algorithm_1(
    tiny_model: MakeModel, layers: Sequence[str], eviction: str, loop: tuple[int, int] | None, N: int
) -> None:
    """Sleep over windows without labels, the ragged last one too; one pass over those with labels."""
    model, tokens, config = tiny_model(*layers), text(), asleep(N, eviction, loop)
    for labelled in [(1, 3), (2,)]:
        mask = labels(*labelled)
        wanted, S = algorithm_1(model, tokens, config, [i not in labelled for i in range(4)])
        logits, context = rollout(model, tokens, mask, config)
        assert_same(logits, wanted[mask])
        assert_same(context.state.fast_weights, S)


@each_eviction
@each_loop
@some_passes
def test_read_is_algorithm_1(tiny_model: MakeModel, eviction: str, loop: tuple[int, int] | None, N: int) -> None:
    """Every token is predicted awake, every full window is slept over."""
    model, tokens, config = tiny_model("attn", "gdn", "jet", "attn", "gdn"), text(), asleep(N, eviction, loop)
    wanted, S = algorithm_1(model, tokens, config, [True, True, True, False])
    logits, context = read(model, tokens, Context.empty(model), config)
    assert_same(logits, wanted)
    assert_same(context.state.fast_weights, S)


@each_kind
@each_loop
def test_one_pass_is_the_plain_hybrid_bit_for_bit(
    tiny_model: MakeModel, layers: Sequence[str], loop: tuple[int, int] | None
) -> None:
    """Hard eviction: window by window, and fast weights go on."""
    model, tokens, mask = tiny_model(*layers, dtype=torch.float32), text(), labels(1, 3)
    state, hs = State.empty(model.num_blocks), []
    for window in tokens.split(L, 1):
        h, state = model.blocks(model.embed(window), State(state.fast_weights, (None,) * 5), 0, 5, span=L)
        hs.append(h)
    logits, context = read(model, tokens, Context.empty(model), asleep(1, loop=loop))
    assert torch.equal(logits, torch.cat([model.head(h) for h in hs], 1))
    scored, end = rollout(model, tokens, mask, asleep(1, loop=loop))
    assert torch.equal(scored, model.head(torch.cat(hs, 1)[mask]))
    for fast_weights in (context.state.fast_weights, end.state.fast_weights):
        assert all(map(torch.equal, tensors(fast_weights), tensors(state.fast_weights)))


@each_kind
@pytest.mark.parametrize("window_size", [1, 2, 5, 30])
def test_one_sliding_pass_is_one_forward_pass_with_a_band_mask(
    tiny_model: MakeModel, layers: Sequence[str], window_size: int
) -> None:
    model, tokens = tiny_model(*layers), text()
    h, state = model.blocks(model.embed(tokens), State.empty(5), 0, 5, span=window_size)
    logits, context = read(model, tokens, Context.empty(model), asleep(1, "sliding", window_size=window_size))
    assert_same(logits, model.head(h))
    assert_same(context.state.fast_weights, state.fast_weights)


@each_eviction
def test_sleep_of_one_pass_only_evicts(tiny_model: MakeModel, eviction: str) -> None:
    model = tiny_model(*LAYERS["gdn"])
    _, full = wake(model, text(L), Context.empty(model), asleep(1, eviction))
    slept, forgotten = sleep(model, full, asleep(1, eviction)), forget(full, asleep(1, eviction))
    assert_same(tensors(slept), tensors(forgotten), 0)


@each_eviction
@each_loop
def test_passes_matter(tiny_model: MakeModel, eviction: str, loop: tuple[int, int] | None) -> None:
    """Each number of passes leaves other fast weights in the looped blocks, and so other logits later."""
    model = tiny_model(*LAYERS["gdn"])
    seen = [rollout(model, text(), labels(3), asleep(N, eviction, loop))[0] for N in (1, 2, 3)]
    nothing_left = eviction == "hard" and loop == LOOPS["last"]  # the loop is attention alone, and evicted
    for x, y in [(0, 1), (1, 2), (0, 2)]:
        assert torch.allclose(seen[x], seen[y], atol=1e-4) == nothing_left


@some_passes
def test_a_transformer_forgets_all_under_hard_eviction(tiny_model: MakeModel, N: int) -> None:
    """Each window is read as if it were the first, whatever N."""
    model, tokens = tiny_model("attn", "attn"), text()
    logits, _ = read(model, tokens, Context.empty(model), asleep(N))
    assert_same(logits, torch.cat([model(window) for window in tokens.split(L, 1)], 1))


# Pieces


@settings(max_examples=5, deadline=None, database=None, derandomize=True)
@given(cuts=st.sets(st.integers(1, T - 1)), N=st.integers(1, 3))
@pytest.mark.parametrize("loop", [None, (1, 3)], ids=["all", "middle"])
@each_eviction
@each_kind
def test_pieces_of_any_size_are_one_call(
    tiny_model: MakeModel, layers: Sequence[str], eviction: str, loop: tuple[int, int] | None, cuts: set[int], N: int
) -> None:
    """The same logits and fast weights, and a context that knows where in the window it stands."""
    model, tokens, config = tiny_model(*layers), text(), asleep(N, eviction, loop)
    wanted, end = read(model, tokens, Context.empty(model), config)
    logits, context, position = [], Context.empty(model), 0
    edges = [0, *sorted(cuts), T]
    for start, stop in pairwise(edges):
        piece, context = read(model, tokens[:, start:stop], context, config)
        logits.append(piece)
        position += piece.shape[1]
        length = (position - 1) % L + 1  # a full window is kept until the next token comes
        assert context.length == length
        assert sum(h.shape[1] for h in context.window) == (length if N > 1 else 0)
    assert_same(torch.cat(logits, 1), wanted)
    assert_same(tensors(context.state), tensors(end.state))
    assert_same(tensors(context.window_start), tensors(end.window_start))


@each_eviction
@each_kind
def test_token_by_token_in_float32(tiny_model: MakeModel, layers: Sequence[str], eviction: str) -> None:
    model, tokens, config = tiny_model(*layers, dtype=torch.float32), text(), asleep(2, eviction)
    wanted, _ = read(model, tokens, Context.empty(model), config)
    logits, context = [], Context.empty(model)
    for token in tokens.split(1, 1):
        piece, context = read(model, token, context, config)
        logits.append(piece)
    assert (torch.cat(logits, 1) - wanted).norm() < 2e-3 * wanted.norm()


@each_kind
@each_eviction
@pytest.mark.parametrize("loop", [None, (1, 3)], ids=["all", "middle"])
@pytest.mark.parametrize("N", [1, 3])
def test_the_newest_logits_are_those_of_the_full_read(
    tiny_model: MakeModel, layers: Sequence[str], loop: tuple[int, int] | None, eviction: str, N: int
) -> None:
    """And so is the context, wherever in their windows the two pieces begin and end."""
    model, tokens, config = tiny_model(*layers), text(), asleep(N, eviction, loop)
    for cut in (3, 2 * L):
        whole, fast = Context.empty(model), Context.empty(model)
        for piece in tokens.split([cut, T - cut], 1):
            logits, whole = read(model, piece, whole, config)
            newest_logits, fast = read(model, piece, fast, config, newest_only=True)
            assert_same(newest_logits, logits[:, -1:])
        assert fast.length == whole.length
        assert_same(tensors(fast), tensors(whole))


def test_a_context_is_all_that_reading_goes_on_from(tiny_model: MakeModel) -> None:
    """Two continuations of one context do not disturb each other."""
    model, tokens, config = tiny_model(*LAYERS["gdn"]), text(), asleep(2, "sliding")
    _, context = read(model, tokens[:, :8], Context.empty(model), config)
    first, _ = read(model, tokens[:, 8:], context, config)
    read(model, tokens[:, :9], context, config)
    again, _ = read(model, tokens[:, 8:], context, config)
    assert torch.equal(again, first)


def test_logits_come_in_the_order_of_the_mask(tiny_model: MakeModel) -> None:
    """Rows first, then positions, though windows come one after the other."""
    model, tokens, mask = tiny_model(*LAYERS["gdn"]), text(), labels(0, 1, 2, 3)
    logits, _ = read(model, tokens, Context.empty(model), asleep(1))
    scored, _ = rollout(model, tokens, mask, asleep(1))
    assert_same(scored, logits[mask])


# Gradients


def cut(context: Context) -> Context:
    """The same, with no gradient through the fast weights."""

    def detached(state: State) -> State:
        return state._replace(fast_weights=tuple(None if S is None else S.detach() for S in state.fast_weights))

    return context._replace(state=detached(context.state), window_start=detached(context.window_start))


@contextmanager
def recorded(model: HybridLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Collects the h that each run of the blocks starts from."""
    hs: list[Tensor] = []
    blocks = model.blocks

    def recording(h: Tensor, state: State, start: int, stop: int, **options: Any) -> tuple[Tensor, State]:
        if start < stop:
            hs.append(h)
        return blocks(h, state, start, stop, **options)

    with monkeypatch.context() as patch:
        patch.setattr(model, "blocks", recording)
        yield hs


@each_kind
@some_passes
def test_gradients_reach_every_pass_and_only_through_the_fast_weights(
    tiny_model: MakeModel, layers: Sequence[str], N: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an evicted window, a later loss sees nothing (no path at all) once the fast weights are cut."""
    model, config = tiny_model(*layers), asleep(N)
    first, second = text().split([L, T - L], 1)
    with recorded(model, monkeypatch) as hs:
        _, context = wake(model, first, Context.empty(model), config, output=False)
        context = sleep(model, context, config)
    assert len(hs) == N
    for through in (True, False):
        h, _ = wake(model, second[:, :L], context if through else cut(context), config)
        gradients = torch.autograd.grad(model.head(h).square().sum(), hs, allow_unused=True, retain_graph=True)
        for gradient in gradients:
            assert (gradient is not None) == through
            assert gradient is None or (gradient.abs().sum((0, 2)) > 1e-9).all()


def test_sliding_eviction_leaves_a_path_to_the_kept_tokens_alone(tiny_model: MakeModel) -> None:
    """In one attention block the first token of the next window sees L − 1 tokens of this one."""
    model, config = tiny_model("attn"), asleep(1, "sliding")
    embedded = model.embed(text(L))
    h, state = model.blocks(embedded, State.empty(1), 0, 1, span=L)
    context = forget(Context(state, State.empty(1), length=L), config)
    h, _ = wake(model, text(1), context, config)
    (gradient,) = torch.autograd.grad(h.square().sum(), [embedded])
    assert (gradient.abs().sum((0, 2)) > 0).tolist() == [False, True, True, True, True]


class Rollout(nn.Module):
    """`rollout` as a function of a model's parameters."""

    def __init__(self, model: HybridLM, config: SleepConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return rollout(self.model, tokens, mask, self.config)[0]


@each_kind
@each_eviction
@pytest.mark.parametrize("loop", [None, (1, 3)], ids=["all", "middle"])
def test_gradcheck_through_two_passes_over_two_windows(
    tiny_model: MakeModel, layers: Sequence[str], eviction: str, loop: tuple[int, int] | None
) -> None:
    """Along a random direction of all parameters."""
    wrapped = Rollout(tiny_model(*layers), asleep(2, eviction, loop, window_size=3))
    shapes = {name: parameter.shape for name, parameter in wrapped.named_parameters()}
    tokens, mask = text(8)[:1], torch.arange(8)[None] > 5

    def logits(values: Tensor) -> Tensor:
        parts = values.split([shape.numel() for shape in shapes.values()])
        parameters = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return torch.func.functional_call(wrapped, parameters, (tokens, mask))

    values = nn.utils.parameters_to_vector(wrapped.parameters()).detach().requires_grad_()
    assert torch.autograd.gradcheck(logits, [values], fast_mode=True)


@each_eviction
@each_loop
@some_passes
def test_every_parameter_learns(tiny_model: MakeModel, eviction: str, loop: tuple[int, int] | None, N: int) -> None:
    """Backward over three windows asleep and one awake works: nothing that it needs is overwritten."""
    model = tiny_model(*LAYERS["gdn"], dtype=torch.float32)
    logits, _ = rollout(model, text(), labels(3), asleep(N, eviction, loop))
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


# Nothing too much


@each_eviction
@some_passes
def test_nothing_is_updated_in_place(tiny_model: MakeModel, eviction: str, N: int) -> None:
    model, config = tiny_model(*LAYERS["jet"]), asleep(N, eviction)
    _, context = read(model, text(8), Context.empty(model), config)  # in the middle of window 2
    before = [x.clone() for x in tensors(context)]
    versions = [x._version for x in tensors(context)]
    _, full = wake(model, text(2), context, config)
    full_before = [x.clone() for x in tensors(full)]
    sleep(model, full, config)
    assert_same(tensors(full), full_before, 0)
    assert_same(tensors(context), before, 0)
    assert [x._version for x in tensors(context)] == versions


@contextmanager
def counted(model: HybridLM) -> Iterator[Counter[str]]:
    """Calls of each module, by name."""
    calls: Counter[str] = Counter()

    def hook(name: str) -> Callable[..., None]:
        return lambda *_: calls.update([name])

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
    yield calls
    for handle in handles:
        handle.remove()


def per_block(calls: Counter[str], part: str) -> list[int]:
    return [calls[f"layers.{i}.{part}"] for i in range(5)]


# By hand for attn gdn attn gdn attn: what one window costs when nobody reads its logits. The last fast weights are in
# block 3, so under hard eviction block 4 runs only where its h starts another pass, and the last run of block 3 only
# writes.
COSTS = {
    # (N, eviction, loop): (mixers, their output projections, MLPs), per block
    (1, "hard", None): ([1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]),
    (1, "hard", (1, 3)): ([1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]),
    (1, "sliding", None): ([1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]),
    (3, "hard", None): ([3, 3, 3, 3, 2], [3, 3, 3, 2, 2], [3, 3, 3, 2, 2]),
    (3, "sliding", None): ([3, 3, 3, 3, 3], [3, 3, 3, 3, 2], [3, 3, 3, 3, 2]),
    (3, "hard", (1, 3)): ([1, 3, 3, 1, 0], [1, 3, 3, 0, 0], [1, 3, 3, 0, 0]),
    (3, "sliding", (1, 3)): ([1, 3, 3, 1, 1], [1, 3, 3, 1, 0], [1, 3, 3, 1, 0]),
    (3, "hard", (3, 5)): ([1, 1, 1, 3, 2], [1, 1, 1, 2, 2], [1, 1, 1, 2, 2]),
    (3, "hard", (4, 5)): ([1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]),
}


@pytest.mark.parametrize(("N", "eviction", "loop"), COSTS)
def test_what_nobody_reads_is_not_computed(
    tiny_model: MakeModel, N: int, eviction: str, loop: tuple[int, int] | None
) -> None:
    model = tiny_model(*LAYERS["gdn"])
    costs = []
    for length in (7, 12):  # one window asleep and one with labels; two asleep and one with labels
        with counted(model) as calls:
            rollout(model, text(length), torch.arange(length).expand(2, -1) == length - 1, asleep(N, eviction, loop))
        costs.append(calls)
        assert calls["lm_head"] == 1
    costs[1].subtract(costs[0])
    mixers, outputs, mlps = COSTS[N, eviction, loop]
    assert per_block(costs[1], "mixer") == mixers
    assert per_block(costs[1], "mixer.out_proj") == outputs
    assert per_block(costs[1], "mlp") == mlps


@some_passes
def test_a_window_with_labels_costs_one_pass(tiny_model: MakeModel, N: int) -> None:
    model = tiny_model(*LAYERS["gdn"])
    with counted(model) as calls:
        rollout(model, text(2 * L), labels(0, 1, length=2 * L), asleep(N))
    assert per_block(calls, "mixer") == per_block(calls, "mlp") == [2] * 5
    assert calls["lm_head"] == 1


@some_passes
def test_reading_for_the_newest_logits_alone_costs_what_sleep_does(tiny_model: MakeModel, N: int) -> None:
    """Three full windows cost as much as in a rollout that sleeps over them, and the head sees one token."""
    model, seen = tiny_model(*LAYERS["gdn"]), list[int]()
    handle = model.lm_head.register_forward_pre_hook(lambda _, h: seen.append(h[0].shape[1]))
    with counted(model) as reading:
        read(model, text(), Context.empty(model), asleep(N), newest_only=True)
    handle.remove()
    with counted(model) as rolling:
        rollout(model, text(), labels(3), asleep(N))
    assert reading == rolling
    assert seen == [1]


@some_passes
def test_a_transformer_computes_nothing_in_its_sleep(tiny_model: MakeModel, N: int) -> None:
    """Nothing it could compute there would outlive hard eviction."""
    model = tiny_model("attn", "attn")
    with counted(model) as calls:
        rollout(model, text(), labels(3), asleep(N))
    assert calls["layers.0.mixer"] == calls["layers.0.mlp"] == calls["layers.1.mixer"] == calls["lm_head"] == 1


@each_eviction
@pytest.mark.parametrize("N", [1, 2])
def test_memory_is_flat_over_any_text(tiny_model: MakeModel, eviction: str, N: int) -> None:
    """At most L tokens cached (2 L − 1 sliding), and the same bytes at the same place of every window."""
    model, config = tiny_model("attn", "gdn", "jet"), asleep(N, eviction, window_size=4)
    context, bytes_at = Context.empty(model), [set[int]() for _ in range(4)]
    with torch.no_grad():
        for i, token in enumerate(text(80).split(1, 1)):
            _, context = read(model, token, context, config)
            for entry in context.state.cache + context.window_start.cache:
                if isinstance(entry, KVCache):
                    assert entry.k.shape[1] == entry.v.shape[1] <= (4 if eviction == "hard" else 7)
            storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors(context)}
            if i >= 8:
                bytes_at[i % 4].add(sum(storages.values()))
    assert [len(different) for different in bytes_at] == [1] * 4


# Errors


def test_tokens_must_fit_the_window(tiny_model: MakeModel) -> None:
    model = tiny_model("attn", "gdn")
    _, context = wake(model, text(3), Context.empty(model), asleep(1))
    with pytest.raises(UserError, match="3 tokens do not fit behind 3 in a window of 5"):
        wake(model, text(3), context, asleep(1))


def test_the_loop_must_lie_in_the_model(tiny_model: MakeModel) -> None:
    model = tiny_model("attn", "gdn")
    assert plan(model, asleep(2, loop=(0, 2))).b == 2
    with pytest.raises(UserError, match=r"looped_blocks \[1, 3\] must end at or before 2"):
        read(model, text(), Context.empty(model), asleep(2, loop=(1, 3)))


def test_there_must_be_a_label(tiny_model: MakeModel) -> None:
    with pytest.raises(UserError, match="no position is labelled"):
        rollout(tiny_model("attn", "gdn"), text(), torch.zeros(2, T, dtype=torch.bool), asleep(1))


def test_there_must_be_a_token_to_read(tiny_model: MakeModel) -> None:
    model = tiny_model("attn", "gdn")
    with pytest.raises(UserError, match="nothing to read"):
        read(model, text(0), Context.empty(model), asleep(1))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"window_size": 0}, "window_size"),
        ({"num_sleep_passes": 0}, "num_sleep_passes"),
        ({"looped_blocks": (2, 2)}, "0 <= a < b, got \\[2, 2\\]"),
        ({"looped_blocks": (-1, 2)}, "0 <= a < b"),
        ({"eviction": "soft"}, "eviction"),
        ({"passes": 2}, "passes"),
    ],
)
def test_a_bad_configuration_is_an_error(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        SleepConfig.model_validate({"window_size": 4, **changes})
