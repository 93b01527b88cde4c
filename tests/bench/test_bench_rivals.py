"""What is measured against computes the same thing, at the same size."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from reverie.bench import rivals
from reverie.bench.ops import make_case
from reverie.bench.rivals import fla_rule, transformers_hybrids, transformers_rule
from reverie.errors import UserError
from reverie.model import HybridConfig, new_model
from reverie.ops import gated_delta_rule

pytestmark = pytest.mark.slow

CONFIG = HybridConfig(
    vocab_size=16,
    width=32,
    layers=("attn", "gdn", "attn", "gdn"),
    mlp_width=88,
    num_heads=2,
    fast_heads=2,
    key_size=8,
    value_size=16,
)


@pytest.fixture(scope="module")
def hybrids() -> dict[str, nn.Module]:
    return transformers_hybrids(CONFIG, 0)


@pytest.mark.parametrize("name", ["transformers", "fla chunk"])
def test_rules_are_the_specification(name: str) -> None:
    rule = transformers_rule() if name == "transformers" else fla_rule()
    if rule is None:
        pytest.skip("fla-core is not installed")
    inputs = [x[:1, :70, :2].detach() for x in make_case(70).inputs]  # more than a chunk, and no multiple of one
    o, state = rule(*inputs)
    wanted_o, wanted_state = gated_delta_rule(*inputs, backend="reference")
    assert wanted_o is not None
    assert torch.allclose(o, wanted_o, atol=1e-6)
    assert torch.allclose(state, wanted_state, atol=1e-6)


def test_hybrids_have_our_depth_pattern_and_size(hybrids: dict[str, Any]) -> None:
    ours = sum(p.numel() for p in new_model(CONFIG, 0).parameters())
    for model in hybrids.values():
        assert model.config.layer_types == ["full_attention", "linear_attention"] * 2
        matrices = [(name, p) for name, p in model.named_parameters() if "mlp" in name]
        assert len(matrices) == 3 * 4
        assert {tuple(sorted(p.shape)) for _, p in matrices} == {(32, 88)}
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(ours, rel=0.1)
        assert model.training


def test_making_them_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.randn(2)
    torch.manual_seed(3)
    models = [transformers_hybrids(CONFIG, 0) for _ in range(2)]
    assert torch.equal(torch.randn(2), wanted)
    for one, other in zip(models[0].values(), models[1].values(), strict=True):
        assert all(torch.equal(p, o) for p, o in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("stand_in", "found"), [(None, "there is no transformers"), ("4.57.1", "version 4.57.1 is installed")]
)
def test_without_transformers_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, stand_in: str | None, found: str
) -> None:
    library = None if stand_in is None else type(sys)("transformers")
    if library is not None:
        library.__dict__["__version__"] = stand_in
    monkeypatch.setitem(sys.modules, "transformers", library)
    calls: list[Callable[[], object]] = [transformers_rule, lambda: transformers_hybrids(CONFIG, 0)]
    for call in calls:
        with pytest.raises(UserError) as caught:
            call()
        assert str(caught.value) == (
            f"this benchmark measures against transformers 5.23 or newer, and {found}: pip install 'reverie[bench]'"
        )


def test_hybrids_run_on_plain_torch_whatever_kernels_there_are(tmp_path: Path) -> None:
    """In a process where fla's can be imported, and would fail."""
    (tmp_path / "fla").mkdir()
    (tmp_path / "fla" / "__init__.py").write_text(
        "def chunk_gated_delta_rule(q, k, v, g, beta, **rest): raise RuntimeError('0 active drivers')"
    )
    script = (
        "import sys, torch\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from reverie.bench.rivals import transformers_hybrids\n"
        "from reverie.model import HybridConfig\n"
        f"models = transformers_hybrids(HybridConfig(**{CONFIG.model_dump()!r}), 0)\n"
        "for model in models.values(): model(input_ids=torch.zeros(1, 5, dtype=torch.long))\n"
        "import fla; fla.chunk_gated_delta_rule\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_without_fla_there_is_no_rule_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals.importlib.util, "find_spec", lambda name: None)
    assert fla_rule() is None
