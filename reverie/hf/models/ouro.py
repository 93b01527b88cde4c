"""Ouro 1.4B and 2.6B (arXiv 2510.25741) under the keys of the published checkpoints, with their state in the Cache.

One stack of transformer blocks runs `total_ut_steps` times, the final norm after every step; each branch has a norm
before and one after it. The gate that says how likely it is to stop after a step has its weights in the checkpoint. It
is loaded and kept, and decides nothing: at the published threshold of 1 the output is the last step's.
"""

from inspect import unwrap
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache, GenerationMixin
from transformers.cache_utils import Cache
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.ministral.modeling_ministral import MinistralAttention  # Qwen2's, without biases
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2ForCausalLM,
    Qwen2MLP,
    Qwen2Model,
    Qwen2PreTrainedModel,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
)
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from reverie.errors import UserError

qwen2_forward = unwrap(Qwen2Model.forward)


@strict
class OuroConfig(Qwen2Config):
    """The published config.json. `total_ut_steps` is how often the stack runs, and may be changed at any time.

    Raises:
        UserError: `early_exit_threshold` is not 1.
    """

    model_type = "ouro"
    total_ut_steps: int = 4
    early_exit_threshold: float = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.early_exit_threshold != 1:
            raise UserError(f"Ouro runs all its steps: early_exit_threshold must be 1, got {self.early_exit_threshold}")


class OuroDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: OuroConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = MinistralAttention(config, layer_idx)
        self.mlp = Qwen2MLP(config)
        self.input_layernorm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.input_layernorm_2 = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm_2 = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        y, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **kwargs,
        )
        hidden_states = hidden_states + self.input_layernorm_2(y)
        y = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + self.post_attention_layernorm_2(y)


class StepCache:
    """The cache as attention sees it in one step: the keys of layer i in step u are at u · num_hidden_layers + i."""

    def __init__(self, cache: Cache, first: int) -> None:
        self.cache, self.first = cache, first

    def update(self, k: Tensor, v: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.cache.update(k, v, self.first + layer_idx, *args, **kwargs)


class OuroPreTrainedModel(Qwen2PreTrainedModel):
    config_class = OuroConfig
    _no_split_modules = ["OuroDecoderLayer"]  # noqa: RUF012  # transformers' own style
    _can_record_outputs = {"hidden_states": OuroDecoderLayer, "attentions": MinistralAttention}  # noqa: RUF012
    _can_compile_fullgraph = False


class OuroModel(OuroPreTrainedModel):
    def __init__(self, config: OuroConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(OuroDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen2RotaryEmbedding(config)
        self.early_exit_gate = nn.Linear(config.hidden_size, 1)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor | None] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """As any decoder of transformers: input_ids [B, T] or inputs_embeds [B, T, D] to the last hidden state.

        A cache with too few layers for all steps is given more of them.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("a model reads either input_ids or inputs_embeds: give exactly one of them")
        h: Tensor = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(seen, seen + h.shape[1], device=h.device)[None]
        masks: Any = attention_mask  # `generate` may have made them
        if not isinstance(masks, dict):
            masks = create_masks_for_generate(self.config, h, masks, past_key_values, position_ids)
        given = {"attention_mask": masks, "position_ids": position_ids, "use_cache": use_cache, **kwargs}
        for step in range(self.config.total_ut_steps):  # pyright: ignore[reportAttributeAccessIssue]
            cache = past_key_values
            if cache is not None and step > 0:
                while len(cache.layers) < (step + 1) * len(self.layers):  # `generate` makes one layer of cache a block
                    cache.layers.extend(DynamicCache(config=self.config).layers)
                cache = StepCache(cache, step * len(self.layers))
            h = qwen2_forward(self, inputs_embeds=h, past_key_values=cache, **given).last_hidden_state
        return BaseModelOutputWithPast(last_hidden_state=h, past_key_values=past_key_values if use_cache else None)


class OuroForCausalLM(OuroPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: OuroConfig) -> None:
        super().__init__(config)
        self.model = OuroModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    forward = Qwen2ForCausalLM.forward


AutoConfig.register("ouro", OuroConfig, exist_ok=True)
AutoModel.register(OuroConfig, OuroModel, exist_ok=True)
AutoModelForCausalLM.register(OuroConfig, OuroForCausalLM, exist_ok=True)
