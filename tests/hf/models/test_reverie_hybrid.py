"""A `HybridLM` among transformers' models: it computes what it did, and their tools may use it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import text
from tiny_folder import without_sums
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from reverie.errors import UserError
from reverie.hf import ReverieHybridConfig, ReverieHybridForCausalLM, load_hybrid, save_hybrid
from reverie.model import HybridConfig, HybridLM
from reverie.sleep import Context, SleepConfig, read, rollout
from reverie.sleep.generate import greedy

pytestmark = pytest.mark.hf

VOCAB, L = 11, 8
TinyModel = Callable[..., HybridLM]
CONFIGS = {
    "awake": SleepConfig(window_size=1000),
    "hard": SleepConfig(window_size=L, num_sleep_passes=3, looped_blocks=(1, 4)),
    "sliding": SleepConfig(window_size=L, num_sleep_passes=2, eviction="sliding"),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@pytest.fixture
def lm(tiny_model: TinyModel) -> HybridLM:
    return tiny_model("attn", "gdn", "attn", "jet").eval()


def tokens(T: int, batch: int = 2, seed: int = 1) -> Tensor:
    return text(T, batch, seed, VOCAB)


def in_transformers(lm: HybridLM, config: SleepConfig) -> Any:
    return ReverieHybridForCausalLM.from_lm(lm, config)


def own(lm: HybridLM, x: Tensor, config: SleepConfig) -> Tensor:
    return read(lm, x, Context.empty(lm), config)[0]


def write(model: Any, x: Tensor, new: int = 2 * L, **kwargs: Any) -> Tensor:
    """The new tokens."""
    kwargs = {"do_sample": False, "pad_token_id": 0} | kwargs
    return model.generate(x, max_new_tokens=new, **kwargs)[:, x.shape[1] :]


def test_the_config_has_every_field() -> None:
    assert set(HybridConfig.model_fields) < set(ReverieHybridConfig().to_dict())
    assert ReverieHybridConfig().num_hidden_layers == 2
    assert ReverieHybridConfig.from_dict({"hidden_size": 32}).hybrid.width == 32


@each_config
def test_it_reads_as_reverie_does(lm: HybridLM, config: SleepConfig) -> None:
    model, x = in_transformers(lm, config), tokens(3 * L + 2)
    wanted = own(lm, x, config)
    assert torch.equal(model(x).logits, wanted)
    assert torch.equal(model(inputs_embeds=lm.embedding(x)).logits, wanted)
    torch.testing.assert_close(model(x, logits_to_keep=1).logits, wanted[:, -1:])
    torch.testing.assert_close(model(x, logits_to_keep=3).logits, wanted[:, -3:])
    assert torch.equal(model(x, logits_to_keep=torch.tensor([2, 9])).logits, wanted[:, [2, 9]])
    begun = model(x[:, :5])
    torch.testing.assert_close(model(x[:, 5:], past_key_values=begun.past_key_values).logits, wanted[:, 5:])


@each_config
def test_it_writes_as_reverie_does(lm: HybridLM, config: SleepConfig) -> None:
    model, x = in_transformers(lm, config), tokens(L + 3)
    assert torch.equal(write(model, x), greedy(lm, x, config, 2 * L))


def test_loss_and_gradients_are_those_of_transformers(lm: HybridLM) -> None:
    config = SleepConfig(window_size=L, num_sleep_passes=2)
    model, x = in_transformers(lm, config), tokens(2 * L + 3)
    labels = x.masked_fill(torch.arange(x.shape[1]) < L, -100)
    logits = own(lm, x, config)
    wanted = torch.nn.functional.cross_entropy(logits[:, L - 1 : -1].flatten(0, 1), x[:, L:].flatten())
    gradients = torch.autograd.grad(wanted, list(lm.parameters()))
    loss = model(x, labels=labels, use_cache=False).loss
    torch.testing.assert_close(loss, wanted, check_dtype=False)
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
            loss = model(x, labels=labels).loss
        assert model.is_gradient_checkpointing == checkpointing
        torch.testing.assert_close(torch.autograd.grad(loss, list(lm.parameters())), gradients, rtol=1e-4, atol=1e-6)


@each_config
def test_a_trained_model_is_the_same_when_loaded(lm: HybridLM, config: SleepConfig, tmp_path: Path) -> None:
    x, mask = tokens(2 * L), torch.zeros(2, 2 * L, dtype=torch.bool)
    mask[:, -3:] = True
    optimizer = torch.optim.SGD(lm.parameters(), 0.1)
    rollout(lm, x, mask, config)[0].square().sum().backward()
    optimizer.step()
    save_hybrid(lm, tmp_path, config)
    loaded, loaded_config = load_hybrid(tmp_path)
    assert (type(loaded), loaded.config, loaded_config) == (HybridLM, lm.config, config)
    assert torch.equal(own(loaded, tokens(3 * L), config), own(lm, tokens(3 * L), config))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(model, ReverieHybridForCausalLM)
    assert torch.equal(model(tokens(3 * L)).logits, own(lm, tokens(3 * L), config))
    assert {name for name, _ in model.named_parameters()} == {f"lm.{name}" for name, _ in lm.named_parameters()}
    model.save_pretrained(tmp_path / "again", max_shard_size="4KB")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(again(tokens(3 * L)).logits, model(tokens(3 * L)).logits)


def test_wrapping_copies_nothing(lm: HybridLM) -> None:
    model = in_transformers(lm, CONFIGS["hard"])
    assert model.lm is lm
    assert not model.training
    assert model.config.sleep_config == model.sleep_config == CONFIGS["hard"]
    model.sleep_config = CONFIGS["sliding"]
    assert torch.equal(model(tokens(20)).logits, own(lm, tokens(20), CONFIGS["sliding"]))


def test_a_new_model_begins_as_a_hybrid_does(tmp_path: Path) -> None:
    config = ReverieHybridConfig(layers=["attn", "gdn", "jet"])
    torch.manual_seed(3)
    model: Any = AutoModelForCausalLM.from_config(config)
    torch.manual_seed(3)
    wanted = HybridLM(config.hybrid)
    for name, parameter in wanted.named_parameters():
        assert torch.equal(model.get_parameter(f"lm.{name}"), parameter), name
    with torch.no_grad():  # and where weights are missing, with a warning
        for parameter in model.parameters():
            parameter.fill_(0.7)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    missing = ["lm.lm_head.weight", "lm.layers.0.mixer.q_gain", "lm.layers.1.mixer.dt_bias", "lm.layers.1.mixer.A_log"]
    for name in missing:
        del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, parameter in model.named_parameters():
        assert bool((parameter == 0.7).all()) == (name not in missing), name
    assert torch.equal(model.lm.lm_head.weight, wanted.lm_head.weight)
    assert torch.equal(model.lm.layers[0].mixer.q_gain, wanted.get_parameter("layers.0.mixer.q_gain"))
    assert model.lm.layers[1].mixer.dt_bias.isfinite().all()
    without_sums(tmp_path)
    with pytest.raises(UserError, match=r"the weights in .* are not those of its config.json: lm\."):
        load_hybrid(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ["attn", "dream"]}, "layers: 1: Input should be 'attn', 'gdn', 'jet' or 'jet-only'"),
        ({"width": 7}, "width 7 must be an even multiple of num_heads"),
        ({"sleep": {"window_size": 0}}, "window_size: Input should be greater than or equal to 1"),
        ({"sleep": {"window_size": 4, "looped_blocks": [0, 9]}}, r"looped_blocks \[0, 9\] must end at or before 4"),
        ({"model_type": "llama"}, "its model_type is llama, and not reverie_hybrid"),
        ({"fast_heads": 3}, "are not those of its config.json"),
    ],
)
def test_a_config_that_does_not_fit(lm: HybridLM, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_hybrid(lm, tmp_path, CONFIGS["hard"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        load_hybrid(tmp_path)


def test_there_is_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        load_hybrid(tmp_path / "nothing")


def test_what_harnesses_call(lm: HybridLM, tmp_path: Path) -> None:
    """As lm-eval does: rows of several lengths, padded behind, scored against their continuations."""
    save_hybrid(lm, tmp_path, CONFIGS["hard"])
    assert AutoConfig.from_pretrained(tmp_path).model_type == "reverie_hybrid"
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto", device_map="cpu", revision="main")
    x, lengths = tokens(3 * L, batch=3), (3, 2 * L, 3 * L)
    padded = x * (torch.arange(3 * L) < torch.tensor(lengths)[:, None])
    scores = model(padded).logits.log_softmax(-1)
    for row, T in enumerate(lengths):
        wanted = own(lm, x[row : row + 1, :T], CONFIGS["hard"]).log_softmax(-1)
        torch.testing.assert_close(scores[row, :T], wanted[0])


def test_a_newer_folder_is_refused_by_name(tmp_path: Path) -> None:
    ReverieHybridForCausalLM(ReverieHybridConfig()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    assert content["format_version"] == 1
    path.write_text(json.dumps(content | {"format_version": 2}))
    with pytest.raises(UserError, match="newer reverie, in version 2 of the format: this one reads up to 1"):
        load_hybrid(tmp_path)
    del content["format_version"]
    path.write_text(json.dumps(content))
    load_hybrid(tmp_path)
