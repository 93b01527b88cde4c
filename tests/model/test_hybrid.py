"""`HybridLM`: blocks with state in and state out, what a new model is, and what a configuration may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from reverie.model import HybridConfig, HybridLM, LanguageModel, State, count_parameters, new_model
from reverie.model.fused import rms_norm

LAYERS = ("attn", "gdn", "attn", "jet")
T = 7


@pytest.fixture
def model(tiny_model: Callable[..., HybridLM]) -> HybridLM:
    return tiny_model(*LAYERS)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(11, (2, T), generator=torch.Generator().manual_seed(0))


def run(model: HybridLM, tokens: Tensor, cuts: list[int], state: State | None = None) -> tuple[Tensor, State]:
    """All blocks on the tokens, cut into ranges of blocks."""
    h, state = model.embed(tokens), state or State.empty(model.num_blocks)
    for start, stop in zip([0, *cuts], [*cuts, model.num_blocks], strict=True):
        h, state = model.blocks(h, state, start, stop, span=T)
    return h, state


@pytest.mark.parametrize("cuts", [[1], [2, 3], [0, 1, 2, 3, 4]])
def test_ranges_of_blocks_compose(model: HybridLM, tokens: Tensor, cuts: list[int]) -> None:
    torch.testing.assert_close(run(model, tokens, cuts), run(model, tokens, []), rtol=0, atol=0)


def test_pieces_of_text_are_one_call(model: HybridLM, tokens: Tensor) -> None:
    h, state = run(model, tokens, [])
    h_1, after = run(model, tokens[:, :3], [])
    h_2, after = run(model, tokens[:, 3:], [], after)
    torch.testing.assert_close((torch.cat([h_1, h_2], 1), after), (h, state))


def test_a_block_is_two_residual_branches_after_norms(model: HybridLM, tokens: Tensor) -> None:
    h = model.embed(tokens)
    (got, _), block = model.blocks(h, State.empty(4), 1, 2, span=T), model.layers[1]
    norm = torch.nn.RMSNorm(8, eps=model.config.norm_eps, elementwise_affine=False, dtype=torch.float64)
    y, _, _ = block.mixer(norm(h), None, None, span=T)  # pyright: ignore[reportCallIssue]
    gate, up = (norm(h + y) @ block.mlp.in_proj.weight.T).chunk(2, -1)  # pyright: ignore
    wanted = h + y + (torch.nn.functional.silu(gate) * up) @ block.mlp.out_proj.weight.T  # pyright: ignore
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(model.head(got), norm(got) @ model.lm_head.weight.T)


def test_an_inserted_layer_is_the_mixer_alone(tiny_model: Callable[..., HybridLM], tokens: Tensor) -> None:
    """No MLP: the same mixer as in a "jet" block, and each of its parameters under the same name."""
    whole, alone = tiny_model("jet"), tiny_model("jet-only")
    alone.load_state_dict({name: x for name, x in whole.state_dict().items() if ".mlp." not in name})
    h, block = whole.embed(tokens), alone.layers[0]
    (got, state), (_, wanted) = (model.blocks(h, State.empty(1), 0, 1, span=T) for model in (alone, whole))
    y, _, _ = block.mixer(rms_norm(h, block.norm_eps), None, None, span=T)  # pyright: ignore
    torch.testing.assert_close(got, h + y)
    torch.testing.assert_close(state, wanted)
    assert list(alone.fast_weight_blocks) == [0]


def test_only_the_blocks_asked_for_touch_the_state(model: HybridLM, tokens: Tensor) -> None:
    _, state = model.blocks(model.embed(tokens), State.empty(4), 1, 3, span=T)
    assert [x is not None for x in state.fast_weights] == [False, True, False, False]
    assert [x is not None for x in state.cache] == [False, True, True, False]


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_without_output_the_state_is_the_same(model: HybridLM, tokens: Tensor, stop: int) -> None:
    _, before = run(model, tokens, [])
    h = model.embed(tokens)
    _, wanted = model.blocks(h, before, 0, stop, span=2 * T)
    _, got = model.blocks(h, before, 0, stop, span=2 * T, output=False)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_an_empty_range_does_nothing(model: HybridLM, tokens: Tensor) -> None:
    h = model.embed(tokens)
    for output in (True, False):
        got, state = model.blocks(h, State.empty(4), 2, 2, span=T, output=output)
        assert got is h
        assert state == State.empty(4)


def test_forward_is_one_pass_over_the_whole_text(model: HybridLM, tokens: Tensor) -> None:
    torch.testing.assert_close(model(tokens), model.head(run(model, tokens, [])[0]))


@pytest.mark.parametrize("rule", ["hebbian", "delta", "gated_delta"])
def test_update_rules_interchange(tiny_model: Callable[..., HybridLM], tokens: Tensor, rule: str) -> None:
    """The same parameters serve each, in form and in number, and each makes another memory of them."""
    model, gated = tiny_model(*LAYERS, update_rule=rule), tiny_model(*LAYERS)
    model.load_state_dict(gated.state_dict())
    (h, state), (h_gated, state_gated) = run(model, tokens, []), run(gated, tokens, [])
    assert torch.allclose(h, h_gated) == (rule == "gated_delta")
    for S, S_gated in zip(state.fast_weights, state_gated.fast_weights, strict=True):
        assert (S is None) == (S_gated is None)
        if S is not None and S_gated is not None:
            assert S.shape == S_gated.shape


@pytest.mark.parametrize("kind", ["attn", "gdn", "jet", "jet-only"])
def test_a_new_block_is_the_identity(tiny_config: Callable[..., HybridConfig], tokens: Tensor, kind: str) -> None:
    """So N passes through a new model compute what one does."""
    model = new_model(tiny_config(kind), seed=0)
    h = model.embed(tokens)
    got, _ = model.blocks(h, State.empty(1), 0, 1, span=T)
    torch.testing.assert_close(got, h, rtol=0, atol=0)
    torch.testing.assert_close(model(tokens), torch.zeros(2, T, 11), rtol=0, atol=0)


def test_a_new_model_is_a_function_of_its_seed(tiny_config: Callable[..., HybridConfig]) -> None:
    def parameters(seed: int) -> Tensor:
        return torch.cat([p.flatten() for p in new_model(tiny_config(*LAYERS), seed).parameters()])

    first = parameters(3)
    torch.rand(5)
    assert torch.equal(parameters(3), first)
    assert not torch.equal(parameters(4), first)


def test_a_new_model_leaves_the_global_random_state_alone(tiny_config: Callable[..., HybridConfig]) -> None:
    before = torch.get_rng_state()
    new_model(tiny_config(*LAYERS), 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_new_memory_forgets_slowly(tiny_config: Callable[..., HybridConfig]) -> None:
    """Steps softplus(dt_bias) lie between 1e-3 and 1e-1."""
    model = new_model(tiny_config("gdn", fast_heads=64), 0)
    steps = torch.nn.functional.softplus(model.layers[0].mixer.dt_bias)  # pyright: ignore
    assert 0.9e-3 < steps.min() < 3e-3
    assert 3e-2 < steps.max() < 1.1e-1


def test_fast_weight_blocks_and_parameters(model: HybridLM) -> None:
    assert list(model.fast_weight_blocks) == [1, 3]
    assert count_parameters(model) == sum(x.numel() for x in model.state_dict().values())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 6, "num_heads": 2}, "width 6 must be an even multiple of num_heads 2"),
        ({"width": 9}, "width 9 must be an even multiple"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_heads 4 must be a multiple of num_kv_heads 3"),
        ({"layers": ()}, "layers"),
        ({"layers": ("attn", "mamba")}, "layers"),
        ({"update_rule": "oja"}, "update_rule"),
        ({"backend": "cudnn"}, "backend"),
        ({"conv_size": 0}, "conv_size"),
        ({"fast_heads": 0}, "fast_heads"),
        ({"depth": 3}, "depth"),
    ],
)
def test_a_bad_configuration_is_an_error(
    tiny_config: Callable[..., HybridConfig], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValidationError, match=sentence):
        HybridConfig.model_validate({**tiny_config("attn").model_dump(), **changes})


def test_a_configuration_does_not_change(tiny_config: Callable[..., HybridConfig]) -> None:
    config = tiny_config("attn")
    with pytest.raises(ValidationError):
        config.width = 16  # pyright: ignore[reportAttributeAccessIssue]


def test_a_model_that_lacks_a_method_cannot_be_made() -> None:
    """It would otherwise return None wherever sleep calls what is missing."""

    class Half(LanguageModel):
        def embed(self, tokens: Tensor) -> Tensor:
            return tokens

    with pytest.raises(TypeError, match="abstract methods blocks, fast_weight_blocks, fast_weight_parameters, head"):
        Half()  # pyright: ignore[reportAbstractUsage]
