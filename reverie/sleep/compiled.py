"""Compile a token awake with AOTInductor, once for a kind of model, machine and version: the file is kept in a cache.

The file is a program. So it is in the user's own cache and not beside a model, which may have come from anywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from reverie.errors import UserError, plain
from reverie.files import cache_folder, file_hash, write_atomic
from reverie.model import HybridLM, new_model
from reverie.model.attention import Attention
from reverie.model.awake import Awake, AwakeGraph, Made, Run, empty_state
from reverie.model.gated_deltanet import GatedDeltaNet
from reverie.model.hybrid import Block
from reverie.model.jet import JetLayer
from reverie.model.recorded import Record, Recorded, cuda_graph
from reverie.model.room import places_after
from reverie.model.state import ConvTail, KVCache
from reverie.sleep.config import SleepConfig
from reverie.sleep.context import Context
from reverie.sleep.generate import token_by_token

_SOURCES = ("model", "ops")  # what a graph is made of
_TRIED = 3  # tokens, each time a graph is loaded
_RULES = "gated_delta", "delta", "hebbian"
_PLACES = 2**16  # most of a cache; the graph has rotations for all of them
_LARGE = 2**20  # numbers in a block's fast weights that several threads change sooner than one


def compile_awake(model: HybridLM, config: SleepConfig, *, batch_size: int = 1) -> Path:
    """Let tokens awake, of this many rows, go through a compiled graph from now on; it takes a minute at first.

    Returns the file that was compiled.

    Raises:
        UserError: the model is not on the CPU, has parts from outside or a window too large; there is no compiler; or
            the model is another than its config says, since what was compiled of that gives other logits.
    """
    if (refusal := _refusal(model, config)) is not None:
        raise UserError(refusal)
    file = _file(model, config, batch_size)
    if not take_compiled(model, config, batch_size=batch_size):
        write_atomic(file, lambda temporary: _compile(model, config, batch_size, temporary))
        write_atomic(_sum_of(file), file_hash(file).encode())
        if not take_compiled(model, config, batch_size=batch_size):
            raise UserError("what was compiled of the model's config gives other logits than the model: it was edited")
    return file


def take_compiled(model: object, config: SleepConfig, *, batch_size: int = 1) -> bool:
    """Let tokens awake go through a compiled graph if there is one for such a model; true if there is.

    A file that is damaged, or a graph that computes something else than the model does, is left alone.
    """
    if not isinstance(model, HybridLM) or _refusal(model, config) is not None:
        return False
    try:
        file = _file(model, config, batch_size)
        if _sum_of(file).read_text() != file_hash(file):
            return False
        run = _load(file)
    except (UserError, OSError, UnicodeDecodeError, RuntimeError):  # none, or none that can be read
        return False
    sizes = {"span": config.window_size, "places": _places(config), "batch_size": batch_size}
    awake = Awake(model, run, **sizes)
    if not _agrees(model, config, awake, batch_size):
        return False
    model.awake[batch_size] = awake
    return True


def record_awake(model: HybridLM, config: SleepConfig, *, batch_size: int = 1, record: Record | None = None) -> None:
    """Let tokens awake, of this many rows, of a model on a GPU be a replay of a CUDA graph from now on.

    Args:
        record: another way to record than a CUDA graph.

    Raises:
        UserError: the model is not on a GPU, has parts from outside or a window too large; or what was recorded gives
            other logits.
    """
    if (refusal := _refusal(model, config, "cuda" if record is None else None)) is not None:
        raise UserError(refusal)
    places = _places(config)
    graph = AwakeGraph(model, config.window_size, places)
    with torch.cuda.device(next(model.parameters()).device) if record is None else contextlib.nullcontext():
        run = Recorded(model, graph, places, batch_size, record or cuda_graph)
    awake = Awake(model, run, span=config.window_size, places=places, batch_size=batch_size)
    if not _agrees(model, config, awake, batch_size):
        raise UserError("what was recorded of the model gives other logits than the model")
    model.awake[batch_size] = awake


@torch.no_grad()
def _agrees(model: HybridLM, config: SleepConfig, awake: Awake, batch_size: int) -> bool:
    """True if a few tokens leave what the general path leaves, to rounding."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (batch_size, _TRIED), generator=generator)
    tokens = tokens.to(next(model.parameters()).device)

    def made(steps: dict[int, Awake]) -> list[Tensor]:
        model.awake.pop(batch_size, None)
        model.awake.update(steps)
        logits, context = token_by_token(model, tokens, Context.empty(model), config)
        model.awake.pop(batch_size, None)
        return [logits, *(x for x in context.state.fast_weights if x is not None)]

    tolerance = 1e-3 if tokens.new_empty(0, dtype=next(model.parameters()).dtype).element_size() >= 4 else 0.3
    return all(
        bool((torch.linalg.vector_norm(x - y) <= tolerance * torch.linalg.vector_norm(y)).item())
        for x, y in zip(made({batch_size: awake}), made({}), strict=True)
    )


