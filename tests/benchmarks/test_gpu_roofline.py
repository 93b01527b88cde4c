"""Operations, bytes and kernels of a step: against counts of small models, a case by hand, and what always holds."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from reverie.errors import UserError
from reverie.model import HybridConfig
from reverie.recipe import Recipe, changed, load_recipe
from reverie.sleep import SleepConfig
from reverie.sleep.gradients import Backward

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu" / "roofline.py"
sys.path[:0] = [str(ROOT / "benchmarks"), str(SCRIPT.parent)]
formulas: Any = importlib.import_module("scaling_formulas")
measured: Any = importlib.import_module("scaling_measured")
costs: Any = importlib.import_module("step_costs")
blocks: Any = importlib.import_module("fused_blocks")
benchmark: Any = importlib.import_module("roofline")

SMALL = [
    "model.width=48",
    "model.mlp_width=128",
    "model.fast_heads=3",
    "model.key_size=12",
    "model.value_size=24",
    "train.batch_size=2",
    "sleep.num_sleep_passes=2",
]


def small(name: str, *more: str) -> Recipe:
    """A recipe of the paper with its windows, labels and blocks, and small matrices."""
    heads = ["model.num_heads=4"] if "rule110" in name else ["model.num_heads=8"]
    return load_recipe(name, [*SMALL, *heads, *more])


@pytest.mark.parametrize("name", ["rule110/paper-t32", "depo/paper"])
def test_operations_and_memory_are_those_of_a_training_step(name: str) -> None:
    """Both recipes end in a shorter window, and Depo's windows do not fill their last chunk."""
    kind = "gdn" if "rule110" in name else "jet"
    work = benchmark.work_of(small(name, f'model.layers=["attn", "{kind}"]'))
    each = work.scored // sum(work.labelled)
    forward, backward = measured.operations(work._replace(scored=each * sum(work.labelled)))
    expected = formulas.operations(work)
    assert expected.forward == pytest.approx(forward, rel=0.01)
    assert expected.backward == pytest.approx(backward, rel=0.01)
    kept, peak = measured.live_bytes(work)
    assert formulas.kept_bytes(work) == pytest.approx(kept, rel=0.03)
    assert formulas.peak_bytes(work) == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize("kind", ["attn", "gdn", "jet", "jet-only"])
@pytest.mark.parametrize("output", [True, False])
def test_fused_kernels_do_the_products_of_the_formulas(kind: str, output: bool) -> None:
    """The rule's share differs: as one kernel it inverts without products, and makes more again in the backward."""
    model, batch, T = small("depo/paper").hybrid, 3, 48
    kernels = blocks.forward(model, kind, batch, T, 2, output=output, found=True)
    gradients = [gradient for kernel in kernels for gradient in kernel.backward()]
    unread = () if output else ("mixer.gate_proj", "mixer.out_proj", "mlp.")
    matrices = formulas.hidden_matrices(formulas.block_shapes(model, kind))
    linear = 2 * batch * T * formulas.count({n: s for n, s in matrices.items() if not n.startswith(unread or "-")})
    expected = formulas.block_operations(model, kind, batch, T, output)
    for found, products, of_block in zip((kernels, gradients), (linear, 2 * linear), expected, strict=True):
        assert sum(kernel.operations for kernel in found if kernel.kind == "product") == products
        rest = sum(kernel.operations for kernel in found if kernel.kind != "product")
        assert rest == pytest.approx(of_block - products, rel=0.0 if kind == "attn" else 0.5)


def test_the_fewest_bytes_by_hand() -> None:
    """One block, a text of two windows of two tokens, all of float32."""
    model = HybridConfig(
        vocab_size=4,
        width=2,
        layers=("gdn",),
        mlp_width=3,
        num_heads=1,
        fast_heads=1,
        key_size=2,
        value_size=2,
        conv_size=1,
    )
    work = formulas.Work(model, SleepConfig(window_size=2), Backward(), 1, (False, True), 2)
    h, S = 2 * 2 * 4, 2 * 2 * 4
    asleep = 4 * (6 * 2 + 2 * 2)  # q k v; α β
    awake = asleep + 4 * (2 * 2 + 2 * 2 + 6 * 2 + 2 * 3)  # and gate, output projection, MLP
    # What is kept: h, the products' outputs, (I + A)⁻¹; awake o as well.
    kept_asleep = h + 2 * 4 * (6 + 2) + 2 * 2 * 4
    kept_awake = kept_asleep + 2 * 4 * 2 + 2 * 4 * (2 + 6)
    found = costs.fewest_bytes(work, 4)
    assert found.forward == (h + S + asleep + kept_asleep) + (2 * h + 2 * S + awake + kept_awake)
    # The first window finds no fast weights, so they get no gradient; the second adds to gradients of parameters.
    assert found.backward == (kept_asleep + h + S + 2 * asleep) + (kept_awake + 2 * h + 3 * S + 3 * awake)
    matrices, rest = awake // 4, 2 * 4 * 2 + 2 + 6  # embedding and head, gates, taps
    assert found.optimizers == 3 * 4 * (matrices + rest) + 5 * 3 * 2 * matrices + 4 * (5 * matrices + 7 * rest)


