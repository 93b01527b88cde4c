"""Jet-Nemotron 2B and 4B (arXiv 2508.15884) under the keys of the published checkpoints, with their state in the Cache.

Attention, MLP, rotary positions and head are those of Qwen2, which these models were made from. In most layers a Jet
block stands in attention's place: the gated delta rule, with a convolution on v whose kernels depend on the token. A
text may have any length, in training too, and come in any pieces: the result is that of one call.
"""

import math
from inspect import unwrap
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import (
    create_causal_mask,
    create_recurrent_attention_mask,
    create_sliding_window_causal_mask,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm  # its gain multiplies in float32, as theirs does
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2Attention,
    Qwen2DecoderLayer,
    Qwen2ForCausalLM,
    Qwen2MLP,
    Qwen2Model,
    Qwen2PreTrainedModel,
    Qwen2RotaryEmbedding,
)
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from reverie import ops
from reverie.errors import UserError
from reverie.model.fused import normalise

qwen2_forward = unwrap(Qwen2Model.forward)
LAYER_TYPES = {"jet": "linear_attention", "attn": "full_attention", "swa": "sliding_attention"}
"""What config.json says, and what transformers calls it: caches and masks are made by these names."""
MASKS = {
    "linear_attention": create_recurrent_attention_mask,
    "full_attention": create_causal_mask,
    "sliding_attention": create_sliding_window_causal_mask,
}


@strict
class JetNemotronConfig(Qwen2Config):
    """The published config.json. Its `efficient_attention_config` has the sizes of Jet blocks and of sliding windows.

    Raises:
        UserError: there are such layers, and it has nothing about them.
    """

    model_type = "jet_nemotron"
    base_model_tp_plan = None  # Qwen2's would split the Jet blocks' projections, which have the same names
    efficient_attention_config: dict[str, dict[str, Any]] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.layer_types is not None:
            self.layer_types = [LAYER_TYPES.get(kind, kind) for kind in self.layer_types]
        super().__post_init__(**kwargs)
        sizes = self.efficient_attention_config or {}
        for section in ("jet", "swa"):
            if LAYER_TYPES[section] in (self.layer_types or ()) and section not in sizes:
                raise UserError(
                    f"Jet-Nemotron's config has {section!r} layers: efficient_attention_config lacks {section!r}"
                )
        self.sliding_window = sizes["swa"]["window_size"] if "swa" in sizes else None


