"""`add_sleep`: a causal language model of transformers that sleeps whenever its window is full; `insert_fast_weights`
for one that has no fast weights.

The model keeps its weights, its names and its class's name; `generate`, `Trainer`, peft and `save_pretrained` go on as
before. What changes is how the decoder reads: window by window, through `reverie.sleep.read`.

An inserted layer, Gated DeltaNet or Jet, follows a decoder block: h ← h + mixer(norm(h)), without an MLP (paper section
6.4, Ouro). Its output projection starts at zero, so the model computes bit for bit what it did before. Its queries,
keys and values start as those of the next block's attention, which reads the same h: attention heads that find the
earlier token that matters are what a new layer lacks, and what they would find in a window, the layer finds in its
memory. (Others start linear attention in pretrained models likewise.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, wraps
from types import MethodType
from typing import Any, NamedTuple, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from reverie.errors import UserError
from reverie.hf.blocks import INSERTED, InsertConfig, SleepingBlock
from reverie.hf.causal_lm import SleepingCausalLM
from reverie.hf.decoder import SleepingDecoder, sleeping_decoder
from reverie.hf.decoders import block_kinds, check_decoder, decoder_of, final_norm, said_of_blocks
from reverie.hf.reading import AWAKE
from reverie.hf.save import origin_of
from reverie.model import ConvTail, HybridConfig, count_parameters
from reverie.model.fast_weights import FastWeightMixer
from reverie.model.fused import rms_norm
from reverie.model.gated_deltanet import GatedDeltaNet
from reverie.model.injection import new_injection
from reverie.model.jet import JetLayer
from reverie.model.mixers import check_inserted, new_mixer
from reverie.sleep import SleepConfig, plan
from reverie.sleep.gradients import EXACT

Model = TypeVar("Model", bound=PreTrainedModel)
Mixin = TypeVar("Mixin", bound=nn.Module)


def add_sleep(model: Model, config: SleepConfig, *, injection: str | None = None) -> Model:
    """Make a causal language model of transformers sleep, in place. Called again, it changes how the model sleeps.

    Args:
        model: a decoder with fast weights of its own, or with inserted ones (`insert_fast_weights`).
        injection: "none", "add", "gate" or module:Class, what passes from the second on read beside h; its parameters
            become the model's. As it was if absent: none, at first.

    Returns `model`.

    Raises:
        UserError: the model cannot sleep, or the config does not fit it.
    """
    install(model)
    decoder = sleeping_decoder(model)
    if not decoder.sleeping.fast_weight_blocks:
        raise UserError(
            f"{type(model).__name__} has no fast weights, so nothing would outlive its window: "
            "insert some with reverie.hf.insert_fast_weights first"
        )
    plan(decoder.sleeping, config)
    attention = decoder.config._attn_implementation
    for wanted, what in (
        (config.eviction == "sliding", 'eviction "sliding"'),
        (config.bidirectional_sleep, "bidirectional_sleep"),
    ):
        if wanted and attention not in ("eager", "sdpa"):
            raise UserError(f'{what} needs attn_implementation "sdpa" or "eager", got "{attention}"')
    if injection is not None:
        set_injection(model, injection)
    decoder.sleep_config = config
    return model


def set_injection(model: PreTrainedModel, name: str) -> None:
    """Make passes of sleep read what this injection says. Raises UserError if there is none of this name."""
    install(model)
    decoder = sleeping_decoder(model)
    if name == decoder.injection_name:
        return
    weight = next(p for p in decoder.parameters() if p.is_floating_point())
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        module = new_injection(name, decoder.config.hidden_size)
    decoder.sleep_injection = None if module is None else module.to(weight.device, weight.dtype)
    decoder.injection_name = name


def install(model: PreTrainedModel) -> None:
    """Make a model read through `reverie.sleep`, with a window that is never full, unless it does already."""
    if isinstance(model, SleepingCausalLM):
        return
    stock = decoder_of(model)
    layers = check_decoder(model, stock)
    origin = origin_of(model)
    for layer, kind, said in zip(layers, block_kinds(stock, len(layers)), said_of_blocks(stock.config), strict=True):
        block = _mix_in(layer, SleepingBlock)
        block.said, block.attend, (block.attends, block.recurrent) = said, None, kind
    checkpointing = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    if checkpointing:  # of single blocks, which would lose their states
        model.gradient_checkpointing_disable()
    norm = final_norm(stock, layers)
    decoder = _mix_in(stock, SleepingDecoder)
    decoder.final_norm = norm
    decoder.sleep_config, decoder.backward_config = AWAKE, EXACT
    decoder.sleep_injection, decoder.injection_name = None, "none"
    sleeping = _mix_in(model, SleepingCausalLM)
    sleeping.origin = origin
    if checkpointing:
        sleeping.gradient_checkpointing_enable()


def _mix_in(module: nn.Module, mixin: type[Mixin]) -> Mixin:
    """`module`, whose class becomes a subclass of the same name, which transformers writes into files and looks up."""
    module.__class__ = _mixed(type(module), mixin)
    if "_old_forward" in module.__dict__:  # accelerate, which moves inputs between devices, has put itself around it
        module.__dict__["_old_forward"] = MethodType(type(module).forward, module)
    return cast(Mixin, module)


@cache
def _mixed(base: type[nn.Module], mixin: type[nn.Module]) -> type[nn.Module]:
    """The subclass of `base`: one for all blocks of a decoder, or each would be compiled by itself."""

    @wraps(base.forward)  # generate() and Trainer look at its signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return mixin.forward(self, *args, **kwargs)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        return _unpickled, (base, mixin), self.__getstate__()

    content = {"forward": forward, "stock": base, "__reduce_ex__": __reduce_ex__, "__module__": base.__module__}
    return type(base.__name__, (mixin, base), content)


def _unpickled(base: type[nn.Module], mixin: type[nn.Module]) -> nn.Module:
    """The module before its state: pickle, torch.save and deepcopy can't look up a class that was made here."""
    cls = _mixed(base, mixin)
    return cls.__new__(cls)


