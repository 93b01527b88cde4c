"""examples/custom_mixer.py and examples/custom_injection.py: what they compute, and their recipes for a few steps."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from outside import as_in_a_new_process

from reverie.hf import add_sleep, insert_fast_weights, load
from reverie.hf.bases import load_base
from reverie.model import HybridLM
from reverie.model.mixers import MIXERS
from reverie.recipe import load_recipe
from reverie.sleep import Context, SleepConfig, read

EXAMPLES = Path(__file__).parents[1] / "examples"
FEW = ["--set=train.steps=2", "--set=train.eval_examples=8", "--set=train.batch_size=4"]


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    with as_in_a_new_process(EXAMPLES):
        yield
    for name in [name for name in MIXERS if ":" in name]:
        del MIXERS[name]


def a_model(name: str) -> HybridLM:
    recipe = load_recipe(EXAMPLES / f"{name}.toml")
    torch.manual_seed(0)
    model = HybridLM(recipe.hybrid).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_the_mixer_is_its_formula_token_by_token() -> None:
    """The memory of every head, [d², V], from the sum over the past; in one call and in pieces."""
    mixer: Any = a_model("custom_mixer").layers[1].mixer
    x = torch.randn(2, 9, mixer.qkv_proj.in_features, dtype=torch.float64)
    q, k, v = mixer.qkv_proj(x).unflatten(-1, (mixer.heads, -1)).split(mixer.sizes, dim=-1)
    q, k = (y / y.norm(dim=-1, keepdim=True) for y in (q, k))
    alpha = (mixer.decay_proj(x) + 4).sigmoid()
    S, read_out = torch.zeros(2, mixer.heads, k.shape[-1] ** 2, v.shape[-1], dtype=torch.float64), []
    for t in range(9):
        key, query = (torch.einsum("bhi,bhj->bhij", y[:, t], y[:, t]).flatten(2) for y in (k, q))
        S = alpha[:, t, :, None, None] * S + key[..., None] * v[:, t, :, None, :]
        read_out.append(torch.einsum("bhkv,bhk->bhv", S, query).flatten(1))
    y, after, _ = mixer(x, None, None, span=9)
    torch.testing.assert_close(y, mixer.out_proj(torch.stack(read_out, 1)))
    torch.testing.assert_close(after, S)
    first, state, _ = mixer(x[:, :4], None, None, span=9)
    rest, state, _ = mixer(x[:, 4:], state, None, span=9)
    torch.testing.assert_close(torch.cat([first, rest], 1), y)
    torch.testing.assert_close(state, S)
    torch.testing.assert_close(mixer(x, None, None, span=9, output=False)[1], S)


@pytest.mark.parametrize("name", ["custom_mixer", "custom_injection"])
def test_pieces_are_one_call(name: str) -> None:
    model, sleep = a_model(name), SleepConfig(window_size=5, num_sleep_passes=3)
    tokens = torch.randint(model.config.vocab_size, (2, 17))
    wanted, _ = read(model, tokens, Context.empty(model), sleep)
    logits, context = [], Context.empty(model)
    for token in tokens.split(1, dim=1):
        some, context = read(model, token, context, sleep)
        logits.append(some)
    torch.testing.assert_close(torch.cat(logits, 1), wanted)


@pytest.mark.hf
@torch.no_grad()
def test_both_in_a_model_of_transformers(tmp_path: Path) -> None:
    """Inserted, saved as a whole and as an adapter, loaded."""
    from tiny import text, tiny

    load_recipe(EXAMPLES / "custom_mixer.toml")  # modules beside it are found from now on
    tiny("llama", dtype=torch.float32).save_pretrained(tmp_path / "base")
    for base in (tmp_path / "base", None):
        model: Any = tiny("llama", dtype=torch.float32) if base is None else load_base(base, dtype=torch.float32)
        insert_fast_weights(model, [0], "custom_mixer:SecondOrder", fast_heads=2, settings={"size": 3})
        add_sleep(model, SleepConfig(window_size=6, num_sleep_passes=2), injection="custom_injection:Fading")
        for name, parameter in model.named_parameters():
            if "fast_weight_mixer" in name or "sleep_injection" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        tokens = text(15)
        wanted = model(tokens).logits
        cache, logits = None, []
        for piece in tokens.split([4, 7, 4], 1):
            out = model(piece, past_key_values=cache)
            cache = out.past_key_values
            logits.append(out.logits)
        torch.testing.assert_close(torch.cat(logits, 1), wanted, rtol=1e-4, atol=1e-4)
        folder = tmp_path / f"saved {base is None}"
        model.save_pretrained(folder)
        again: Any = load(folder)
        assert torch.equal(again(tokens).logits, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["custom_mixer", "custom_injection"])
def test_their_recipes_run(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "reverie", "train", f"examples/{name}.toml", "--out", str(tmp_path), *FEW]
    done = subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "card.json").is_file()
