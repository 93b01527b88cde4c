"""Runs of an adapter: the same curve however they are broken off and shared out, and what they leave."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reading_pages import needs_smollm2
from safetensors.torch import load_file
from same_run import Killed, assert_close, assert_same_run, kill_at, read_run_card, without_times
from tiny_adapter import tiny_adapter, tiny_base
from together import together

from reverie.errors import UserError
from reverie.files import CACHE
from reverie.hf import load
from reverie.interrupts import Stopped
from reverie.recipe import Recipe
from reverie.results.evaluate import evaluate
from reverie.results.run import evaluate_run, load_run, trained_model
from reverie.sleep import Context, consolidate
from reverie.train import adapt
from reverie.train.distributed import Processes
from reverie.train.run import train

pytestmark = [pytest.mark.hf, pytest.mark.slow, needs_smollm2]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(folder))
        yield folder


@pytest.fixture(scope="module")
def undisturbed(base: Path, tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    train(tiny_adapter(base), out)
    return out


def curve(out: Path) -> list[dict[str, Any]]:
    return [without_times(point.model_dump()) for point in read_run_card(out).curve]


def test_a_card_says_what_there_is_to_know(undisturbed: Path) -> None:
    card = read_run_card(undisturbed)
    assert {"names", "kinds"} <= card.score["by_kind"].keys()
    assert {"accuracy_when_empty", "accuracy_later", "plain_text_loss"} <= card.score.keys()
    assert card.score["plain_text_loss"].keys() == {"untouched", "adapted"}
    assert [point.step for point in card.curve] == [3, 6]


def test_the_adapter_is_the_model_of_the_checkpoint_and_of_the_curve(undisturbed: Path, base: Path) -> None:
    """Trained blocks, inserted layers and all the rest, which is the base's."""
    saved: Any = load(undisturbed / "adapter")
    assert saved.sleep_config == tiny_adapter(base).sleep
    own: Any = trained_model(load_run(undisturbed))
    for (name, ours), theirs in zip(saved.state_dict().items(), own.lm.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    size = (undisturbed / "adapter" / "model.safetensors").stat().st_size
    assert size < sum(p.numel() for p in saved.model.layers.parameters()) * 4


def test_evaluating_the_run_again_gives_its_score(undisturbed: Path) -> None:
    wanted = {key: x for key, x in read_run_card(undisturbed).score.items() if key != "plain_text_loss"}
    assert_close(evaluate_run(undisturbed).score, wanted)


def test_a_cache_changes_nothing(
    undisturbed: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapt, "cache_folder", lambda kind: None)
    train(tiny_adapter(base), tmp_path)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize("step", [1, 5])
def test_a_run_that_was_killed_goes_on_to_the_same_curve(
    undisturbed: Path, base: Path, tmp_path: Path, step: int
) -> None:
    with pytest.raises(Killed):
        train(tiny_adapter(base), tmp_path, report=kill_at(step))
    train(tiny_adapter(base), tmp_path, resume=True)
    assert_same_run(tmp_path, undisturbed)


def test_sigterm_finishes_the_step_and_saves(undisturbed: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tiny_adapter(base), tmp_path, report=lambda progress, loss: os.kill(os.getpid(), signal.SIGTERM))
    load(tmp_path / "adapter")
    train(tiny_adapter(base), tmp_path, resume=True)
    assert_same_run(tmp_path, undisturbed)


def test_a_limit_of_time_stops_it(undisturbed: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tiny_adapter(base), tmp_path, max_seconds=0.01)
    train(tiny_adapter(base), tmp_path, resume=True)
    assert_same_run(tmp_path, undisturbed)


def test_a_process_that_makes_pages_ahead_changes_nothing(undisturbed: Path, base: Path, tmp_path: Path) -> None:
    train(tiny_adapter(base, train={"data_workers": 1}), tmp_path)
    assert curve(tmp_path) == curve(undisturbed)


def test_a_run_that_trained_what_is_frozen_here_is_no_beginning(base: Path, tmp_path: Path) -> None:
    """Else what its blocks make of pages would be cached as what the base makes of them."""
    few = {"steps": 2, "eval_every": 2, "eval_examples": 1}
    for name, first in (("whole", 0), ("late", 2)):
        train(tiny_adapter(base, train=few, adapt={"trained_blocks": [[first, 3]]}), tmp_path / name)
    after = {**few, "init_from": str(tmp_path / "whole")}
    with pytest.raises(UserError, match=r"which trained blocks before block 1, the first that trains here"):
        train(tiny_adapter(base, train=after), tmp_path / "refused")
    train(tiny_adapter(base, train={**few, "init_from": str(tmp_path / "late")}), tmp_path / "taken")


def test_losses_fall(base: Path, tmp_path: Path) -> None:
    more = {"steps": 30, "eval_every": 5, "eval_examples": 1, "checkpoint_every": 1000}
    few = {"pool": 2, "pages": (1, 1), "loss": {"plain_text": 0.0, "address_alone": 0.0}}
    train(tiny_adapter(base, train=more, adapt=few, optim={"rest": {"lr": 3e-3}, "pretrained": {"lr": 3e-3}}), tmp_path)
    losses = [point["train_loss"] for point in curve(tmp_path)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    "start", [False, {"pages": 16, "read_out": ["state"], "query_tokens": 2}], ids=["none", "state"]
)
def test_other_starts_and_low_rank_updates(base: Path, tmp_path: Path, start: Any) -> None:
    pytest.importorskip("peft")
    model = {"lora_rank": 2, "lora_blocks": [[2, 3]]}
    recipe = tiny_adapter(base, adapt={"trained_blocks": [], "start": start}, model=model, train={"steps": 3})
    train(recipe, tmp_path)
    card = read_run_card(tmp_path)
    saved: Any = load(tmp_path / "adapter")
    assert not any("lora" in name for name in saved.state_dict())
    assert_close(score_of(saved, recipe), card.score["by_depth"])
    untouched = load_file(base / "model.safetensors")
    changed = {name for name, x in untouched.items() if not torch.equal(x, saved.state_dict()[name])}
    assert changed
    assert all(name.startswith("model.layers.2.") for name in changed)


def score_of(model: Any, recipe: Recipe) -> Any:
    return evaluate(model.sleeping, recipe.task, recipe.sleep, recipe.train.eval_examples).score.summary()["by_depth"]


def test_two_hops_with_looped_blocks(base: Path, tmp_path: Path) -> None:
    """Questions of the curriculum's depth alone, N = 2."""
    task = {"name": "hops", "window_tokens": 48}
    changes: Any = {
        "sleep": {"num_sleep_passes": 2, "looped_blocks": [1, 3]},
        "train": {"curriculum": 0.5, "metric": "deepest"},
        "adapt": {"trained_blocks": [[1, 3]], "pages": [1, 1]},
    }
    recipe = tiny_adapter(base, **changes)
    data = recipe.model_dump(mode="json", exclude={"model": {"vocab_size"}}) | {"task": task}
    train(Recipe.model_validate(data), tmp_path)
    assert [point["depth"] for point in curve(tmp_path)] == [3, 4]
    assert set(curve(tmp_path)[-1]["score"]["by_depth"]) == {"1", "2", "3", "4"}


def test_what_does_not_fit_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trained_blocks has \\[2, 4\\], but the model has 3 blocks"):
        train(tiny_adapter(base, adapt={"trained_blocks": [[2, 4]]}), tmp_path / "a")
    scaled = tiny_base(tmp_path / "granite", "granite", logits_scaling=7.0)
    with pytest.raises(UserError, match="sampled_vocabulary must be 0 for "):
        train(tiny_adapter(scaled), tmp_path / "d")
    with pytest.raises(UserError, match="kind must be gdn or jet, or module:Class, got attn"):
        tiny_adapter(base, model={"kind": "attn"})
    with pytest.raises(UserError, match=r"text\.txt"):
        train(tiny_adapter(base, adapt={"plain_text": str(tmp_path / "text.txt")}), tmp_path / "c")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_finds_what_the_cpu_finds(base: Path, tmp_path: Path) -> None:
    recipe = tiny_adapter(base, adapt={"loss": {"address_alone": 0.4, "distillation": 0.5}})
    for device in ("cpu", "cuda"):
        train(recipe, tmp_path / device, device=device)
    assert_close(curve(tmp_path / "cuda"), curve(tmp_path / "cpu"), rough=True)
    assert load(tmp_path / "cuda" / "adapter").device.type == "cpu"


def _train_together(processes: Processes, recipe: Recipe, out: Path) -> Any:
    return train(recipe, out, processes=processes).score


def test_two_processes_agree(base: Path, tmp_path: Path) -> None:
    """On what they found; without sampling, which each does for itself, the curve is that of one."""
    loss = {"plain_text": 0.0, "sampled_vocabulary": 0, "address_alone": 0.4}
    recipe = tiny_adapter(base, adapt={"loss": loss})
    ours, theirs = together(2, _train_together, recipe, tmp_path / "two")
    assert ours == theirs
    train(recipe, tmp_path / "one")
    assert_close(curve(tmp_path / "two"), curve(tmp_path / "one"), rough=True)
    assert_close(ours["by_kind"], read_run_card(tmp_path / "one").score["by_kind"], rough=True)


def test_more_processes_than_texts(base: Path, tmp_path: Path) -> None:
    """Of two pages that make one text, a process has none."""
    recipe = tiny_adapter(base, train={"batch_size": 2}, adapt={"pages": [2, 2]})
    ours, theirs = together(2, _train_together, recipe, tmp_path)
    assert ours == theirs


def test_a_memory_of_an_adapter_matters(undisturbed: Path, base: Path) -> None:
    model: Any = load(undisturbed / "adapter").sleeping
    (page,) = tiny_adapter(base).task.pages("test", 0, 0, range(1))  # pyright: ignore[reportAttributeAccessIssue]
    context = consolidate(model, torch.tensor([page.tokens]), Context.empty(model), tiny_adapter(base).sleep)
    assert any(S is not None and S.abs().sum() > 0 for S in context.state.fast_weights)