class Inserted(NamedTuple):
    """How many parameters `insert_fast_weights` added."""

    added: int
    total: int  # of the model as it is now

    @property
    def share(self) -> float:
        """Added parameters relative to those of the model before."""
        return self.added / (self.total - self.added)


class InsertedMixer(nn.Module):
    """One fast-weight layer between two decoder blocks."""

    def __init__(self, width: int, config: InsertConfig, norm_eps: float) -> None:
        super().__init__()
        sizes = HybridConfig(
            vocab_size=2,  # of the sizes that a mixer does not read, any will do
            width=width,
            layers=(config.kind,),
            mixers={config.kind: dict(config.settings)} if config.settings else {},
            mlp_width=1,
            num_heads=1,
            fast_heads=config.fast_heads,
            key_size=config.key_size,
            value_size=config.value_size,
            conv_size=config.conv_size,
            value_embedding=config.value_embedding,
            backend="auto",
            norm_eps=norm_eps,
        )
        self.config, self.norm_eps = config, norm_eps
        self.norm_weight = nn.Parameter(torch.ones(width))
        self.mixer: Any = new_mixer(config.kind, sizes, config.settings or {})
        for module in self.mixer.modules():
            if isinstance(module, nn.Linear) and isinstance(self.mixer, FastWeightMixer):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for parameter in self.mixer.out_proj.parameters():
            nn.init.zeros_(parameter)
        embed = self.mixer.value_embed if isinstance(self.mixer, FastWeightMixer) else None
        self.value_embed = embed is not None
        if embed is not None:
            nn.init.orthogonal_(embed.weight)  # so that every token's value is its own
            nn.init.zeros_(embed.bias)

    def forward(
        self, h: Tensor, fast_weights: Tensor | None, tail: ConvTail | None, embedded: Tensor | None = None, **more: Any
    ) -> tuple[Tensor, Tensor, ConvTail]:
        """h [B, T, D], with what the layer adds; its fast weights and the convolution's tail, before and after."""
        x = rms_norm(h, self.norm_eps) * self.norm_weight
        more |= {"embedded": embedded.to(h.device)} if self.value_embed and embedded is not None else {}
        y, new_fast_weights, new_tail = self.mixer(x, fast_weights, tail, span=0, **more)
        return h + y.to(h.dtype), new_fast_weights, new_tail


def insert_fast_weights(
    model: PreTrainedModel,
    after: Sequence[int] | None = None,
    kind: str = "jet",
    *,
    fast_heads: int | None = None,
    key_size: int | None = None,
    value_size: int | None = None,
    value_embedding: bool = False,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    layers: Sequence[int] | None = None,
    heads: int | None = None,
) -> Inserted:
    """Insert a layer with fast weights after each of these blocks, in place; `add_sleep` then says when it sleeps.

    Args:
        after: indices of blocks, from 0.
        kind: "jet", "gdn", or another mixer with fast weights, registered or named module:Class.
        fast_heads, key_size, value_size: of a new layer. If all are absent, it starts with queries, keys and values of
            the next block's attention. Of sizes that are given, the rest follows in Jet-Nemotron's proportions, and the
            layer starts at random.
        value_embedding: values come from the token's embedding too, not from the hidden state alone, which late in a
            deep model no longer knows its own token.
        settings: of a mixer that has some.
        layers, heads: earlier names of `after` and `fast_heads`.

    Raises:
        UserError: the model does not have these blocks, or they have fast weights already.
    """
    after = list((layers if after is None else after) or [])
    fast_heads = heads if fast_heads is None else fast_heads
    check_inserted(kind, settings or {}, value_embedding=value_embedding)
    for name, size in {"fast_heads": fast_heads, "key_size": key_size, "value_size": value_size}.items():
        if size is not None and size < 1:
            raise UserError(f"{name} must be at least 1, got {size}")
    install(model)
    decoder = sleeping_decoder(model)
    blocks = decoder.layers
    _check(model, len(blocks), decoder.sleeping.fast_weight_blocks, after)
    width = decoder.config.hidden_size
    sized = fast_heads or key_size or value_size or kind not in ("jet", "gdn")
    inherited = None if sized else _inherited(blocks, after)
    if inherited:
        (fast_heads, key_size), value_size = inherited[after[0]].q.shape[:2], inherited[after[0]].v.shape[1]
    config = _sizes(width, tuple(sorted(after)), kind, fast_heads, key_size, value_size)
    config = config._replace(value_embedding=value_embedding, settings=settings)
    before = count_parameters(model)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        for i in config.after:
            weight = next(p for p in blocks[i].parameters() if p.is_floating_point())
            mixer = InsertedMixer(width, config, getattr(decoder.config, "rms_norm_eps", 1e-6))
            mixer.to(weight.device, weight.dtype)
            if inherited:
                mixer.norm_weight.data.copy_(inherited[i].gain)
                inherit(mixer.mixer, inherited[i])
            setattr(blocks[i], INSERTED, mixer)
    total = count_parameters(model)
    return Inserted(total - before, total)


