"""Reading sleeping models: `load(folder)`, of what `model.save_pretrained(folder)` left (`save.py`)."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from reverie.errors import UserError, not_this_version
from reverie.hf.add import add_sleep, insert_fast_weights, install, set_injection
from reverie.hf.bases import (
    check_finite,
    check_name,
    check_sizes,
    check_weights,
    check_weights_hold,
    load_base,
    loading,
)
from reverie.hf.blocks import is_inserted
from reverie.hf.low_rank import unfactored
from reverie.hf.save import FORMAT_VERSION, Saved, SleepingModelConfig, weights_digest, weights_name
from reverie.hf.saving_arguments import FROM_HUB, check_attention, load_arguments
from reverie.hf.sums import check_sums
from reverie.pretrained.shipped import place_of


def load(folder: str | Path, base: str | Path | None = None, **kwargs: Any) -> PreTrainedModel:
    """The model that `save_pretrained` left, with its `SleepConfig`, in evaluation mode.

    Args:
        folder: a folder, an id on the hub, or the name of an adapter that ships with the package.
        base: where the base of an adapter is, if it is not where it was.
        kwargs: of transformers' from_pretrained: dtype, device_map, … and settings of the model's config.

    Raises:
        UserError: files are missing or damaged, the base is not the model that the adapter was made for, or an argument
            is not honoured.
    """
    name = str(folder)
    place = place_of(name)
    check_name(place)
    with loading("the model", place):
        model = _load(place, base, kwargs)
    model.config._name_or_path = model.name_or_path = name  # for peft, whose adapters stand on the model as it is now
    return model


def _load(name: str, base: str | Path | None, kwargs: Mapping[str, Any]) -> PreTrainedModel:
    saved = read_config(name, _from_hub(kwargs))
    own = own_config(name, saved)
    arguments = load_arguments(kwargs, own)
    if saved.weights == "whole":
        if base is not None:
            raise UserError(f"{name} holds a whole model and not an adapter: leave out base")
        model = _load_whole(name, saved, own, arguments)
    else:
        model = _load_adapter(name, saved, own, str(base or saved.base_model), arguments)
    check_finite(name, model)
    if saved.sleep is not None:
        add_sleep(model, saved.sleep)
    return model


def _from_hub(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: kwargs[name] for name in FROM_HUB if kwargs.get(name) is not None}


def read_config(name: str, from_hub: Mapping[str, Any] = MappingProxyType({})) -> Saved:
    """What config.json says of a sleeping model, whose weights are as they were saved; raises UserError if not."""
    content, _ = PreTrainedConfig.get_config_dict(name, **from_hub)
    check_sizes(name, content)
    kind, version = content.get("model_type"), content.get("format_version")
    if kind != SleepingModelConfig.model_type:
        what = f"a model of type {kind!s:.40}, saved without sleep" if kind else "no model"
        raise UserError(f"{name} holds {what}: reverie.hf.load wants what save_pretrained of a sleeping model wrote")
    if version != FORMAT_VERSION:
        raise not_this_version(name, version, FORMAT_VERSION)
    check_sums(name, content, from_hub)
    try:
        return Saved.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{name}/{CONFIG_NAME} is not as save_pretrained wrote it: {where}: {first['msg']}") from error


def own_config(name: str, saved: Saved) -> PreTrainedConfig:
    """The config of the model as it was before it could sleep."""
    kind = saved.base_config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UserError(f"{name} holds a model of type {kind!s:.40}, which this version of transformers does not know")
    own = AutoConfig.for_model(**saved.base_config)
    check_attention(own, name)
    return own


def _load_adapter(name: str, saved: Saved, own: PreTrainedConfig, base: str, kwargs: dict[str, Any]) -> PreTrainedModel:
    if "quantization_config" in kwargs:
        raise UserError(f"{name} is an adapter, and a quantised base cannot be compared with the one it was made for")
    saved_as = _as_dtype(own.dtype, None)  # loading changes own
    dtype = _as_dtype(kwargs.get("dtype", saved_as), saved_as)
    # Values that went through float16 and others that did not have been rounded in different ways.
    rounded = saved_as != dtype and torch.float16 in (saved_as, dtype)
    first = torch.float32 if rounded and dtype.itemsize < 4 else dtype
    of_base = {key: x for key, x in kwargs.items() if key not in ("revision", "subfolder", "variant", "dtype")}
    try:
        model = load_base(base, **of_base, dtype=first, config=own, ignore_mismatched_sizes=True)
    except UserError as error:
        raise UserError(f"{error}; {name} is an adapter of it (base= says where else it is)") from error
    through = (torch.float16, torch.bfloat16) if saved_as == torch.float16 else (torch.bfloat16,)
    if weights_digest(model.state_dict(), *through) != saved.base_fingerprint:
        raise UserError(f"{base} is not the model that {name} is an adapter of: its weights are others")
    if dtype != first:
        nn.Module.to(model, dtype)
        model.config.dtype = dtype
    install(model)
    _insert(model, saved)
    with loading("the adapter", name):
        tensors = adapter_tensors(name, kwargs.get("variant"), _from_hub(kwargs))
        tensors = unfactored(name, tensors, {key: x for key, x in model.state_dict().items() if key in saved.trained})
        given = kwargs.get("generation_config")
        model.generation_config = given or GenerationConfig.from_pretrained(name, **_from_hub(kwargs))
    wanted = {key: x for key, x in model.state_dict().items() if is_inserted(key) or key in saved.trained}
    if {key: x.shape for key, x in tensors.items()} != {key: x.shape for key, x in wanted.items()}:
        also = ", and the tensors that it says were trained" if saved.trained else ""
        raise UserError(
            f"{name}/{SAFE_WEIGHTS_NAME} does not hold the layers that {CONFIG_NAME} says were inserted{also}"
        )
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(tensors[key])
    return model.eval()


def adapter_tensors(
    name: str, variant: str | None = None, from_hub: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Tensor]:
    """What is in the file of an adapter, or in its files if there is an index of them."""
    one, index = weights_name(variant), weights_name(variant, SAFE_WEIGHTS_INDEX_NAME)
    place, listed = (
        cached_file(name, file, **from_hub, _raise_exceptions_for_missing_entries=False) for file in (one, index)
    )
    if place is None and listed is not None:
        files = sorted({*json.loads(Path(listed).read_text())["weight_map"].values()})
        parts = [load_file(str(cached_file(name, file, **from_hub))) for file in files]
        return {key: x for part in parts for key, x in part.items()}
    return load_file(str(place or cached_file(name, one, **from_hub)))


def _as_dtype(wanted: Any, saved: Any) -> torch.dtype:
    """A dtype by itself or by its name; "auto" is the one that was saved."""
    wanted = saved if wanted == "auto" else wanted
    found = getattr(torch, wanted, None) if isinstance(wanted, str) else wanted
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UserError(f"dtype must be one of torch's for floating-point numbers, its name, or auto; got {wanted!r}")
    return found


def _load_whole(name: str, saved: Saved, own: PreTrainedConfig, kwargs: dict[str, Any]) -> PreTrainedModel:
    model_class = _with_inserted(MODEL_FOR_CAUSAL_LM_MAPPING[type(own)], saved)
    check_weights_hold(name, model_class, own)
    model, report = model_class.from_pretrained(
        name,
        **kwargs,
        config=own,
        trust_remote_code=False,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    check_weights(name, report)
    install(model)
    model.origin = None  # saved again, it is not an adapter of what it was loaded from
    return model


def _with_inserted(model_class: Any, saved: Saved) -> Any:
    """A class of models that are made with these layers, so that transformers has a place for their weights."""

    def __init__(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, *args, **kwargs)
        self.__class__ = model_class  # which pickle finds by its name
        _insert(self, saved)

    return type(model_class.__name__, (model_class,), {"__init__": __init__, "__module__": model_class.__module__})


def _insert(model: PreTrainedModel, saved: Saved) -> None:
    for one in saved.inserted:
        sizes: Any = {"fast_heads": one.fast_heads, "key_size": one.key_size, "value_size": one.value_size}
        more: Any = {"value_embedding": one.value_embedding, "settings": one.settings}
        insert_fast_weights(model, one.after, one.kind, **sizes, **more)
    if saved.injection != "none":
        set_injection(model, saved.injection)


class SleepingModelForCausalLM:
    """The entry of AutoModelForCausalLM for such a config.json; it makes a model of the class that was saved."""

    config_class = SleepingModelConfig

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *args: Any, config: SleepingModelConfig | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        for name in ("_from_auto", "_from_pipeline", "adapter_kwargs", "trust_remote_code"):
            kwargs.pop(name, None)
        for name in ("attn_implementation", "experts_implementation"):  # AutoConfig has taken them for the config
            if (value := getattr(config, f"_{name}", None)) is not None:
                kwargs.setdefault(name, value)
        return load(folder, *args, **_settings(str(folder), config, kwargs), **kwargs)


def _settings(name: str, config: SleepingModelConfig | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a caller has changed in the config of a folder, or AutoConfig has put there of the caller's arguments.

    Raises:
        UserError: it is how the model sleeps, or what was inserted.
    """
    if config is None:
        return {}
    kept = SleepingModelConfig.from_pretrained(name, **_from_hub(kwargs)).to_dict()
    changed = {key: x for key, x in config.to_dict().items() if kept.get(key) != x and key not in kwargs}
    changed = {key: x for key, x in changed.items() if key not in ("_name_or_path", "dtype", "name_or_path")}
    for key in changed:
        if key in Saved.model_fields:
            raise UserError(f"{key} is as {name} was saved with it: change it by add_sleep, when the model is loaded")
    return changed


AutoConfig.register(SleepingModelConfig.model_type, SleepingModelConfig, exist_ok=True)
AutoModelForCausalLM.register(SleepingModelConfig, SleepingModelForCausalLM, exist_ok=True)
