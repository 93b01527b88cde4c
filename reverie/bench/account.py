"""The account of a training step with sleep: operations, and bytes kept for the backward pass, as formulas.

`count.py` counts the same quantities while a model runs; tests compare the two.

Shapes: B batch, T tokens of a window, L of a full one, D width, H heads, K key size, V value size, M inner width of the
MLP. A matrix product [m, k] × [k, n] is 2 m k n operations; elementwise steps count nothing. Bytes are in float32. For
hard eviction, and the gated delta rule on the "chunked" backend, which fills up the last chunk of a window.
"""

from collections.abc import Iterator
from functools import cache
from math import ceil, prod
from typing import NamedTuple

import torch

from reverie.errors import UserError
from reverie.model import HybridConfig, HybridLM
from reverie.model.config import BlockKind
from reverie.sleep import SleepConfig
from reverie.sleep.gradients import Backward
from reverie.train.optim import parameter_groups

Shapes = dict[str, tuple[int, ...]]
"""Shapes of parameters by name."""

CHUNK = 64  # tokens that the update rule takes at once
NEWTON_SCHULZ_STEPS = 5  # of Muon
FLOAT32, INDEX = 4, 8  # bytes


class Work(NamedTuple):
    """One training step: B texts of windows of L tokens."""

    model: HybridConfig
    sleep: SleepConfig
    backward: Backward
    batch: int
    labelled: tuple[bool, ...]  # a window each
    scored: int  # labelled positions in the batch
    element: float = FLOAT32  # bytes of an element that a run keeps
    tokens: int | None = None  # of a text; whole windows if None

    @property
    def window_tokens(self) -> int:
        """B · L."""
        return self.batch * self.sleep.window_size

    def length(self, window: int) -> int:
        """T: the last window may be a shorter one."""
        L = self.sleep.window_size
        return L if self.tokens is None else min(L, self.tokens - window * L)


class Run(NamedTuple):
    """One forward through blocks [start, stop) over one window: the unit that "pass" checkpoints."""

    window: int
    start: int
    stop: int
    output: bool  # without it the last block writes its fast weights and stops
    trained: bool  # gradients go back through it

    def blocks(self) -> Iterator[tuple[int, bool]]:
        """Each block, and whether it computes more than its fast weights."""
        return ((i, self.output or i < self.stop - 1) for i in range(self.start, self.stop))


def runs(work: Work) -> list[Run]:
    """All runs of a step, in the order in which `rollout` makes them.

    Raises:
        UserError: the model has a mixer or an injection of which there is no account.
    """
    if others := set(work.model.layers) - {"attn", "gdn", "jet", "jet-only"} | {work.model.injection} - {"none"}:
        raise UserError(f"there is no account of the operations of {min(others)}")
    blocks, fast = len(work.model.layers), [i for i, kind in enumerate(work.model.layers) if kind != "attn"]
    a, b = work.sleep.looped_blocks or (0, blocks)
    kept = max(fast, default=-1) + 1  # nothing after the last fast weights outlives the window
    N = work.sleep.num_sleep_passes if kept > a else 1
    awake = [(1, 0, b, True), (1, b, blocks, True)] if N > 1 else [(1, 0, blocks, True)]
    if N == 1:
        asleep = [(1, 0, kept, False)]
    else:
        last = [(N, a, b, True), (N, b, kept, False)] if b < kept else [(N, a, kept, False)]
        asleep = [(1, 0, b, True), *((n, a, b, True) for n in range(2, N)), *last]
    reached: list[bool] = work.backward.reached(torch.tensor([work.labelled]), to_end=False)[0].tolist()
    return [
        Run(c, start, stop, output, reached[c] and n >= first)
        for c, labelled in enumerate(work.labelled)
        for first in (1 if labelled else work.backward.first_pass(N),)
        for n, start, stop, output in (awake if labelled else asleep)
        if start < stop
    ]


# Parameters


@cache
def parameter_shapes(model: HybridConfig) -> Shapes:
    """Shapes of all parameters of `HybridLM`, without making them."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in HybridLM(model).named_parameters()}


@cache
def hidden_matrices(model: HybridConfig) -> Shapes:
    """Shapes of the matrices that Muon trains; AdamW trains the rest."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in parameter_groups(HybridLM(model))[0].items()}


def block_shapes(shapes: Shapes, index: int) -> Shapes:
    """Shapes of one block's parameters, by their names in the block."""
    block = f"layers.{index}."
    return {name.removeprefix(block): shape for name, shape in shapes.items() if name.startswith(block)}


