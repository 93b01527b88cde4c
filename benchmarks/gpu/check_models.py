"""Whole models, computed as a run would compute them, against the same models computed the plain way.

`check_ways`        a recipe's model with each backend and number format, eager and compiled: loss, gradients
`check_graph`       the same training steps with and without a CUDA graph
`check_pretrained`  models of transformers that sleep, in bfloat16, on the device where `device_map` puts them
"""

import importlib.util
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from found import Found, apart, failed
from torch import Tensor, nn

from reverie.errors import UserError
from reverie.ops import BACKENDS
from reverie.recipe import Recipe, changed
from reverie.recipe.build import build_model
from reverie.sleep import SleepConfig
from reverie.sleep.labels import labelled_windows
from reverie.train.compiled import BACKEND, RECOMPILE_LIMIT
from reverie.train.data import make_batch
from reverie.train.run import train
from reverie.train.step import loss_sum

# Of all gradients together: N passes over W windows add up what rounding does to one product.
TOLERANCES = {"float32": 1e-2, "bfloat16": 0.1}
CURVE_TOLERANCES = {"float32": 1e-2, "bfloat16": 5e-2}  # of a loss after some steps, with a graph and without
PRETRAINED_TOLERANCE = 0.1
NOISE = 0.5  # of a matrix, by the root of its columns: in a new model every block is the identity
DECAY = 3.0  # on top of dt_bias: a new model forgets so slowly that a check would not see it if it did not
PRETRAINED_NOISE = 0.05  # they begin with numbers of their own
GRAPH_STEPS = 12
VOCABULARY = 61
KINDS = {"llama": 0.0, "qwen3_5_text": -4.0}  # types, and what is added to dt_bias: a new Qwen forgets at once

Outcome = dict[str, Tensor]
"""The loss, or logits, and gradients by parameter: float32, on the CPU."""


def check_ways(recipe: Recipe, device: torch.device) -> Iterator[Found]:
    """Yield the worst of loss and gradients for each backend, format and eager or compiled blocks."""
    exact = outcome(_with(recipe, "reference", "float32", compiled=False), device)
    for backend in BACKENDS:
        if backend in ("auto", "reference"):
            continue
        try:
            for dtype, compiled in product(TOLERANCES, (False, True)):
                name = (
                    f"{recipe.name}, N = {recipe.sleep.num_sleep_passes}, {backend}, {dtype}{', compiled' * compiled}"
                )
                yield _way(name, _with(recipe, backend, dtype, compiled), device, exact)
        except UserError as error:  # not installed, or not for this device
            yield Found(f"{recipe.name}, {backend}", why=str(error))


def _way(name: str, recipe: Recipe, device: torch.device, exact: Outcome) -> Found:
    try:
        return compared(name, outcome(recipe, device), exact, TOLERANCES[recipe.train.dtype])
    except UserError:
        raise
    except Exception as error:
        return failed(name, error)


def _with(recipe: Recipe, backend: str, dtype: str, compiled: bool) -> Recipe:
    return changed(recipe, model={"backend": backend}, train={"dtype": dtype, "compile": compiled})


def outcome(recipe: Recipe, device: torch.device) -> Outcome:
    """The result of one step, before clipping, at parameters that all matter."""
    model = build_model(recipe.model, recipe.train.seed)
    stir(model)
    model.to(device)
    if recipe.train.compile:
        torch._dynamo.reset()
        torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
        # On CPU the same graphs, without minutes of a C++ compiler.
        model.compile_blocks(BACKEND if device.type == "cuda" else "aot_eager")
    batch = make_batch(recipe.task, recipe.train, 0)
    batch = type(batch)(*(x.to(device) for x in batch))
    labelled = labelled_windows(batch.loss_mask, recipe.sleep.window_size)
    loss = loss_sum(model, batch, recipe.sleep, labelled, dtype=recipe.train.dtype) / batch.loss_mask.sum()
    loss.backward()
    return {"loss": loss.detach().cpu(), **_gradients(model)}


