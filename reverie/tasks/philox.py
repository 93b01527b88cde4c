"""`base.draw` in torch, on any device: Philox4x64-10 (Salmon et al. 2011) in int64.

torch has hardly any unsigned arithmetic. Sums and products of int64 wrap, so their bits are those of uint64; right
shifts, the upper half of a product, and remainders differ and are written out here.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from reverie.tasks.base import STREAMS, Split, check_draw

_ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)  # added to the two words of the key after every round
_LOW = 2**32 - 1


def draw_on(
    device: torch.device, split: Split, seed: int, steps: range, examples: range, words: int
) -> Int[Tensor, "steps examples words"]:
    """Draw the words of `draw(split, seed, step, examples, words)` for every step, their bits as int64.

    The host never waits for the device.

    Raises:
        ValueError: an argument is out of range, or a counter would need more than 63 bits.
    """
    blocks = -(-words // 4)  # one step of the counter yields four words
    for step in {*steps[:1], *steps[-1:]}:
        check_draw(seed, step, examples)
    if examples and (max(examples) + 1) * blocks >= 2**63:
        raise ValueError(f"examples ends at {max(examples)}, with {words} words each it must be below 2^63 / {blocks}")
    example = indices(examples, device)[:, None]
    # numpy increments the counter before it makes a block, so its first block for a counter c is that of c + 1
    counter = example * blocks + torch.arange(1, blocks + 1, device=device)
    keys = (indices(steps, device) * len(STREAMS) + STREAMS[split])[:, None, None]
    return _philox(counter, seed, keys).flatten(-2)[..., :words]


def indices(numbers: range, device: torch.device) -> Int[Tensor, " N"]:
    """The numbers of a range as int64, made on the device: a copy from the host would wait for it."""
    return torch.arange(len(numbers), device=device) * numbers.step + numbers.start


def unsigned_remainder(words: Int[Tensor, "*S"], divisor: int | Tensor) -> Int[Tensor, "*S"]:
    """Remainders of words, read as uint64, by a positive divisor of at most 2^62."""
    half = (words >> 1) & (2**63 - 1)
    return (half % divisor * 2 + (words & 1)) % divisor


def _philox(
    counter: Int[Tensor, "examples blocks"], seed: int, keys: Int[Tensor, "steps 1 1"]
) -> Int[Tensor, "steps examples blocks 4"]:
    """Run ten rounds on counters (c, 0, 0, 0) with keys (seed, keys); `even` has words 0 and 2, `odd` 1 and 3."""
    c = counter.expand(len(keys), *counter.shape)
    even, odd = torch.stack([c, torch.zeros_like(c)]), torch.zeros_like(c).expand(2, *c.shape)
    key = torch.stack([torch.full_like(keys, _signed(seed)), keys])
    multiplier, weyl = (_pair(pair, keys) for pair in (_MULTIPLIERS, _WEYL))
    for _ in range(_ROUNDS):
        high, low = _product(even, multiplier)
        even, odd = high.flip(0) ^ odd ^ key, low.flip(0)
        key = key + weyl
    return torch.stack([even[0], odd[0], even[1], odd[1]], dim=-1)


def _product(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower 64 bits of unsigned x · y, by halves of 32 bits, so that no sum overflows."""
    (x_high, x_low), (y_high, y_low) = _halves(x), _halves(y)
    carry, _ = _halves(x_low * y_low)
    upper, middle = _halves(x_high * y_low + carry)
    carry, _ = _halves(x_low * y_high + middle)
    return x_high * y_high + upper + carry, x * y


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return (x >> 32) & _LOW, x & _LOW  # the mask drops copies of the sign bit


def _pair(words: tuple[int, int], like: Tensor) -> Int[Tensor, "2 1 1 1"]:
    return torch.stack([torch.full((1, 1, 1), _signed(word), device=like.device) for word in words])


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word
