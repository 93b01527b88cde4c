"""A memory gives the same logits to the last bit after saving, loading and branching; each text counts by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_leaves

from reverie import Memory, sleep_over
from reverie.errors import UserError
from reverie.memory.history import History
from reverie.model import HybridLM
from reverie.sleep import Context, SleepConfig, read, side_by_side

MakeModel = Callable[..., HybridLM]

L = 6
LAYERS = ("attn", "gdn", "attn", "jet")
each_eviction = pytest.mark.parametrize("eviction", ["hard", "sliding"])
each_tolerance = pytest.mark.parametrize("tolerance", [None, 0.3], ids=["fixed", "adaptive"])


class Sleeping(NamedTuple):
    """A model with its `sleep_config`, as transformers' models have after `add_sleep`."""

    sleeping: HybridLM
    sleep_config: SleepConfig


@pytest.fixture(scope="module")
def make(tiny_model: MakeModel) -> Callable[..., Sleeping]:
    def make(dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> Sleeping:
        config = SleepConfig.model_validate({"window_size": L, "num_sleep_passes": 3, **changes})
        return Sleeping(tiny_model(*LAYERS, dtype=dtype, seed=seed), config)

    return make


def text(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(seed))


def answer(model: Sleeping, memory: Memory, questions: Tensor) -> Tensor:
    return read(model.sleeping, questions, memory.context, memory.config)[0]


def tensors(memory: Memory) -> list[Tensor]:
    return [x for x in tree_leaves(memory.context.state) if isinstance(x, Tensor)]


@each_eviction
@each_tolerance
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loaded_memory_answers_like_the_one_that_never_left(
    make: Any, tmp_path: Path, eviction: str, tolerance: float | None, dtype: torch.dtype
):
    model = make(dtype, eviction=eviction, tolerance=tolerance)
    memory = sleep_over(model, text(3, 4 * L + 2))
    memory.save(tmp_path / "a.safetensors")
    loaded = Memory.load(tmp_path / "a.safetensors", model)
    questions = text(3, 2 * L + 1, seed=1)  # long enough to sleep once more
    assert torch.equal(answer(model, loaded, questions), answer(model, memory, questions))
    branched, by_hand = loaded.branch(2), memory.rows(torch.tensor([0, 0, 1, 1, 2, 2]))
    questions = text(6, L, seed=2)
    assert torch.equal(answer(model, branched, questions), answer(model, by_hand, questions))
    assert loaded.tokens.tolist() == memory.tokens.tolist() == [4 * L + 2] * 3
    assert loaded.passes.tolist() == memory.passes.tolist()
    assert (loaded.config, loaded.nbytes) == (memory.config, memory.nbytes)


@each_eviction
def test_branches_do_not_touch_each_other_or_the_memory(make: Any, eviction: str):
    model = make(eviction=eviction)
    memory = sleep_over(model, text(1, 3 * L))
    before = [x.clone() for x in tensors(memory)]
    questions = text(4, 2 * L, seed=1)
    together = answer(model, memory.branch(4), questions)
    for i in range(4):
        alone = answer(model, memory, questions[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(x, y) for x, y in zip(tensors(memory), before, strict=True))


@each_eviction
def test_a_memory_is_what_reading_leaves(make: Any, eviction: str):
    """The state after whole windows is that of `read`, which sleeps when the next token comes."""
    model = make(eviction=eviction)
    tokens = text(2, 3 * L + 1)
    _, context = read(model.sleeping, tokens, Context.empty(model.sleeping), model.sleep_config)
    memory = sleep_over(model, tokens[:, : 3 * L])
    wanted = [x for x in tree_leaves(context.window_start) if isinstance(x, Tensor)]
    torch.testing.assert_close(tensors(memory), wanted, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=6)
@given(lengths=st.lists(st.integers(1, 3 * L), min_size=1, max_size=4), adaptive=st.booleans(), seed=st.integers(0, 3))
def test_texts_of_different_lengths_are_each_as_if_alone(make: Any, lengths: list[int], adaptive: bool, seed: int):
    model = make(tolerance=0.3 if adaptive else None)
    texts = [text(1, length, seed=seed + i)[0] for i, length in enumerate(lengths)]
    memory = sleep_over(model, texts)
    assert memory.tokens.tolist() == lengths
    for row, tokens in enumerate(texts):
        alone, own = sleep_over(model, [tokens]), memory.rows(torch.tensor([row]))
        torch.testing.assert_close(tensors(own), tensors(alone), rtol=1e-8, atol=1e-8)
        assert own.passes.tolist() == alone.passes.tolist()
        assert adaptive or own.passes.tolist() == [3 * -(-len(tokens) // L)]


@each_eviction
@each_tolerance
def test_a_text_in_two_sittings_is_one_text(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eviction: str, tolerance: float | None
) -> None:
    """Bit for bit, if the first one ends between windows that are not read side by side."""
    monkeypatch.setattr(side_by_side, "MOST_TOKENS", 2 * 2 * L)
    model, tokens = make(eviction=eviction, tolerance=tolerance), text(2, 5 * L + 2)
    at_once = sleep_over(model, tokens, history=History())
    first = sleep_over(model, tokens[:, : 2 * L], history=History())
    first.save(tmp_path / "half.safetensors")
    resumed = sleep_over(model, tokens[:, 2 * L :], memory=Memory.load(tmp_path / "half.safetensors", model))
    assert all(torch.equal(x, y) for x, y in zip(tensors(resumed), tensors(at_once), strict=True))
    assert resumed.tokens.tolist() == at_once.tokens.tolist()
    assert resumed.passes.tolist() == at_once.passes.tolist()
    changes = [history.tensors()["change"] for history in (resumed.history, at_once.history) if history is not None]
    assert torch.equal(*changes)
    assert first.history is not None
    assert first.history.num_windows == 2  # it stays as it is


def test_other_numbers_of_passes_may_go_on_with_a_memory(make: Any, tmp_path: Path):
    model = make()
    sleep_over(model, text(1, 2 * L)).save(tmp_path / "a.safetensors")
    deeper = model._replace(sleep_config=model.sleep_config.model_copy(update={"num_sleep_passes": 5}))
    loaded = Memory.load(tmp_path / "a.safetensors", deeper)
    assert loaded.config == deeper.sleep_config
    assert sleep_over(deeper, text(1, L), memory=loaded).passes.tolist() == [3 + 3 + 5]
    as_made = Memory.load(tmp_path / "a.safetensors", model.sleeping)  # which does not say how it sleeps
    assert as_made.config == model.sleep_config


def test_all_blocks_by_name_are_all_blocks(make: Any):
    model = make()
    named = model.sleep_config.model_copy(update={"looped_blocks": (0, len(LAYERS))})
    memory = sleep_over(model, text(1, L))
    assert sleep_over(model, text(1, L), named, memory=memory).passes.tolist() == [6]


def test_fifty_windows_take_no_more_memory_than_the_first(tiny_model: MakeModel):
    model, config = tiny_model("attn", "gdn", dtype=torch.float32), SleepConfig(window_size=100, num_sleep_passes=2)
    sizes = []

    def report(windows: int, total: int, tokens: int, context: Context) -> None:
        if windows:
            sizes.append(sum(x.nbytes for x in tree_leaves(context) if isinstance(x, Tensor)))

    memory = sleep_over(model, text(1, 5000), config, report=report)
    assert len(sizes) == 50
    assert len(set(sizes)) == 1
    assert memory.tokens.tolist() == [5000]
    assert all(bool(x.isfinite().all()) for x in tensors(memory))


def test_it_moves_to_half_precision_and_still_answers(make: Any):
    model = make(torch.float32)
    memory = sleep_over(model, text(2, 3 * L))
    half, questions = memory.to(torch.bfloat16), text(2, L, seed=1)
    assert half.nbytes * 2 == memory.nbytes
    assert half.to("cpu").nbytes == half.nbytes
    torch.testing.assert_close(answer(model, half, questions), answer(model, memory, questions), rtol=0.2, atol=0.2)


def test_half_precision_survives_the_file(make: Any, tmp_path: Path):
    model = make(torch.float32)
    half = sleep_over(model, text(2, 3 * L)).to(torch.bfloat16)
    half.save(tmp_path / "half.safetensors")
    assert [x.dtype for x in tensors(Memory.load(tmp_path / "half.safetensors", model))] == [torch.bfloat16] * 2


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_memory_in_another_dtype_is_gone_on_with(make: Any, tmp_path: Path, eviction: str, dtype: torch.dtype):
    """From a file or not; under sliding eviction keys and values of the newest tokens are read beside new ones."""
    model = make(torch.float32, eviction=eviction)
    memory, questions = sleep_over(model, text(2, 3 * L)), text(2, L, seed=1)
    memory.to(dtype).save(tmp_path / "other.safetensors")
    wanted = answer(model, memory, questions)
    for other in (memory.to(dtype), Memory.load(tmp_path / "other.safetensors", model)):
        torch.testing.assert_close(answer(model, other, questions), wanted, rtol=0.2, atol=0.2)
        assert sleep_over(model, questions, memory=other).tokens.tolist() == [4 * L, 4 * L]
        context, logits = other.context, list[torch.Tensor]()
        with torch.no_grad():
            for token in questions.split(1, dim=1):
                new, context = read(model.sleeping, token, context, memory.config)
                logits.append(new)
        torch.testing.assert_close(torch.cat(logits, 1), wanted, rtol=0.2, atol=0.2)


def test_nothing_is_a_memory_too(make: Any, tmp_path: Path):
    model = make()
    empty, questions = Memory.empty(model, batch_size=2), text(2, L)
    empty.save(tmp_path / "empty.safetensors")
    wanted, _ = read(model.sleeping, questions, Context.empty(model.sleeping), model.sleep_config)
    assert torch.equal(answer(model, Memory.load(tmp_path / "empty.safetensors", model), questions), wanted)
    assert empty.nbytes == 0


def test_progress_is_reported_before_the_first_window_and_after_each(make: Any):
    told: list[tuple[int, int, int]] = []
    sleep_over(make(), [text(1, 2 * L)[0], text(1, L + 1)[0]], report=lambda *args: told.append(args[:3]))
    assert told == [(0, 2, 0), (1, 2, 2 * L), (2, 2, 3 * L + 1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window_size": 7}, "was made with window_size 6, and the model sleeps with 7"),
        ({"eviction": "sliding"}, "was made with eviction hard, and the model sleeps with sliding"),
        ({"looped_blocks": (0, 2)}, "was made with looped_blocks [0, 4], and the model sleeps with [0, 2]"),
    ],
)
def test_other_windows_are_refused_by_name(make: Any, tmp_path: Path, change: dict[str, Any], message: str):
    model = make()
    memory = sleep_over(model, text(1, L))
    memory.save(tmp_path / "a.safetensors")
    other = model._replace(sleep_config=model.sleep_config.model_copy(update=change))
    with pytest.raises(UserError, match=r"a\.safetensors was made with") as caught:
        Memory.load(tmp_path / "a.safetensors", other)
    assert message in str(caught.value)
    with pytest.raises(UserError) as caught:
        sleep_over(other, text(1, L), other.sleep_config, memory=memory)
    assert message in str(caught.value)


def test_a_memory_of_another_model_is_refused(make: Any, tmp_path: Path):
    model, other = make(), make(seed=1)
    memory = sleep_over(model, text(1, L))
    memory.save(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"^\S+a\.safetensors is a memory of another model"):
        Memory.load(tmp_path / "a.safetensors", other)
    with pytest.raises(UserError, match="the memory is of another model"):
        sleep_over(other, text(1, L), memory=memory)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: sleep_over(m, torch.zeros(2, 0, dtype=torch.long)), "text 0 of the batch is empty"),
        (lambda m: sleep_over(m, [text(1, 3)[0], text(1, 0)[0]]), "text 1 of the batch is empty"),
        (lambda m: sleep_over(m, text(1, 3)[0]), "text 0 of the batch must be token ids in one dimension"),
        (lambda m: sleep_over(m, text(1, 3).float()), "text 0 of the batch must be token ids in one dimension"),
        (lambda m: sleep_over(m, []), "the batch holds no text"),
        (
            lambda m: sleep_over(m, [torch.tensor([3, 99])]),
            "token ids that the model does not know: they go from 3 to 99",
        ),
        (lambda m: sleep_over(m, text(2, 3)).rows(torch.tensor([2])), "there is no row beyond them"),
        (lambda m: sleep_over(m, text(2, 3)).to("gpu"), "there is no device 'gpu'"),
        (lambda m: replace(sleep_over(m, text(2, 3)), notes={"x": 3}).to_bytes(), "its notes.x is wrong"),
        (lambda m: Memory.load("a\0b", m), "cannot read"),
        (
            lambda m: sleep_over(
                m, [text(1, 3)[0], text(1, 4)[0]], memory=sleep_over(m, text(2, 3), history=History())
            ),
            "a history is of one text",
        ),
        (lambda m: sleep_over(m.sleeping, text(1, 3)), "does not say how it sleeps"),
        (lambda m: sleep_over("gpt", text(1, 3), m.sleep_config), "a str cannot sleep"),
        (
            lambda m: sleep_over(m, text(3, 3), memory=sleep_over(m, text(2, 3))),
            "3 texts cannot continue a memory of 2",
        ),
        (lambda m: sleep_over(m, text(2, 3)).branch(0), "branches into 1 or more, got 0"),
        (lambda m: sleep_over(m, text(2, 3)).to(torch.int8), "so torch.int8 cannot hold them"),
        (lambda m: sleep_over(m, [text(1, 3)[0], text(1, 4)[0]], history=History()), "a history is of one text"),
    ],
)
def test_what_cannot_be_is_one_sentence(make: Any, call: Callable[[Sleeping], object], message: str):
    with pytest.raises(UserError) as caught:
        call(make())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_under_sliding_eviction_lengths_must_agree(make: Any):
    with pytest.raises(UserError, match="must be equally long"):
        sleep_over(make(eviction="sliding"), [text(1, 3)[0], text(1, 4)[0]])
