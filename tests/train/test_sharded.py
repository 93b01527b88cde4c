"""Runs by several processes are those of one, and go on from each other's checkpoints, in one file or in shards."""

from __future__ import annotations

import contextlib
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from same_run import assert_close, read_run_card
from tiny_recipe import tiny_recipe
from together import together
from torch import Tensor

from reverie.errors import UserError
from reverie.interrupts import Stopped
from reverie.model import new_model
from reverie.recipe import Recipe
from reverie.results import evaluate
from reverie.results.checkpoint import FILE_NAME, checkpoint_step, find_checkpoint, load_checkpoint
from reverie.results.run import evaluate_run
from reverie.train.distributed import ALONE, Parallel, Processes
from reverie.train.run import train

pytestmark = pytest.mark.slow

BOTH: tuple[Parallel, ...] = ("ddp", "fsdp")
STAGES = [
    {"share": 1, "parameters": "all", "eviction": "hard"},
    {"share": 1, "parameters": "fast_weights", "eviction": "hard"},
    {"share": 1, "parameters": "all", "eviction": "sliding"},
]
RECIPES = {
    "plain": tiny_recipe(optim={"weight_decay": 0.1}),
    "uneven": tiny_recipe(
        model={"layers": ["jet", "attn", "gdn"]},
        sleep={"num_sleep_passes": 3},
        train={"batch_size": 7, "activation_checkpoint": "window", "bptt_passes": 2},
    ),
    "staged": tiny_recipe(sleep={"eviction": "sliding"}, train={"stages": STAGES, "activation_checkpoint": "pass"}),
    "transformer": tiny_recipe(model={"layers": ["attn", "attn"]}, train={"dtype": "bfloat16"}),
}
BY_FOUR, BY_TWO = ("plain", "uneven"), ("plain", "staged", "transformer")


# -- runs, by four processes, by two and by one


class Job(NamedTuple):
    """One run, or a part of it, that all processes of a group train."""

    recipe: str
    out: Path
    parallel: Parallel | None
    stop_at: int | None = None
    resume: bool = False


def run(processes: Processes, job: Job) -> list[float]:
    """The loss of every step, in the process that reports. The signal to stop goes to that one alone."""
    losses: list[float] = []

    def report(progress: Any, loss: float) -> None:
        losses.append(loss)
        if progress.step == job.stop_at:
            signal.raise_signal(signal.SIGTERM)

    processes = replace(processes, parallel=job.parallel)
    stopped = (
        pytest.raises(Stopped, match=f"after step {job.stop_at} of 6") if job.stop_at else contextlib.nullcontext()
    )
    with stopped:
        train(RECIPES[job.recipe], job.out, resume=job.resume, report=report, processes=processes)
    return losses


def run_all(processes: Processes, jobs: dict[str, Job]) -> dict[str, list[float]]:
    evaluate.LARGEST_BATCH = 5  # of 24 examples, so that there are batches to share out
    return {name: run(processes, job) for name, job in jobs.items()}


