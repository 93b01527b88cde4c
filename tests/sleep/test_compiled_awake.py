"""A token awake as one graph: the same as the general path in every kind of model; compiled, refused, or left alone."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from reverie.errors import UserError
from reverie.files import CACHE
from reverie.model import HybridConfig, HybridLM, new_model
from reverie.model.attention import Attention
from reverie.model.awake import Awake, AwakeGraph
from reverie.sleep import Context, SleepConfig, compiled, generate, read
from reverie.sleep.compiled import compile_awake, take_compiled

L = 6
SIZES: dict[str, Any] = {
    "vocab_size": 17,
    "width": 16,
    "mlp_width": 24,
    "num_heads": 4,
    "fast_heads": 2,
    "key_size": 4,
    "value_size": 6,
}


def random_model(**given: Any) -> HybridLM:
    layers = given.pop("layers", ("attn", "gdn", "jet", "attn", "jet-only"))
    model = new_model(HybridConfig(**(SIZES | {"layers": layers} | given)), seed=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def uncompiled(model: HybridLM, config: SleepConfig, batch_size: int) -> None:
    """Let tokens awake go through the graph as it is traced, run by plain torch."""
    places = compiled._places(config)
    graph = AwakeGraph(model, config.window_size, places)
    model.awake[batch_size] = Awake(model, graph, span=config.window_size, places=places, batch_size=batch_size)


def token_by_token(
    model: HybridLM, tokens: Tensor, config: SleepConfig, context: Context | None = None
) -> tuple[Tensor, Context]:
    return generate.token_by_token(model, tokens, context or Context.empty(model), config)


def assert_same(got: tuple[Tensor, Context], wanted: tuple[Tensor, Context], tolerance: float) -> None:
    torch.testing.assert_close(got[0], wanted[0], rtol=tolerance, atol=tolerance)
    for mine, other in zip(got[1].state.fast_weights, wanted[1].state.fast_weights, strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)
    assert got[1].length == wanted[1].length


def text(batch_size: int = 1, length: int = 3 * L + 2) -> Tensor:
    return torch.randint(17, (batch_size, length), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"num_kv_heads": 2},
        {"value_embedding": True},
        {"injection": "add"},
        {"update_rule": "delta"},
        {"update_rule": "hebbian"},
        {"conv_size": 1},
        {"layers": ("gdn", "gdn")},
        {"layers": ("attn",)},
    ],
    ids=str,
)
@pytest.mark.parametrize("eviction", ["hard", "sliding"])
@pytest.mark.parametrize(("N", "batch_size"), [(1, 2), (3, 1)])
def test_the_graph_is_the_general_path(given: dict[str, Any], eviction: Any, N: int, batch_size: int):
    model = random_model(**given).double()
    loop = (1, 3) if N > 1 and len(model.layers) > 3 else None
    config = SleepConfig(window_size=L, num_sleep_passes=N, eviction=eviction, looped_blocks=loop)
    tokens = text(batch_size)
    wanted = token_by_token(model, tokens, config)
    uncompiled(model, config, batch_size)
    assert_same(token_by_token(model, tokens, config), wanted, 1e-9)


def test_branches_do_not_meet():
    """Whoever goes on from one context finds it as it was, whatever others have read since."""
    model, config = random_model(), SleepConfig(window_size=L, num_sleep_passes=2)
    uncompiled(model, config, 1)
    with torch.no_grad():
        _, context = token_by_token(model, text(length=L + 3), config)
        before = [x.clone() for x in tree_leaves(context) if isinstance(x, Tensor)]
        alone = {i: read(model, torch.tensor([[i]]), context, config) for i in range(4)}
        further = {i: read(model, torch.tensor([[5]]), alone[i][1], config)[0] for i in alone}
        model.awake.clear()
        for i in alone:
            wanted, after = read(model, torch.tensor([[i]]), context, config)
            torch.testing.assert_close(alone[i][0], wanted)
            torch.testing.assert_close(further[i], read(model, torch.tensor([[5]]), after, config)[0])
    after = [x for x in tree_leaves(context) if isinstance(x, Tensor)]
    assert all(map(torch.equal, before, after))


def test_a_window_longer_than_the_first_room():
    """Attended to are a few more places than there are tokens; a room that is full becomes a larger one."""
    model, config = random_model().double(), SleepConfig(window_size=140)
    wanted = token_by_token(model, text(length=150), config)
    uncompiled(model, config, 1)
    sizes, run = set[int](), model.awake[1]._run
    model.awake[1]._run = lambda *given: sizes.add(given[-1][0].shape[1]) or run(*given)
    assert_same(token_by_token(model, text(length=150), config), wanted, 1e-9)
    assert sizes == {64, 128, 140}


def test_a_state_put_together_of_several_goes_the_general_way():
    model, config = random_model(), SleepConfig(window_size=L)
    uncompiled(model, config, 1)
    _, early = token_by_token(model, text(length=2), config)
    _, late = token_by_token(model, text(length=4), config)
    mixed = late._replace(state=late.state.splice(early.state, 0, 2))
    got = token_by_token(model, text(length=1), config, mixed)
    model.awake.clear()
    assert_same(got, token_by_token(model, text(length=1), config, mixed), 0)


def calls_of(model: HybridLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows whenever the graph runs."""
    calls, awake = list[int](), model.awake[1]
    run = awake._run
    monkeypatch.setattr(awake, "_run", lambda *given: calls.append(1) or run(*given))
    return calls


