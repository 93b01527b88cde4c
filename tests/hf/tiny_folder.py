"""Tiny random models in folders, as they come from the hub: with a tokenizer of which every letter is a token."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from tiny import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

ALPHABET = string.ascii_letters + " .,\n"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokens = ["<pad>", "<s>", "</s>", *ALPHABET, "<unk>"]
    model = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    model.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def without_sums(folder: Path) -> None:
    """As of an earlier version: other weights may stand there."""
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["weights_sha256"]
    path.write_text(json.dumps(content), encoding="utf-8")


def tiny_folder(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    """Without an end of text, so that as many tokens are generated as were asked for."""
    model = tiny(kind, dtype=torch.float32, **changes)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