def _sizes(
    width: int, after: tuple[int, ...], kind: str, fast_heads: int | None, key_size: int | None, value_size: int | None
) -> InsertConfig:
    """Sizes as in Jet-Nemotron 2B (width 1,536, 12 heads of 96 keys and 256 values) where they are not given.

    That is one head for 128 of width, fast_heads · key_size = 3/4 width, and value_size = 8/3 key_size.
    """
    fast_heads = fast_heads or max(round(width / 128), 1)
    key_size = key_size or max(round(0.75 * width / fast_heads), 1)
    return InsertConfig(after, kind, fast_heads, key_size, value_size or round(key_size * 8 / 3))


def _check(model: PreTrainedModel, num_blocks: int, taken: Sequence[int], after: Sequence[int]) -> None:
    name = type(model).__name__
    if not after or len(set(after)) != len(after):
        raise UserError(f"after must name different blocks of {name}, got {list(after)}")
    for i in after:
        if not 0 <= i < num_blocks:
            raise UserError(f"{name} has blocks 0 to {num_blocks - 1}, so nothing can be inserted after block {i}")
        if i in taken:
            raise UserError(f"block {i} of {name} has fast weights already")


# What a new layer starts from


def _inherited(blocks: nn.ModuleList, after: Sequence[int]) -> dict[int, Heads] | None:
    """For each of these blocks, the attention of the next one (the last block: its own). None if some cannot be used.

    All layers of one insertion have the same sizes, so heads of different shapes cannot be used either.
    """
    heads = {i: Heads.of(blocks[min(i + 1, len(blocks) - 1)]) for i in after}
    known = {i: found for i, found in heads.items() if found is not None}
    shapes = {(found.q.shape, found.v.shape) for found in known.values()}
    return known if len(known) == len(after) and len(shapes) == 1 else None


class Heads(NamedTuple):
    """Projections of a block's attention, without biases: a head of keys and of values for each head of queries."""

    q: Float[Tensor, "H d D"]
    k: Float[Tensor, "H d D"]
    v: Float[Tensor, "H d D"]
    gain: Float[Tensor, " D"]  # of the norm before it

    @classmethod
    def of(cls, block: nn.Module) -> Heads | None:
        """The heads of a block; None if it has no attention of the usual form after a norm."""
        norm = getattr(block, "input_layernorm", None)
        projections = [f"{name}_proj" for name in "qkv"]
        known = (m for m in block.modules() if all(isinstance(getattr(m, x, None), nn.Linear) for x in projections))
        attention = next(known, None)
        if attention is None or not isinstance(norm, nn.Module):
            return None
        size = getattr(attention, "head_dim", None)
        weights = [getattr(attention, name).weight.detach() for name in projections]
        if not size or any(len(weight) % size for weight in weights) or len(weights[1]) != len(weights[2]):
            return None
        q, k, v = (weight.unflatten(0, (-1, size)) for weight in weights)
        heads = getattr(getattr(attention, "config", None), "num_attention_heads", len(q))
        if len(q) != heads or len(q) % len(k):  # more rows than heads: some of them are gates
            return None
        k, v = (x.repeat_interleave(len(q) // len(k), dim=0) for x in (k, v))
        return cls(q, k, v, _gain(norm, q))


def _gain(norm: nn.Module, like: Tensor) -> Tensor:
    """The factor of a norm, whether its weight is that or one less: the response to ±1, of mean 0 and mean square 1."""
    x = torch.ones(like.shape[-1], device=like.device, dtype=like.dtype)
    x[1::2] = -1
    return (norm(x) - norm(-x)).detach() / (2 * x)


@torch.no_grad()
def inherit(mixer: FastWeightMixer, heads: Heads) -> None:
    """Give `mixer` the projections of `heads`, and a convolution that passes on the newest token as it is."""
    mixer.qkv_proj.weight.copy_(torch.cat([x.flatten(0, 1) for x in (heads.q, heads.k, heads.v)]))
    if isinstance(mixer, GatedDeltaNet):
        mixer.conv_weight.zero_()[-1] = 1
    elif isinstance(mixer, JetLayer):
        mixer.kernel_out.weight.zero_()
        mixer.kernel_out.bias.zero_().unflatten(0, (mixer.conv_size, -1))[-1] = 1
