"""Sleeping models as folders: `model.save_pretrained(folder)` and `load(folder)`.

config.json has the model type "reverie_sleep", how the model sleeps, what was inserted, and the config of the model
itself. model.safetensors has the weights: of an adapter only those of inserted layers, where the pretrained part is
still what was loaded from a place with a name; else all of them, in shards if there are many. An adapter's file has the
name of a whole model's, since Trainer looks for that when it goes on from a checkpoint.

`AutoModelForCausalLM.from_pretrained(folder)` loads them too, once `reverie.hf` is imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from pydantic import BaseModel, ConfigDict, ValidationError, field_serializer
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from reverie.errors import UserError
from reverie.hf.bases import check_name, load_base, loading
from reverie.hf.decoders import decoder_of
from reverie.hf.folders import replacing
from reverie.hf.insert import InsertConfig, insert_fast_weights, inserted_parameters
from reverie.hf.origin import Origin, fingerprint, is_inserted
from reverie.hf.reading import AWAKE
from reverie.hf.sleeping import add_sleep, install
from reverie.sleep import SleepConfig

FORMAT_VERSION = 1


class SleepingModelConfig(PreTrainedConfig):
    """What AutoConfig makes of config.json; `Saved` says what is in it."""

    model_type = "reverie_sleep"


class Saved(BaseModel):
    """config.json of a model that sleeps."""

    model_config = ConfigDict(frozen=True)

    format_version: Literal[1] = FORMAT_VERSION
    weights: Literal["whole", "adapter"]
    base_model: str | None  # of an adapter: what the base was loaded from
    base_fingerprint: str | None  # of an adapter: that of the base, in bfloat16
    sleep: SleepConfig | None  # None: never
    inserted: tuple[InsertConfig, ...]  # one for each call of insert_fast_weights
    base_config: dict[str, Any]  # config.json of the model without us

    @field_serializer("inserted")
    def _by_name(self, inserted: tuple[InsertConfig, ...]) -> list[dict[str, Any]]:
        return [one._asdict() for one in inserted]


# Saving


def save_sleeping(
    model: Any,
    folder: Path,
    save_whole: Callable[..., None],
    is_main_process: bool = True,
    state_dict: dict[str, Tensor] | None = None,
    push_to_hub: bool = False,
    **kwargs: Any,
) -> None:
    """As an adapter where that is enough, else whole. What was there before stays until all is on the disk.

    Args:
        model: a `SleepingCausalLM`.
        save_whole: `save_pretrained` of the model's own class; the rest are its arguments.

    Raises UserError for what the system refuses (a full disk, a missing permission).
    """
    if getattr(model, "_hf_peft_config_loaded", False):  # add_adapter of transformers: peft's adapter alone is saved
        return save_whole(folder, is_main_process, state_dict, push_to_hub, **kwargs)
    if push_to_hub:
        raise UserError("save_pretrained does not push what it saves: call push_to_hub(name) of the model")
    state = model.state_dict() if state_dict is None else state_dict
    origin: Origin | None = model.origin
    if origin is not None and (
        fingerprint(state) != origin.fingerprint or Path(origin.name).resolve() == folder.resolve()
    ):
        origin = None
    with replacing(folder) as finished:
        if origin is None:
            save_whole(finished, is_main_process=is_main_process, state_dict=state_dict, **kwargs)
        else:
            _save_adapter(model, state, finished)
        _save_config(model, state, finished, None if origin is None else origin.name)
        if not is_main_process:  # it took part in gathering the weights, and that is all
            for path in finished.iterdir():
                path.unlink()


def _save_adapter(model: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    inserted = {name: _whole(tensor).cpu().contiguous() for name, tensor in state.items() if is_inserted(name)}
    save_file(inserted, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    model.generation_config.save_pretrained(folder)


def _whole(tensor: Tensor) -> Tensor:
    """Under FSDP, of all processes' parts."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def _save_config(model: Any, state: Mapping[str, Tensor], folder: Path, base: str | None) -> None:
    """Of an adapter of `base`, or of a whole model."""
    own = model.config.to_dict()
    own.pop("_name_or_path", None)
    decoder: Any = decoder_of(model)
    saved = Saved(
        weights="whole" if base is None else "adapter",
        base_model=base,
        base_fingerprint=None if base is None else fingerprint(state, torch.bfloat16),
        sleep=None if decoder.sleep_config == AWAKE else decoder.sleep_config,
        inserted=decoder.inserted_configs,
        base_config=own
        | {
            "dtype": str(model.dtype).removeprefix("torch."),
            "architectures": [type(model).__name__.removeprefix("FSDP")],
        },
    )
    kind = {"model_type": SleepingModelConfig.model_type, "transformers_version": transformers.__version__}
    # pydantic would write infinities, which Mamba-2 configs hold, as null.
    content = kind | saved.model_dump(mode="json", exclude={"base_config"}) | {"base_config": saved.base_config}
    (folder / CONFIG_NAME).write_text(json.dumps(content, indent=2) + "\n")


