"""Reading sleeping models: `load(folder)`, of what `model.save_pretrained(folder)` left (`save.py`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from reverie.errors import UserError
from reverie.hf.add import add_sleep, insert_fast_weights, install, set_injection
from reverie.hf.bases import check_name, check_weights, load_base, loading
from reverie.hf.decoder import is_inserted
from reverie.hf.save import FORMAT_VERSION, Saved, SleepingModelConfig, weights_digest


def load(folder: str | Path, base: str | Path | None = None, **kwargs: Any) -> PreTrainedModel:
    """The model that `save_pretrained` left, with its `SleepConfig`, in evaluation mode.

    Args:
        folder: a folder, or an id on the hub.
        base: where the base of an adapter is, if it is not where it was.
        kwargs: of transformers' from_pretrained: dtype, device_map, …

    Raises:
        UserError: files are missing or damaged, or the base is not the model that the adapter was made for.
    """
    name = str(folder)
    check_name(name)
    saved = _read_config(name, _from_hub(kwargs))
    own = _own_config(name, saved)
    if saved.weights == "whole":
        model = _load_whole(name, saved, own, kwargs)
    else:
        model = _load_adapter(name, saved, own, str(base or saved.base_model), kwargs)
    if saved.sleep is not None:
        add_sleep(model, saved.sleep)
    model.config._name_or_path = model.name_or_path = name  # for peft, whose adapters stand on the model as it is now
    return model


def _from_hub(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = ("cache_dir", "force_download", "local_files_only", "proxies", "token", "revision", "subfolder")
    return {name: kwargs[name] for name in names if name in kwargs}


def _read_config(name: str, from_hub: Mapping[str, Any]) -> Saved:
    with loading("the model", name):
        content, _ = PreTrainedConfig.get_config_dict(name, **from_hub)
    if not isinstance(content, dict):
        raise UserError(f"{name}/{CONFIG_NAME} is no JSON object")
    kind, version = content.get("model_type"), content.get("format_version")
    if kind != SleepingModelConfig.model_type:
        what = f"a model of type {kind}, saved without sleep" if kind else "no model"
        raise UserError(f"{name} holds {what}: reverie.hf.load wants what save_pretrained of a sleeping model wrote")
    if version != FORMAT_VERSION:
        raise UserError(f"{name} has format_version {version}, and this version of reverie reads {FORMAT_VERSION}")
    try:
        return Saved.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{name}/{CONFIG_NAME} is not as save_pretrained wrote it: {where}: {first['msg']}") from error


def _own_config(name: str, saved: Saved) -> PreTrainedConfig:
    """The config of the model as it was before it could sleep."""
    kind = saved.base_config.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise UserError(f"{name} holds a model of type {kind}, which this version of transformers does not know")
    with loading("the model", name):
        return AutoConfig.for_model(**saved.base_config)


def _load_adapter(name: str, saved: Saved, own: PreTrainedConfig, base: str, kwargs: dict[str, Any]) -> PreTrainedModel:
    of_base = {key: value for key, value in kwargs.items() if key not in ("revision", "subfolder")}
    dtype = own.dtype  # that of the model when it was saved; loading changes own
    try:
        model = load_base(base, **({"dtype": dtype} | of_base), config=own, ignore_mismatched_sizes=True)
    except UserError as error:
        raise UserError(f"{error}; {name} is an adapter of it (base= says where else it is)") from error
    # Values that went through float16 and others that did not have been rounded in different ways.
    comparable = (model.dtype == torch.float16) == (dtype == torch.float16)
    if comparable and weights_digest(model.state_dict(), torch.bfloat16) != saved.base_fingerprint:
        raise UserError(f"{base} is not the model that {name} is an adapter of: its weights are others")
    install(model)
    _insert(model, saved)
    with loading("the adapter", name):
        tensors = load_file(str(cached_file(name, SAFE_WEIGHTS_NAME, **_from_hub(kwargs))))
        model.generation_config = GenerationConfig.from_pretrained(name, **_from_hub(kwargs))
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


def _load_whole(name: str, saved: Saved, own: PreTrainedConfig, kwargs: dict[str, Any]) -> PreTrainedModel:
    with loading("the model", name):
        model_class = _with_inserted(MODEL_FOR_CAUSAL_LM_MAPPING[type(own)], saved)
        model, report = model_class.from_pretrained(
            name, **kwargs, config=own, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
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
        for name in ("_from_auto", "adapter_kwargs", "trust_remote_code"):
            kwargs.pop(name, None)
        for name in ("attn_implementation", "experts_implementation"):  # AutoConfig has taken them for the config
            if (value := getattr(config, f"_{name}", None)) is not None:
                kwargs.setdefault(name, value)
        return load(folder, *args, **kwargs)


AutoConfig.register(SleepingModelConfig.model_type, SleepingModelConfig, exist_ok=True)
AutoModelForCausalLM.register(SleepingModelConfig, SleepingModelForCausalLM, exist_ok=True)
