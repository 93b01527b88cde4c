"""The losses of an adapter: answers from memory, their addresses, and ordinary text that goes on as it did.

The texts of a batch are slept over by the algorithm itself (`consolidate`); every question is then asked from a copy of
its text's memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from reverie.hf.blocks import inserted_mixer
from reverie.hf.causal_lm import PretrainedLM
from reverie.hf.decoder import sleeping_decoder
from reverie.hf.frozen import AfterFrozen, alike
from reverie.model import State, select_rows
from reverie.recipe.adapt import LossConfig
from reverie.sleep import Context, SleepConfig, consolidate, wake
from reverie.train.texts import Asked, QuestionBatch, TextBatch, buckets, side_by_side

_BUCKETS = 4  # of questions by length, so that little is padding
_SHARPNESS = 20.0  # of the contrast between addresses
_COMMON = 300  # first ids of a vocabulary, often the commonest, that answers always compete with


class PlainText(NamedTuple):
    """Windows of ordinary text, and what the untouched model made of them."""

    tokens: Int[Tensor, "n L"]
    states: Float[Tensor, "n L D"]  # after the frozen beginning
    final: Float[Tensor, "n L D"]  # after the final norm of the untouched model

    def to(self, device: torch.device) -> PlainText:
        return PlainText(*(x.to(device) for x in self))


def adapt_loss(
    model: PretrainedLM,
    first: int,
    batch: TextBatch,
    plain: PlainText | None,
    sleep: SleepConfig,
    config: LossConfig,
    *,
    alone: bool,
    count: float,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss of a batch, and its parts before weighting, all where the model is.

    Args:
        first: the block that `states` go into.
        plain: some windows of plain text, if they are wanted.
        alone: addresses alone are learnt.
        count: answer tokens that means are taken over: those of all processes, for one of them.
        generator: of the sampled vocabulary, on the CPU.
    """
    after, device = AfterFrozen(model, first), model.lm.device
    batch = batch._replace(tokens=batch.tokens.to(device), states=batch.states.to(device))
    config_after = after.config(sleep)
    windows, context = batch.tokens.shape[1] // sleep.window_size, None
    with _recorded(model) as inputs:
        if alone:
            _run_to_last_layer(
                after, model, *(x.reshape(-1, sleep.window_size, *x.shape[2:]) for x in (batch.states, batch.tokens))
            )
        else:
            context = consolidate(after, after.input(batch.states, batch.tokens), Context.empty(after), config_after)
    parts = list(_parts(after, model, batch, context, config_after))
    keys = {i: _keys(model, i, calls, windows, len(batch.tokens)) for i, calls in inputs.items()}
    known = _competitors(model, [batch.tokens, *(part.targets for part, _ in parts)], config, generator)
    total = torch.zeros((), device=device)
    told: dict[str, Tensor] = dict.fromkeys(("answer", "end", "address", "found", "distillation"), total)

    def add(name: str, value: Tensor, weight: float) -> Tensor:
        told[name] = told[name] + value.detach() / count
        return value * (weight / count)

    for part, heard in parts:
        with _recorded(model) as inputs:
            h = _asked(after, model, part, heard, config_after)
        if config.address:
            loss, found = _address(model, inputs, keys, part)
            total, _ = total + add("address", loss, 1.0 if alone else config.address), add("found", found, 0)
        if not alone:
            logits = _logits(model, h, known)
            losses = F.cross_entropy(logits, _index(known, part.targets), reduction="none")
            total = total + add("answer", losses.masked_fill(part.ends, 0).sum(), config.answer)
            total = total + add("end", losses.masked_fill(~part.ends, 0).sum(), config.end)
            if part.taught is not None:
                wanted = _of_final(model, part.taught.to(h.dtype), known).log_softmax(-1)
                apart = F.kl_div(logits.log_softmax(-1), wanted, log_target=True, reduction="sum")
                total = total + add("distillation", apart, config.distillation)
    if plain is not None and not alone:
        divergence = _divergence(after, model, plain, context, config_after, config, generator)
        told["plain_text"] = divergence.detach()
        total = total + config.plain_text * divergence
    return total, told