def _refusal(model: HybridLM, config: SleepConfig, device: str | None = "cpu") -> str | None:
    """Why a token awake of this model cannot be compiled for this kind of device, or any; None if it can."""
    if type(model) is not HybridLM:
        return f"a token awake is compiled for HybridLM alone, and this is a {type(model).__name__}"
    for block in model.layers:
        if type(block) is not Block or type(block.mixer) not in (Attention, GatedDeltaNet, JetLayer):
            return f"a token awake is compiled for attn, gdn and jet blocks, and {block.kind} is none"
    if model.config.update_rule not in _RULES:
        return f"a token awake is compiled for the rules {', '.join(_RULES)}, and not for {model.config.update_rule}"
    if len({parameter.dtype for parameter in model.parameters()}) > 1:
        return "a token awake is compiled for parameters of one type"
    found = {parameter.device.type for parameter in model.parameters()}
    if device == "cpu" and (others := found - {"cpu"}):
        return f"a token awake is compiled for the CPU alone, and the model is on {min(others)}"
    if device == "cuda" and (others := found - {"cuda"}):
        return f"a token awake is recorded on a GPU alone, and the model is on {min(others)}"
    if _places(config) > _PLACES:
        return f"a token awake is compiled for caches of at most {_PLACES:,} tokens, and this window needs more"
    return None


def _sum_of(file: Path) -> Path:
    """The SHA-256 of a file, beside it: a program with a flipped bit would run."""
    return file.with_suffix(".sha256")


def _places(config: SleepConfig) -> int:
    """Tokens that a cache may hold."""
    return config.window_size if config.eviction == "hard" else 2 * config.window_size - 1


def _file(model: HybridLM, config: SleepConfig, batch_size: int) -> Path:
    """Where the graph is, named after all that it depends on."""
    package = Path(__file__).parent.parent
    sources = [file.read_bytes() for folder in _SOURCES for file in sorted((package / folder).glob("*.py"))]
    of_model = model.config.model_dump_json(), [str(p.dtype) for p in model.parameters()]
    machine = platform.machine(), _instructions(), torch.backends.cpu.get_cpu_capability(), torch.__version__
    sizes = config.window_size, _places(config), batch_size
    digest = hashlib.sha256(repr((of_model, machine, sizes)).encode() + b"".join(sources)).hexdigest()
    return cache_folder("awake") / f"{digest[:32]}.pt2"


def _compile(like: HybridLM, config: SleepConfig, batch_size: int, place: Path) -> None:
    """Compile for every model of this config: of a new one, since this one may have been edited."""
    model = new_model(like.config, seed=0).to(next(like.parameters()).dtype).eval()
    empty = empty_state(model, batch_size)
    pairs = [entry for entry in empty.cache if isinstance(entry, KVCache)]
    most = _places(config)
    least = places_after(0, most)
    buffers = [x.new_zeros(len(x), least, *x.shape[2:]) for pair in pairs for x in (pair.k, pair.v)]
    inputs = (
        [parameter.detach() for parameter in model.parameters()],
        torch.zeros(batch_size, 1, dtype=torch.long),
        torch.tensor(0),
        [x for x in empty.fast_weights if x is not None],
        [entry.x for entry in empty.cache if isinstance(entry, ConvTail)],
        buffers,
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = AwakeGraph(model, config.window_size, most)
        graph(*inputs)  # what is computed once and kept, as tables of positions are, must not be made while tracing
        shapes = tree_map(lambda _: None, inputs)
        if least < most:
            shapes = *shapes[:-1], [{1: torch.export.Dim("places", min=least, max=most)} for _ in buffers]
        exported = torch.export.export(graph, inputs, dynamic_shapes=shapes, strict=False)
        from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler  # which takes long to import

        try:
            torch._inductor.aoti_compile_and_package(
                exported, package_path=str(place), inductor_configs=_threads(inputs[3])
            )
        except (InductorError, InvalidCxxCompiler, CppCompileError) as error:
            reason = plain(str(error).partition("\n")[0])[:200]
            raise UserError(
                f"compiling needs a C++ compiler that works, such as g++ (CXX names another): {reason}"
            ) from error


def _threads(fast_weights: list[Tensor]) -> dict[str, Any]:
    """One thread for what is fused: other threads take longer to begin than small fast weights to change. Matrix
    products have as many as ever."""
    large = any(x.numel() >= _LARGE for x in fast_weights)
    return {"cpp.dynamic_threads": True} if large else {"cpp.threads": 1}


def _load(file: Path) -> Run:
    """The graph in a file. Called without the trees of its inputs and outputs, which would take as long as it does."""
    boxed_run = torch._inductor.aoti_load_package(str(file)).loader.boxed_run

    def run(
        parameters: list[Tensor],
        tokens: Tensor,
        place: Tensor,
        fast_weights: list[Tensor],
        tails: list[Tensor],
        buffers: list[Tensor],
    ) -> Made:
        logits, hs, *made = boxed_run([*parameters, tokens, place, *fast_weights, *tails, *buffers])
        return logits, hs, made[: len(fast_weights)], made[len(fast_weights) :]

    return run


def _instructions() -> str:
    """What this processor can, and so other code may not run on."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()
