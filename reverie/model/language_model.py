"""`LanguageModel`: what trains and sleeps. `HybridLM` is one, an adapted Hugging Face model another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from reverie.model.state import State, Tokens


@runtime_checkable
class SleepingModel(Protocol):
    """What a model must offer to sleep; `LanguageModel` documents the calls.

    It may also have `embed_blocks(tokens, state, loop_end, stop, *, span)`: `embed` and blocks [0, stop) in one call,
    which returns h before block `loop_end`, h at the end, and the state. Else they are called one after the other.
    """

    @property
    def num_blocks(self) -> int: ...
    @property
    def fast_weight_blocks(self) -> Sequence[int]: ...
    def embed(self, tokens: Tensor) -> Tensor: ...
    def blocks(
        self, h: Tensor, state: State, start: int, stop: int, *, span: int, output: bool = True
    ) -> tuple[Tensor, State]: ...
    def head(self, h: Tensor) -> Tensor: ...


class LanguageModel(nn.Module):
    """Embed, blocks [start, stop) with state in and state out, head. It knows nothing of windows or sleep."""

    layers: nn.ModuleList  # the blocks

    @property
    def num_blocks(self) -> int:
        return len(self.layers)

    @property
    def fast_weight_blocks(self) -> Sequence[int]:
        """Indices of the blocks that hold fast weights."""
        raise NotImplementedError

    def fast_weight_parameters(self) -> list[nn.Parameter]:
        """What the layers with fast weights add to a transformer: the parameters of their mixers."""
        raise NotImplementedError

    def compile_blocks(self, backend: str) -> None:
        """In place: from now on they run through `torch.compile` with this backend."""
        for block in self.layers:
            block.compile(backend=backend, dynamic=False)

    def embed(self, tokens: Tokens) -> Float[Tensor, "B T D"]:
        raise NotImplementedError

    def blocks(
        self, h: Float[Tensor, "B T D"], state: State, start: int, stop: int, *, span: int, output: bool = True
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """Run blocks start … stop − 1 on h, the tokens that follow those in `state`.

        Without `output` only the state is wanted, and the h that comes back is not meant to be read.

        Args:
            span: tokens that attention may look back on, itself included.
        """
        raise NotImplementedError

    def head(self, h: Float[Tensor, "... D"]) -> Float[Tensor, "... vocab"]:
        raise NotImplementedError