class KernelGenerator(nn.Module):
    """Two layers, which make each token's convolution kernels from its hidden state."""

    def __init__(self, width: int, hidden: int, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, channels * kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, width] to kernels [B, T, channels, kernel_size]."""
        return self.w2(F.silu(self.w1(x))).unflatten(-1, (-1, self.kernel_size))


class DynamicConv(nn.Module):
    """A causal depthwise convolution with its own kernels at every token."""

    def __init__(self, width: int, hidden: int, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.kernel_generator = KernelGenerator(width, hidden, channels, kernel_size)

    def forward(self, inputs: Tensor, x: Tensor) -> Tensor:
        """inputs [B, channels, ...T], the T newest of them at x's tokens, and x [B, T, width], to [B, T, channels].

        Of older inputs the kernels see kernel_size - 1; those that are not there count as zero.
        """
        kernels = self.kernel_generator(x)
        T, size = kernels.shape[1], kernels.shape[-1]
        inputs = F.pad(inputs, (T + size - 1 - inputs.shape[-1], 0))  # less than nothing where there are more: a cut
        return F.silu((inputs.unfold(-1, size, 1).transpose(1, 2) * kernels).sum(-1))


class JetBlock(nn.Module):
    def __init__(self, config: JetNemotronConfig, layer_idx: int) -> None:
        super().__init__()
        sizes, width = (config.efficient_attention_config or {})["jet"], config.hidden_size
        H, K = sizes["num_heads"], sizes["head_dim"]
        V = int(K * sizes["expand_v"])
        self.layer_idx, self.heads, self.conv_size = layer_idx, H, sizes["conv_size"]
        self.q_proj = nn.Linear(width, H * K, bias=False)
        self.k_proj = nn.Linear(width, H * K, bias=False)
        self.v_proj = nn.Linear(width, H * V, bias=False)
        self.b_proj = nn.Linear(width, H, bias=False)
        self.a_proj = nn.Linear(width, H, bias=False)
        self.A_log = nn.Parameter(torch.zeros(H))
        self.dt_bias = nn.Parameter(torch.zeros(H))
        self.dynamic_conv1d = DynamicConv(width, H * V // sizes["dconv_generator_reduction"], H * V, self.conv_size)
        self.g_proj = nn.Linear(width, H * V, bias=False)
        self.o_norm = Olmo2RMSNorm(V, eps=float(sizes["norm_eps"]))  # a string in the published files
        self.o_proj = nn.Linear(H * V, width, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **_: Any,  # attention's concern
    ) -> tuple[Tensor, None]:
        """hidden_states [B, T, D] to the same shape, and no attention weights.

        attention_mask [B, T] is zero at padding, which must stand on the left: there it writes nothing into an empty
        state. The cache is left with the fast weights [B, H, K, V] in float32, and the newest conv_size values.
        """
        x = hidden_states
        if attention_mask is not None:
            x = x * attention_mask[..., None].to(x.dtype)
        S, v = None, self.v_proj(x).transpose(1, 2)
        if past_key_values is not None:
            S = past_key_values.get_recurrent_state(self.layer_idx, state_idx=0)
            v = past_key_values.update_conv_state(v, self.layer_idx, conv_kernel_size=self.conv_size)
        q, k, v = (
            y.unflatten(-1, (self.heads, -1))
            for y in (F.silu(self.q_proj(x)), F.silu(self.k_proj(x)), self.dynamic_conv1d(v, x))
        )
        g = -self.A_log.float().exp() * F.softplus(self.a_proj(x).float() + self.dt_bias)
        beta = self.b_proj(x).sigmoid()
        q, k = normalise(q, 1.0), normalise(k, 1.0)
        o, S = ops.gated_delta_rule(q, k, v, g, beta, initial_state=S, backend="auto")
        assert o is not None  # q was given
        if past_key_values is not None:
            past_key_values.update_recurrent_state(S, self.layer_idx)
        gate = self.g_proj(x).unflatten(-1, (self.heads, -1))
        gated = self.o_norm(o.float()) * F.silu(gate.float())
        return self.o_proj(gated.flatten(-2).to(x.dtype)), None


class JetNemotronDecoderLayer(Qwen2DecoderLayer):
    def __init__(self, config: JetNemotronConfig, layer_idx: int) -> None:
        GradientCheckpointingLayer.__init__(self)  # Qwen2's would fill it with attention and other norms
        assert config.layer_types is not None  # Qwen2's config sees to that
        mixer = JetBlock if config.layer_types[layer_idx] == "linear_attention" else Qwen2Attention
        self.self_attn = mixer(config, layer_idx)
        self.mlp = Qwen2MLP(config)
        self.input_layernorm = Olmo2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = Olmo2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class JetNemotronPreTrainedModel(Qwen2PreTrainedModel):
    config_class = JetNemotronConfig
    _no_split_modules = ["JetNemotronDecoderLayer"]  # noqa: RUF012  # transformers' own style
    _can_record_outputs = {"hidden_states": JetNemotronDecoderLayer, "attentions": Qwen2Attention}  # noqa: RUF012
    _is_stateful = True
    _can_compile_fullgraph = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, JetBlock):
            step = torch.empty_like(module.dt_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp()
            init.copy_(module.A_log, torch.empty_like(module.A_log).uniform_(1, 16).log())
            init.copy_(module.dt_bias, step + torch.log(-torch.expm1(-step)))  # softplus⁻¹
            # The kernels that all tokens share: v keeps its size.
            init.normal_(module.dynamic_conv1d.kernel_generator.w2.bias, std=module.conv_size**-0.5)


class JetNemotronModel(JetNemotronPreTrainedModel):
    def __init__(self, config: JetNemotronConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(JetNemotronDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = Olmo2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen2RotaryEmbedding(config)
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
        """As any decoder of transformers: input_ids [B, T] or inputs_embeds [B, T, D] to the last hidden state."""
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("a model reads either input_ids or inputs_embeds: give exactly one of them")
        h: Tensor = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(seen, seen + h.shape[1], device=h.device)[None]
        masks: Any = attention_mask  # `generate` may have made them
        types = self.config.layer_types or ()
        if not isinstance(masks, dict):
            given = {"config": self.config, "inputs_embeds": h, "attention_mask": masks, "position_ids": position_ids}
            # Each by a layer of its own kind, which transformers before 5.23 does not find by itself.
            masks = {
                kind: MASKS[kind](**given, past_key_values=past_key_values, layer_idx=types.index(kind))
                for kind in dict.fromkeys(types)
            }
        given = {"attention_mask": masks, "position_ids": position_ids, "use_cache": use_cache, **kwargs}
        return qwen2_forward(self, inputs_embeds=h, past_key_values=past_key_values, **given)


class JetNemotronForCausalLM(JetNemotronPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: JetNemotronConfig) -> None:
        super().__init__(config)
        self.model = JetNemotronModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    forward = Qwen2ForCausalLM.forward


AutoConfig.register("jet_nemotron", JetNemotronConfig, exist_ok=True)
AutoModel.register(JetNemotronConfig, JetNemotronModel, exist_ok=True)
AutoModelForCausalLM.register(JetNemotronConfig, JetNemotronForCausalLM, exist_ok=True)