def test_what_was_not_compiled_goes_the_general_way(monkeypatch: pytest.MonkeyPatch):
    model, config = random_model(), SleepConfig(window_size=L, num_sleep_passes=2)
    uncompiled(model, config, 1)
    calls = calls_of(model, monkeypatch)
    empty = Context.empty(model)
    with torch.no_grad():
        read(model, text(2, 1), empty, config)  # other rows
        read(model, text(1, 2), empty, config)  # two tokens
        read(model, text(1, 1), empty, config.model_copy(update={"window_size": L + 1}))
        read(model, model.embed(text(1, 1)), empty, config)
        with torch.autocast("cpu", torch.bfloat16):
            read(model, text(1, 1), empty, config)
    logits, _ = read(model, text(1, 1), empty, config)
    assert logits.requires_grad
    assert not calls
    with torch.no_grad():
        read(model, text(1, 1), empty, config)
    assert calls


def _doubled(module: nn.Module, given: Any, made: Tensor) -> Tensor:
    return 2 * made


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
@pytest.mark.parametrize("edit", ["weight", "type", "hook", "module", "moved"])
def test_a_model_that_has_changed_is_no_longer_the_compiled_one(
    edit: str, eviction: Any, monkeypatch: pytest.MonkeyPatch
):
    """From the very next token on, in the middle of a window too."""
    model, config = random_model(), SleepConfig(window_size=L, eviction=eviction)
    uncompiled(model, config, 1)
    calls = calls_of(model, monkeypatch)
    _, context = token_by_token(model, text(length=L + 2), config)
    assert len(calls) == L + 1  # but the token before which it sleeps
    first = model.get_submodule("layers.0.mlp.in_proj")
    assert isinstance(first, nn.Linear)
    if edit == "weight":
        with torch.no_grad():
            first.weight.mul_(2)
    elif edit == "type":
        model.double()
    elif edit == "hook":
        first.register_forward_hook(_doubled)
    elif edit == "module":
        model.get_submodule("layers.0.mlp").register_module("in_proj", nn.Linear(16, 48, bias=False))
    else:
        first.weight.data = first.weight.data + 1
    more = text(length=L)
    with pytest.warns(UserWarning, match="has changed since it was compiled"):
        got = token_by_token(model, more, config, context)
    assert len(calls) == L + 1  # but the token before which it sleeps
    model.awake.clear()
    assert_same(got, token_by_token(model, more, config, context), 0)


class Steered(HybridLM):
    def blocks(self, h: Tensor, *given: Any, **more: Any) -> Any:
        return super().blocks(h + 1, *given, **more)


class Wrapper:
    """Hands on all that it does not do itself."""

    def __init__(self, model: HybridLM) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def blocks(self, h: Tensor, *given: Any, **more: Any) -> Any:
        return self.model.blocks(h + 1, *given, **more)


@pytest.mark.parametrize("kind", ["subclass", "wrapper"])
def test_blocks_of_ones_own_are_never_left_out(kind: str, monkeypatch: pytest.MonkeyPatch):
    model, config = random_model(), SleepConfig(window_size=L)
    uncompiled(model, config, 1)
    calls, other = calls_of(model, monkeypatch), Wrapper(model)
    if kind == "subclass":
        other = Steered(model.config).eval()
        other.awake[1] = model.awake[1]
        assert not take_compiled(other, config)
    token_by_token(other, text(), config)  # type: ignore[arg-type]
    assert not calls


