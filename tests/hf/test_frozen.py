"""The frozen beginning of a model, run once and cached: the blocks after it compute what the whole model does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from sleeping_models import L, asleep
from tiny import text, tiny
from torch import Tensor

from reverie.errors import UserError
from reverie.hf.add import insert_fast_weights, install
from reverie.hf.blocks import inserted_parameters
from reverie.hf.causal_lm import PretrainedLM
from reverie.hf.frozen import AfterFrozen, Beginning, alike, frozen_blocks
from reverie.sleep import Context, SleepConfig, consolidate, read, wake

pytestmark = pytest.mark.hf

BLOCKS = 6
LOOPS = {"one pass": asleep(1), "two": asleep(2, loop=(3, 5)), "three": asleep(3, loop=(2, 6)), "all": asleep(2)}
each_sleep = pytest.mark.parametrize("sleep", LOOPS.values(), ids=LOOPS)


def pretrained(value_embedding: bool = True, after: tuple[int, ...] = (3, 4), seed: int = 0, **changes: Any) -> Any:
    """Six blocks, with layers that do something after two of them; the model's own blocks are frozen."""
    lm = tiny("llama", seed, num_hidden_layers=BLOCKS, **changes)
    sizes: Any = {"fast_heads": 2, "key_size": 5, "value_size": 6, "value_embedding": value_embedding}
    insert_fast_weights(lm, after, "gdn", **sizes)
    lm.requires_grad_(False)
    for parameter in inserted_parameters(lm).values():
        parameter.data.add_(0.2 * torch.randn(parameter.shape))
        parameter.requires_grad_(True)
    return PretrainedLM(lm)


def states_of(model: Any, first: int, tokens: Tensor, folder: Path | None = None) -> Tensor:
    """Of texts whose windows the frozen blocks read by themselves."""
    beginning = Beginning(model, first, folder)
    windows = [[part.tolist() for part in row.split(L)] for row in tokens]
    return torch.stack([torch.cat(beginning.states(row)) for row in windows])


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """States as they are, not rounded."""
    monkeypatch.setattr("reverie.hf.frozen.torch.bfloat16", torch.float64)


def both(model: Any, sleep: SleepConfig, first: int) -> tuple[list[Tensor], list[Tensor]]:
    """Fast weights after two windows, and logits of a question after them: of the whole model, and after `first`."""
    tokens, question = text(2 * L), text(5, seed=2)
    found = []
    after = AfterFrozen(model, first)
    cases = [
        (model, sleep, tokens, question),
        (after, after.config(sleep), *(after.input(states_of(model, first, x), x) for x in (tokens, question))),
    ]
    for reader, config, x, asked in cases:
        context = consolidate(reader, x, Context.empty(reader), config)
        h, _ = wake(reader, asked, context, config)
        found.append([*(S for S in context.state.fast_weights if S is not None), reader.head(h)])
    return found[0], found[1]


@each_sleep
@pytest.mark.parametrize("value_embedding", [False, True])
def test_the_blocks_after_it_are_the_whole_model(sleep: SleepConfig, value_embedding: bool, exact: None) -> None:
    model = pretrained(value_embedding)
    first = frozen_blocks(model, sleep)
    for start in {0, first // 2, first}:
        whole, part = both(model, sleep, start)
        torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-6)  # llama's norms are in float32
        grads = [torch.autograd.grad(x[-1].square().sum(), model.fast_weight_parameters()) for x in (whole, part)]
        torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)


@each_sleep
def test_in_bfloat16_it_is_the_same_up_to_rounding(sleep: SleepConfig) -> None:
    model = pretrained(True)
    whole, part = both(model, sleep, frozen_blocks(model, sleep))
    for x, y in zip(whole, part, strict=True):
        assert (x - y).norm() < 0.1 * x.norm()


def test_it_ends_at_the_first_block_that_trains_remembers_or_is_looped() -> None:
    model = pretrained()
    assert frozen_blocks(model, asleep(1)) == 3  # a layer follows block 3
    assert frozen_blocks(model, asleep(1, loop=(0, 2))) == 3  # one pass goes round no loop
    assert frozen_blocks(model, asleep(2, loop=(2, 4))) == 2
    assert frozen_blocks(model, asleep(2)) == 0
    model.layers[1:2].requires_grad_(True)
    assert frozen_blocks(model, asleep(2, loop=(2, 4))) == 1
    with pytest.raises(UserError, match='takes eviction "hard"'):
        frozen_blocks(model, asleep(1, "sliding"))


