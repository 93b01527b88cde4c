"""A mixer, an update rule and an injection from outside the package: they train, resume, evaluate, compare and load."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Reverie, assert_one_line, in_empty_folder, the_json
from same_run import Killed, assert_same_run, kill_at
from tiny_recipe import TOML

from reverie.errors import UserError
from reverie.model import HybridLM
from reverie.model.mixers import MIXERS
from reverie.model.state import CACHE_ENTRIES
from reverie.ops import RULES, register_rule, run_rule
from reverie.recipe import Recipe, load_recipe
from reverie.results.run import load_run, trained_model
from reverie.train.run import train

MODULE = '''
from typing import NamedTuple

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


class NoOut(nn.Module):
    def __init__(self, config):
        super().__init__()


class BadInit(nn.Module):
    def __init__(self):
        super().__init__()


class Noted(NamedTuple):
    x: torch.Tensor

    def newest(self, keep):
        return Noted(self.x[:, -keep:].clone())


class Nothing(nn.Module):
    """Keeps a cache of its own, of a class that it names."""

    Cache = Noted

    def __init__(self, config):
        super().__init__()
        self.start = nn.Linear(config.width, config.width)
        nn.init.eye_(self.start.weight)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x, fast_weights, cache, *, span, output=True):
        seen = x if cache is None else torch.cat([cache.x, x], 1)
        memory = x.new_zeros(len(x), 1) if fast_weights is None else fast_weights
        return (self.out_proj(self.start(x)) if output else None), memory + 1, Noted(seen)


class Unnamed(Nothing):
    Cache = None


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
    CACHE_ENTRIES.pop("Noted", None)
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
        "model.backend=chunked": "model.backend must be auto or reference for update rule parts:odd_rule",
        "model.mixers={'parts:Mean' = {decay = 'x'}}": "mixers.parts:Mean.decay is wrong",
        "model.mixers={'parts:Mean' = {decay = '0.7'}}": "mixers.parts:Mean.decay is wrong",
        "model.mixers={'parts:Mean' = {decai = 0.7}}": "decai is not a setting of this mixer; it has decay",
        "model.mixers={jet = {decay = 1}}": "mixers.jet.decay is not a setting of this mixer; it has none",
        "model.layers=['attn', 'parts:NoOut']": "mixer parts:NoOut lacks a linear layer called out_proj",
        "model.layers=['attn', 'parts:BadInit']": "mixer parts:BadInit cannot be made",
        "model.update_rule=parts:Mean": "must be a function",
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


def test_it_starts_as_it_makes_itself(reverie: Reverie) -> None:
    """But for the projection that makes a new block change nothing; an injection too."""
    recipe = load_recipe("outside/mine.toml", ["model.layers=['attn', 'parts:Nothing', 'gdn']", "model.mixers={}"])
    model = HybridLM(recipe.hybrid)
    mixer: Any = model.layers[1].mixer
    assert torch.equal(mixer.start.weight, torch.eye(16))
    assert not any(parameter.any() for parameter in mixer.out_proj.parameters())
    h = torch.randn(1, 3, 16)
    assert torch.equal(mixer(h, None, None, span=3)[0], torch.zeros(1, 3, 16))


def test_a_cache_of_its_own_in_files_of_memories(reverie: Reverie) -> None:
    from reverie.memory import Memory, sleep_over

    sliding = ["sleep.eviction=sliding", "model.mixers={}"]
    tokens = torch.randint(3, (1, 31))
    recipe = load_recipe("outside/mine.toml", [*sliding, "model.layers=['attn', 'parts:Nothing', 'gdn']"])
    model = HybridLM(recipe.hybrid)
    memory = sleep_over(model, tokens, recipe.sleep)
    memory.save(Path("m.memory"))
    assert len(Memory.load(Path("m.memory"), model, recipe.sleep).context.state.cache) == 3
    recipe = load_recipe("outside/mine.toml", [*sliding, "model.layers=['attn', 'parts:Unnamed', 'gdn']"])
    CACHE_ENTRIES.pop("Noted")
    with pytest.raises(UserError, match="keeps a Noted, which is to be named as its cache"):
        sleep_over(HybridLM(recipe.hybrid), tokens, recipe.sleep).save(Path("other.memory"))


def test_the_transformer_beside_it(reverie: Reverie) -> None:
    """A recipe with settings of a mixer may name other layers."""
    recipe = load_recipe("outside/mine.toml", ["model.layers=['attn', 'gdn']"])
    assert recipe.hybrid.mixers == {"parts:Mean": {"decay": 0.8}}


def test_a_name_that_is_not_registered_here(reverie: Reverie) -> None:
    register_rule("odd", lambda *inputs, **options: run_rule("hebbian", *inputs, **options))
    try:
        recipe = load_recipe("outside/tiny.toml", ["model.update_rule=odd", "model.backend=auto"])
        train(recipe, Path("run"))
    finally:
        RULES.pop("odd")
    done = reverie("eval", "run")
    assert_one_line(done, 'model.update_rule has "odd", which is not registered here')
    assert "delete" not in done.err