def test_a_token_that_there_is_none_of_is_an_error_as_ever():
    """Compiled code would end the process."""
    model, config = random_model(), SleepConfig(window_size=L)
    uncompiled(model, config, 1)
    for token in (17, -1, 2**40):
        with pytest.raises(IndexError), torch.no_grad():
            read(model, torch.tensor([[token]]), Context.empty(model), config)


def test_copies_and_files_have_nothing_compiled():
    model, config = random_model(), SleepConfig(window_size=L)
    uncompiled(model, config, 1)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not other.awake
        assert_same(token_by_token(other, text(), config), token_by_token(model, text(), config), 1e-5)


# -- compiled


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path))
    return tmp_path


def error(got: tuple[Tensor, Context], exact: tuple[Tensor, Context]) -> float:
    return (got[0].double() - exact[0]).abs().max().item()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "batch_size", "window"), [(torch.float32, 3, L), (torch.float32, 1, 70), (torch.bfloat16, 1, L)], ids=str
)
def test_compiled_it_is_the_same_and_found_again(cache: Path, dtype: torch.dtype, batch_size: int, window: int):
    """As near to the exact logits as the general path is; the file serves other weights of the same sizes."""
    config, given = SleepConfig(window_size=window, num_sleep_passes=2, eviction="sliding"), {"num_kv_heads": 2}
    tokens = text(batch_size, 3 * window + 2)
    file = None
    for factor in (1, 2):
        model = random_model(value_embedding=True, **given)
        with torch.no_grad():
            model.lm_head.weight.mul_(factor)
            model.get_parameter("layers.1.mixer.out_proj.weight").mul_(factor)
        exact = token_by_token(copy.deepcopy(model.to(dtype)).double(), tokens, config)
        general = token_by_token(model, tokens, config)
        assert take_compiled(model, config, batch_size=batch_size) == (file is not None)
        made = compile_awake(model, config, batch_size=batch_size)
        assert made.is_relative_to(cache)
        assert file in (None, made)
        assert error(token_by_token(model, tokens, config), exact) <= 10 * error(general, exact)
        file = made
    assert not take_compiled(model, config, batch_size=batch_size + 1)
    assert not take_compiled(random_model(value_embedding=True), config)
    assert list(cache.rglob("*.pt2")) == [file]


@pytest.mark.slow
def test_what_is_in_the_cache_is_not_believed(cache: Path, monkeypatch: pytest.MonkeyPatch):
    config, model = SleepConfig(window_size=L), random_model()
    file = compile_awake(model, config)
    whole = file.read_bytes()
    half = len(whole) // 2
    flipped = bytes([whole[half] ^ 1])
    for damaged in (b"", b"junk", whole[:half], whole[:half] + flipped + whole[half + 1 :]):
        file.write_bytes(damaged)
        assert not take_compiled(random_model(), config)
    file.write_bytes(whole)
    assert take_compiled(random_model(), config)
    edited = random_model()
    edited.get_submodule("layers.0.mlp.in_proj").register_forward_hook(_doubled)
    assert not take_compiled(edited, config)
    assert not edited.awake
    with pytest.raises(UserError, match="it was edited"):
        compile_awake(edited, config)
    assert take_compiled(random_model(), config)
    monkeypatch.setattr(compiled, "cache_folder", no_folder)
    assert not take_compiled(random_model(), config)


def no_folder(kind: str) -> Path:
    raise UserError("there is no home directory to keep a cache in")


class Mine(Attention):
    def forward(self, *given: Any, **more: Any) -> Any:
        y, *rest = super().forward(*given, **more)
        assert isinstance(y, Tensor)
        return 3 * y, *rest


def rule_of_mine(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, *, initial_state: Any, scale: float
) -> tuple[Tensor | None, Tensor]:
    raise NotImplementedError


def test_parts_from_outside_are_refused():
    config = SleepConfig(window_size=L)
    with pytest.raises(UserError, match="for attn, gdn and jet blocks"):
        compile_awake(random_model(layers=(f"{__name__}:Mine", "gdn")), config)
    with pytest.raises(UserError, match="for the rules gated_delta, delta, hebbian"):
        compile_awake(random_model(update_rule=f"{__name__}:rule_of_mine", backend="reference"), config)


def test_what_cannot_be_compiled_is_refused(cache: Path):
    with pytest.raises(UserError, match="window"):
        compile_awake(random_model(), SleepConfig(window_size=2**40))
    with pytest.raises(UserError, match="is on meta"):
        compile_awake(random_model().to("meta"), SleepConfig(window_size=L))
    assert not list(cache.rglob("*.pt2"))
