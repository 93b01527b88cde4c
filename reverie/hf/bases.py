"""Models and tokenizers by the name that an adapter gives its base: smollm2, a folder, or a hub id."""

import copy
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import logging as hub_logging
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import CONFIG_NAME

from reverie.errors import UserError, plain
from reverie.hf.models.smollm2 import SMOLLM2, load_smollm2_model, load_smollm2_tokenizer
from reverie.hf.saving_arguments import FROM_HUB, check_attention
from reverie.pretrained.shipped import place_of, tokenizer_place
from reverie.quiet import until_its_end

MOST_LAYERS = 1024
MOST_OF_ANYTHING = 2**20  # heads, experts, labels


def load_base(name_or_path: str | Path, **kwargs: Any) -> PreTrainedModel:
    """A causal language model in evaluation mode, from safetensors (smollm2: GGUF).

    No pickle is read, and no code that comes with a model is run. A looped model (Ouro) runs its stack once awake:
    passes of sleep take the place of its loop.

    Args:
        name_or_path: "smollm2", a folder, a hub id, or the name of an adapter that ships with the package.
        kwargs: of `AutoModelForCausalLM.from_pretrained`, such as dtype and revision.

    Raises:
        UserError: there is no such model, or it cannot be loaded.
    """
    name = str(name_or_path)
    if kwargs.pop("trust_remote_code", False):
        raise UserError("load_base takes no trust_remote_code: no code that comes with a model is run")
    if name == SMOLLM2:
        _hush()
        return load_smollm2_model(**kwargs)
    place = place_of(name)
    check_name(place)
    if Path(name).is_dir():
        place = name = str(Path(name).resolve())  # an adapter will name it, from wherever it is loaded
    with loading("the model", name):
        from_hub = {key: kwargs[key] for key in FROM_HUB if kwargs.get(key) is not None}
        content, _ = PreTrainedConfig.get_config_dict(place, **from_hub)  # says at once if there is none
        check_sizes(name, content)
        config = AutoConfig.from_pretrained(place, trust_remote_code=False, **from_hub)
        config = kwargs.pop("config", config)
        if hasattr(config, "total_ut_steps"):
            config.total_ut_steps = 1
        if "attn_implementation" not in kwargs:
            check_attention(config, name)
        if config.model_type != "reverie_sleep":  # which reads nothing else anyway
            kwargs |= {"config": config, "use_safetensors": True}
            check_weights_hold(name, AutoModelForCausalLM.from_config, config)
        model = AutoModelForCausalLM.from_pretrained(place, **kwargs, trust_remote_code=False).eval()
        model.config._name_or_path = model.name_or_path = name
        return model


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, or of the base of an adapter that has none. Raises UserError where there is none."""
    name = tokenizer_place(name_or_path)
    if name == SMOLLM2:
        return load_smollm2_tokenizer()
    check_name(name)
    with loading("the tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        tokenizer.decode(tokenizer("a").input_ids)  # some damage shows at the first use alone
    return tokenizer


def check_name(name: str) -> None:
    """Raises UserError for what is neither a folder nor could be a hub id, before the network is asked."""
    if not os.path.isdir(name) and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise UserError(
            f"there is no folder {name}, nor is it {SMOLLM2} or an organisation/model of the Hugging Face hub"
        )


def check_finite(name: str, model: nn.Module) -> None:
    """Raises UserError if a weight that is in memory is no number: nothing that the model says could be believed."""
    for key, x in model.named_parameters():
        if x.is_floating_point() and not x.is_meta and not bool(x.isfinite().all()):
            raise UserError(f"{name} holds a model that has diverged, or is damaged: its weights {key} are not finite")


def check_weights(name: str, report: Mapping[str, Any]) -> None:
    """Raises UserError if weights are missing, too many, or of other shapes, by from_pretrained's loading info."""
    wrong = report["missing_keys"] | report["unexpected_keys"] | {key for key, *_ in report["mismatched_keys"]}
    if wrong:
        raise UserError(f"the weights in {name} are not those of its config.json: {min(wrong)} does not fit")


def check_sizes(name: str, content: Any) -> None:
    """Raises UserError for the content of a config.json from which a model would be made without end."""
    if not isinstance(content, dict):
        raise UserError(f"{name}/{CONFIG_NAME} is no JSON object")
    for key, value in content.items():
        most = MOST_LAYERS if "layer" in key else MOST_OF_ANYTHING if key.startswith(("num_", "n_")) else None
        if most is not None and isinstance(value, int | float) and not abs(value) <= most:
            raise UserError(f"{name}/{CONFIG_NAME} has {key} {value:g}, above {most:,}, the most that is loaded")
        if isinstance(value, dict):
            check_sizes(name, value)


def check_weights_hold(name: str, make: Callable[[Any], nn.Module], config: Any) -> None:
    """Raises UserError if a model of this config has more parameters than the weights in a folder have bits.

    Memory for weights that are missing, or of other sizes, would be taken before they are refused.
    """
    held = 8 * sum(file.stat().st_size for file in Path(name).rglob("*.safetensors"))
    if not held:  # it is on the hub, or without any
        return
    with torch.device("meta"):
        parameters = sum(x.numel() for x in make(copy.deepcopy(config)).parameters())
    if parameters > held:
        raise UserError(
            f"cannot load the model of {name}: its {CONFIG_NAME} describes {parameters:,} parameters, more than its "
            "weights hold"
        )


def _hush() -> None:
    """In a command, have transformers say nothing but errors until it ends, and show bars for downloads alone."""
    if (end := until_its_end()) is None:
        return
    for module in (transformers.logging, hub_logging):
        end.callback(module.set_verbosity, module.get_verbosity())
        module.set_verbosity_error()
    if transformers.logging.is_progress_bar_enabled():
        downloads = not are_progress_bars_disabled()
        end.callback(_show_bars, downloads)
        transformers.logging.disable_progress_bar()  # those of downloads too
        if downloads:
            enable_progress_bars()


def _show_bars(downloads: bool) -> None:
    transformers.logging.enable_progress_bar()
    if not downloads:
        disable_progress_bars()


@contextmanager
def loading(what: str, name: str) -> Iterator[None]:
    """Turns whatever transformers raises while it loads a model into a UserError of one sentence.

    Of a damaged file that may be any exception.
    """
    _hush()
    try:
        yield
    except UserError as error:
        if name in str(error):
            raise
        raise type(error)(f"cannot load {what} of {name}: {error}") from error
    except Exception as error:
        text = " ".join(plain(str(error).replace("\n", " ")).split())
        first = re.split(r"(?<=[.!?])\s+(?=[A-Z])", text, maxsplit=1)[0].rstrip(".") or type(error).__name__
        raise UserError(f"cannot load {what} of {name}: {first:.300}") from error
