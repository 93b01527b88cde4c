"""Writing sleeping models: `model.save_pretrained(folder)`. `load.py` reads them.

config.json has the model type "reverie_sleep", how the model sleeps, what was inserted, and the config of the model
without that. model.safetensors has the weights: only those of inserted layers and tensors that were trained (an
adapter), if most of the pretrained part is still what was loaded from a place with a name; else all of them, in shards
if there are many. An adapter's file has the name of a whole model's, since Trainer looks for that when it goes on from
a checkpoint.

An adapter names its base, and must not be put on another one: digests from a sample of every tensor tell.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import transformers
from huggingface_hub import split_torch_state_dict_into_shards
from pydantic import BaseModel, ConfigDict, field_serializer, field_validator
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from reverie.errors import UserError
from reverie.files import move_into_place, writing
from reverie.hf.blocks import InsertConfig, is_inserted
from reverie.hf.decoder import sleeping_decoder
from reverie.hf.folder import NotCopied, explain
from reverie.hf.reading import AWAKE
from reverie.hf.saving_arguments import save_arguments
from reverie.hf.sums import add_sums
from reverie.model.config import InjectionName
from reverie.sleep import SleepConfig

FORMAT_VERSION = 1


class SleepingModelConfig(NotCopied, PreTrainedConfig):
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
    injection: InjectionName = "none"
    trained: tuple[str, ...] = ()  # of an adapter: tensors of the base that it has of its own
    base_config: dict[str, Any]  # config.json of the model as it was before it could sleep

    @field_validator("inserted", mode="before")
    @classmethod
    def _from_file(cls, inserted: Any) -> Any:
        if not isinstance(inserted, list | tuple):
            return inserted
        return [{_IN_PYTHON.get(k, k): x for k, x in one.items()} if isinstance(one, dict) else one for one in inserted]

    @field_serializer("inserted")
    def _to_file(self, inserted: tuple[InsertConfig, ...]) -> list[dict[str, Any]]:
        in_file = {name: key for key, name in _IN_PYTHON.items()}
        fields = [{name: x for name, x in one._asdict().items() if (name, x) != ("settings", None)} for one in inserted]
        return [{in_file.get(name, name): x for name, x in one.items()} for one in fields]


_IN_PYTHON = {"layers": "after", "heads": "fast_heads"}
"""Names of `InsertConfig`'s fields by those in files, which are older."""


def save_sleeping(model: Any, folder: Path, save_whole: Callable[..., None], *given: Any, **named: Any) -> None:
    """Save an adapter where that is enough, else the whole model. What was there before stays until all is on the disk.

    Args:
        model: a `SleepingCausalLM`.
        save_whole: `save_pretrained` of the model's own class; the rest are its arguments.

    Raises:
        UserError: the system refuses to write (a full disk, a missing permission), or an argument is not honoured.
    """
    if getattr(model, "_hf_peft_config_loaded", False):  # add_adapter of transformers: peft's adapter alone is saved
        return save_whole(folder, *given, **named)
    arguments = save_arguments(given, named)
    state_dict, variant = arguments.get("state_dict"), arguments.get("variant")
    state = model.state_dict() if state_dict is None else state_dict
    check_fits(model, model.stock, state)
    origin: Origin | None = model.origin
    trained = () if origin is None else origin.trained(state)
    if origin is not None and (trained is None or Path(origin.name).resolve() == folder.resolve()):
        origin = None
    with replacing(folder, variant) as finished:
        if origin is None:
            save_whole(finished, **arguments)
        else:
            own = {name: x for name, x in state.items() if is_inserted(name) or name in (trained or ())}
            # A copy: of two names for one tensor, such as of an embedding tied to the head, each is written.
            own = {name: _whole(x).cpu().contiguous().clone() for name, x in own.items()}
            _save_tensors(own, finished, variant, arguments.get("max_shard_size", "50GB"))
            model.generation_config.save_pretrained(finished)
        _save_config(model, finished, origin, trained or ())
        add_sums(finished)
        explain(model, finished, folder, None if origin is None else origin.name)
        if not arguments.get("is_main_process", True):  # it took part in gathering the weights, and that is all
            for path in finished.iterdir():
                path.unlink()


def weights_name(variant: str | None, name: str = SAFE_WEIGHTS_NAME) -> str:
    """The name of a file of weights, or of their index, as transformers gives it."""
    start, _, end = name.rpartition(".")
    return name if variant is None else f"{start}.{variant}.{end}"


def _save_tensors(own: Mapping[str, Tensor], folder: Path, variant: str | None, max_shard_size: int | str) -> None:
    """Write tensors into one file, or into several with an index, as transformers does."""
    pattern = weights_name(variant).replace(".safetensors", "{suffix}.safetensors")
    split = split_torch_state_dict_into_shards(dict(own), filename_pattern=pattern, max_shard_size=max_shard_size)
    for file, names in (split.filename_to_tensors or {weights_name(variant): list[str]()}).items():  # perhaps none
        save_file({name: own[name] for name in names}, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / weights_name(variant, SAFE_WEIGHTS_INDEX_NAME)).write_text(json.dumps(index, indent=2) + "\n")


def check_fits(model: Any, model_class: Callable[[Any], Any], state: Mapping[str, Tensor]) -> None:
    """Raises UserError for a state that could not be loaded into a model of this class and of the model's config."""
    if getattr(model, "hf_quantizer", None) is not None:  # its tensors have names and shapes of their own
        return
    name = type(model).__name__
    try:
        with torch.device("meta"):
            wanted = {key: x.shape for key, x in model_class(copy.deepcopy(model.config)).state_dict().items()}
    except Exception as error:  # whatever it comes to in the model's own code
        raise UserError(f"{name} cannot be saved: no model can be made of its config ({error})") from error
    found = {key: x.shape for key, x in state.items() if not is_inserted(key)}
    for key in (*wanted, *found):
        if found.get(key) != wanted.get(key) and key not in (model._tied_weights_keys or ()):
            raise UserError(f"{name} cannot be saved such that it loads: its config says otherwise of {key}")


