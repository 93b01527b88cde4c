"""A start for inserted layers that already looks things up, before any training.

Queries and keys are one whitened random projection of the model's own states, keys some tokens early: so a question's
last token finds the token after the one that resembles it. Values are of the token itself, forgetting is slow, and what
is read is turned by least squares into what the model would need in its place: the token's row of the head, its usual
state at this depth, or both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from reverie.errors import UserError
from reverie.hf.add import InsertedMixer
from reverie.hf.blocks import inserted_mixer
from reverie.hf.causal_lm import PretrainedLM
from reverie.hf.decoder import sleeping_decoder
from reverie.model import State
from reverie.model.fused import rms_norm
from reverie.model.gated_deltanet import GatedDeltaNet

ReadOut = Literal["head", "state", "both"]

_FORGETTING = 2e-4  # of the fast weights, a token
_RIDGE = 0.02  # of the mean variance
_TOKENS = 12_000  # that the read-out is fitted to


@torch.no_grad()
def look_up(
    model: PretrainedLM,
    states: Float[Tensor, "B T D"],
    tokens: Int[Tensor, "B T"],
    first: int,
    *,
    keys_early: int = 1,
    query_tokens: int = 1,
    read_out: Sequence[ReadOut] = ("head",),
    strength: Sequence[float] = (0.1,),
    seed: int = 0,
) -> None:
    """Give inserted Gated DeltaNet layers such a start, in place, the earlier of them first.

    Args:
        states: of some hundred sentences, as the blocks before `first` leave them.
        keys_early: tokens between the one that is looked up by and the one that is found.
        query_tokens: newest tokens that a query is made of.
        read_out, strength: for each layer, what is read becomes the token's row of the head, its usual state or both,
            and the norm of that as a share of the states' norm; the last entry counts for all further layers.

    Raises:
        UserError: a layer is of another kind, or its convolution is too short.
    """
    generator = torch.Generator().manual_seed(seed)
    embedded = model.embed(tokens)
    h = states.to(embedded.dtype)
    layers = [i for i in model.fast_weight_blocks if inserted_mixer(model.layers[i]) is not None]
    for place, i in enumerate(layers):
        layer: Any = inserted_mixer(model.layers[i])
        _check(layer, i, max(keys_early, query_tokens - 1))
        layer.mixer.out_proj.weight.zero_()  # so that this block's h is that before the layer
        h, _ = model.blocks(h, State.empty(model.num_blocks), first, i + 1, span=tokens.shape[1], embedded=embedded)
        first = i + 1
        x = _standardise(layer, h)
        _project(layer, x, keys_early, query_tokens, generator)
        if layer.mixer.value_embed is not None:
            _embed_values(layer, model, generator)
        wanted = read_out[min(place, len(read_out) - 1)]
        parts = [_head_rows(model)] if wanted != "state" else []
        parts += [_usual_states(h, tokens, len(_table(model)))] if wanted != "head" else []
        target = torch.stack([F.normalize(part, dim=-1) for part in parts]).sum(0)
        size = strength[min(place, len(strength) - 1)] * float(h.norm(dim=-1).median())
        _read_out(layer, model, x, tokens, target, size, generator)


def _check(layer: InsertedMixer, index: int, reach: int) -> None:
    if not isinstance(layer.mixer, GatedDeltaNet):
        raise UserError(f'the layer after block {index} is no Gated DeltaNet: this start is for layers of kind "gdn"')
    if reach >= layer.mixer.conv_size:
        raise UserError(
            f"keys and queries reach {reach} tokens back, but the convolution has {layer.mixer.conv_size} taps"
        )


def _standardise(layer: InsertedMixer, h: Tensor) -> Float[Tensor, "n D"]:
    """Let the layer's norm bring each channel of h to the same variance; what it then gives, token by token."""
    x = rms_norm(h, layer.norm_eps).flatten(0, -2)
    layer.norm_weight.copy_(1 / (x.std(0) + 1e-2).clamp(max=50))
    return x * layer.norm_weight