def _parts(
    after: AfterFrozen, model: PretrainedLM, batch: TextBatch, context: Context | None, sleep: SleepConfig
) -> Iterator[tuple[QuestionBatch, Context | None]]:
    """The questions in batches of about equal length, each with what its texts' memories have heard before.

    What prompts begin with alike, such as a chat template, each text hears once for all questions about it; not the
    newest tokens, of which convolutions make queries.
    """
    newest = _conv_size(model) - 1
    prompts = [one.question.prompt[: max(len(one.question.prompt) - newest, 0)] for one in batch.asked]
    for begun, places in [(0, range(len(prompts)))] if context is None else alike(prompts):
        those, heard = [batch.asked[i] for i in places], context
        if begun and context is not None:
            heard = _begun(after, those[0], begun, len(batch.tokens), context, sleep)
        for part in buckets(those, max(round(_BUCKETS * len(those) / max(len(prompts), 1)), 1)):
            yield side_by_side(part, begun).to(model.lm.device), heard


def _conv_size(model: PretrainedLM) -> int:
    """The widest convolution of the inserted layers."""
    mixers: list[Any] = [inserted_mixer(model.layers[i]) for i in model.fast_weight_blocks]
    return max([getattr(layer.mixer, "conv_size", 1) for layer in mixers if layer is not None], default=1)


def _begun(after: AfterFrozen, one: Asked, begun: int, texts: int, context: Context, sleep: SleepConfig) -> Context:
    """What all texts know when they have heard the first tokens of a prompt."""
    device = next(x for x in context.state.fast_weights if x is not None).device
    x = after.input(one.states[None, :begun].to(device), torch.tensor([one.question.prompt[:begun]], device=device))
    return wake(after, x.expand(texts, -1, -1), context, sleep)[1]


def _asked(
    after: AfterFrozen, model: PretrainedLM, part: QuestionBatch, context: Context | None, sleep: SleepConfig
) -> Float[Tensor, "A D"]:
    """h after the last block, where answers are predicted; without a context the blocks run to the last layer alone."""
    if context is None:
        _run_to_last_layer(after, model, part.states, part.tokens)
        return part.states[:0, 0]
    h, _ = wake(after, after.input(part.states, part.tokens), select_rows(context, part.rows), sleep)
    return h[part.at[0], part.at[1]]


def _run_to_last_layer(after: AfterFrozen, model: PretrainedLM, states: Tensor, tokens: Tensor) -> None:
    """One pass over texts that begin a window, as far as queries and keys need it."""
    stop = max(model.fast_weight_blocks) + 1 - after.first
    x = after.input(states, tokens)
    after.embed_blocks(x, State.empty(after.num_blocks), (0, stop), stop, span=states.shape[1])


# Addresses


@contextmanager
def _recorded(model: PretrainedLM) -> Iterator[dict[int, list[Tensor]]]:
    """What the inserted mixers are given while the context lasts, [B, T, D] for each call, by block."""
    inputs: dict[int, list[Tensor]] = {}
    hooks = []
    for i in model.fast_weight_blocks:
        layer: Any = inserted_mixer(model.layers[i])
        if layer is not None:
            calls = inputs.setdefault(i, [])
            hooks.append(layer.mixer.register_forward_pre_hook(lambda _, given, calls=calls: calls.append(given[0])))
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def _keys(model: PretrainedLM, block: int, calls: list[Tensor], windows: int, texts: int) -> Float[Tensor, "R T H K"]:
    """β k of all tokens of the texts, in the newest pass over each window.

    Args:
        calls: what the layer was given: window by window, pass by pass; or all windows side by side.
    """
    mixer: Any = inserted_mixer(model.layers[block])
    if len(calls[0]) == texts:
        each = len(calls) // windows
        return torch.cat([mixer.mixer.addresses(x)[1] for x in calls[each - 1 :: each]], dim=1)
    return mixer.mixer.addresses(calls[0])[1].unflatten(0, (texts, windows)).flatten(1, 2)