def test_texts_of_any_length_are_read_each_by_itself() -> None:
    """Side by side with others, in batches, in the order they came in."""
    model = pretrained()
    texts = [text(n, batch=1, seed=n)[0].tolist() for n in (3, 8, 1, 700, 8, 400)]
    together = Beginning(model, 3).states(texts)
    for ids, states in zip(texts, together, strict=True):
        h, _ = model.blocks(model.embed(torch.tensor([ids])), Context.empty(model).state, 0, 3, span=len(ids))
        assert states.dtype == torch.bfloat16
        torch.testing.assert_close(states.double(), h[0].bfloat16().double(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("shared", [15, 16, 40])
def test_what_texts_begin_with_alike_is_read_once(shared: int, exact: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as if read by itself."""
    model, begin = pretrained(), text(shared, batch=1, seed=9)[0].tolist()
    texts = [begin + text(n, batch=1, seed=n)[0].tolist() for n in (1, 2, 3, 3)]
    texts += [text(n, batch=1, seed=n)[0].tolist() for n in (38, 39)] + [[*begin, 3], begin]
    read, embed = list[int](), model.embed
    monkeypatch.setattr(model, "embed", lambda tokens: read.append(tokens.numel()) or embed(tokens))
    together = Beginning(model, 3).states(texts)
    assert (sum(read) < sum(map(len, texts))) == (shared > 15)
    for ids, states in zip(texts, together, strict=True):
        h, _ = model.blocks(embed(torch.tensor([ids])), Context.empty(model).state, 0, 3, span=len(ids))
        torch.testing.assert_close(states, h[0], rtol=1e-6, atol=1e-6)


def test_texts_are_grouped_by_what_they_begin_with() -> None:
    a, b = tuple(range(20)), tuple(range(50, 70))
    texts = [(*a, 1), b, (*b, 7), (*a, 2, 3), (5,), (*b, 7, 8), (4, 4)]
    assert alike(texts) == [(20, [0, 3]), (19, [1, 2, 5]), (0, [6, 4])]
    assert alike([]) == []


def count_computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of texts whenever some are computed."""
    computed, real = list[int](), Beginning._computed

    def counted(self: Beginning, texts: Any) -> Any:
        computed.append(len(texts))
        return real(self, texts)

    monkeypatch.setattr(Beginning, "_computed", counted)
    return computed


TEXTS = [[5, 6, 7], [8, 9]]


def test_a_file_is_read_again_for_the_same_weights_and_text_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = count_computed(monkeypatch)
    first = Beginning(pretrained(), 3, tmp_path).states(TEXTS)
    again = Beginning(pretrained(), 3, tmp_path).states(TEXTS)
    assert len(computed) == 1
    assert all(map(torch.equal, first, again))
    trained = pretrained()
    for parameter in trained.fast_weight_parameters():  # come after the beginning
        parameter.data.add_(1)
    Beginning(trained, 3, tmp_path).states(TEXTS)
    assert len(computed) == 1
    others = [
        (pretrained(seed=1), 3, TEXTS),
        (pretrained(), 2, TEXTS),
        (pretrained(rms_norm_eps=1e-2), 3, TEXTS),  # the same weights, which compute something else
        (pretrained(rope_parameters={"rope_type": "default", "rope_theta": 50.0}), 3, TEXTS),
        (pretrained(), 3, [[5, 6], [7, 8, 9]]),
        (pretrained(), 3, TEXTS[:1]),
        (pretrained(), 3, TEXTS[::-1]),
    ]
    for model, stop, texts in others:
        Beginning(model, stop, tmp_path).states(texts)
    assert len(computed) == 1 + len(others)
    assert len(list(tmp_path.iterdir())) == 1 + len(others)


@pytest.mark.parametrize("damage", ["garbage", "cut", "empty", "gone", "folder gone"])
def test_a_damaged_file_is_made_anew(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    wanted = Beginning(pretrained(), 3, folder).states(TEXTS)
    (place,) = folder.iterdir()
    whole = place.read_bytes()
    if damage == "folder gone":
        place.unlink()
        folder.rmdir()
    elif damage == "gone":
        place.unlink()
    else:
        place.write_bytes({"garbage": b"\xff" * len(whole), "cut": whole[: len(whole) // 2], "empty": b""}[damage])
    computed = count_computed(monkeypatch)
    assert all(map(torch.equal, Beginning(pretrained(), 3, folder).states(TEXTS), wanted))
    assert computed == [2]
    assert place.read_bytes() == whole


def test_the_files_not_used_for_longest_go(tmp_path: Path) -> None:
    model = pretrained()
    texts = [[[i] * 50] for i in range(5, 9)]
    for i, one in enumerate(texts[:3]):
        Beginning(model, 3, tmp_path).states(one)
        newest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (i, i))
    Beginning(model, 3, tmp_path).states(texts[0])  # now the newest
    names = {path.name: path.stat().st_mtime for path in tmp_path.iterdir()}
    (tmp_path / ".one.tmp.safetensors").write_bytes(b"0" * 10_000)  # as another process writes it
    size = sum(path.stat().st_size for path in tmp_path.glob("[!.]*"))
    Beginning(model, 3, tmp_path, limit=size).states(texts[3])
    left = {path.name for path in tmp_path.glob("[!.]*")}
    assert names.keys() - left == {min(names, key=names.__getitem__)}
    assert len(left) == 3
    assert (tmp_path / ".one.tmp.safetensors").exists()


def test_reading_goes_on_after_it() -> None:
    """`read`, too, takes what the beginning made, in pieces."""
    model, tokens, sleep = pretrained(), text(2 * L + 3), asleep(2, loop=(3, 6))
    after = AfterFrozen(model, 3)
    x = after.input(states_of(model, 3, tokens), tokens)
    wanted, _ = read(after, x, Context.empty(after), after.config(sleep))
    logits, context = [], Context.empty(after)
    for piece in x.split([5, 6, 8], 1):
        some, context = read(after, piece, context, after.config(sleep))
        logits.append(some)
    torch.testing.assert_close(torch.cat(logits, 1), wanted, rtol=1e-5, atol=1e-6)


def test_a_model_without_new_layers_has_a_beginning_too() -> None:
    lm = tiny("qwen3_next")
    install(lm)
    lm.requires_grad_(False)
    assert frozen_blocks(PretrainedLM(lm), asleep(1)) == 0  # block 0 remembers
