"""Sleeping models as folders: `model.save_pretrained(folder)` and `load(folder)`.

config.json has the model type "reverie_sleep", how the model sleeps, what was inserted, and the config of the model
itself. model.safetensors has the weights: of an adapter only those of inserted layers, where the pretrained part is
still what was loaded from a place with a name; else all of them, in shards if there are many. An adapter's file has the
name of a whole model's, since Trainer looks for that when it goes on from a checkpoint.

`AutoModelForCausalLM.from_pretrained(folder)` loads them too, once `reverie.hf` is imported.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from reverie.errors import UserError
from reverie.files import move_into_place, writing
from reverie.hf.bases import check_name, load_base, loading
from reverie.hf.insert import InsertConfig, insert_fast_weights, inserted_parameters
from reverie.hf.models import decoder_of
from reverie.hf.origin import fingerprint, is_inserted, unchanged
from reverie.hf.reading import AWAKE
from reverie.hf.sleeping import add_sleep, install
from reverie.sleep import SleepConfig

FORMAT_VERSION = 1
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")


class SleepingModelConfig(PreTrainedConfig):
    """config.json of a saved model that sleeps."""

    model_type = "reverie_sleep"
    format_version: int = FORMAT_VERSION
    weights: str = "whole"  # or "adapter"
    base_model: str | None = None  # of an adapter: what to give to from_pretrained
    base_fingerprint: str | None = None  # of an adapter: the base's, in bfloat16
    base_config: dict[str, Any] | None = None
    sleep: dict[str, Any] | None = None  # a SleepConfig; None: never
    inserted: list[dict[str, Any]] | None = None  # an InsertConfig for each call of insert_fast_weights


# Saving


def save_sleeping(
    model: PreTrainedModel,
    folder: Path,
    save_whole: Callable[..., None],
    *,
    is_main_process: bool = True,
    state_dict: dict[str, Tensor] | None = None,
    push_to_hub: bool = False,
    **kwargs: Any,
) -> None:
    """As an adapter where that is enough, else whole. What was there before stays until all is on the disk.

    Args:
        save_whole: `save_pretrained` of the model's own class; the rest are its arguments.

    Raises UserError for what the system refuses (a full disk, a missing permission).
    """
    if push_to_hub:
        raise UserError("save_pretrained does not push what it saves: call push_to_hub(name) of the model")
    state = model.state_dict() if state_dict is None else state_dict
    origin = model.origin
    is_adapter = unchanged(state, origin) and Path(origin.name).resolve() != folder.resolve()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as name:
            finished = Path(name)
            if is_adapter:
                _save_adapter(model, state, finished)
            else:
                save_whole(finished, is_main_process=is_main_process, state_dict=state_dict, **kwargs)
            if is_main_process:
                _save_config(model, state, finished, origin.name if is_adapter else None)
                _move(finished, folder)


def _save_adapter(model: PreTrainedModel, state: Mapping[str, Tensor], folder: Path) -> None:
    inserted = {name: _whole(tensor).cpu().contiguous() for name, tensor in state.items() if is_inserted(name)}
    save_file(inserted, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    model.generation_config.save_pretrained(folder)


def _whole(tensor: Tensor) -> Tensor:
    """Under FSDP, of all processes' parts."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def _save_config(model: PreTrainedModel, state: Mapping[str, Tensor], folder: Path, base: str | None) -> None:
    """Of an adapter of `base`, or of a whole model."""
    own = model.config.to_dict()
    own.pop("_name_or_path", None)
    decoder = decoder_of(model)
    content = {
        "model_type": SleepingModelConfig.model_type,
        "transformers_version": transformers.__version__,
        "format_version": FORMAT_VERSION,
        "weights": "whole" if base is None else "adapter",
        "base_model": base,
        "base_fingerprint": None if base is None else fingerprint(state, torch.bfloat16),
        "sleep": None if decoder.sleep_config == AWAKE else decoder.sleep_config.model_dump(mode="json"),
        "inserted": [inserted._asdict() for inserted in decoder.inserted_configs],
        "base_config": own
        | {"dtype": str(model.dtype).removeprefix("torch."), "architectures": [type(model).__name__]},
    }
    (folder / CONFIG_NAME).write_text(json.dumps(content, indent=2) + "\n")


