"""`HybridLM`, a `LanguageModel` of attention and fast-weight blocks. It knows nothing of windows or sleep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from reverie.model.attention import Attention
from reverie.model.config import HybridConfig
from reverie.model.fast_weights import FastWeightMixer, window_bytes
from reverie.model.fused import rms_norm
from reverie.model.gated_deltanet import GatedDeltaNet
from reverie.model.injection import new_injection
from reverie.model.jet import JetLayer
from reverie.model.language_model import LanguageModel
from reverie.model.linear import linear
from reverie.model.mixers import MIXERS, MixerKind, mixer_kind, new_mixer
from reverie.model.mlp import SwiGLU
from reverie.model.state import Cache, State, Tokens

MIXERS |= {
    "attn": MixerKind(Attention, fast_weights=False),
    "gdn": MixerKind(GatedDeltaNet),
    "jet": MixerKind(JetLayer),
    "jet-only": MixerKind(JetLayer, mlp=False),
}


class Block(nn.Module):
    """Pre-norm → mixer → residual → pre-norm → SwiGLU → residual; without an MLP it ends after the first residual."""

    def __init__(self, config: HybridConfig, kind: str) -> None:
        super().__init__()
        self.kind, self.norm_eps = kind, config.norm_eps
        self.mixer = new_mixer(kind, config, config.mixers.get(kind, {}))
        self.mlp = SwiGLU(config) if mixer_kind(kind).mlp else None
        self.looks_both_ways: bool = getattr(self.mixer, "looks_both_ways", False)
        self.reads_embedded = isinstance(self.mixer, FastWeightMixer) and config.value_embedding

    def forward(
        self,
        h: Float[Tensor, "B T D"],
        fast_weights: Tensor | None,
        cache: Cache,
        *,
        span: int,
        output: bool = True,
        embedded: Float[Tensor, "B T D"] | None = None,
        bidirectional: bool = False,
        windows: int = 1,
    ) -> tuple[Float[Tensor, "B T D"], Tensor | None, Cache]:
        """Return h after the block (h itself without `output`), and its fast weights and cache after these tokens."""
        x = rms_norm(h, self.norm_eps)
        more: dict[str, Any] = {}
        if self.reads_embedded:
            more["embedded"] = embedded
        if bidirectional and self.looks_both_ways:
            more["bidirectional"] = True
        if windows > 1 and isinstance(self.mixer, FastWeightMixer):
            more["windows"] = windows
        y, fast_weights, cache = self.mixer(x, fast_weights, cache, span=span, output=output, **more)
        if output:
            h = h + y
            h = h if self.mlp is None else h + self.mlp(rms_norm(h, self.norm_eps))
        return h, fast_weights, cache


class _Compiled:
    """What was compiled of a model. It is no part of it: copies, and files, have none."""

    def __init__(self) -> None:
        self.by_batch_size: dict[int, Any] = {}

    def __reduce__(self) -> tuple[type[_Compiled], tuple[()]]:
        return _Compiled, ()


class HybridLM(LanguageModel):
    """A language model of attention and fast-weight blocks (paper equations 4 and 5).

    Output projections start at zero, so every block is the identity at first and N passes equal one.
    """

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config, kind) for kind in config.layers)
        self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        self._awake = _Compiled()
        self._initialise()
        self.injection = new_injection(config.injection, config.width)

    def _initialise(self) -> None:
        mixers: list[Any] = [block.mixer for block in self.layers]
        others = [mixer for mixer in mixers if not isinstance(mixer, Attention | FastWeightMixer)]
        theirs = {module for mixer in others for module in mixer.modules()}
        for mixer in others:
            for parameter in mixer.out_proj.parameters():
                nn.init.zeros_(parameter)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and module not in theirs:
                if name.endswith("out_proj"):
                    nn.init.zeros_(module.weight)
                else:
                    nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if name.endswith("value_embed"):
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight)
        nn.init.zeros_(self.lm_head.weight)

    @property
    def awake(self) -> dict[int, Any]:
        """By batch size B, tokens awake as they were compiled (`awake.Awake`)."""
        return self._awake.by_batch_size

    @property
    def fast_weight_blocks(self) -> Sequence[int]:
        return [i for i, block in enumerate(self.layers) if mixer_kind(str(block.kind)).fast_weights]

    @property
    def reads_embedded(self) -> bool:
        return any(block.reads_embedded for block in self.layers)

    @property
    def window_bytes(self) -> int | None:
        """Bytes of fast weights after a window of one text; None if `blocks` cannot run several windows in one call."""
        mixers = [block.mixer for block in self.layers if type(block) is Block and "forward" not in vars(block)]
        changed = type(self).blocks is not HybridLM.blocks or "blocks" in vars(self) or len(mixers) < len(self.layers)
        return None if changed else window_bytes([mixer for mixer in mixers if type(mixer) is not Attention])

    @property
    def looks_both_ways(self) -> bool:
        """True if attention of some block can, in sleep."""
        return any(block.looks_both_ways for block in self.layers)

    @property
    def injects(self) -> bool:
        return self.injection is not None

    def inject(self, n: int, h: Tensor, embedded: Tensor) -> Tensor:
        return h if self.injection is None else self.injection(n, h, embedded)

    def fast_weight_parameters(self) -> list[nn.Parameter]:
        return [p for i in self.fast_weight_blocks for p in self.get_submodule(f"layers.{i}.mixer").parameters()]

    def embed(self, tokens: Tokens) -> Float[Tensor, "B T D"]:
        return tokens if tokens.is_floating_point() else self.embedding(tokens)

    def blocks(
        self,
        h: Float[Tensor, "B T D"],
        state: State,
        start: int,
        stop: int,
        *,
        span: int,
        output: bool = True,
        embedded: Float[Tensor, "B T D"] | None = None,
        bidirectional: bool = False,
        windows: int = 1,
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """Run blocks start … stop − 1; without `output` the last of them computes its state alone."""
        more = {"windows": windows} if windows > 1 else {}
        fast_weights, cache = list(state.fast_weights), list(state.cache)
        for i in range(start, stop):
            h, fast_weights[i], cache[i] = self.layers[i](
                h,
                fast_weights[i],
                cache[i],
                span=span,
                output=output or i < stop - 1,
                embedded=embedded,
                bidirectional=bidirectional,
                **more,
            )
        return h, State(tuple(fast_weights), tuple(cache))

    def head(self, h: Float[Tensor, "... D"]) -> Float[Tensor, "... vocab"]:
        return linear(self.lm_head, rms_norm(h, self.config.norm_eps))

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T vocab"]:
        """Logits of one forward pass over the whole text, without windows or sleep."""
        h, empty = self.embed(tokens), State.empty(self.num_blocks)
        embedded = h if self.reads_embedded else None
        h, _ = self.blocks(h, empty, 0, self.num_blocks, span=tokens.shape[1], embedded=embedded)
        return self.head(h)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(p.numel() for p in model.parameters())


def new_model(config: HybridConfig, seed: int) -> HybridLM:
    """Return a freshly initialised model; the global random state is left as it was."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return HybridLM(config)
