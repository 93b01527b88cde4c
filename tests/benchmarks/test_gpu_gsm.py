"""The plan for word problems and a pretrained model: end to end on a CPU, with a tiny model of the same kind."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_session import FOLDER, LIMITS, plan, small_session
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from reverie.recipe import Recipe, changed, load_recipe
from reverie.recipe.build import build_model
from reverie.results.card import RunCard, load_card
from reverie.tasks.gsm_infinite import task
from reverie.train.data import make_batch
from reverie.train.step import loss_sum

counts: Any = importlib.import_module("gsm_counts")
figures: Any = importlib.import_module("figures")

GROUP = """
[[groups]]
name = "{group}"
recipe = "gsm_infinite/{recipe}"
set = [
  'model.pretrained={base}', "model.behind=[0, 1]", "model.fast_heads=2", "model.key_size=4", "model.value_size=4",
  "task.tokenizer=words", "task.instruction=false", 'task.worlds=["wildlife"]', "task.length=[70, 100]",
  "sleep.window_size={window}", "train.dtype=float32", "train.batch_size=4", "train.micro_batch=3",
  "train.eval_examples=8", "train.activation_checkpoint=none", "train.data_workers=0",
]
variants = [{variants}{{ name = "n2", set = ["sleep.num_sleep_passes=2"] }}]
steps = 2
evaluations = 2
"""


def groups_of(base: Path) -> str:
    hard = GROUP.format(base=base, group="hard", recipe="smollm2", window=60, variants='{ name = "n1" }, ')
    return hard + GROUP.format(base=base, group="sliding", recipe="smollm2-sliding", window=40, variants="")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 1024, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_from_plan_to_figures(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "_CHANCE_SAMPLE", 10)  # of problems that guessing is measured on, in every run
    made = small_session(tmp_path, text='name = "tiny"\n' + groups_of(base))
    made.run(tmp_path / "out", LIMITS, check_only=False)
    passes = {"hard": [1, 2], "sliding": [2]}
    names = {f"{group}/n{n}-seed-0" for group in passes for n in passes[group]}
    assert {name: run["state"] for name, run in made.record["runs"].items()} == dict.fromkeys(names, "finished")
    results = tmp_path / "state" / "results"
    for group in passes:
        cards = {path.stem: load_card(path) for path in (results / "cards").glob(f"{group}-*-seed-0.json")}
        assert sorted(card.num_sleep_passes for card in cards.values() if isinstance(card, RunCard)) == passes[group]
        # Figures 4 and 5: a panel for each of some numbers of operations, beside the answer that is right most often.
        drawing = figures.figure_of("tiny", cards)
        assert [axes.get_title("left")[-3:] for axes in drawing.axes] == ["= 2", "= 4", "= 6", "= 8"]
        assert len(drawing.axes[0].get_lines()) == len(passes[group]) + 1
        assert (results / f"tiny-{group}-curves.png").read_bytes().startswith(b"\x89PNG")


def test_variants_of_the_shipped_plan_differ_in_passes_alone() -> None:
    for loaded in (plan.load_plan(FOLDER / "plans" / f"{name}.toml") for name in ("gsm", "gsm-sliding")):
        [group] = loaded.plan.groups
        recipes: list[Recipe] = list(loaded.variants(group).values())
        assert [recipe.sleep.num_sleep_passes for recipe in recipes] == [1, 2, 4]
        same = {"sleep": {"num_sleep_passes": 1}, "train": {"micro_batch": None}}
        assert len({changed(recipe, **same).model_dump_json() for recipe in recipes}) == 1
        assert recipes[0].task.sequence_length == 3305
        assert recipes[0].sleep.window_size == {"hard": 2000, "sliding": 512}[group.name]


def tiny_recipe(base: Path, **train: Any) -> Recipe:
    overrides = tomllib.loads(groups_of(base))["groups"][0]["set"]
    return changed(load_recipe("gsm_infinite/smollm2", overrides), train=train)


# Counted apart. Some versions of PyTorch count it too.
NO_ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{direction}"): lambda *_, **__: 0
    for direction in ("", "_backward")
}


def test_operations_are_those_of_the_step(base: Path) -> None:
    recipe = tiny_recipe(base)
    batch = make_batch(recipe.task, recipe.train, 0)
    batch.loss_mask[:] = False
    batch.loss_mask[:, -counts.LABELS :] = True
    with FlopCounterMode(display=False, custom_mapping=NO_ATTENTION) as counter:
        loss_sum(recipe, build_model(recipe.model, 0), 0, batch, [False, True]).backward()
    assert counts.count(recipe, len(batch.tokens)).products == counter.get_total_flops()


def test_passes_add_operations_bytes_and_memory(base: Path) -> None:
    def of(passes: int, checkpoint: str = "none") -> Any:
        recipe = tiny_recipe(base, activation_checkpoint=checkpoint)
        return counts.count(changed(recipe, sleep={"num_sleep_passes": passes}), 1)

    one, two, again = of(1), of(2), of(2, "pass")
    for part in ("products", "attention", "small_bytes", "kept", "kernels"):
        assert getattr(two, part) > 1.2 * getattr(one, part), part
    assert one.seconds(fused=True) < one.seconds(fused=False) < two.seconds(fused=False)
    assert again.peak < two.peak
    assert again.products > 1.2 * two.products


def test_the_table(base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert counts.main(["gsm_infinite/smollm3"]) == 2
    assert "did you mean gsm_infinite/smollm2" in capsys.readouterr().err
    monkeypatch.setattr(counts, "count", lambda recipe, rows: counts.Counts(rows * 2e12, 0, rows * 4.3e12, 9, 0, rows))
    table = counts.table(tiny_recipe(base), [2])
    assert [next(iter(column.cells)) for column in table.columns[:2]] == ["2", "none"]
    # Four rows: 8 TFLOP at 790e12 · 0.6 a second, and 4 s of moving at 85 %.
    assert float(next(iter(table.columns[5].cells))) == pytest.approx(4 / 0.85 + 8e12 / (0.6 * 790e12), abs=0.01)