def _move(finished: Path, folder: Path) -> None:
    """The config last, since without it nothing is loaded; weights of an earlier save go first."""
    names = {path.name for path in finished.iterdir()}
    for name in sorted(names - {CONFIG_NAME}):
        move_into_place(finished / name, folder / name)
    for path in folder.iterdir():
        if WEIGHTS.fullmatch(path.name) and path.name not in names:
            path.unlink()
    move_into_place(finished / CONFIG_NAME, folder / CONFIG_NAME)


# Loading


class Saved(NamedTuple):
    """What config.json says, checked."""

    own: PreTrainedConfig  # the model's
    base: str | None  # of an adapter
    fingerprint: str | None
    sleep: SleepConfig | None
    inserted: tuple[InsertConfig, ...]


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
    if saved.base is None:
        model = _load_whole(name, saved, kwargs)
    else:
        model = _load_adapter(name, saved, saved.base if base is None else str(base), kwargs)
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
    kind, version = content.get("model_type"), content.get("format_version")
    if kind != SleepingModelConfig.model_type:
        raise UserError(
            f"{name} holds no saved model that sleeps, its model_type is {kind!r}: "
            "load it with transformers, then call reverie.hf.add_sleep"
        )
    if version != FORMAT_VERSION:
        raise UserError(f"{name} has format_version {version}, and this version of reverie reads {FORMAT_VERSION}")
    try:
        return Saved(
            AutoConfig.for_model(**content["base_config"]),
            {"whole": None, "adapter": content["base_model"]}[content["weights"]],
            content["base_fingerprint"],
            None if content["sleep"] is None else SleepConfig.model_validate(content["sleep"]),
            tuple(InsertConfig(**{**one, "layers": tuple(one["layers"])}) for one in content["inserted"]),
        )
    except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{name}/{CONFIG_NAME} is not one that this version of reverie can read: {reason}") from error


def _load_adapter(name: str, saved: Saved, base: str, kwargs: dict[str, Any]) -> PreTrainedModel:
    of_base = {key: value for key, value in kwargs.items() if key not in ("revision", "subfolder")}
    try:
        model = load_base(base, **{"dtype": saved.own.dtype, **of_base, "config": saved.own})
    except UserError as error:
        raise UserError(f"{error}; {name} is an adapter of it (base= says where else it is)") from error
    # Values that went through float16 and others that did not have been rounded in different ways.
    comparable = (model.dtype == torch.float16) == (saved.own.dtype == torch.float16)
    if comparable and fingerprint(model.state_dict(), torch.bfloat16) != saved.fingerprint:
        raise UserError(f"{base} is not the model that {name} is an adapter of: its weights are others")
    _insert(model, saved.inserted)
    with loading("the adapter", name):
        tensors = load_file(str(cached_file(name, SAFE_WEIGHTS_NAME, **_from_hub(kwargs))))
    parameters = inserted_parameters(model)
    if {key: x.shape for key, x in tensors.items()} != {key: p.shape for key, p in parameters.items()}:
        raise UserError(f"{name}/{SAFE_WEIGHTS_NAME} does not hold the layers that {CONFIG_NAME} says were inserted")
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(tensors[key])
    return model.eval()


def _load_whole(name: str, saved: Saved, kwargs: dict[str, Any]) -> PreTrainedModel:
    with loading("the model", name):
        model_class = _with_inserted(MODEL_FOR_CAUSAL_LM_MAPPING[type(saved.own)], saved.inserted)
        model, report = model_class.from_pretrained(
            name, **kwargs, config=saved.own, use_safetensors=True, output_loading_info=True
        )
    for kind, text in {"missing_keys": "lacks", "unexpected_keys": "has, beyond what it should,"}.items():
        if report[kind]:
            raise UserError(f"{name} {text} {len(report[kind])} weights, {min(report[kind])} among them")
    install(model)
    model.origin = None  # saved again, it is not an adapter of what it was loaded from
    return model


def _with_inserted(model_class: type[PreTrainedModel], inserted: Sequence[InsertConfig]) -> type[PreTrainedModel]:
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
