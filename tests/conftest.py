"""Annotations are checked at run time, torch has one thread, and `tiny_model` makes models whose every part matters."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
from annotations import check_annotations
from hypothesis import settings

gc.disable()  # until all tests are imported
# Before reverie is imported, and for its public functions alone: a check costs more than many a small operation.
check_annotations("reverie.ops.dispatch", "reverie.model.hybrid", "reverie.sleep.algorithm", "reverie.sleep.rollouts")
torch.set_num_threads(1)

from reverie.model import HybridConfig, HybridLM, new_model  # noqa: E402

settings.register_profile("reverie", deadline=None)  # a busy machine is no fault of a test
settings.load_profile("reverie")

TRAINING = {"bench", "benchmarks", "cli", "results", "train"}
SIZES = {
    "vocab_size": 11,
    "width": 8,
    "mlp_width": 12,
    "num_heads": 2,
    "num_kv_heads": 1,
    "fast_heads": 2,
    "key_size": 3,
    "value_size": 5,
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n 2`, tests of a file whose fixtures are its module's run in one process: the other would make them too.

    Long files first. (Not by --dist=loadgroup, which pytest-xdist 3.8 does not heed under pytest 9.2.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFixtures(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return file if shares_fixtures(file := nodeid.partition("::")[0]) else nodeid

    @functools.cache
    def shares_fixtures(file: str) -> bool:
        return 'scope="module"' in (config.rootpath / file).read_text(encoding="utf-8")

    return ByFixtures(config, log) if config.getoption("dist") == "load" else None


def pytest_collection_finish() -> None:
    """Exempts what imports have made, which lives on, from garbage collection: torch and transformers make much."""
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """In folders which train, the same calls come thousands of times: there annotations aren't checked, for speed."""
    folder = item.path.relative_to(item.config.rootpath / "tests").parts[0]
    jaxtyping.config.update("jaxtyping_disable", folder in TRAINING)


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., HybridConfig]:
    def make(*layers: str, **changes: Any) -> HybridConfig:
        return HybridConfig.model_validate({**SIZES, "layers": layers, **changes})

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_config: Callable[..., HybridConfig]) -> Callable[..., HybridLM]:
    """Of random parameters: at initialisation every block is the identity, and a test of it would see nothing."""

    def make(*layers: str, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> HybridLM:
        model = new_model(tiny_config(*layers, **changes), seed)
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5
                parameter.add_(scale * torch.randn(parameter.shape, generator=random))
        return model.to(dtype)

    return make
