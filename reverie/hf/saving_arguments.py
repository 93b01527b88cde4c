"""Which arguments of transformers' `save_pretrained` and `from_pretrained` mean something for a model that sleeps.

The others are refused by name, since transformers itself drops some of them without a word. docs/huggingface.md has
the table.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from reverie.errors import UserError

FROM_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "token", "revision", "subfolder")
"""Arguments that say which files are meant."""

_SAVE = [*inspect.signature(PreTrainedModel.save_pretrained).parameters][2:-1]
_PUSH = ("repo_id", "commit_message", "commit_description", "create_pr", "private", "tags", "revision")

_SAVE_REFUSED: Mapping[str, tuple[object, str]] = {
    "push_to_hub": (False, "it does not push what it saves: call push_to_hub(name) of the model"),
    "safe_serialization": (True, "no pickle is written"),
    "distributed_checkpoint": (False, "it writes the files that from_pretrained reads"),
    **dict.fromkeys(_PUSH, (None, "it does not push what it saves: call push_to_hub(name) of the model")),
}
"""The value that changes nothing, and why no other is taken."""

_LOAD = (
    *FROM_HUB,
    *("variant", "dtype", "torch_dtype", "device_map", "max_memory", "offload_folder", "offload_buffers"),
    *("attn_implementation", "experts_implementation", "generation_config", "quantization_config", "disable_mmap"),
    *("tqdm_class", "low_cpu_mem_usage"),
)

_ITS_OWN = "how a model is made is in its config.json"
_NO_CODE = "no code that comes with a model is run"
_NO_PLAN = "new layers are in no plan of how a model is split"
_LOAD_REFUSED: Mapping[str, tuple[object, str]] = {
    "config": (None, _ITS_OWN),
    "gguf_file": (None, _ITS_OWN),
    "fusion_config": (None, _ITS_OWN),
    "state_dict": (None, "weights are those in the folder"),
    "key_mapping": (None, "weights are those in the folder"),
    "ignore_mismatched_sizes": (False, "weights of other sizes would be made anew"),
    "output_loading_info": (False, "weights that are missing or too many are an error"),
    "use_safetensors": (True, "no pickle is read"),
    "weights_only": (True, "no pickle is read"),
    "from_tf": (False, "no pickle is read"),
    "from_flax": (False, "no pickle is read"),
    "trust_remote_code": (False, _NO_CODE),
    "code_revision": (None, _NO_CODE),
    "use_kernels": (False, _NO_CODE),
    "kernel_config": (None, _NO_CODE),
    "allow_all_kernels": (False, _NO_CODE),
    "tp_plan": (None, _NO_PLAN),
    "tp_size": (None, _NO_PLAN),
    "device_mesh": (None, _NO_PLAN),
    "distributed_config": (None, _NO_PLAN),
    "adapter_name": ("default", "load_adapter of the model takes it"),
    "adapter_kwargs": (None, "load_adapter of the model takes them"),
}


def save_arguments(given: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `save_pretrained` after the folder, by name, without those that say nothing.

    Raises:
        UserError: there is no such argument, or it is one of those that are not honoured.
    """
    if len(given) > len(_SAVE):
        raise UserError(f"save_pretrained takes at most {len(_SAVE)} arguments after the folder, got {len(given)}")
    arguments = dict(zip(_SAVE, given, strict=False))
    if twice := arguments.keys() & named.keys():
        raise UserError(f"save_pretrained was given {min(twice)} twice")
    arguments |= named
    for name, value in arguments.items():
        if name not in (*_SAVE, *_SAVE_REFUSED):
            raise UserError(f"save_pretrained of a model that sleeps has no argument {name}")
        _check(name, value, _SAVE_REFUSED, "save_pretrained of a model that sleeps")
    return {name: value for name, value in arguments.items() if name not in _SAVE_REFUSED}


def load_arguments(named: Mapping[str, Any], own: PreTrainedConfig) -> dict[str, Any]:
    """Arguments of `from_pretrained`, without those that say nothing; what is a setting of the config is set there.

    Raises:
        UserError: there is no such argument, or it is one of those that are not honoured.
    """
    arguments = {}
    for name, value in named.items():
        _check(name, value, _LOAD_REFUSED, "reverie.hf.load")
        if name in _LOAD:
            arguments[name] = value
        elif name not in _LOAD_REFUSED:
            if name.startswith("_") or not hasattr(own, name):
                raise UserError(f"reverie.hf.load has no argument {name}, and the model's config no such setting")
            setattr(own, name, value)
    dtype = arguments.pop("torch_dtype", None)  # its earlier name
    if arguments.get("dtype") is None and dtype is not None:
        arguments["dtype"] = dtype
    return {name: value for name, value in arguments.items() if value is not None and name != "low_cpu_mem_usage"}


def _check(name: str, value: object, refused: Mapping[str, tuple[object, str]], call: str) -> None:
    if name in refused and value is not None:
        neutral, reason = refused[name]
        if value != neutral:
            raise UserError(f"{call} takes no {name}: {reason}")


def check_attention(config: PreTrainedConfig, name: str) -> None:
    """Raises UserError if a config.json asks for attention from the hub, which is code."""
    for key in ("attn_implementation", "experts_implementation"):
        wanted = getattr(config, f"_{key}", None)
        if isinstance(wanted, str) and "/" in wanted:
            raise UserError(f"the config.json of {name} asks for {key} {wanted}, which is code: {_NO_CODE}")