def count(shapes: Shapes) -> int:
    """Their elements."""
    return sum(prod(shape) for shape in shapes.values())


def _has_mlp(kind: BlockKind) -> bool:
    return kind != "jet-only"


def _kernel_hidden(model: HybridConfig) -> int:
    """Inner width of the network that makes a jet block's kernels."""
    return max(model.fast_heads * model.value_size // 8, 1)


# Operations


class Operations(NamedTuple):
    """Floating-point operations of one training step."""

    forward: int
    backward: int
    recompute: int  # forward again, for what was not kept

    @property
    def total(self) -> int:
        return sum(self)


@cache
def block_operations(model: HybridConfig, kind: BlockKind, batch: int, T: int, output: bool) -> tuple[int, int]:
    """Operations of a block over T tokens of B texts, (forward, backward). Causal attention counts in full."""
    unread = () if output else ("mixer.gate_proj", "mixer.out_proj", "mlp.")
    matrices = block_shapes(hidden_matrices(model), model.layers.index(kind))
    linear = 2 * batch * T * count({name: shape for name, shape in matrices.items() if not name.startswith(unread)})
    if kind == "attn":
        attention = 4 * batch * model.width * T * T if output else 0
        return linear + attention, 2 * linear + attention * 5 // 2  # the backward makes the scores again
    C, K, V = min(CHUNK, T), model.key_size, model.value_size
    product, inverse, memory = 2 * C * C * K, C**3, 2 * C * K * V
    write = product + inverse + 2 * C * C * V + 2 * memory  # k kᵀ; (I + A)⁻¹, and with it w; z; the new S
    read = product + 2 * C * C * V + memory if output else 0  # q kᵀ, M w, q S
    chunks = batch * model.fast_heads * ceil(T / C)
    back = 2 * (write + read) - product - 2 * inverse
    return linear + chunks * (write + read), 2 * linear + chunks * back


def head_operations(work: Work) -> int:
    """Operations of the head's forward, over labelled positions alone."""
    return 2 * work.scored * work.model.width * work.model.vocab_size


def operations(work: Work) -> Operations:
    """Operations of one step on all ranks together, without the optimiser's."""
    mode = work.backward.activation_checkpoint
    head = head_operations(work)
    forward, backward, recompute = head, 2 * head, 0
    all_runs = runs(work)
    trained = {run.window for run in all_runs if run.trained}
    layers = work.model.layers
    for run, following in zip(all_runs, [*all_runs[1:], None], strict=True):
        T = work.length(run.window)
        costs = [block_operations(work.model, layers[i], work.batch, T, output) for i, output in run.blocks()]
        again = sum(cost for cost, _ in costs)
        forward += again
        if run.trained:
            backward += sum(cost for _, cost in costs)
        if run.trained and mode != "none":  # all but its last product, whose inputs are the last that is kept
            last = _last_product(work.model, layers[run.stop - 1]) if run.output else 0
            recompute += again - 2 * work.batch * T * last
        if run.window in trained and mode == "window" and following is not None and following.window == run.window:
            recompute += again  # from the start of the window to the input of its last run
    return Operations(forward, backward, recompute)


@cache
def _last_product(model: HybridConfig, kind: BlockKind) -> int:
    """Elements of the matrix that a block multiplies with last."""
    shapes = block_shapes(hidden_matrices(model), model.layers.index(kind))
    return prod(shapes["mlp.out_proj.weight" if _has_mlp(kind) else "mixer.out_proj.weight"])


def newton_schulz_operations(shape: tuple[int, ...]) -> int:
    """Operations of Muon for a matrix [m, n] with m ≤ n: X Xᵀ, its square, and their product with X, five times."""
    m, n = min(shape), max(shape)
    return NEWTON_SCHULZ_STEPS * (4 * m * m * n + 2 * m**3)


def muon_operations(model: HybridConfig) -> int:
    """Operations of one step of Muon over all hidden matrices."""
    return sum(map(newton_schulz_operations, hidden_matrices(model).values()))


# Bytes kept for the backward pass


@cache
def block_elements(model: HybridConfig, kind: BlockKind, T: int, output: bool) -> float:
    """Elements that autograd keeps of one block's run over T tokens of one text, parameters left out."""
    D, M = model.width, model.mlp_width
    # MLP: its normed input, gate and up, silu(gate), their product
    rest = D + 1 + 4 * M if output and _has_mlp(kind) else 0
    if kind == "attn":
        q, kv, heads = D, model.kv_heads * model.head_size, 2 * model.num_heads + model.kv_heads
        # q k v, q k normed, q k turned, q scaled, o; what the norms and the softmax divide by
        return T * (D + 1 + 5 * q + 4 * kv + heads + rest)
    return T * (D + 1 + _fast_weight_elements(model, kind, T, output) + rest)


def _fast_weight_elements(model: HybridConfig, kind: BlockKind, T: int, output: bool) -> float:
    """Elements a token that a fast-weight mixer keeps, without its normed input."""
    H, C = model.fast_heads, min(CHUNK, T)
    HK, HV, HC = H * model.key_size, H * model.value_size, H * C
    qkv, edge = 2 * HK + HV, 1 + (model.conv_size - 1) / T  # zeros before the window, for the convolution
    conv = qkv * (edge + 2)  # the convolution's inputs, sigmoid and silu
    if kind != "gdn":  # q k v; v's inputs, kernels and sum; the network that makes the kernels
        conv = qkv + HV * (edge + model.conv_size + 1) + 2 * _kernel_hidden(model)
    gates = 2 * HK + 5 * H  # normed q and k; what α and β are made of
    filled = C * ceil(T / C) / T
    write = 3 * HK + 2 * HV + HK * model.value_size / C + 3 * HC + 3 * H  # k thrice, z, w, S; P, inverse, decays; β
    read = 2 * HK + HC if output else 0  # q twice, M
    normed = 5 * HV + H if output else 0  # the output normed, as it is and in order, gated
    return conv + gates + filled * (write + read) + normed


def fast_weight_bytes(work: Work, blocks: int | None = None) -> int:
    """Bytes of the fast weights of so many blocks, of all if None: what goes from window to window."""
    if blocks is None:
        blocks = sum(kind != "attn" for kind in work.model.layers)
    return FLOAT32 * blocks * work.batch * work.model.fast_heads * work.model.key_size * work.model.value_size


def run_bytes(work: Work, run: Run) -> float:
    """Bytes that the backward pass needs of one run."""
    T, layers = work.length(run.window), work.model.layers
    elements = sum(block_elements(work.model, layers[i], T, output) for i, output in run.blocks())
    return work.element * work.batch * elements


def head_bytes(work: Work) -> int:
    """Bytes kept of labelled positions: where they are, their normed h, and the probabilities that the loss keeps."""
    return work.scored * (FLOAT32 * (work.model.width + 1 + work.model.vocab_size) + 3 * INDEX)


def kept_bytes(work: Work) -> float:
    """Bytes alive between forward and backward, parameters left out."""
    mode, trained = work.backward.activation_checkpoint, [run for run in runs(work) if run.trained]
    tokens = work.batch * sum(work.length(window) for window in range(len(work.labelled)))
    always = INDEX * tokens + head_bytes(work)
    if mode == "none":
        return always + sum(run_bytes(work, run) for run in trained)
    if mode == "pass":
        return always + sum(_input_bytes(work, run) for run in trained)
    return always + (len({run.window for run in trained}) - 1) * fast_weight_bytes(work)  # the first finds none


def peak_bytes(work: Work) -> float:
    """The most bytes alive in the backward, with the gradients, which are there whole from its first run on."""
    mode, trained = work.backward.activation_checkpoint, [run for run in runs(work) if run.trained]
    gradients = FLOAT32 * count(parameter_shapes(work.model))
    if mode == "none":  # what the last run kept is gone when its gradients are there
        return kept_bytes(work) + max(gradients - run_bytes(work, trained[-1]), 0)
    return kept_bytes(work) + gradients + again_bytes(work)


def again_bytes(work: Work) -> float:
    """The most bytes that the backward makes again at a time: a run, and under "window" the inputs of all runs too."""
    mode, trained = work.backward.activation_checkpoint, [run for run in runs(work) if run.trained]
    windows = {run.window for run in trained} if mode == "window" else set()
    inputs = [sum(_input_bytes(work, run) for run in trained if run.window == c) for c in windows]
    return max(inputs, default=0) + max(run_bytes(work, run) for run in trained)


def _input_bytes(work: Work, run: Run) -> int:
    """Bytes of the h that a run starts from and of the fast weights that it leaves to the next one."""
    fast = sum(work.model.layers[i] != "attn" for i, _ in run.blocks())
    last = run.window == len(work.labelled) - 1
    h = FLOAT32 * work.batch * work.length(run.window) * work.model.width
    return h + (0 if last else fast_weight_bytes(work, fast))