class Runs(NamedTuple):
    folder: Path
    losses: dict[str, list[float]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every recipe trained by 1 process and by 2 or 4, and broken off after step 3."""
    folder = tmp_path_factory.mktemp("runs")
    alone = {name: Job(name, folder / name, None) for name in RECIPES}
    four = {f"{name} {how} 4": Job(name, folder / f"{name} {how} 4", how) for name in BY_FOUR for how in BOTH}
    four |= {f"half {how} 4": Job("plain", folder / f"half {how} 4", how, stop_at=3) for how in BOTH}
    losses = {name: run(ALONE, job) for name, job in alone.items()} | together(4, run_all, four)[0]
    resumed: dict[str, tuple[Parallel, Parallel]] = {
        "fsdp to fsdp": ("fsdp", "fsdp"),
        "fsdp to ddp": ("fsdp", "ddp"),
        "ddp to fsdp": ("ddp", "fsdp"),
    }
    two = {f"{name} {how} 2": Job(name, folder / f"{name} {how} 2", how) for name in BY_TWO for how in BOTH}
    for name, (before, after) in resumed.items():
        shutil.copytree(folder / f"half {before} 4", folder / name)
        two[name] = Job("plain", folder / name, after, resume=True)
    losses |= together(2, run_all, two)[0]
    shutil.copytree(folder / "half fsdp 4", folder / "fsdp to one")
    losses["fsdp to one"] = run(ALONE, Job("plain", folder / "fsdp to one", None, resume=True))
    return Runs(folder, losses)


def weights(out: Path, recipe: Recipe) -> dict[str, Tensor]:
    place = find_checkpoint(out)
    assert place is not None
    model = new_model(recipe.hybrid, 99)
    load_checkpoint(place).restore_model(model)
    return model.state_dict()


NAMES = [f"{recipe} {how} {n}" for recipes, n in ((BY_FOUR, 4), (BY_TWO, 2)) for recipe in recipes for how in BOTH]


@pytest.mark.parametrize("name", NAMES)
def test_the_losses_are_those_of_one_process(runs: Runs, name: str):
    recipe = name.split()[0]
    tolerance = 1e-4 if RECIPES[recipe].train.dtype == "float32" else 1e-2
    assert runs.losses[name] == pytest.approx(runs.losses[recipe], rel=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_weights_curve_and_card_are_those_of_one_process(runs: Runs, name: str):
    """The curve has the norm of the gradient, and of its parts by passes: Muon and AdamW do not see its scale."""
    recipe, how, number = name.split()
    rough = RECIPES[recipe].train.dtype == "bfloat16"
    ours, theirs = (read_run_card(runs.folder / folder) for folder in (name, recipe))
    assert (ours.processes, ours.parallel) == (int(number), how)
    assert (ours.tokens, ours.parameters, ours.score["examples"]) == (theirs.tokens, theirs.parameters, 24)
    for our, their in zip(ours.curve, theirs.curve, strict=True):
        assert_close(our.model_dump(exclude={"wall_time_s"}), their.model_dump(exclude={"wall_time_s"}), rough=rough)
    assert_close(ours.score, theirs.score, rough=rough)
    expected = weights(runs.folder / recipe, RECIPES[recipe])
    for key, tensor in weights(runs.folder / name, RECIPES[recipe]).items():
        # Muon orthogonalises in bfloat16, where rounding shows: steps are of size 1e-2.
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=2e-2 if rough else 2e-3, msg=key)


@pytest.mark.parametrize("name", ["fsdp to fsdp", "fsdp to ddp", "ddp to fsdp", "fsdp to one"])
def test_another_number_of_processes_goes_on_to_the_same_curve(runs: Runs, name: str):
    before = name.split()[0]
    assert runs.losses[f"half {before} 4"] == pytest.approx(runs.losses["plain"][:3], rel=1e-4)
    assert runs.losses[name] == pytest.approx(runs.losses["plain"][3:], rel=1e-4)
    ours, theirs = (read_run_card(runs.folder / folder) for folder in (name, "plain"))
    assert_close(ours.score, theirs.score)
    assert [point.step for point in ours.curve] == [3, 6]


@pytest.mark.parametrize("name", ["fsdp to fsdp", "fsdp to ddp", "ddp to fsdp", "plain fsdp 4", "plain ddp 4"])
def test_a_run_leaves_one_checkpoint_of_its_kind(runs: Runs, name: str):
    sharded = name.endswith("fsdp") or "fsdp 4" in name
    kept = "checkpoint-000000006" if sharded else FILE_NAME
    assert sorted(path.name for path in (runs.folder / name).iterdir()) == sorted(["card.json", kept, "tensorboard"])


def test_a_sharded_run_is_evaluated_by_one_process(runs: Runs):
    card = evaluate_run(runs.folder / "plain fsdp 4")
    assert_close(card.score, read_run_card(runs.folder / "plain").score)


# -- a checkpoint in shards


@pytest.fixture
def shards(runs: Runs, tmp_path: Path) -> Path:
    """A copy of such a checkpoint."""
    shutil.copytree(runs.folder / "plain fsdp 4", tmp_path / "run")
    return tmp_path / "run" / "checkpoint-000000006"


def test_no_pickle_is_written(shards: Path):
    assert {path.suffix for path in shards.iterdir()} == {".safetensors"}
    assert len(list(shards.iterdir())) == 5


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def garble(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


@pytest.mark.parametrize(
    ("damage", "part", "complaint"),
    [
        (remove, "shard-00003", r"lacks shard-00003-\S+, a part of the checkpoint"),
        (cut, "shard-00003", r"is damaged \(shard-00003-\S+ has \d+ bytes, not \d+\): delete it"),
        (garble, "shard-00003", r"is damaged \(shard-00003-\S+ was changed after it was written\): delete it"),
        (remove, "run", r"there is no checkpoint at \S+run\.safetensors"),
        (cut, "run", r"run\.safetensors is cut short or damaged"),
    ],
)
def test_a_damaged_part_is_one_sentence(shards: Path, damage: Callable[[Path], None], part: str, complaint: str):
    [path] = shards.glob(f"{part}*")
    damage(path)
    for use in (lambda: evaluate_run(shards.parent), lambda: train(RECIPES["plain"], shards.parent, resume=True)):
        with pytest.raises(UserError, match=complaint) as error:
            use()
        assert "\n" not in str(error.value)


def test_weights_of_another_model_are_refused(shards: Path):
    other = tiny_recipe(model={"width": 32})
    with pytest.raises(UserError, match="holds the weights of another model"):
        load_checkpoint(shards).restore_model(new_model(other.hybrid, 0))


def test_the_newest_checkpoint_counts(shards: Path, runs: Runs):
    """A run that was killed between saving in one format and removing the other has two."""
    out = shards.parent
    shutil.copyfile(runs.folder / "half ddp 4" / FILE_NAME, out / FILE_NAME)
    assert (find_checkpoint(out), checkpoint_step(out / FILE_NAME)) == (shards, 3)
    older = shards.rename(out / "checkpoint-000000002")
    assert find_checkpoint(out) == out / FILE_NAME
    assert checkpoint_step(older) == 2


def test_an_unfinished_checkpoint_does_not_count(shards: Path):
    shards.rename(shards.with_name(f".{shards.name}.tmp"))
    assert find_checkpoint(shards.parent) is None


def save_twice(processes: Processes, out: Path) -> None:
    """With a shard that cannot be written, and again."""
    everyone = replace(processes, parallel="fsdp")
    if processes.rank == 1:
        (out / ".checkpoint-000000000.tmp").mkdir(parents=True)
    processes.wait()
    train(RECIPES["plain"], out, processes=everyone)


def test_what_a_killed_save_left_is_in_nobodys_way(tmp_path: Path):
    together(2, save_twice, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.json", "checkpoint-000000006", "tensorboard"]


def refused(processes: Processes, out: Path) -> str:
    if processes.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    with pytest.raises(UserError) as error:
        train(RECIPES["plain"], out, resume=True, processes=replace(processes, parallel="fsdp"))
    return str(error.value)


def test_a_shard_that_cannot_be_written_is_one_sentence_and_the_checkpoint_before_stays(runs: Runs, tmp_path: Path):
    shutil.copytree(runs.folder / "half fsdp 4", tmp_path / "run")
    for sentence in together(2, refused, tmp_path / "run"):
        assert sentence == f"cannot write {tmp_path}/run/checkpoint-000000004: File too large"
    assert find_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-000000003"
