"""A `HybridLM` as a model of transformers: generate(), Trainer, peft and evaluation harnesses take it as it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from reverie.errors import UserError, not_this_version
from reverie.hf.arguments import BY_CAUSAL_LM, requested, tokens_of
from reverie.hf.bases import check_finite, check_name, check_sizes, check_weights, check_weights_hold, loading
from reverie.hf.folder import NotCopied, explain_hybrid
from reverie.hf.reading import AWAKE, SleepingMixin, check_unchanged, read_batch, take_up
from reverie.hf.save import check_fits, replacing
from reverie.hf.saving_arguments import FROM_HUB, load_arguments, save_arguments
from reverie.hf.sums import SUMS, add_sums, check_sums
from reverie.model import HybridConfig, HybridLM
from reverie.sleep import SleepConfig, plan
from reverie.sleep.gradients import EXACT

FORMAT_VERSION = 1
Checked = TypeVar("Checked", bound=BaseModel)


class ReverieHybridConfig(NotCopied, PreTrainedConfig):
    """The fields of `HybridConfig`, and how the model sleeps. Raises UserError where they do not fit together."""

    model_type = "reverie_hybrid"
    attribute_map = {  # noqa: RUF012  # transformers' own style
        "hidden_size": "width",
        "intermediate_size": "mlp_width",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
    }

    vocab_size: int = 256
    width: int = 64
    layers: list[str] | tuple[str, ...] = ("attn", "gdn")
    mlp_width: int = 192
    num_heads: int = 4
    num_kv_heads: int | None = None
    rope_base: float = 10_000.0
    fast_heads: int = 4
    key_size: int = 16
    value_size: int = 16
    conv_size: int = 4
    value_embedding: bool = False
    mixers: dict[str, Any] | None = None
    injection: str = "none"
    update_rule: str = "gated_delta"
    backend: str = "chunked"
    norm_eps: float = 1e-6
    sleep: dict[str, Any] | None = None  # a SleepConfig; None: never
    format_version: int = FORMAT_VERSION
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        _ = self.hybrid, self.sleep_config  # which check themselves
        if getattr(self, "tie_word_embeddings", False):
            raise UserError("a reverie_hybrid has a head of its own: it takes no tie_word_embeddings")

    @property
    def hybrid(self) -> HybridConfig:
        fields = {name: getattr(self, name) for name in HybridConfig.model_fields}
        return _checked(HybridConfig, fields | {"mixers": self.mixers or {}})

    @property
    def sleep_config(self) -> SleepConfig:
        return AWAKE if self.sleep is None else _checked(SleepConfig, self.sleep)

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layers)


def _checked(kind: type[Checked], fields: dict[str, Any]) -> Checked:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(f"not a config of a reverie_hybrid: {where}{reason}") from error


class ReverieHybridForCausalLM(SleepingMixin, PreTrainedModel, GenerationMixin):
    """`lm` is the `HybridLM`; texts are read through `reverie.sleep.read`, as everywhere in reverie."""

    config_class = ReverieHybridConfig
    config: ReverieHybridConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012  # transformers' own style

    def __init__(self, config: ReverieHybridConfig) -> None:
        super().__init__(config)
        self.lm = HybridLM(config.hybrid)
        for parameter in self.lm.parameters():
            parameter._is_hf_initialized = not parameter.is_meta  # pyright: ignore[reportAttributeAccessIssue]
        plan(self.lm, config.sleep_config)
        self.backward_config = EXACT
        self.post_init()

    @classmethod
    def from_lm(cls, lm: HybridLM, sleep_config: SleepConfig) -> ReverieHybridForCausalLM:
        """Around a model that is there: the same parameters, no copies."""
        with torch.device("meta"):
            model = cls(ReverieHybridConfig(**lm.config.model_dump(mode="json"), sleep=_as_dict(sleep_config)))
        model.lm = lm
        model.config.dtype = model.dtype
        return model.train(lm.training)

    @property
    def sleep_config(self) -> SleepConfig:
        return self.config.sleep_config

    @sleep_config.setter
    def sleep_config(self, config: SleepConfig) -> None:
        plan(self.lm, config)
        self.config.sleep = _as_dict(config)

    @property
    def sleeping(self) -> HybridLM:
        """The model as `reverie.sleep` and `reverie.memory` take it, which read and remember without `generate`."""
        return self.lm

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As any causal language model of transformers: input_ids [B, T] to logits [B, T, vocab], 0 on padding.

        Args:
            attention_mask: [B, T], 0 on padding.
            past_key_values: the `SleepCache` that the tokens before have left.
            labels: [B, T], -100 where none; each is the token itself, as in transformers.

        Raises UserError where these do not fit together.
        """
        take_up(past_key_values, self)
        given = kwargs | {
            "input_ids": input_ids,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "labels": labels,
            "logits_to_keep": logits_to_keep,
        }
        request = requested(self.lm, self.config, given, BY_CAUSAL_LM)
        check_unchanged(request.cache, self.lm)
        labels = request.labels
        logits = read_batch(self.lm, tokens_of(given), request, self.sleep_config, backward=self.backward_config)
        logits = logits[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        keep = self.config.use_cache if use_cache is None else use_cache
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=request.cache if keep else None)

    def get_input_embeddings(self) -> nn.Module:
        return self.lm.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.lm.embedding = value  # pyright: ignore[reportAttributeAccessIssue]

    def get_output_embeddings(self) -> nn.Module:
        return self.lm.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm.lm_head = new_embeddings  # pyright: ignore[reportAttributeAccessIssue]

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers: new tokens are embedded like the mean of those that there are."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.lm.config = self.config.hybrid
        return embeddings

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save as transformers does; the folder holds the model that was there until the new one is on the disk.

        Raises:
            UserError: the system refuses to write, or an argument is not honoured.
        """
        arguments, folder = save_arguments(args, kwargs), Path(save_directory)
        check_fits(self, type(self), arguments.get("state_dict") or self.state_dict())
        with replacing(folder, arguments.get("variant")) as finished:
            super().save_pretrained(finished, **arguments)
            if arguments.get("is_main_process", True):
                add_sums(finished)
                explain_hybrid(self, finished, folder)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Parameters of a module that were neither made nor loaded are as in a new `HybridLM`."""
        own = dict(module.named_parameters(recurse=False))
        if all(getattr(parameter, "_is_hf_initialized", False) for parameter in own.values()):
            return
        name = next((name for name, other in self.lm.named_modules() if other is module), None)
        if name is None:  # an embedding or a head of another size, to take the place of the one there is
            for parameter in own.values():
                init.normal_(parameter) if isinstance(module, nn.Embedding) else init.zeros_(parameter)
            return
        fresh = HybridLM(self.config.hybrid).get_submodule(name)
        for key, parameter in own.items():
            init.copy_(parameter, fresh.get_parameter(key))


