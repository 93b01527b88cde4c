"""What a model computes besides what its weights and config say: adapters, settings of modules, hooks, other buffers.

A model is built from its config, so all of this follows until somebody changes it: switches an adapter off, swaps a
module, edits a rotary frequency. Memories that were made before are then of another function.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from types import CellType, CodeType, FunctionType
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from reverie.errors import UserError, plain
from reverie.model.changes import bytes_of, plain_tensors

# Attributes that change no number: where and how a module runs, where it came from, what it has counted.
_ASIDE = re.compile(
    r"training|origin|name_or_path|warnings_issued|.*_cached?|layer_idx|attend|backward_config|gradient_checkpointing"
    r"|hf_device_map|is_parallelizable|model_parallel|peft_config|loss_type|merged_adapters|_.*"
)
_HARMLESS = re.compile(r".*(make_inputs_require_grads?|output_capturing_hook)")  # hooks of transformers and of peft
_CHECKERS = {"beartype", "jaxtyping"}  # of types
_CHANCE = re.compile(r"drop|jitter|noise")
_PYTHON = "Python " + ".".join(platform.python_version_tuple()[:2])
_DEEPEST = 8  # functions within functions that are told apart; one may close over itself


def function_of(module: nn.Module) -> dict[str, str]:
    """What a module computes besides its weights and config, and what they are, in parts.

    adapters   in words, those of peft that are active; "" without any
    dtype      of its weights, in words
    kernels    in words, transformers' implementation of attention, and of experts if there are any; products in int8
    modules    a digest of each module's type, plain attributes and hooks
    buffers    a digest of the tensors that no file of the model holds
    libraries  versions, between which modules may have other attributes or code for the same function
    """
    parts = list(module.named_modules())
    digest = hashlib.sha256()
    for name, part in parts:
        digest.update(f"{name} {_kind(part)} {_settings(part)}\n".encode())
    return {
        "adapters": _adapters(part for _, part in parts),
        "dtype": ", ".join(sorted({_dtype(x) for x in tree_leaves(module.state_dict()) if isinstance(x, Tensor)})),
        "kernels": ", ".join(sorted({name for _, part in parts for name in _kernels(part)})),
        "modules": digest.hexdigest(),
        "buffers": _unsaved(parts),
        "libraries": ", ".join([_PYTHON, *filter(None, map(_version, ("reverie", "torch", "transformers", "peft")))]),
    }


def adapter_settings(module: nn.Module) -> str:
    """How each layer of peft's is set, for a fingerprint; "" without any."""
    layers = [(name, _adapter(part)) for name, part in module.named_modules() if hasattr(part, "merged_adapters")]
    return repr(layers) if layers else ""


def refuse_chance(module: nn.Module) -> None:
    """Raises UserError if a module would drop or add something at random, so that no two memories were the same."""
    for name, part in module.named_modules():
        if not part.training:
            continue
        rates = dict(vars(part)) | _own_config(part)
        found = [key for key, rate in rates.items() if _CHANCE.search(key) and type(rate) in (int, float) and rate > 0]
        if found or (isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0):
            where = f"{name}.{found[0]}" if found else name
            raise UserError(
                f"the model is in training mode, in which {where} makes what it reads a matter of chance: "
                "call model.eval() before it sleeps"
            )


def _settings(part: nn.Module) -> dict[str, Any]:
    """The plain attributes of one module, its hooks, and a `forward` of its own."""
    own = {key: _plain(value) for key, value in vars(part).items() if not _ASIDE.fullmatch(key)}
    hooks = [_plain(hook) for held in (part._forward_pre_hooks, part._forward_hooks) for hook in held.values()]
    own["hooks"] = [hook for hook in hooks if not _HARMLESS.search(str(hook))]
    if "_hf_hook" in vars(part):  # accelerate's, which moves inputs between devices
        own.pop("forward", None)
    if hasattr(part, "merged_adapters"):
        own["adapter"] = _adapter(part)
    return {key: own[key] for key in sorted(own) if own[key] is not ...}


