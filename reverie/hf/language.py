"""`ChatLanguage`: the `Language` of a pretrained model, by its tokenizer and the chat template if that has one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from reverie.errors import UserError
from reverie.hf.bases import check_name, load_tokenizer, loading
from reverie.hf.causal_lm import SleepingCausalLM
from reverie.hf.generate import load_sleeper
from reverie.hf.models.hybrid import ReverieHybridConfig, load_hybrid
from reverie.hf.reading import AWAKE
from reverie.model import SleepingModel
from reverie.sleep import SleepConfig

MAX_ANSWER_TOKENS = 128
_EARLIER = "\u2980"  # stands for an answer, and in no template


class ChatLanguage:
    """Texts as the tokenizer gives them; questions through its chat template, or as they are without one."""

    max_answer_tokens = MAX_ANSWER_TOKENS

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int]) -> None:
        self.tokenizer, self.end_ids = tokenizer, end_ids

    def encode(self, text: str) -> list[int]:
        return _ids(self.tokenizer(text))

    def question(self, text: str, *, begun: bool = False) -> list[int]:
        if self.tokenizer.chat_template:
            text = self._turn(text, begun)
        elif begun:
            text = f"\n{text}"
        return _ids(self.tokenizer(text, add_special_tokens=False))  # a template writes them out

    def is_question(self, text: str) -> bool:
        return True

    def padded(self, ids: Sequence[int], window_size: int) -> list[int]:
        return list(ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _turn(self, text: str, begun: bool) -> str:
        """The text between two answers; the end of the first too, which the model may not have written."""
        earlier = [{"role": "user", "content": ""}, {"role": "assistant", "content": _EARLIER}] if begun else []
        turns = [*earlier, {"role": "user", "content": text}]
        whole = str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        return whole.partition(_EARLIER)[2] if begun else whole


def _ids(encoded: Any) -> list[int]:
    return [int(i) for i in encoded["input_ids"]]


def load_speaker(folder: Path, device: torch.device) -> tuple[SleepingModel, SleepConfig, ChatLanguage]:
    """Load a model that `reverie convert`, `save_pretrained` or `save_hybrid` left, and its tokenizer.

    Raises:
        UserError: one of them is missing or damaged, or the model does not sleep.
    """
    check_name(str(folder))
    with loading("the model", str(folder)):
        kind = PreTrainedConfig.get_config_dict(str(folder))[0].get("model_type")
    if kind == ReverieHybridConfig.model_type:
        tokenizer = load_tokenizer(folder)
        lm, config = load_hybrid(folder)
        ends = frozenset(x for x in [tokenizer.eos_token_id] if isinstance(x, int))
        return lm.to(device), _asleep(config, folder), ChatLanguage(tokenizer, ends)
    loaded, tokenizer = load_sleeper(folder, device)
    model = cast(SleepingCausalLM, loaded)
    return model.sleeping, _asleep(model.sleep_config, folder), ChatLanguage(tokenizer, end_ids(loaded, tokenizer))


def _asleep(config: SleepConfig, folder: Path) -> SleepConfig:
    if config == AWAKE:
        raise UserError(f"{folder} holds a model that never sleeps: save it with a SleepConfig of its own")
    return config


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end an answer, by the model's generation config and by the tokenizer."""
    config = getattr(model, "generation_config", None)
    given = [getattr(config, "eos_token_id", None), tokenizer.eos_token_id]
    flat = [x for ids in given for x in (ids if isinstance(ids, list) else [ids])]
    return frozenset(x for x in flat if isinstance(x, int))
