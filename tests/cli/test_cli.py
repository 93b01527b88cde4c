"""The command line: what it prints where, and that every mistake is one line on stderr and exit code 2."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Done, Reverie, assert_one_line, assert_usage, in_empty_folder, the_json
from fake_cards import comparison
from tiny_recipe import tiny_recipe, write_tiny

from reverie.interrupts import TIME_IS_UP, Stopped, Terminated
from reverie.recipe import load_recipe
from reverie.results.card import RunCard, load_card, save_card
from reverie.results.checkpoint import FILE_NAME
from reverie.results.passes.card import PassesCard
from reverie.results.run import CARD_NAME
from reverie.train.run import train


@pytest.fixture
def reverie(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Reverie:
    return in_empty_folder(monkeypatch, capsys, tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained run."""
    folder = tmp_path_factory.mktemp("run")
    train(tiny_recipe(), folder)
    return folder


# -- what works


@pytest.mark.parametrize("command", ["", "train", "eval", "plot", "compare", "demo", "tasks"])
def test_help(reverie: Reverie, command: str):
    done = reverie(*command.split(), "--help")
    assert done.code == 0
    assert done.out.startswith("Usage: ")
    assert done.err == ""
    if command not in ("", "tasks"):
        assert "--json" in done.out


def test_train_shows_progress_on_stderr_and_a_table_on_stdout(reverie: Reverie, tmp_path: Path):
    done = reverie("train", write_tiny(tmp_path), "--set", "sleep.num_sleep_passes=1", "--device", "cpu")
    assert done.code == 0
    assert "tiny: N = 1 (hybrid)" in done.out
    assert "chance" in done.out
    *progress, last = done.err.splitlines()
    assert progress[-1].startswith("tiny  step 6/6  loss ")
    assert last == "run in runs/tiny"
    assert sorted(path.name for path in Path("runs/tiny").iterdir()) == [CARD_NAME, FILE_NAME, "tensorboard"]


def test_train_json_is_the_card(reverie: Reverie, tmp_path: Path):
    done = reverie("train", write_tiny(tmp_path), "--out", "[my] run", "--json", "--device", "auto")
    card = RunCard.model_validate(the_json(done))
    saved = load_card(Path("[my] run") / CARD_NAME)
    assert isinstance(saved, RunCard)
    assert (card.steps, card.recipe, card.date) == (6, saved.recipe, saved.date)
    assert done.err.splitlines()[-1] == "run in [my] run"


def test_train_resume_of_a_finished_run(reverie: Reverie, tmp_path: Path):
    recipe = write_tiny(tmp_path)
    first = the_json(reverie("train", recipe, "--json"))
    second = the_json(reverie("train", recipe, "--resume", "--json"))
    assert second["curve"] == first["curve"]
    done = reverie("train", recipe)
    assert_one_line(done, "runs/tiny already holds a run: add --resume to go on with it, or choose another --out")


@pytest.mark.parametrize(("arguments", "passes"), [([], 2), (["--passes", "1"], 1)])
def test_eval(reverie: Reverie, run: Path, arguments: list[str], passes: int):
    card = RunCard.model_validate(the_json(reverie("eval", run, *arguments, "--json")))
    assert card.num_sleep_passes == passes
    done = reverie("eval", run, *arguments)
    assert done.code == 0
    assert f"N = {passes}" in done.out
    assert done.err == ""


def test_eval_at_several_numbers_of_passes(reverie: Reverie, run: Path):
    arguments = ("eval", run, "--passes", "1..2,4", "--tolerance", "0.5", "--examples", "8")
    done = reverie(*arguments, "--out", "any/n.json")
    assert done.code == 0
    assert "tiny: sleeping N passes" in done.out
    assert "adaptive sleep, at most 4 passes" in done.out
    assert done.err.splitlines()[-1] == "figure in any/n.png"
    assert Path("any/n.png").read_bytes().startswith(b"\x89PNG")
    card = PassesCard.model_validate(the_json(reverie(*arguments, "--json")))
    assert (card.num_sleep_passes, card.tolerances, card.examples) == ([1, 2, 4], [0.5], 8)
    assert reverie("plot", "any/n.json", "--out", "figures") == (0, "figures/n.png\n", "")