def _plain(value: Any, depth: int = 0) -> Any:
    """What can be compared between two processes; `...` for other objects, which a module may hold besides."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(value[key], depth) for key in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [_plain(x, depth) for x in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(_plain(x, depth)) for x in value)
    if isinstance(value, functools.partial):
        return [_plain(x, depth) for x in (value.func, value.args, value.keywords)]
    if depth and isinstance(value, Tensor):  # of modules `_unsaved` has those
        return [str(value.dtype), *value.shape, *(_digest(x) for x in plain_tensors([value]))]
    called = _unchecked(getattr(value, "__func__", value))
    if hasattr(called, "__qualname__") and not isinstance(called, type):
        name = f"{getattr(called, '__module__', '')}.{called.__qualname__}"
        return f"{name} {_inside(called, depth)}" if isinstance(called, FunctionType) and _is_own(called) else name
    return ...


def _unchecked(function: Any) -> Any:
    """A function without a check of its types, which one process of two may have switched on."""
    while hasattr(function, "__wrapped__") and _defined_in(function).partition(".")[0] in _CHECKERS:
        function = function.__wrapped__
    return function


def _defined_in(function: Any) -> str:
    """The module whose code it is, whatever module it says that it is of."""
    return str(getattr(function, "__globals__", {}).get("__name__", ""))


def _is_own(function: FunctionType) -> bool:
    """True for lambdas, local functions, also those that `functools.wraps` calls like others, and those of a notebook
    or program: of one name there may be many."""
    return "<" in function.__code__.co_qualname or function.__module__ == "__main__"


def _inside(function: FunctionType, depth: int) -> str:
    """A digest of what tells a function from another that is called alike.

    That is its code, and the numbers, texts, tensors and functions that it closes over or has as defaults.
    """
    held = [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
    held += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    known = [] if depth == _DEEPEST else [_plain(x, depth + 1) for x in held]
    return hashlib.sha256(repr((_code(function.__code__), known)).encode()).hexdigest()


def _code(code: CodeType) -> tuple[Any, ...]:
    return code.co_code, code.co_names, [_code(x) if isinstance(x, CodeType) else _plain(x) for x in code.co_consts]


def _kind(part: nn.Module) -> str:
    kind = getattr(type(part), "stands_for", type(part))  # of one that differs in its kernels alone
    return f"{kind.__module__}.{kind.__qualname__.removeprefix('FSDP')}"


def _adapter(part: Any) -> tuple[bool, list[tuple[str, Any]], list[str]]:
    """Of a layer of peft's: whether it is off; the active adapters, each with its scale; the merged ones."""
    active = getattr(part, "active_adapters", [])
    scaling = getattr(part, "scaling", {})
    scales = [(name, scaling.get(name) if isinstance(scaling, dict) else None) for name in active]
    return getattr(part, "_disable_adapters", False), scales, list(part.merged_adapters)


def _adapters(parts: Iterator[nn.Module]) -> str:
    """In words: "none active", "default × 2", "default × 2 (merged)"; sorted, of all layers."""
    found = set[str]()
    for part in parts:
        if not hasattr(part, "merged_adapters"):
            continue
        off, scales, merged = _adapter(part)
        words = [f"{name}{'' if scale is None else f' × {scale:g}'}" for name, scale in scales]
        words = [] if off else words
        if merged:
            words.append(f"merged {', '.join(map(str, merged))}")
        found.add(" and ".join(words) or "none active")
    return plain("; ".join(sorted(found)))[:1000]


def _own_config(part: nn.Module) -> dict[str, Any]:
    config = vars(part).get("config")
    return vars(config) if hasattr(config, "to_dict") else {}


def _kernels(part: nn.Module) -> Iterator[str]:
    if hasattr(type(part), "stands_for"):
        yield type(part).kernels  # pyright: ignore[reportAttributeAccessIssue]
    config = vars(part).get("config")
    if isinstance(attention := getattr(config, "_attn_implementation", None), str):
        yield plain(attention)
    experts = getattr(config, "_experts_implementation", None)
    if isinstance(experts, str) and (hasattr(config, "num_experts") or hasattr(config, "num_local_experts")):
        yield plain(f"{experts} experts")


def _dtype(x: Tensor) -> str:
    """Such as bfloat16; the name of its type for a tensor of a subclass, which may be quantised."""
    usual = type(x) in (Tensor, nn.Parameter) or type(x).__name__ == "DTensor"
    return str(x.dtype).removeprefix("torch.") if usual else type(x).__name__


def _digest(x: Tensor) -> str:
    return hashlib.sha256(bytes_of(x).cpu().numpy().data).hexdigest()


def _unsaved(parts: list[tuple[str, nn.Module]]) -> str:
    """A digest of the buffers that are in no state_dict, and of tensors that are plain attributes."""
    digest = hashlib.sha256()
    for name, part in parts:
        buffers = {key: part._buffers.get(key) for key in sorted(part._non_persistent_buffers_set)}
        for key, x in (buffers | {key: x for key, x in vars(part).items() if isinstance(x, Tensor)}).items():
            if x is None or x.is_meta or _ASIDE.fullmatch(key):
                continue
            for own in plain_tensors([x]):
                digest.update(f"{name}.{key} {own.dtype} {tuple(own.shape)} ".encode())
                digest.update(bytes_of(own).cpu().numpy().data)
    return digest.hexdigest()


@functools.cache
def _version(package: str) -> str:
    try:
        return f"{package} {version(package).partition('+')[0]}"
    except PackageNotFoundError:
        return ""
