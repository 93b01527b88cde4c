"""A memory is of a function: whatever was done to a model, an answer from a memory is the right one, or is refused."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_models import BOOK, QUESTION, adapted, answer, weight
from hypothesis import given, settings
from hypothesis import strategies as st
from sleeping_models import asleep, sleeping
from torch import Tensor, nn

from reverie.errors import UserError
from reverie.hf import add_sleep, cache_of
from reverie.memory.memory import Memory, sleep_over

pytestmark = [pytest.mark.hf, pytest.mark.slow]

Change = Callable[[Any], object]
NUMBERS = itertools.count(2)


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def original() -> Any:
    return adapted()


def layers(model: Any) -> list[Any]:
    return [part for part in model.modules() if hasattr(part, "merged_adapters")]


def module(model: Any, name: str) -> Any:
    return next(part for key, part in model.named_modules() if key.endswith(name))


def optimiser(kind: Any, **options: Any) -> Change:
    def step(model: Any) -> None:
        x = weight(model)
        x.grad = torch.full_like(x, 0.1)
        x.requires_grad_()
        kind([x], lr=0.1, **options).step()

    return step


def replace_weight(model: Any) -> None:
    linear = module(model, "layers.1.mlp.down_proj")
    linear.weight = nn.Parameter(linear.weight * 1.5)


def loaded(assign: bool) -> Change:
    return lambda model: model.load_state_dict(
        {name: x * 1.1 if name.endswith("down_proj.weight") else x.clone() for name, x in model.state_dict().items()},
        assign=assign,
    )


def in_inference_mode(model: Any) -> None:
    with torch.inference_mode():
        weight(model).mul_(1.5)


def new_storage(model: Any) -> None:
    """Twice, such that the second storage may have the address of the first."""
    x = weight(model)
    values = x.data.clone()
    x.data = torch.zeros(1)
    x.data = values * 1.5


def hooked(model: Any) -> None:
    module(model, "layers.0.mlp").register_forward_hook(lambda part, args, output: output * 1.5)


def another_hook(model: Any) -> None:
    """Each is called like the one before, and adds other numbers."""
    adds = torch.tensor(float(next(NUMBERS)))

    def add(part: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + adds

    mlp = module(model, "layers.0.mlp")
    mlp._forward_hooks.clear()
    mlp.register_forward_hook(add)


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def another_activation(model: Any) -> None:
    """Each is called like the one before; the factor of every second is in its code."""
    by = float(next(NUMBERS))
    function = (lambda x: 0.5 * x) if by % 2 else lambda x: by * x
    module(model, "layers.0.mlp").act_fn = Calls(function)


def wrapped_forward(model: Any) -> None:
    mlp, by = module(model, "layers.0.mlp"), 1.0 + 1 / next(NUMBERS)
    forward = type(mlp).forward.__get__(mlp)
    mlp.forward = functools.wraps(forward)(lambda x: forward(x) * by)


def hook_of_a_notebook(model: Any) -> None:
    """A cell that is run again, in which a number is another."""
    cell: dict[str, Any] = {"__name__": "__main__"}
    exec(f"def hook(part, args, output):\n    return output * {1.0 + 1 / next(NUMBERS)}", cell)
    mlp = module(model, "layers.0.mlp")
    mlp._forward_hooks.clear()
    mlp.register_forward_hook(cell["hook"])


def own_forward(model: Any) -> None:
    mlp = module(model, "layers.0.mlp")
    forward = mlp.forward
    mlp.forward = lambda x: forward(x) * 1.5


VISIBLE: dict[str, Any] = {
    "SGD": optimiser(torch.optim.SGD),
    "AdamW, foreach": optimiser(torch.optim.AdamW, foreach=True),
    "AdamW, fused": optimiser(torch.optim.AdamW, fused=True),
    "in place": lambda model: weight(model).mul_(1.5),
    "in inference mode": in_inference_mode,
    "one element": lambda model: weight(model, "embed_tokens.weight")[int(QUESTION[0, 0])].add_(0.1),
    "an adapter's weight": lambda model: weight(model, "lora_A.one.weight").mul_(1.5),
    "new storage": new_storage,
    "new parameter": replace_weight,
    "load_state_dict": loaded(False),
    "load_state_dict, assign": loaded(True),
    "adapters off": lambda model: model.base_model.disable_adapter_layers(),
    "adapters on": lambda model: model.base_model.enable_adapter_layers(),
    "adapter one": lambda model: model.set_adapter("one"),
    "adapter two": lambda model: model.set_adapter("two"),
    "both": lambda model: model.base_model.set_adapter(["one", "two"]),
    "one layer's adapter": lambda model: layers(model)[1].enable_adapters(False),
    "scale": lambda model: [layer.set_scale("one", 3.0) for layer in layers(model)],
    "merge": lambda model: model.merge_adapter(),
    "unmerge": lambda model: model.unmerge_adapter(),
    "rotary frequencies": lambda model: module(model, "rotary_emb").inv_freq.mul_(1.1),
    "another buffer": lambda model: module(model, "rotary_emb").register_buffer("inv_freq", torch.ones(4), False),
    "activation": lambda model: setattr(module(model, "layers.0.mlp"), "act_fn", nn.Tanh()),
    "attention's scaling": lambda model: setattr(module(model, "layers.1.self_attn"), "scaling", 0.9),
    "epsilon": lambda model: setattr(module(model, "layers.1.input_layernorm"), "variance_epsilon", 0.5),
    "a hook": hooked,
    "a forward": own_forward,
    "another hook": another_hook,
    "another activation": another_activation,
    "another wrapped forward": wrapped_forward,
    "another hook of a notebook": hook_of_a_notebook,
    "config": lambda model: setattr(model.base_model.model.config, "rms_norm_eps", 0.5),
    "a block fewer": lambda model: module(model, "layers").__delitem__(1),
    "the inserted mixer": lambda model: weight(model, "mixer.out_proj.weight").mul_(1.5),
}
UNSEEN: dict[str, Any] = {
    "through data": lambda model: weight(model).data.mul_(1.5),
    "through numpy": lambda model: weight(model).detach().numpy().__imul__(1.5),
    "two exchanged": lambda model: swap(weight(model).data),
    "buffer through data": lambda model: module(model, "rotary_emb").inv_freq.data.mul_(1.1),
}
HARMLESS: dict[str, Any] = {
    "train and eval": lambda model: model.train().eval(),
    "gradients wanted": lambda model: model.requires_grad_(),
    "new storage, same values": lambda model: setattr(weight(model), "data", weight(model).data.clone()),
    "same values in place": lambda model: weight(model).mul_(1.0),
    "off and on": lambda model: (model.base_model.disable_adapter_layers(), model.base_model.enable_adapter_layers()),
    "another and back": lambda model: (model.set_adapter("two"), model.set_adapter("one")),
    "a call": lambda model: model(input_ids=QUESTION),
    "more passes": lambda model: add_sleep(model.base_model.model, asleep(3)),
    "words": lambda model: model.generate(input_ids=QUESTION, max_new_tokens=2, do_sample=False),
    "gradient checkpointing": lambda model: model.base_model.model.gradient_checkpointing_enable(),
    "the same attention": lambda model: model.base_model.model.set_attn_implementation("sdpa"),
    "loaded again": lambda model: model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True),
    "another dtype and back": lambda model: model.double().float(),
}


# With more passes a memory goes on, and is another one than those would have made.
CHANGES = VISIBLE | UNSEEN | {name: change for name, change in HARMLESS.items() if name != "more passes"}
del CHANGES["a block fewer"]
CHANGING = [name for name in VISIBLE if name not in ("adapters on", "adapter one", "unmerge")]
QUICK = {
    "AdamW, fused",
    "new storage",
    "load_state_dict, assign",
    "adapters off",
    "scale",
    "activation",
    "a block fewer",
}


def swap(x: Tensor) -> None:
    x[0], x[1] = x[1].clone(), x[0].clone()


@contextmanager
def right_or_refused(model: Any) -> Any:
    """Answers that are appended within are what a memory made now gives, unless a UserError is raised."""
    answers: list[Tensor] = []
    with suppress(UserError):
        yield answers
    if not answers:  # refused; a memory made now may be too, where peft unmerges in a call what was merged before
        return
    wanted = answer(model, cache_of(sleep_over(model, BOOK)))
    for one in answers:
        torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("examples", [8, pytest.param(150, marks=pytest.mark.slow)])
def test_after_any_changes_an_answer_is_right_or_refused(
    original: Any, examples: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(names=st.lists(st.sampled_from([*CHANGES]), min_size=1, max_size=4), loading=st.booleans())
    def check(names: list[str], loading: bool) -> None:
        model, path = copy.deepcopy(original), tmp_path_factory.mktemp("m") / "m.safetensors"
        memory = sleep_over(model, BOOK)
        memory.save(path)
        for name in names:
            CHANGES[name](model)
            with right_or_refused(model) as answers:
                answers.append(answer(model, cache_of(Memory.load(path, model) if loading else memory)))

    check()


@pytest.mark.parametrize("name", [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in CHANGING])
def test_each_change_is_refused_wherever_a_memory_is_used(original: Any, name: str, tmp_path: Path) -> None:
    refused_after(copy.deepcopy(original), VISIBLE[name], tmp_path)


@pytest.mark.parametrize(
    "name", ["a forward", "another hook", "another activation", "another wrapped forward", "another hook of a notebook"]
)
def test_so_is_a_function_in_the_place_of_one_that_is_called_alike(original: Any, name: str, tmp_path: Path) -> None:
    model = copy.deepcopy(original)
    for _ in range(2):
        VISIBLE[name](model)
        refused_after(model, VISIBLE[name], tmp_path)


def test_a_function_of_the_same_code_and_numbers_is_the_same(original: Any) -> None:
    models = [copy.deepcopy(original) for _ in range(2)]
    for model in models:
        hooked(model)
    first, second = (sleep_over(model, BOOK) for model in models)
    assert first.made_with == second.made_with
    assert torch.equal(answer(models[1], cache_of(first)), answer(models[1], cache_of(second)))


def refused_after(model: Any, change: Change, folder: Path) -> None:
    memory, cache = sleep_over(model, BOOK), model(input_ids=BOOK).past_key_values
    memory.save(folder / "m.safetensors")
    begun = cache_of(memory)
    answer(model, begun)
    change(model)
    for use in (
        lambda: answer(model, cache_of(memory)),
        lambda: answer(model, cache_of(memory.branch(1))),
        lambda: Memory.load(folder / "m.safetensors", model),
        lambda: sleep_over(model, BOOK, memory=memory),
        lambda: answer(model, begun),
        lambda: answer(model, cache),
    ):
        with pytest.raises(UserError, match=r"(the memory|m.safetensors|the model) (is|has)"):
            use()


@pytest.mark.parametrize("name", UNSEEN)
def test_what_torch_does_not_see_is_refused_when_a_memory_is_loaded_or_first_used(
    original: Any, name: str, tmp_path: Path
) -> None:
    model = copy.deepcopy(original)
    memory = sleep_over(model, BOOK)
    memory.save(tmp_path / "m.safetensors")
    answer(model, cache_of(memory))
    UNSEEN[name](model)
    for use in (
        lambda: answer(model, cache_of(memory)),
        lambda: Memory.load(tmp_path / "m.safetensors", model),
        lambda: sleep_over(model, BOOK, memory=memory),
    ):
        with pytest.raises(UserError, match=r"of another model|other buffers"):
            use()
    assert sleep_over(model, BOOK).fingerprint != memory.fingerprint or "buffer" in name


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_no_number_is_no_change(original: Any, name: str, tmp_path: Path) -> None:
    model = copy.deepcopy(original)
    memory, cache = sleep_over(model, BOOK), model(input_ids=BOOK).past_key_values
    memory.save(tmp_path / "m.safetensors")
    wanted, goes_on = answer(model, cache_of(memory)), answer(model, copy.deepcopy(cache))
    HARMLESS[name](model)
    for known in (memory, Memory.load(tmp_path / "m.safetensors", model)):
        assert torch.equal(answer(model, cache_of(known)), wanted)
    if "values" not in name and name not in ("loaded again", "another dtype and back"):  # a cache sees that, not why
        assert torch.equal(answer(model, cache), goes_on)


def test_a_cache_is_not_looked_after_while_a_model_trains() -> None:
    model = sleeping("llama", asleep(2), dtype=torch.float32).train()
    assert model(input_ids=BOOK).past_key_values.mark is None
    assert model.eval()(input_ids=BOOK).past_key_values.mark is not None


def test_a_decoder_by_itself_looks_after_its_caches(original: Any) -> None:
    model = copy.deepcopy(original)
    decoder = model.base_model.model.model
    cache = decoder(BOOK).past_key_values
    goes_on = copy.deepcopy(cache)
    with model.disable_adapter(), pytest.raises(UserError, match="the model has changed since this cache was begun"):
        decoder(QUESTION, past_key_values=cache)
    wanted = model(input_ids=torch.cat([BOOK, QUESTION], dim=1)).logits[:, BOOK.shape[1] :]
    torch.testing.assert_close(answer(model, goes_on), wanted, rtol=1e-4, atol=1e-4)


def test_what_is_known_of_a_model_is_not_copied_with_it(original: Any) -> None:
    model = copy.deepcopy(original)
    memory, cache = sleep_over(model, BOOK), model(input_ids=BOOK).past_key_values
    again = copy.deepcopy(cache)
    assert torch.equal(answer(model, again), answer(model, cache))
    assert pickle.loads(pickle.dumps(cache.mark)) is None
    twin = copy.deepcopy(model)
    assert torch.equal(answer(twin, cache_of(memory)), answer(model, cache_of(memory)))
    weight(twin).mul_(1.5)
    answer(model, cache_of(memory))
    with pytest.raises(UserError, match="of another model"):
        answer(twin, cache_of(memory))
