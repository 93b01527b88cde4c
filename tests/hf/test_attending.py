"""A pretrained model's blocks, compiled: the same function, in few graphs, for however many layers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import text, tiny
from torch import nn

from reverie.errors import UserError
from reverie.hf.add import insert_fast_weights, install
from reverie.hf.causal_lm import PretrainedLM
from reverie.hf.decoder import sleeping_decoder
from reverie.sleep import SleepConfig, rollout

pytestmark = [pytest.mark.slow, pytest.mark.hf]

# In a process of its own: the annotations that are checked here cannot be compiled.
SCRIPT = """
import sys
import torch
from tiny import text, tiny
from torch._dynamo.utils import counters
from reverie.sleep.gradients import Backward
from reverie.hf.add import insert_fast_weights
from reverie.hf.causal_lm import PretrainedLM
from reverie.sleep import Context, SleepConfig, read, rollout_hidden
from reverie.train import compiled as compiling
from reverie.train.compiled import compile_blocks, uncompiled

def new_model():
    torch.manual_seed(0)
    lm = tiny("llama", dtype=torch.float32)
    insert_fast_weights(lm, [1, 3], "gdn")
    model = PretrainedLM(lm)
    for name, parameter in model.named_parameters():
        if name.endswith("out_proj.weight"):
            torch.nn.init.normal_(parameter, std=0.3)
    for layer in model.layers[1::2]:
        layer.fast_weight_mixer.mixer.backend = "chunked"
    return model


def step(model, config, backward, T):
    # The first window finds no fast weights, the last one may be shorter.
    labelled = torch.tensor([False, True]).expand(len(text(T)), -1)
    with torch.autocast("cpu", torch.bfloat16):
        h, _ = rollout_hidden(model, text(T), config, labelled, backward=backward)
        logits = model.head(h)
    logits.float().square().mean().backward()
    return logits, [p.grad for p in model.parameters()]


plain = new_model()
# All of what compiling does but the making of machine code; then without the tracing of gradients, which takes as long.
for backend, eviction, checkpoint, T, most in (
    ("aot_eager", "hard", "window", 16, 3),
    ("eager", "sliding", "none", 13, 5),
):
    compiling.BACKEND = backend
    compiled = new_model()
    names = list(compiled.state_dict())
    compile_blocks(compiled)
    assert list(compiled.state_dict()) == names
    counters.clear()
    config = SleepConfig(window_size=8, num_sleep_passes=2, eviction=eviction)
    how = config, Backward(activation_checkpoint=checkpoint), T
    (logits, gradients), (found, its_gradients) = step(plain, *how), step(compiled, *how)
    assert (found - logits).norm() <= 0.02 * logits.norm(), eviction
    for ours, theirs in zip(gradients, its_gradients, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or (ours - theirs).norm() <= 0.05 * ours.norm() + 1e-6
    plain.zero_grad()
    # However many layers there are.
    assert 0 < counters["stats"]["unique_graphs"] <= most, counters["stats"]
    assert not counters["graph_break"], counters["graph_break"]
frames = counters["frames"]["total"]
with uncompiled(), torch.no_grad():
    same = [read(model, text(13), Context.empty(model), config)[0] for model in (plain, compiled)]
assert torch.equal(*same)
assert counters["frames"]["total"] == frames
"""


def test_compiled_blocks_compute_the_same_and_share_their_graphs() -> None:
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join([str(tests), str(tests / "hf")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_blocks_that_are_recurrent_are_not_compiled() -> None:
    model = tiny("qwen3_next")
    install(model)
    with pytest.raises(UserError, match=r"whose blocks all attend, and Qwen3NextModel has others"):
        PretrainedLM(model).compile_blocks("eager")


@pytest.mark.parametrize("kind", ["llama", "qwen3_next"])
def test_layers_of_a_kind_are_of_one_class(kind: str) -> None:
    """Or each would be compiled by itself."""
    model = tiny(kind, num_hidden_layers=4)
    before = {type(layer) for layer in model.model.layers}
    install(model)
    layers: nn.ModuleList = sleeping_decoder(model).sleeping.layers
    assert len({type(layer) for layer in layers}) == len(before) == 1


def test_attention_of_whole_windows_is_left_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mask: then it may be flash attention, which knows what is causal by itself."""
    masks: list[tuple[object, object]] = []
    attend = nn.functional.scaled_dot_product_attention

    def watch(*args: object, **kwargs: object) -> object:
        masks.append((kwargs.get("attn_mask"), kwargs.get("is_causal")))
        return attend(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watch)
    lm = tiny("llama", attn_implementation="sdpa")
    insert_fast_weights(lm, [1, 3], "jet")
    mask = torch.zeros(2, 21, dtype=torch.bool)
    mask[:, -2:] = True
    rollout(PretrainedLM(lm), text(21), mask, SleepConfig(window_size=8, num_sleep_passes=3))
    assert len(masks) == 4 * (3 + 3 + 1)
    assert set(masks) == {(None, True)}
    masks.clear()
    rollout(PretrainedLM(lm), text(21), mask, SleepConfig(window_size=8, num_sleep_passes=3, eviction="sliding"))
    narrowed = {id(given) for given, _ in masks if given is not None}
    assert sum(given is None for given, _ in masks) == 4 * 3
    assert len(narrowed) <= 4  # a mask for each pass, not for each block