def _as_dict(config: SleepConfig) -> dict[str, Any] | None:
    return None if config == AWAKE else config.model_dump(mode="json")


def save_hybrid(lm: HybridLM, folder: str | Path, sleep_config: SleepConfig) -> None:
    """Write a folder that transformers' Auto classes and `load_hybrid` load: config.json and safetensors.

    Raises:
        UserError: the system refuses to write (a full disk, a missing permission).
    """
    ReverieHybridForCausalLM.from_lm(lm, sleep_config).save_pretrained(folder)


def load_hybrid(folder: str | Path, **kwargs: Any) -> tuple[HybridLM, SleepConfig]:
    """What `save_hybrid` left, in evaluation mode, with kwargs as for `reverie.hf.load`: dtype, device_map, …

    Raises UserError where files are missing or damaged, or an argument is not honoured.
    """
    name = str(folder)
    check_name(name)
    with loading("the model", name):
        from_hub = {key: kwargs[key] for key in FROM_HUB if kwargs.get(key) is not None}
        content, _ = PreTrainedConfig.get_config_dict(name, **from_hub)
        if (kind := content.get("model_type")) != ReverieHybridConfig.model_type:
            raise UserError(f"its model_type is {kind}, and not {ReverieHybridConfig.model_type}")
        version = content.get("format_version", FORMAT_VERSION)  # folders from before it have none
        if type(version) is not int or version != FORMAT_VERSION:
            raise not_this_version(name, version, FORMAT_VERSION)
        check_sizes(name, content)
        check_sums(name, content, from_hub)
        config = ReverieHybridConfig.from_dict({key: x for key, x in content.items() if key != SUMS})
        check_weights_hold(name, ReverieHybridForCausalLM, config)
        arguments = load_arguments(kwargs, config)
        given: dict[str, Any] = {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
        loaded: Any = ReverieHybridForCausalLM.from_pretrained(name, **arguments, config=config, **given)
    model, report = loaded
    check_weights(name, report)
    check_finite(name, model)
    return model.lm, model.sleep_config


AutoConfig.register(ReverieHybridConfig.model_type, ReverieHybridConfig, exist_ok=True)
AutoModelForCausalLM.register(ReverieHybridConfig, ReverieHybridForCausalLM, exist_ok=True)