def compared(name: str, got: Outcome, wanted: Outcome, allowed: float) -> Found:
    """The loss by itself, and all gradients as one vector: a single parameter may hold nothing but rounding."""
    if odd := sorted(got.keys() ^ wanted.keys()):
        return Found(name, float("inf"), allowed, f"{odd[0]}, which only one of the two has")
    names = [key for key in wanted if key not in ("loss", "logits")]
    flat = [torch.cat([outcome[key].double().flatten() for key in names]) for outcome in (got, wanted)]
    errors = {"the gradients": apart(*flat)} | {key: apart(got[key], wanted[key]) for key in wanted if key not in names}
    worst = max(errors, key=lambda key: errors[key])
    return Found(name, errors[worst], allowed, worst)


def check_graph(recipe: Recipe, device: torch.device) -> Iterator[Found]:
    """Yield for each format how far the loss of some steps is from the one without a graph."""
    if device.type != "cuda":
        yield Found("CUDA graphs", why=f"there are none on {device}")
        return
    for dtype, compiled in product(TOLERANCES, (False, True)):
        losses = []
        for graphed in (False, True):
            settings = {"dtype": dtype, "compile": compiled and graphed, "cuda_graph": graphed}
            settings |= {"steps": GRAPH_STEPS, "eval_every": GRAPH_STEPS, "checkpoint_every": GRAPH_STEPS}
            with tempfile.TemporaryDirectory() as folder:
                card = train(changed(recipe, train=settings), Path(folder), device=device)
            losses.append(torch.tensor(card.curve[-1].train_loss))
        name = f"{recipe.name}, a CUDA graph, {dtype}{', compiled' * compiled}"
        yield Found(name, apart(losses[1], losses[0]), CURVE_TOLERANCES[dtype], f"the loss of {GRAPH_STEPS} steps")


def check_pretrained(device: torch.device, width: int, windows: int, window: int) -> Iterator[Found]:
    """Yield for each kind of model how far logits and gradients in bfloat16 are from those of float64 on the CPU."""
    for package in ("transformers", "accelerate"):
        if importlib.util.find_spec(package) is None:
            yield Found("models of transformers", why=f"{package} is not installed, which device_map needs")
            return
    config = SleepConfig(window_size=window, num_sleep_passes=2)
    tokens = torch.randint(3, VOCABULARY, (2, windows * window), generator=torch.Generator().manual_seed(0))
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            _save_tiny(kind, width, folder)
            exact = _read(folder, config, tokens, dtype=torch.float64, device_map="cpu")
            where = {"": f"{device.type}:0" if device.type == "cuda" else "cpu"}
            got = _read(folder, config, tokens, dtype=torch.bfloat16, device_map=where)
        yield compared(f"{kind}, bfloat16, device_map", got, exact, PRETRAINED_TOLERANCE)


def _save_tiny(kind: str, width: int, folder: str) -> None:
    """A random model of a type of transformers, with what it needs in order to sleep, as a folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from reverie.hf import add_sleep, insert_fast_weights

    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": width, "intermediate_size": 2 * width}
    sizes |= {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": width // 4}
    if kind == "qwen3_5_text":
        sizes |= {"linear_num_value_heads": 4, "linear_num_key_heads": 4, "linear_key_head_dim": width // 4}
        sizes |= {"linear_value_head_dim": width // 4, "layer_types": ["linear_attention", "full_attention"] * 2}
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes), dtype=torch.float32)
    if kind == "llama":
        insert_fast_weights(model, [0, 2], "jet")
    add_sleep(model, SleepConfig(window_size=8))
    stir(model, PRETRAINED_NOISE, KINDS[kind])
    model.to(torch.bfloat16).save_pretrained(folder)  # so that both formats read the same numbers


def _read(folder: str, config: SleepConfig, tokens: Tensor, **options: Any) -> Outcome:
    """Logits of every token, read window by window with sleep between, and all gradients of their loss."""
    from reverie.hf import add_sleep, load

    model: Any = load(folder, **options)
    add_sleep(model, config)
    logits = model(input_ids=tokens.to(model.device)).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten().to(logits.device)).backward()
    return {"logits": logits.detach().double().cpu(), **_gradients(model)}


def stir(model: nn.Module, noise: float = NOISE, decay: float = DECAY) -> None:
    """Move every parameter, so that it matters."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = noise * (parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.2)
            parameter.add_(scale * torch.randn(parameter.shape, generator=random))
            if name.endswith("dt_bias"):
                parameter.add_(decay)


def _gradients(model: nn.Module) -> Outcome:
    return {name: p.grad.double().cpu() for name, p in model.named_parameters() if p.grad is not None}
