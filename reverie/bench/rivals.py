"""The rivals: the gated delta rule and hybrid models of transformers, and fla's plain torch function."""

import contextlib
import importlib
import importlib.util
import inspect
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from reverie.errors import UserError
from reverie.model import HybridConfig

OLDEST = 5, 23  # version of transformers; what is taken from it here is not its public interface

Rule = Callable[..., tuple[Tensor, Tensor]]
"""(q, k, v, g, beta), each [B, T, H, ...], to o and the final state."""


def transformers_module(name: str = "") -> ModuleType:
    """transformers, or a module of it, such as "models.qwen3_next.modeling_qwen3_next"."""
    try:
        library: Any = importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise _no_transformers(f"there is no {error.name}") from None
    if tuple(map(int, library.__version__.split(".")[:2])) < OLDEST:
        raise _no_transformers(f"version {library.__version__} is installed")
    library.logging.set_verbosity_error()  # it warns that it falls back to plain torch: that is what is wanted
    if not name:
        return library
    with _plain_torch():
        return importlib.import_module(f"transformers.{name}")


@contextlib.contextmanager
def _plain_torch() -> Iterator[None]:
    """transformers chooses kernels when a model's file is imported: fla's, on a CPU too, where they cannot run."""
    others = {name: sys.modules.get(name) for name in ("fla", "causal_conv1d")}
    sys.modules.update(dict.fromkeys(others))  # type: ignore[arg-type]  # None: not to be imported
    try:
        yield
    finally:
        for name, module in others.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _no_transformers(found: str) -> UserError:
    oldest = ".".join(map(str, OLDEST))
    return UserError(
        f"this benchmark measures against transformers {oldest} or newer, and {found}: pip install 'reverie[bench]'"
    )


def transformers_rule() -> Rule:
    """The chunked gated delta rule of its hybrids on CPU, whatever kernels are installed."""
    wrapped = transformers_module("models.qwen3_next.modeling_qwen3_next").torch_chunk_gated_delta_rule
    rule = inspect.unwrap(wrapped)
    return lambda q, k, v, g, beta: rule(q, k, v, g=g, beta=beta, output_final_state=True)


def fla_rule() -> Rule | None:
    """fla's plain torch function for chunks; None where fla-core is not installed.

    Its file is loaded by its path: to import the package needs triton.
    """
    package = importlib.util.find_spec("fla")
    if package is None or not package.submodule_search_locations:
        return None
    file = Path(package.submodule_search_locations[0], "ops", "gated_delta_rule", "naive.py")
    try:
        rule = runpy.run_path(str(file))["naive_chunk_gated_delta_rule"]
    except (ImportError, OSError, KeyError):  # another version of it
        return None
    return lambda q, k, v, g, beta: rule(q=q, k=k, v=v, g=g, beta=beta, output_final_state=True)


def transformers_hybrids(config: HybridConfig, seed: int) -> dict[str, nn.Module]:
    """Models of transformers with the depth, layer pattern and sizes of `config`, freshly initialised, by name.

    Qwen3-Next with dense MLPs. `config` has attention and Gated DeltaNet layers.
    """
    shared = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": len(config.layers),
        "layer_types": [{"attn": "full_attention", "gdn": "linear_attention"}[kind] for kind in config.layers],
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "linear_num_key_heads": config.fast_heads,
        "linear_num_value_heads": config.fast_heads,
        "linear_key_head_dim": config.key_size,
        "linear_value_head_dim": config.value_size,
        "linear_conv_kernel_dim": config.conv_size,
        "rms_norm_eps": config.norm_eps,
        "pad_token_id": None,
        "eos_token_id": None,
        "use_cache": False,
    }
    dense = {"head_dim": config.head_size, "mlp_only_layers": list(range(len(config.layers)))}
    kinds = {"OlmoHybrid": {"linear_allow_neg_eigval": False}, "Qwen3Next": dense}
    transformers, models = transformers_module(), {}
    with torch.random.fork_rng(devices=[]), _plain_torch():
        for name, own in kinds.items():
            torch.manual_seed(seed)
            model_config = getattr(transformers, f"{name}Config")(**shared, **own)
            models[name] = getattr(transformers, f"{name}ForCausalLM")(model_config)
    return models


@torch.no_grad()
def forward_loop(model: Any, text: Tensor) -> Tensor:
    """Logits [B, T, vocab] of a model of transformers, of a call for each token."""
    cache, logits = None, list[Tensor]()
    for token in text.split(1, dim=1):
        done = model(input_ids=token, past_key_values=cache, use_cache=True)
        cache = done.past_key_values
        logits.append(done.logits)
    return torch.cat(logits, dim=1)


def write_greedily(model: Any, first: Tensor, tokens: int) -> None:
    """Have a model of transformers generate so many tokens after these."""
    mask = torch.ones_like(first)
    model.generate(input_ids=first, attention_mask=mask, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False)