@pytest.mark.parametrize("name", ["rule110/paper-t32", "depo/paper"])
@pytest.mark.parametrize(
    "more", [["sleep.num_sleep_passes=3"], ["train.batch_size=4"], ["model.mlp_width=256"], ["train.dtype=float32"]]
)
def test_more_work_takes_more_of_everything(name: str, more: list[str]) -> None:
    less, grown = (small(name, "train.dtype=bfloat16", *changes) for changes in ([], more))
    before, after = ({**_counts(recipe)} for recipe in (less, grown))
    assert all(after[key] >= before[key] for key in before)
    assert after["fewest"] > before["fewest"]
    assert after["fused"] > before["fused"]
    assert after["kept"] > before["kept"]


def _counts(recipe: Recipe) -> dict[str, float]:
    work, element = benchmark.work_of(recipe), 2 if recipe.train.dtype == "bfloat16" else 4
    return {
        "fewest": costs.fewest_bytes(work, element).total,
        "fused": sum(kernel.bytes for kernel in costs.all_kernels(work, element)),
        "kept": costs.fused_kept_bytes(work, element),
        "operations": formulas.operations(work).total,
    }


def test_what_is_computed_again_need_not_be_kept() -> None:
    modes = [small("depo/paper", f'train.activation_checkpoint="{mode}"') for mode in ("none", "pass", "window")]
    kept = [costs.fused_kept_bytes(benchmark.work_of(recipe), 4) for recipe in modes]
    assert kept[0] > kept[1] > kept[2]
    bytes_ = [sum(kernel.bytes for kernel in costs.all_kernels(benchmark.work_of(r), 4)) for r in modes]
    assert bytes_[0] < bytes_[1]


def test_launches_of_eager_code_depend_on_structure_alone() -> None:
    layers = 'model.layers=["attn", "gdn"]'
    work = benchmark.work_of(small("rule110/paper-t32", layers))
    launches = [
        costs.eager_launches(work._replace(sleep=work.sleep.model_copy(update={"num_sleep_passes": n})), "float32")
        for n in (2, 3, 4)
    ]
    assert launches[2] - launches[1] == launches[1] - launches[0] > 0
    wider = benchmark.work_of(small("rule110/paper-t32", layers, "model.width=96", "train.batch_size=3"))
    assert costs.eager_launches(wider, "float32") == launches[0]


def test_a_step_on_faster_machines() -> None:
    recipe = small("rule110/paper-t32", "train.dtype=bfloat16")
    found = benchmark.roofline(recipe)
    assert found.passes == 2
    assert found.tokens == 2 * 100
    assert found.floor_seconds <= found.fused_seconds
    assert 0 < found.share <= 1
    assert found.fewest_bytes.total <= found.fused_bytes
    assert found.fused_peak_bytes < found.peak_bytes
    assert found.fused_launches < found.eager_launches
    assert found.tokens_per_second(0.5) == 400
    twice = benchmark.Ceilings(bfloat16=2 * 790e12, bytes=2 * 4.3e12, graph_launch=0.75e-6)
    faster = benchmark.roofline(recipe, twice)
    assert faster.floor_seconds == pytest.approx(found.floor_seconds / 2)
    assert faster.fused_seconds == pytest.approx(found.fused_seconds / 2)


def test_measured_ceilings_take_the_place_of_the_usual_ones() -> None:
    machine: Any = importlib.import_module("machine")
    found = {"bfloat16_tflops": 700.0, "copy_tb_per_s": 4.0, "launch_us": 3.0, "float32_tflops": 50.0}
    ceilings = benchmark.Ceilings.measured(found)
    assert (ceilings.bfloat16, ceilings.bytes, ceilings.launch) == pytest.approx((700e12, 4e12, 3e-6))
    assert ceilings.tf32 == benchmark.Ceilings().tf32
    source = Path(machine.__file__).read_text(encoding="utf-8")
    names = ("bfloat16_tflops", "tf32_tflops", "copy_tb_per_s", "launch_us", "graph_launch_us")
    assert all(f'"{name}"' in source for name in names)


@pytest.mark.parametrize("change", [{"sleep": {"eviction": "sliding"}}, {"model": {"update_rule": "delta"}}])
def test_what_the_formulas_do_not_know_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="counts hard eviction and the gated delta rule"):
        benchmark.work_of(changed(small("rule110/paper-t32"), **change))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "card.json").write_text(json.dumps({"ceilings": {"bfloat16_tflops": 500.0}}))
    overrides = [part for text in [*SMALL, "model.num_heads=4"] for part in ("--set", text)]
    options = ["rule110/paper-t32", *overrides, "--passes", "1,3", "--ceilings", str(tmp_path / "card.json")]
    monkeypatch.setattr(sys, "argv", ["roofline.py", *options])
    benchmark.main()
    shown = capsys.readouterr().out
    assert "N = 1" in shown
    assert "N = 3" in shown
    assert "| tokens/s predicted" in shown


def test_a_mistake_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["roofline.py", "rule110/papre-t32"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: there is no recipe rule110/papre-t32; did you mean rule110/paper")