def _address(
    model: PretrainedLM, inputs: dict[int, list[Tensor]], keys: dict[int, Tensor], part: QuestionBatch
) -> tuple[Tensor, Tensor]:
    """The contrastive loss that queries find the answer's place among all tokens of their text, summed over answer
    tokens, and how many find it, both averaged over layers.

    A token weighs as it would in a memory without forgetting: by β q·k.
    """
    texts = part.rows[part.at[0]]
    loss, found = torch.zeros(2, device=texts.device)
    for i, key in keys.items():
        mixer: Any = inserted_mixer(model.layers[i])
        query, _ = mixer.mixer.addresses(inputs[i][-1])
        query = query[part.at[0], part.at[1]]
        every = (query.flatten(1) @ key.flatten(2).flatten(0, 1).T).unflatten(1, key.shape[:2]) / query.shape[1]
        scores = every[torch.arange(len(texts), device=texts.device), texts]
        loss = loss + F.cross_entropy(_SHARPNESS * scores.float(), part.sources, ignore_index=-100, reduction="sum")
        found = found + (scores.argmax(-1) == part.sources).sum()
    return loss / len(keys), found / len(keys)


# The vocabulary


def _competitors(
    model: PretrainedLM, texts: list[Tensor], config: LossConfig, generator: torch.Generator
) -> Tensor | None:
    """Ids that answers are told apart from, in ascending order; None: all."""
    if not config.sampled_vocabulary:
        return None
    vocab_size = len(_head(model).weight)
    some = torch.randint(vocab_size, (config.sampled_vocabulary,), generator=generator)
    common = torch.arange(min(_COMMON, vocab_size))
    return torch.cat([torch.cat([some, common]).to(texts[0].device), *(text.flatten() for text in texts)]).unique()


def _index(known: Tensor | None, ids: Tensor) -> Tensor:
    return ids if known is None else torch.searchsorted(known, ids)


def _logits(model: PretrainedLM, h: Float[Tensor, "... D"], known: Tensor | None) -> Tensor:
    """Logits of h after the last block, for these ids."""
    return _of_final(model, sleeping_decoder(model.lm).sleeping.head(h), known)


def _of_final(model: PretrainedLM, final: Tensor, known: Tensor | None) -> Tensor:
    """Logits of h after the final norm, for these ids."""
    return (model.unembed(final) if known is None else F.linear(final, _head(model).weight[known])).float()


def has_plain_head(model: PretrainedLM) -> bool:
    """True if logits are products with the head's rows, without a bias, scale or cap: then some can be had alone."""
    weight = _head(model).weight
    probe = torch.randn(4, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        return torch.allclose(model.unembed(100 * probe), F.linear(100 * probe, weight), rtol=1e-2, atol=1e-2)


def _head(model: PretrainedLM) -> Any:
    return model.lm.get_output_embeddings()


# Plain text


def _divergence(
    after: AfterFrozen,
    model: PretrainedLM,
    plain: PlainText,
    context: Context | None,
    sleep: SleepConfig,
    config: LossConfig,
    generator: torch.Generator,
) -> Tensor:
    """KL divergence from the untouched model, in nats a token, of text that is read after one of the batch's texts."""
    assert context is not None
    texts = next(x for x in context.state.fast_weights if x is not None).shape[0]
    rows = torch.randint(texts, (len(plain.tokens),), generator=generator).to(plain.tokens.device)
    empty = bool(torch.randint(2, (), generator=generator))  # half of the time, after nothing
    before = Context.empty(after) if empty else select_rows(context, rows)
    h, _ = wake(after, after.input(plain.states, plain.tokens), before, sleep)
    known = _competitors(model, [plain.tokens], config, generator)
    now = _logits(model, h, known).log_softmax(-1)
    wanted = _of_final(model, plain.final.to(h.dtype), known).log_softmax(-1)
    return F.kl_div(now.flatten(0, 1), wanted.flatten(0, 1), log_target=True, reduction="batchmean")