def test_eval_of_as_many_examples_as_asked(reverie: Reverie, run: Path):
    card = RunCard.model_validate(the_json(reverie("eval", run, "--examples", "8", "--passes", "3", "--json")))
    assert (card.score["examples"], card.num_sleep_passes) == (8, 3)


def test_plot(reverie: Reverie, tmp_path: Path):
    save_card(comparison(seeds=1, points=2), tmp_path / "card.json")
    done = reverie("plot", "card.json", "--out", "figures", "--json")
    assert the_json(done) == {"figures": ["figures/card.png"]}
    assert Path("figures/card.png").read_bytes().startswith(b"\x89PNG")
    assert reverie("plot", "card.json") == (0, "card.png\n", "")


def test_plot_together_draws_one_figure(reverie: Reverie):
    for seed in range(2):
        save_card(comparison(seeds=2, points=2).runs[-1 - seed], Path(f"{seed}.json"))
    done = the_json(reverie("plot", "0.json", "1.json", "--together", "--json"))
    assert done == {"figures": ["together.png"]}
    assert Path("together.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["depo", "rule110", "rule110/nano"])
def test_tasks_show(reverie: Reverie, name: str):
    done = reverie("tasks", "show", name, "--example", "2", "--set", "sleep.num_sleep_passes=3")
    assert done.code == 0
    assert "\x1b" not in done.out  # no colours outside a terminal
    recipe = load_recipe(name if "/" in name else f"{name}/nano")
    batch = recipe.task.batch("test", 0, 0, range(2, 3))
    names, words, headings = recipe.task.token_names(), [], []
    for line in done.out.splitlines():
        (headings if line.startswith("window ") else words).append(line)
    shown = " ".join(words).split()
    assert [word.partition("→")[0] for word in shown] == [names[token] for token in batch.tokens[0]]
    labels = [word.partition("→")[2].partition("(")[0] for word in shown if "→" in word]
    assert labels == [names[target] for target in batch.targets[batch.loss_mask]]
    assert [word for word in shown if "→" in word] == [shown[t] for t in batch.loss_mask[0].nonzero()]
    assert len(headings) == -(-recipe.task.sequence_length // recipe.sleep.window_size)
    assert "sleep, 3 passes" in headings[0]


@pytest.mark.slow
def test_python_dash_m_reverie(tmp_path: Path):
    command = [sys.executable, "-m", "reverie", "eval", "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert_one_line(Done(done.returncode, done.stdout, done.stderr), "there is no run at nowhere")


# -- what does not


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("train nowhere/nano", "there is no recipe nowhere/nano"),
        ("train rule110/nanno", "did you mean rule110/nano"),
        ("train absent.toml", "there is no recipe absent.toml"),
        ("train rule110/nano --set sleep.windowsize=3", "did you mean sleep.window_size?"),
        ("train rule110/nano --set sleep.window_size=0", "sleep.window_size must be at least 1, got 0"),
        ("train rule110/nano --set sleep.num_sleep_passes=0", "sleep.num_sleep_passes must be at least 1, got 0"),
        ("train rule110/nano --set sleep.looped_blocks=[0,9]", "sleep.looped_blocks [0, 9] must end at or before "),
        ("train rule110/nano --set nonsense", "is not of the form section.key=value"),
        ("train rule110/nano --device foo", "--device must be cpu, cuda, mps or auto, got 'foo'"),
        ("train rule110/nano --device mps", "--device mps: torch finds no Metal device here; use --device cpu"),
        ("train rule110/nano --resume", "holds no run to go on with"),
        ("train rule110/nano --parallel fsdp", "--parallel fsdp is for several processes: add --nproc, or start it"),
        ("train rule110/nano --max-restarts 2", "--max-restarts is for the processes of --nproc: add that, or give it"),
        ("eval nowhere", "there is no run at nowhere"),
        ("eval .", "there is no run at ."),
        ("eval . --passes 1..8", "there is no run at ."),
        ("eval . --passes x", "--passes must be whole numbers separated by commas, such as 1,2,4, or a range, such as"),
        ("eval . --passes 1..", "--passes must be whole numbers"),
        ("eval . --passes 1..2..3", "--passes must be whole numbers"),
        ("eval . --passes 1..3000000000", "--passes must be at most 10,000 numbers, got '1..3000000000'"),
        ("eval . --passes 10001", "--passes must be at most 10,000, got 10,001"),
        ("compare rule110/nano --seeds 1..3000000000", "--seeds must be at most 10,000 numbers"),
        ("eval . --passes 5..2", "--passes has a range that ends before it begins, '5..2'"),
        ("eval . .", "several runs, --tolerance and --out need --passes, such as --passes 1..8"),
        ("eval . --tolerance 0.1", "several runs, --tolerance and --out need --passes"),
        ("eval . --passes 2 --tolerance 0", "--tolerance must be numbers above 0 separated by commas"),
        ("eval . --passes 2 --tolerance 0.1,nan", "--tolerance must be numbers above 0"),
        ("eval . --passes 2 --tolerance x", "--tolerance must be numbers above 0"),
        ("eval . --passes 2 --tolerance=-1", "--tolerance must be numbers above 0"),
        ("eval . --passes 2 --out card.png", "--out must be the card's file and end in .json, got card.png"),
        ("plot absent.json", "there is no result card at absent.json"),
        ("plot .", "cannot read ."),
        (
            "compare rule110/nano --vary model.width",
            "--vary must be KEY=VALUE,VALUE, such as model.update_rule=hebbian",
        ),
        ("compare rule110/nano --vary model.width=", "--vary must be KEY=VALUE,VALUE"),
        ("compare rule110/nano --vary train.seed=1 --seeds 2", "--seeds and --vary train.seed are the same: leave one"),
        ("compare rule110/nano --vary train.seed=x", "--vary train.seed must be whole numbers separated by commas"),
        ("compare rule110/nano --vary model.wdth=8", "the variant model.wdth=8: model.wdth is not a known key"),
        ("compare nowhere", "there is no recipe nowhere"),
        ("compare rule110/nano --passes 1,x", "--passes must be whole numbers separated by commas, such as 1,2,4"),
        ("compare rule110/nano --passes 0", "num_sleep_passes must be at least 1, got 0"),
        ("compare rule110/nano --seeds -1", "seed must be at least 0, got -1"),
        ("compare rule110/nano --seeds 1.5", "--seeds must be whole numbers"),
        ("compare rule110/nano --seeds=", "--seeds must be whole numbers"),
        ("compare rule110/nano --jobs 0", "--jobs must be at least 1, got 0"),
        ("compare rule110/nano --set model.layers=['attn']", "attention layers alone"),
        ("tasks show rule111", "there is no recipe rule111"),
        ("tasks show depo --set sleep.window_size=0", "sleep.window_size must be at least 1"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_makes_nothing(
    reverie: Reverie, tmp_path: Path, arguments: str, sentence: str
):
    assert_one_line(reverie(*arguments.split(" ")), sentence)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda(reverie: Reverie, run: Path):
    for arguments in (("train", "rule110/nano"), ("eval", run), ("compare", "rule110/nano")):
        assert_one_line(reverie(*arguments, "--device", "cuda"), "--device cuda: there is no CUDA device here")


def test_eval_of_bad_runs(reverie: Reverie, run: Path, tmp_path: Path):
    for passes in ("0", "0..2"):
        assert_one_line(reverie("eval", run, "--passes", passes), "num_sleep_passes must be at least 1, got 0")
    (tmp_path / FILE_NAME).write_bytes((run / FILE_NAME).read_bytes()[:-100])
    assert_one_line(reverie("eval", tmp_path), f"{FILE_NAME} is cut short or damaged")
    assert_one_line(reverie("train", write_tiny(tmp_path), "--out", tmp_path, "--resume"), "is cut short or damaged")
    (tmp_path / FILE_NAME).write_bytes(b"")
    assert_one_line(reverie("eval", tmp_path), "is cut short or damaged")


@pytest.mark.parametrize("content", ["not JSON", "{}", '{"kind": "run"}', "[]"])
def test_plot_of_a_foreign_file(reverie: Reverie, tmp_path: Path, content: str):
    (tmp_path / "foreign.json").write_text(content)
    assert_one_line(reverie("plot", "foreign.json"), "foreign.json is not a ")
    assert [path.name for path in tmp_path.iterdir()] == ["foreign.json"]


def test_a_folder_that_cannot_be_made(reverie: Reverie, tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    assert_one_line(reverie("train", write_tiny(tmp_path), "--out", "file/run"), "cannot write file/run/")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("trian", "No such command 'trian'"),
        ("train", "Missing argument 'RECIPE'"),
        ("train rule110/nano --nope", "No such option: --nope"),
        ("eval . --examples 0", "--examples"),
        ("plot", "Missing argument"),
        ("tasks show rule110 --example -1", "--example"),
        ("tasks show rule110 --example x", "--example"),
        ("tasks shwo", "No such command 'shwo'"),
    ],
)
def test_a_wrong_option_or_command_shows_the_usage(reverie: Reverie, tmp_path: Path, arguments: str, sentence: str):
    assert_usage(reverie(*arguments.split()), sentence)
    assert list(tmp_path.iterdir()) == []


HEAVY = ("torch", "numpy", "matplotlib", "transformers", "scipy", "prompt_toolkit", "reverie.recipe")


@pytest.mark.parametrize("command", ["--help", "--version", "train --help", "ask --help", "bench wake --help"])
def test_what_computes_nothing_imports_nothing_that_takes_long(command: str) -> None:
    code = f"import sys; from reverie.cli.app import main; sys.argv[1:] = {command.split()}; main()"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert imported.isdisjoint(HEAVY)


def test_version(reverie: Reverie):
    assert reverie("--version").out == f"reverie {importlib.metadata.version('reverie')}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell: str):
    """By what they run when Tab is pressed."""
    typed = {"COMP_WORDS": "reverie train --max", "COMP_CWORD": "2", "_TYPER_COMPLETE_ARGS": "reverie train --max"}
    asked = {"_REVERIE_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    code = "import sys; from reverie.cli.app import main; sys.argv[0] = 'reverie'; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | typed | asked)
    assert "--max-seconds" in done.stdout
    assert "--max-restarts" in done.stdout


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        ("train", "the same command with --resume goes on from the last checkpoint in here"),
        ("compare", "the same command goes on from the last checkpoints"),
    ],
)
@pytest.mark.parametrize(
    ("interruption", "code", "what"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated("terminated"), 143, "terminated"),
        (Stopped(signal.SIGINT, 3, 9), 130, "stopped after step 3 of 9 (Ctrl-C), saved"),
        (Stopped(signal.SIGTERM, 3, 9), 143, "stopped after step 3 of 9 (SIGTERM), saved"),
        (Stopped(TIME_IS_UP, 3, 9), 0, "stopped after step 3 of 9 (time is up), saved"),
    ],
)
def test_a_signal_or_time_that_is_up_ends_with_how_to_go_on(
    reverie: Reverie,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: str,
    advice: str,
    interruption: KeyboardInterrupt,
    code: int,
    what: str,
):
    def interrupted(*_: Any, **__: Any) -> None:
        raise interruption

    monkeypatch.setattr(
        {"train": "reverie.train.run.train", "compare": "reverie.train.compare.compare"}[command], interrupted
    )
    done = reverie(command, write_tiny(tmp_path), "--out", "here")
    assert done == (code, "", f"{what}; {advice}\n")
