"""`ChatLanguage`: the `Language` of a pretrained model, by its tokenizer and the chat template if that has one."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

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
    prose = True

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int]) -> None:
        self.tokenizer, self.end_ids = tokenizer, end_ids

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text).input_ids)

    def question(self, text: str, *, begun: bool = False) -> list[int]:
        if self.tokenizer.chat_template:
            # What stands between two answers; the end of the first too, which the model may not have written.
            earlier = [{"role": "user", "content": ""}, {"role": "assistant", "content": _EARLIER}] if begun else []
            turns = [*earlier, {"role": "user", "content": text}]
            whole = str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
            text = whole.partition(_EARLIER)[2] if begun else whole
        elif begun:
            text = f"\n{text}"
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)  # a template writes them out

    def opening(self, instructions: str, text: str) -> list[int]:
        if not self.tokenizer.chat_template:
            return self.encode(f"{instructions}\n{text}")
        from jinja2 import TemplateError  # which transformers needs for templates alone

        turns = [{"role": "system", "content": instructions}, {"role": "user", "content": text}]
        try:
            whole = str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except TemplateError:
            raise UserError("this model's chat template has no place for instructions: leave them out") from None
        return list(self.tokenizer(whole, add_special_tokens=False).input_ids)

    def answer(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def is_question(self, text: str) -> bool:
        return True

    def padded(self, ids: Sequence[int], window_size: int) -> list[int]:
        return list(ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


def load_speaker(
    folder: Path, device: torch.device, *, int8: bool = False
) -> tuple[SleepingModel, SleepConfig, ChatLanguage]:
    """Load a model that `reverie convert`, `save_pretrained` or `save_hybrid` left, and its tokenizer.

    Args:
        int8: write tokens by products in int8.

    Raises:
        UserError: one of them is missing or damaged, or the model does not sleep, or cannot be computed in int8.
    """
    check_name(str(folder))
    with loading("the model", str(folder)):
        kind = PreTrainedConfig.get_config_dict(str(folder))[0].get("model_type")
    if kind == ReverieHybridConfig.model_type:
        tokenizer = load_tokenizer(folder)
        if int8:
            raise UserError(f"int8 is for models of transformers, whose weights are large, and {folder} holds none")
        lm, config = load_hybrid(folder)
        model, ends = lm.to(device), end_ids(None, tokenizer)
    else:
        loaded, tokenizer = load_sleeper(folder, device, int8=int8)
        sleeper = cast(SleepingCausalLM, loaded)
        model, config, ends = sleeper.sleeping, sleeper.sleep_config, end_ids(loaded, tokenizer)
    if config == AWAKE:
        raise UserError(f"{folder} holds a model that never sleeps: save it with a SleepConfig of its own")
    return model, config, ChatLanguage(tokenizer, ends)


def end_ids(model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end an answer, by the model's generation config and by the tokenizer."""
    config = getattr(model, "generation_config", None)
    given = [getattr(config, "eos_token_id", None), tokenizer.eos_token_id]
    flat = [x for ids in given for x in (ids if isinstance(ids, list) else [ids])]
    return frozenset(x for x in flat if isinstance(x, int))
