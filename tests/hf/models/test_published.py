"""Models that transformers lacks: the published checkpoints' keys and configs, and what every model of it can do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from published import JET, JET_2B, JET_4B, JET_SHAPES, OURO, OURO_SHAPES, OURO_STEPS, VOCABULARY, ouro_config
from published import random_checkpoint as checkpoint_of
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from reverie.errors import UserError
from reverie.hf import JetNemotronConfig, JetNemotronForCausalLM, OuroConfig, OuroForCausalLM

pytestmark = pytest.mark.hf


class Published(NamedTuple):
    """A model type, and a tiny config.json of it."""

    model: Any
    config: Any
    tiny: dict[str, Any]
    shapes: Mapping[str, tuple[int, ...]]  # of its files
    unused: str = "nothing"  # parameters that decide nothing
    tied: bool = False  # the head has the weights of the embedding, and files do without them


TYPES = {
    "jet": Published(JetNemotronForCausalLM, JetNemotronConfig, JET, JET_SHAPES, tied=True),
    "ouro": Published(OuroForCausalLM, OuroConfig, OURO, OURO_SHAPES, unused="early_exit_gate"),
}
T = 13


@pytest.fixture(params=TYPES)
def published(request: pytest.FixtureRequest) -> Published:
    return TYPES[request.param]


@pytest.fixture
def snapshot(published: Published, tmp_path: Path) -> Path:
    """A folder as the hub has it, without its Python files."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(published.tiny))
    save_file(checkpoint_of(published.shapes), folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def model(published: Published, snapshot: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(snapshot)
    assert isinstance(model, published.model)
    return model.eval()


@pytest.fixture
def tokens() -> Tensor:
    """[2, T]: several sliding windows. None is 0, which generation takes for padding."""
    return torch.randint(1, VOCABULARY, (2, T), generator=torch.Generator().manual_seed(1))


def test_keys_and_shapes_are_the_published_ones(published: Published) -> None:
    model = published.model(published.config.from_dict(published.tiny))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if published.tied:
        assert shapes.pop("lm_head.weight") == shapes["model.embed_tokens.weight"]
    assert shapes == published.shapes


def test_a_snapshot_loads_without_its_code(published: Published, snapshot: Path) -> None:
    loaded: Any = AutoModelForCausalLM.from_pretrained(snapshot, trust_remote_code=False, output_loading_info=True)
    model, info = loaded
    assert type(model) is published.model
    assert not any(info.values()), info
    state = model.state_dict()
    for name, tensor in checkpoint_of(published.shapes).items():
        assert torch.equal(state[name], tensor), name
    same = state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
    assert same == published.tied


def test_it_is_saved_as_it_was(published: Published, model: Any, tokens: Tensor, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(published.shapes)
        for name, tensor in checkpoint_of(published.shapes).items():
            assert torch.equal(file.get_tensor(name), tensor), name
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(again(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    ("kind", "config", "low", "high"),
    [
        ("jet", JET_2B, 1.9e9, 2.1e9),
        ("jet", JET_4B, 3.8e9, 4.1e9),
        ("ouro", ouro_config(24), 1_434_652_673, 1_434_652_673),
        ("ouro", ouro_config(48), 2_667_974_657, 2_667_974_657),
    ],
    ids=["jet-2b", "jet-4b", "ouro-1.4b", "ouro-2.6b"],
)
def test_the_published_sizes(kind: str, config: dict[str, Any], low: float, high: float) -> None:
    with torch.device("meta"):
        model = TYPES[kind].model(TYPES[kind].config.from_dict(config))
    assert low <= sum(parameter.numel() for parameter in model.parameters()) <= high


def without(section: str) -> dict[str, Any]:
    sizes = {name: given for name, given in JET["efficient_attention_config"].items() if name != section}
    return {**JET, "efficient_attention_config": sizes}


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: JetNemotronConfig.from_dict(without("jet")), "jet"),
        (lambda: JetNemotronConfig.from_dict(without("swa")), "swa"),
        (lambda: OuroConfig.from_dict({**OURO, "early_exit_threshold": 0.5}), "early_exit_threshold"),
    ],
    ids=["jet", "swa", "early_exit_threshold"],
)
def test_configs_that_are_refused(make: Callable[[], Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        make()


@pytest.mark.parametrize("lengths", [[T], [6, 1, 2, 4], [3, 10], [1] * T], ids=str)
@pytest.mark.parametrize("steps", [1, OURO_STEPS])
def test_pieces_are_one_call(published: Published, model: Any, tokens: Tensor, lengths: list[int], steps: int) -> None:
    """Ouro: whether its stack runs once or several times, each step with keys of its own."""
    if published is TYPES["jet"] and steps > 1:
        pytest.skip("it has no loop")
    model.config.total_ut_steps = steps
    cache, pieces = DynamicCache(config=model.config), []
    for piece in tokens.split(lengths, dim=1):
        pieces.append(model(piece, past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(pieces, 1), model(tokens, use_cache=False).logits, atol=1e-4, rtol=0)
    if published is TYPES["jet"]:
        state = cache.get_recurrent_state(0)
        assert state is not None
        assert (state.dtype, state.shape) == (torch.float32, (2, 2, 6, 16))
    else:
        assert [cache.get_seq_length(i) for i in range(len(cache))] == [T] * (steps * len(model.model.layers))


def test_padding_on_the_left_changes_nothing(model: Any, tokens: Tensor) -> None:
    """In one call, and in two with a cache."""
    alone = model(tokens[:1, 4:]).logits
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    batch, cache = tokens.clone(), DynamicCache(config=model.config)
    batch[0, :4] = 3
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    first = model(batch[:, :8], mask[:, :8], positions[:, :8], cache).logits
    second = model(batch[:, 8:], mask, positions[:, 8:], cache).logits
    for logits in (model(batch, mask, positions).logits, torch.cat([first, second], 1)):
        torch.testing.assert_close(logits[:1, 4:], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_parameter(published: Published, model: Any, tokens: Tensor, checkpointing: bool) -> None:
    """But for those that decide nothing."""
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    model(tokens, labels=tokens).loss.backward()
    for name, parameter in model.named_parameters():
        if published.unused in name:
            assert parameter.grad is None
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A key's bias adds the same to all logits of a query, up to rotation.
        assert parameter.grad.abs().max() > 1e-8, name


def test_greedy_generation_is_argmax_of_full_calls(model: Any, tokens: Tensor) -> None:
    model.generation_config.eos_token_id = None
    got = model.generate(tokens, max_new_tokens=6, do_sample=False, pad_token_id=0)
    wanted = tokens
    for _ in range(6):
        wanted = torch.cat([wanted, model(wanted, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(got, wanted)
