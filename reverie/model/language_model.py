"""`LanguageModel`, the interface of models that train and sleep: `HybridLM`, and adapted models of transformers."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from reverie.errors import UserError
from reverie.model.state import State, Tokens


@runtime_checkable
class SleepingModel(Protocol):
    """Protocol of a model that can sleep.

    Optional are
        reads_embedded  a bool: if it is true, `blocks` is also given `embedded`, what `embed` made of the same tokens,
                        in every pass
        bidirectional   an argument of `blocks`, true under `SleepConfig.bidirectional_sleep`: attention sees all of h,
                        not its past alone
        injects         a bool: if it is true, pass n ≥ 2 of sleep reads `inject(n, h, embedded)` in the place of h,
                        which the pass before made; `embedded` is what entered the first looped block in pass 1
        windows         an argument of `blocks`, where `window_bytes`, a property of the class, is a number (of bytes
                        of fast weights that a text has): rows of h are that many windows of each text, one after the
                        other; `state` is of the texts, and the state that is returned is that after each row
        embed_blocks    called with (tokens, state, (a, b), stop, *, span): `embed` and blocks [0, stop) in one call,
                        which returns the embedded tokens, h before block a, h before block b, h after block stop − 1,
                        and the state. Without it both are called in turn.
    """

    @property
    @abstractmethod
    def num_blocks(self) -> int: ...

    @property
    @abstractmethod
    def fast_weight_blocks(self) -> Sequence[int]:
        """Indices of the blocks that hold fast weights."""

    @abstractmethod
    def embed(self, tokens: Tokens) -> Float[Tensor, "B T D"]:
        """Input embeddings of token ids; embeddings are returned as they are."""

    @abstractmethod
    def blocks(
        self, h: Float[Tensor, "B T D"], state: State, start: int, stop: int, *, span: int, output: bool = True
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """Run blocks start … stop − 1 on h, the tokens after those in `state`; return h and the new state.

        Args:
            span: tokens that each token attends to at most, itself included.
            output: if False only the state is wanted, and the h returned must not be read.
        """

    @abstractmethod
    def head(self, h: Float[Tensor, "... D"]) -> Float[Tensor, "... vocab"]:
        """Logits of the next token."""


def numbers(logits: Float[Tensor, "... vocab"]) -> Float[Tensor, "... vocab"]:
    """The same logits, of which some answer, accuracy or probability is to come.

    Raises UserError if at some place they say nothing: one is NaN or infinite, or all are minus infinity.
    """
    if not bool(logits.detach().float().logsumexp(-1).isfinite().all()):
        raise UserError("the model's logits are not finite, so it has no answers: it may have diverged")
    return logits


class LanguageModel(nn.Module, SleepingModel):
    """A `SleepingModel` that trains."""

    layers: nn.ModuleList  # the blocks

    @property
    def num_blocks(self) -> int:
        return len(self.layers)

    @property
    def reads_embedded(self) -> bool:
        """True if `blocks` wants the embedded tokens too."""
        return False

    @property
    def injects(self) -> bool:
        """True if passes of sleep read more than h: `inject` is called."""
        return False

    def inject(self, n: int, h: Float[Tensor, "B T D"], embedded: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """What pass n ≥ 2 over a window reads, of the h that the pass before made."""
        return h

    @abstractmethod
    def fast_weight_parameters(self) -> list[nn.Parameter]:
        """Parameters of the mixers with fast weights: what they add to a transformer."""

    def compile_blocks(self, backend: str) -> None:
        """Make every block run through `torch.compile` with this backend, in place."""
        for block in self.layers:
            block.compile(backend=backend, dynamic=False)
