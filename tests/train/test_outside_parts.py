"""A mixer, an update rule and an injection from outside the package: they train, resume, evaluate, compare and load."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import Reverie, assert_one_line, in_empty_folder, the_json
from same_run import Killed, assert_same_run, kill_at
from tiny_recipe import TOML

from reverie.model import HybridLM
from reverie.model.mixers import MIXERS
from reverie.ops import RULES
from reverie.recipe import Recipe, load_recipe
from reverie.results.run import load_run, trained_model
from reverie.train.run import train

MODULE = '''
import torch
from pydantic import BaseModel
from torch import nn
from reverie.model import Injection

class Mean(nn.Module):
    """The decayed mean of all that was read, [B, D]."""

    class Config(BaseModel):
        decay: float = 0.9

    def __init__(self, config, settings):
        super().__init__()
        self.decay = settings.decay
        self.in_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x, fast_weights, cache, *, span, output=True):
        mean = x.new_zeros(len(x), x.shape[2]) if fast_weights is None else fast_weights
        means = []
        for step in self.in_proj(x).unbind(1):
            mean = self.decay * mean + (1 - self.decay) * step
            means.append(mean)
        return (self.out_proj(torch.stack(means, 1)) if output else None), mean, None


def odd_rule(q, k, v, g, beta, *, initial_state, scale):
    """The hebbian rule whose memory forgets half with each token."""
    S = k.new_zeros(*k.shape[:1], *k.shape[2:], v.shape[-1]) if initial_state is None else initial_state
    out = []
    for t in range(k.shape[1]):
        S = S / 2 + k[:, t, ..., None] * v[:, t, ..., None, :]
        if q is not None:
            out.append(scale * (q[:, t, ..., None] * S).sum(-2))
    return (torch.stack(out, 1) if out else None), S


class Turned(Injection):
    def __init__(self, width):
        super().__init__(width)
        self.turn = nn.Linear(width, width)

    def forward(self, n, h, embedded):
        return h + self.turn(embedded)


class NoInjection:
    pass


not_a_function = 3
'''

CHANGES = """
base = "tiny.toml"

[model]
layers = ["attn", "parts:Mean", "gdn"]
mixers = { "parts:Mean" = { decay = 0.8 } }
update_rule = "parts:odd_rule"
backend = "auto"
injection = "parts:Turned"
"""


@pytest.fixture
def reverie(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Reverie]:
    """In a folder with the module and a recipe beside it, both outside the package."""
    (tmp_path / "outside").mkdir()
    for name, content in (("parts.py", MODULE), ("tiny.toml", TOML), ("mine.toml", CHANGES)):
        (tmp_path / "outside" / name).write_text(content, encoding="utf-8")
    path = list(sys.path)
    yield in_empty_folder(monkeypatch, capsys, tmp_path)
    forget(path)


def forget(path: list[str]) -> None:
    """The module, and what was registered of it."""
    sys.path[:] = path
    sys.modules.pop("parts", None)
    for table in (MIXERS, RULES):
        for name in [name for name in table if name.startswith("parts:")]:
            del table[name]


def mine() -> Recipe:
    return load_recipe("outside/mine.toml")


def test_a_run_goes_on_after_a_kill_and_is_evaluated(reverie: Reverie) -> None:
    card = the_json(reverie("train", "outside/mine.toml", "--out=whole", "--json"))
    with pytest.raises(Killed):
        train(mine(), Path("broken"), report=kill_at(5))
    train(mine(), Path("broken"), resume=True)
    assert_same_run(Path("broken"), Path("whole"))
    assert the_json(reverie("eval", "whole", "--json"))["score"] == card["score"]
    model = trained_model(load_run(Path("whole")))
    assert isinstance(model, HybridLM)
    names = [name for name, _ in model.named_parameters()]
    assert any(name.startswith("injection.turn") for name in names)
    assert any(name.startswith("layers.1.mixer.in_proj") for name in names)
    parameters = dict(model.named_parameters())
    assert parameters["injection.turn.weight"].abs().sum() > 0
    assert reverie("plot", "whole/card.json").code == 0


@pytest.mark.slow
def test_processes_of_a_comparison_find_them(reverie: Reverie) -> None:
    options = ("--passes=1,2", "--seeds=0", "--no-transformer", "--jobs=2", "--out=compared", "--json")
    card = the_json(reverie("compare", "outside/mine.toml", *options))
    assert len(card["runs"]) == 2


def test_without_the_module_one_sentence_says_so(reverie: Reverie) -> None:
    path = list(sys.path)
    assert reverie("train", "outside/mine.toml", "--out=run").code == 0
    forget([entry for entry in path if not entry.endswith("outside")])
    done = reverie("eval", "run")
    assert_one_line(done, "parts", "PYTHONPATH")
    assert "damaged" not in done.err
    assert "delete" not in done.err
    assert reverie("plot", "run/card.json").code == 0  # numbers are all that it takes


def test_what_does_not_fit_is_refused(reverie: Reverie) -> None:
    for key, sentence in {
        "model.injection=parts:NoInjection": "must be a subclass of reverie.model.Injection",
        "model.injection=recal": 'must be "none", "add" or "gate"',
        "model.update_rule=parts:not_a_function": "must be a function",
        "model.update_rule=parts:missing": "has no missing",
        "model.backend=chunked": "has no backend 'chunked': use auto or one of reference",
        "model.mixers={'parts:Mean' = {decay = 'x'}}": "mixers.parts:Mean.decay is wrong",
        "model.mixers={jet = {decay = 1}}": "not among the layers",
        "model.layers=['attn', 'parts:NoInjection']": "must be a class of torch.nn.Module",
    }.items():
        assert_one_line(reverie("train", "outside/mine.toml", "--out=run", "--set", key), sentence)


def test_reading_in_pieces_is_one_call(reverie: Reverie) -> None:
    from reverie.sleep import Context, read

    recipe = mine()
    torch.manual_seed(0)
    model = HybridLM(recipe.hybrid)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randint(recipe.hybrid.vocab_size, (2, 31))
    wanted, _ = read(model, tokens, Context.empty(model), recipe.sleep)
    logits, context = [], Context.empty(model)
    for token in tokens.split(1, dim=1):
        some, context = read(model, token, context, recipe.sleep)
        logits.append(some)
    torch.testing.assert_close(torch.cat(logits, 1), wanted, rtol=1e-4, atol=1e-4)