def _project(
    layer: InsertedMixer, x: Float[Tensor, "n D"], keys_early: int, query_tokens: int, generator: torch.Generator
) -> None:
    mixer, D = layer.mixer, x.shape[-1]
    assert isinstance(mixer, GatedDeltaNet)
    HK, HV = mixer.sizes[0] // 2, mixer.sizes[1]
    mean, centred = x.mean(0), x - x.mean(0)
    variance, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    whiten = axes @ torch.diag((variance.clamp_min(0) + _RIDGE * variance.mean()).rsqrt()) @ axes.T
    along = mean / (mean @ mean)
    without_mean = torch.eye(D, device=x.device) - torch.outer(mean, along)  # there is no bias that could take it off

    def random(rows: int) -> Tensor:
        projection = torch.randn(rows, D, generator=generator).to(x.device) @ whiten @ without_mean
        return projection / (centred @ projection.T).std()

    same, values = random(HK), random(HV)
    mixer.qkv_proj.weight.copy_(torch.cat([same, same, values]))
    mixer.conv_weight.zero_()
    mixer.conv_weight[-query_tokens:, :HK] = query_tokens**-0.5
    mixer.conv_weight[-1 - keys_early, HK : 2 * HK] = 1
    mixer.conv_weight[-1, 2 * HK :] = 1
    steady = along.expand(HV, -1) * 1.3
    mixer.gate_proj.weight.copy_(steady + 0.02 * D**-0.5 * torch.randn(HV, D, generator=generator).to(x.device))
    mixer.ab_proj.weight.mul_(0.1)
    mixer.A_log.zero_()
    mixer.dt_bias.fill_(math.log(math.expm1(_FORGETTING)))


def _embed_values(layer: InsertedMixer, model: PretrainedLM, generator: torch.Generator) -> None:
    """Let values be of the token alone: its standardised embedding, turned."""
    mixer, every = layer.mixer, rms_norm(_embedded(model), layer.mixer.norm_eps)
    assert mixer.value_embed is not None
    turn = torch.empty_like(mixer.value_embed.weight, device="cpu")
    mixer.value_embed.weight.copy_(nn.init.orthogonal_(turn, generator=generator))
    mixer.value_embed.weight.div_(every.std(0) + 1e-6)
    mixer.value_embed.bias.copy_(-mixer.value_embed.weight @ every.mean(0))
    mixer.qkv_proj.weight[mixer.sizes[0] :].mul_(0.05)


def _read_out(
    layer: InsertedMixer,
    model: PretrainedLM,
    x: Float[Tensor, "n D"],
    tokens: Tensor,
    target: Float[Tensor, "vocab D"],
    size: float,
    generator: torch.Generator,
) -> None:
    """Fit the output projection: from a token's own value, as read, to `target` of this token, at norm `size`."""
    mixer = layer.mixer
    pick = torch.randint(len(x), (_TOKENS,), generator=generator).to(x.device)
    x = x[pick]
    if mixer.value_embed is None:
        ids, embedded = tokens.flatten()[pick], None
    else:
        ids = torch.randint(len(target), (_TOKENS,), generator=generator).to(x.device)
        embedded = model.embed(ids[None])
    value = mixer.project(x[None], None, embedded).v[0]
    read = rms_norm(value, mixer.norm_eps).flatten(-2) * F.silu(mixer.gate_proj(x))
    wanted = F.normalize(target[ids], dim=-1) * size
    weight = torch.bincount(ids, minlength=len(target))[ids].to(x.dtype).pow(-0.7)[:, None]  # rare tokens count too
    gram = read.T @ (weight * read)
    ridge = _RIDGE * gram.diag().mean() * torch.eye(len(gram), device=x.device)
    mixer.out_proj.weight.copy_(torch.linalg.solve(gram + ridge, read.T @ (weight * wanted)).T)


def _head_rows(model: PretrainedLM) -> Float[Tensor, "vocab D"]:
    """For each token the direction of h, before the final norm, that the head takes for it."""
    rows = _table(model)
    name = sleeping_decoder(model.lm).final_norm
    gain = None if name is None else getattr(sleeping_decoder(model.lm).get_submodule(name), "weight", None)
    rows = rows - rows.mean(0)
    return rows if gain is None else rows / gain


def _usual_states(h: Tensor, tokens: Tensor, vocab_size: int) -> Float[Tensor, "vocab D"]:
    """The mean state of each token in these texts, without the mean of all."""
    states, ids = h.flatten(0, -2), tokens.flatten()
    sums = torch.zeros(vocab_size, h.shape[-1], device=h.device).index_add_(0, ids, states - states.mean(0))
    return sums / torch.bincount(ids, minlength=vocab_size).clamp_min(1)[:, None]


def _table(model: PretrainedLM) -> Float[Tensor, "vocab D"]:
    """The rows of the head."""
    head: Any = model.lm.get_output_embeddings()
    return head.weight.float()


def _embedded(model: PretrainedLM) -> Float[Tensor, "vocab D"]:
    """Every token as the model embeds it."""
    every = torch.arange(len(_table(model)), device=model.lm.device)
    return torch.cat([model.embed(ids[None])[0] for ids in every.split(1024)])