def _whole(tensor: Tensor) -> Tensor:
    """The whole tensor, under FSDP of all processes' parts; of Metal on the CPU, since sums are in float64."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
    return whole.cpu() if whole.device.type == "mps" else whole


def _save_config(model: Any, folder: Path, origin: Origin | None, trained: tuple[str, ...]) -> None:
    """Write config.json of an adapter of `origin` with tensors of its own, or of a whole model if that is None."""
    own = model.config.to_dict()
    own.pop("_name_or_path", None)
    decoder = sleeping_decoder(model)
    saved = Saved(
        weights="whole" if origin is None else "adapter",
        base_model=None if origin is None else origin.name,
        base_fingerprint=None if origin is None else origin.fingerprint,
        sleep=None if decoder.sleep_config == AWAKE else decoder.sleep_config,
        inserted=decoder.inserted_configs,
        injection=decoder.injection_name,
        trained=() if origin is None else trained,
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


# Whether the pretrained part is what was loaded

SAMPLE = 4096  # elements of a tensor that `weights_digest` looks at


class Origin(NamedTuple):
    """Where the pretrained part of a model was loaded from."""

    name: str  # what was given to from_pretrained: a folder, or a name on the hub
    fingerprint: str  # of all tensors, in bfloat16
    digests: Mapping[str, str]  # of each, exact
    shapes: Mapping[str, torch.Size]

    def trained(self, state: Mapping[str, Tensor]) -> tuple[str, ...] | None:
        """The tensors of a state that are others now; None if they are most of it, or are not the same tensors."""
        if any(x.is_meta for x in state.values()):  # they are offloaded
            return None
        if {name: x.shape for name, x in state.items() if not is_inserted(name)} != self.shapes:
            return None
        sizes = {name: shape.numel() for name, shape in self.shapes.items()}
        others = tuple(name for name in sizes if weights_digest({name: state[name]}) != self.digests[name])
        return others if 2 * sum(sizes[name] for name in others) < sum(sizes.values()) else None


def origin_of(model: PreTrainedModel) -> Origin | None:
    """Where a model was loaded from, before anything is done to it; None if it is not as it was loaded.

    What wrote past autograd before, as peft does when it merges an adapter, goes unseen: save a merged model first.
    """
    name = model.config._name_or_path
    if not name or not all(_as_loaded(parameter) for parameter in model.parameters()):
        return None
    state = model.state_dict()
    own = {key: tensor for key, tensor in state.items() if not is_inserted(key)}
    digests = {key: weights_digest({key: tensor}) for key, tensor in own.items()}
    return Origin(name, weights_digest(own, torch.bfloat16), digests, {key: x.shape for key, x in own.items()})


def _as_loaded(parameter: Tensor) -> bool:
    """True for what transformers marks as read from files, unless it was written to since, as an optimiser does."""
    return not parameter.is_meta and parameter._version == 0 and getattr(parameter, "_is_hf_initialized", False)


def weights_digest(state_dict: Mapping[str, Tensor], *dtypes: torch.dtype) -> str:
    """SHA-256 over names, shapes and evenly spaced elements of all that was not inserted, and the sums of all elements.

    Args:
        dtypes: rounded to these in turn, and without sums. In bfloat16 it is the same whether a model was loaded as
            float32, float64 or bfloat16.
    """
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        if is_inserted(name):
            continue
        sample = _sample(state_dict[name])
        for dtype in dtypes if sample.is_floating_point() else ():
            sample = sample.to(dtype)
        digest.update(f"{name} {list(state_dict[name].shape)} {sample.dtype}\n".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
        if not dtypes and sample.is_floating_point():  # a few rows of an embedding may have been trained
            digest.update(f"{float(_whole(state_dict[name]).sum(dtype=torch.float64)):.7e}".encode())
    return digest.hexdigest()


def _sample(tensor: Tensor) -> Tensor:
    """Up to `SAMPLE` elements from the first to the last: not every n-th, which might all lie in one column."""
    tensor = _whole(tensor)  # with FSDP all processes come by here
    count = min(tensor.numel(), SAMPLE)
    places = torch.arange(count, device=tensor.device) * (tensor.numel() - 1) // max(count - 1, 1)
    return tensor.reshape(-1)[places].cpu().contiguous()


# Folders of files as transformers saves them


@contextmanager
def replacing(folder: Path, variant: str | None = None) -> Iterator[Path]:
    """An empty folder to write into. What is in it at the end takes the place of what `folder` holds of a model.

    After an error while the files are written, those that were there before are untouched.

    Raises:
        UserError: the system refuses to write (a full disk, a missing permission).
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as name:
            yield Path(name)
            _move(Path(name), folder, variant)


def _move(finished: Path, folder: Path, variant: str | None) -> None:
    """Move files into place, the config last, since nothing is loaded without it; older weights go before it."""
    dotted = "" if variant is None else rf"\.{re.escape(variant)}"
    weights = re.compile(rf"model{dotted}(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index{dotted}\.json")
    names = {path.name for path in finished.iterdir()}
    for name in sorted(names - {CONFIG_NAME}):
        move_into_place(finished / name, folder / name)
    if CONFIG_NAME in names:
        for path in folder.iterdir():
            if weights.fullmatch(path.name) and path.name not in names:
                path.unlink()
        move_into_place(finished / CONFIG_NAME, folder / CONFIG_NAME)