# Loading


def load(folder: str | Path, base: str | Path | None = None, **kwargs: Any) -> PreTrainedModel:
    """The model that `save_pretrained` left, asleep as it was, in evaluation mode.

    Args:
        folder: or an id on the hub.
        base: where the base of an adapter is, if it is not where it was.
        kwargs: of transformers' from_pretrained: dtype, device_map, …

    Raises UserError where files are missing or damaged, or the base is not the model that the adapter was made for.
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
    """What says where files are."""
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
    """Of the model without us."""
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
    if comparable and fingerprint(model.state_dict(), torch.bfloat16) != saved.base_fingerprint:
        raise UserError(f"{base} is not the model that {name} is an adapter of: its weights are others")
    _insert(model, saved.inserted)
    with loading("the adapter", name):
        tensors = load_file(str(cached_file(name, SAFE_WEIGHTS_NAME, **_from_hub(kwargs))))
        model.generation_config = GenerationConfig.from_pretrained(name, **_from_hub(kwargs))
    parameters = inserted_parameters(model)
    if {key: x.shape for key, x in tensors.items()} != {key: p.shape for key, p in parameters.items()}:
        raise UserError(f"{name}/{SAFE_WEIGHTS_NAME} does not hold the layers that {CONFIG_NAME} says were inserted")
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(tensors[key])
    return model.eval()


def _load_whole(name: str, saved: Saved, own: PreTrainedConfig, kwargs: dict[str, Any]) -> PreTrainedModel:
    with loading("the model", name):
        model_class = _with_inserted(MODEL_FOR_CAUSAL_LM_MAPPING[type(own)], saved.inserted)
        model, report = model_class.from_pretrained(
            name, **kwargs, config=own, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
    wrong = report["missing_keys"] | report["unexpected_keys"] | {key for key, *_ in report["mismatched_keys"]}
    if wrong:
        raise UserError(f"the weights in {name} are not those of its {CONFIG_NAME}: {min(wrong)} does not fit")
    install(model)
    model.origin = None  # saved again, it is not an adapter of what it was loaded from
    return model


def _with_inserted(model_class: Any, inserted: Sequence[InsertConfig]) -> Any:
    """The class of models that are made with these layers, so that transformers has a place for their weights."""

    def __init__(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, *args, **kwargs)
        _insert(self, inserted)

    return type(model_class.__name__, (model_class,), {"__init__": __init__, "__module__": model_class.__module__})


def _insert(model: PreTrainedModel, inserted: Sequence[InsertConfig]) -> None:
    for one in inserted:
        sizes = {"heads": one.heads, "key_size": one.key_size, "value_size": one.value_size}
        insert_fast_weights(model, one.layers, one.kind, **sizes)


class SleepingModelForCausalLM:
    """What AutoModelForCausalLM finds for config.json. It makes a model of the class that was saved."""

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
