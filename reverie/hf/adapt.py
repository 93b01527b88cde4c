"""Training fast-weight layers: of which parameters, and the model that a recipe asks for."""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from reverie.errors import UserError
from reverie.hf.add import insert_fast_weights, install, set_injection
from reverie.hf.bases import check_name, check_sizes, load_base, loading
from reverie.hf.blocks import inserted_mixer, inserted_parameters
from reverie.hf.causal_lm import PretrainedLM
from reverie.hf.decoder import sleeping_decoder
from reverie.hf.decoders import block_kinds, check_decoder, decoder_of
from reverie.hf.load import own_config, read_config
from reverie.hf.lora import add_lora
from reverie.hf.save import Saved, SleepingModelConfig
from reverie.pretrained.config import PretrainedModelConfig
from reverie.pretrained.shipped import place_of

_RANK = 64  # of updates


def freeze_pretrained(model: PreTrainedModel) -> None:
    """Let only inserted layers train, for a warm-up (paper section 6.4, stage 1)."""
    new = {id(p) for p in inserted_parameters(model).values()}
    if not new:
        raise UserError(f"{type(model).__name__} has no inserted layers, so nothing would train")
    for p in model.parameters():
        p.requires_grad_(id(p) in new)


def unfreeze(model: PreTrainedModel) -> None:
    """Let all parameters train."""
    model.requires_grad_(True)


def pretrained_lm(config: PretrainedModelConfig, seed: int) -> PretrainedLM:
    """The model of a recipe, with new layers drawn from `seed`.

    Raises:
        UserError: the model cannot be found, or cannot sleep.
    """
    lm = load_base(config.pretrained, dtype=torch.float32)  # not made so afterwards, or it would not be its base
    install(lm)
    if config.after:
        sizes: Any = {"fast_heads": config.fast_heads, "key_size": config.key_size, "value_size": config.value_size}
        sizes["value_embedding"] = config.value_embedding
        insert_fast_weights(lm, config.after, config.kind, **sizes, settings=config.settings, seed=seed)
    had = sleeping_decoder(lm).injection_name
    if had not in ("none", config.injection):
        raise UserError(f'{config.pretrained} was trained with injection "{had}": set model.injection to it')
    set_injection(lm, config.injection)
    if config.lora_rank is not None and config.lora_blocks:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            add_lora(lm, config.lora_blocks, config.lora_rank)
    model = PretrainedLM(lm)
    for layer in model.layers:
        if (inserted := inserted_mixer(layer)) is not None:
            cast(Any, inserted).mixer.backend = config.backend
    if not model.fast_weight_blocks:
        raise UserError(f"{config.pretrained} has no fast weights: say with model.after where to insert some")
    known = len(cast(Tensor, lm.get_input_embeddings().weight))
    if config.vocab_size > known:
        raise UserError(f"the task has {config.vocab_size} tokens, and {config.pretrained} knows {known}")
    return model


def adapter_settings(name: str) -> dict[str, Any]:
    """Keys of a recipe, such as "model.after", that fit a model: where it gets fast weights, and which blocks train.

    A model without fast weights gets one late Gated DeltaNet layer, before its last two blocks, over whose block sleep
    goes again, and its last six blocks train by low-rank updates, as the recipe notes/smollm2 has it. One that has them
    keeps them, and its last two blocks train; it has no addresses that could be learnt. A model that sleeps goes on
    sleeping as it does, with what its passes read beside h; another with fast weights sleeps one pass.

    Raises:
        UserError: there is no such model, or it cannot sleep, or does so with sliding eviction.
    """
    place = place_of(name)
    check_name(place)
    with loading("the model", name):
        return _settings(name, place)


def _settings(name: str, place: str) -> dict[str, Any]:
    content, _ = PreTrainedConfig.get_config_dict(place)
    check_sizes(name, content)
    config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    settings: dict[str, Any] = {"model.pretrained": name, "task.tokenizer": name}
    saved = read_config(place) if isinstance(config, SleepingModelConfig) else None
    if saved is not None:
        config = own_config(name, saved)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    n = len(check_decoder(model, decoder_of(model)))
    sleep = {} if saved is None else _as_it_sleeps(name, saved, n)
    recurrent = any(recurrent for _, recurrent in block_kinds(decoder_of(model), n))
    if recurrent or (saved is not None and saved.inserted):
        passes = {"sleep.num_sleep_passes": 1, "sleep.looped_blocks": [0, n]} | sleep
        trained = {"adapt.trained_blocks": [[max(n - 2, 0), n]], "model.lora_blocks": []}
        losses = {"adapt.loss.address": 0.0, "adapt.loss.address_alone": 0.0}
        return {**settings, **passes, **trained, **losses, "model.after": [], "adapt.start": False}
    settings |= {"adapt.trained_blocks": [], "model.lora_rank": _RANK, "model.lora_blocks": [[max(n - 6, 0), n]]}
    width, late = config.hidden_size, max(n - 3, 0)
    settings |= {"sleep.looped_blocks": [late, late + 1]} | sleep
    sizes = {"model.key_size": max(4 * width // 9, 1), "model.value_size": max(width // 2, 1)}
    return {**settings, "model.after": [late], **sizes}


def _as_it_sleeps(name: str, saved: Saved, num_blocks: int) -> dict[str, Any]:
    """Keys of a recipe that keep how a saved model sleeps; none if it never does."""
    settings: dict[str, Any] = {} if saved.injection == "none" else {"model.injection": saved.injection}
    if saved.sleep is None:
        return settings
    if saved.sleep.eviction != "hard":
        raise UserError(
            f"{name} sleeps with {saved.sleep.eviction} eviction, and an adapter is trained with hard eviction"
        )
    window, loop = saved.sleep.window_size, saved.sleep.looped_blocks or (0, num_blocks)
    settings |= {"task.window_tokens": window, "sleep.window_size": window}
    return settings | {
        "sleep.num_sleep_passes": saved.sleep.num_sleep_passes,
        "sleep.looped_blocks": list(loop),
        "sleep.bidirectional_sleep": saved.sleep.bidirectional_sleep,
    }
