"""The checks of a machine: what is right passes, what is wrong is found, what is not there is said in one sentence."""

from __future__ import annotations

from typing import Any

import check_kernels
import check_models
import check_rules
import pytest
import torch
from found import Found
from tiny_recipe import tiny_recipe
from torch import Tensor

from reverie.errors import UserError
from reverie.ops import chunked, dispatch

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SIZES = (check_rules.Sizes("tiny", 1, 8, 8, (6, 66)),)


def rules(monkeypatch: pytest.MonkeyPatch, backend: Any) -> list[Any]:
    """What the check finds of a backend in the place of "chunked"."""
    monkeypatch.setattr(check_rules, "BACKENDS", ("auto", "chunked", "reference"))
    monkeypatch.setitem(dispatch._RECURRENCES, "chunked", backend)
    return list(check_rules.check_rules(CPU, SIZES, torch.Generator().manual_seed(0)))


def broken(change: str) -> Any:
    """The backend "chunked" with a mistake."""

    def recurrence(q: Any, k: Tensor, v: Tensor, g: Any, beta: Tensor, **options: Any) -> Any:
        if change == "a token is lost" and k.shape[1] > 64:
            beta = torch.cat([beta[:, :64], 0 * beta[:, 64:65], beta[:, 65:]], 1)
        if change == "decay taken twice" and g is not None:
            g = 2 * g
        if change == "the first state is forgotten":
            options["initial_state"] = None
        if change == "no gradient of v":
            v = v.detach()
        if change == "crash":
            raise RuntimeError("ptxas died")
        o, S = chunked.recurrence(q, k, v, g, beta, **options)
        if change == "not a number":
            S = torch.where(S.max() == S, float("nan"), S)
        return o, S

    return recurrence


def test_a_right_backend_passes_in_both_formats(monkeypatch: pytest.MonkeyPatch):
    right = rules(monkeypatch, chunked.recurrence)
    assert len(right) == 6
    assert not any(one.wrong for one in right)
    assert 0 < right[1].error < right[1].allowed
    assert "bfloat16" in right[1].name


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ("a token is lost", 6),
        ("decay taken twice", 4),  # the delta rule has none
        ("the first state is forgotten", 6),
        ("no gradient of v", 6),
        ("not a number", 6),
        ("crash", 6),
    ],
)
def test_a_mistake_is_found(change: str, wrong: int, monkeypatch: pytest.MonkeyPatch):
    results = rules(monkeypatch, broken(change))
    assert sum(one.wrong for one in results) == wrong
    assert str(next(one for one in results if one.wrong)).startswith("WRONG")
    assert change != "crash" or "RuntimeError: ptxas died" in str(results[0])


def test_a_backend_that_is_missing_is_left_out_once_with_the_reason(monkeypatch: pytest.MonkeyPatch):
    def missing(*_: Any, **__: Any) -> None:
        raise UserError("backend 'chunked' needs something")

    (one,) = rules(monkeypatch, missing)
    assert not one.wrong
    assert str(one) == "left out  chunked: backend 'chunked' needs something"


def test_whole_models_eager_and_compiled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check_models, "BACKENDS", ("chunked", "fla"))
    recipe = tiny_recipe(model={"layers": ["attn", "gdn"]}, train={"batch_size": 4})
    with torch.compiler.set_stance("force_eager"):  # to compile is tested in tests/train/test_compiled.py
        *ways, missing = check_models.check_ways(recipe, CPU)
    names = ["float32", "float32, compiled", "bfloat16", "bfloat16, compiled"]
    assert [one.name.partition("chunked, ")[2] for one in ways] == names
    assert not any(one.wrong for one in ways)
    assert (ways[2].error or 0) > 10 * (ways[0].error or 0)  # something was rounded
    assert "fla" in missing.name
    assert missing.error is None


@pytest.mark.parametrize("name", ["loss", "a"])
def test_compared_finds_the_part_that_is_off_and_what_only_one_side_has(name: str):
    wanted = {"loss": torch.tensor(2.0), "a": torch.ones(4), "b": torch.ones(3)}
    assert not check_models.compared("", wanted, wanted, 1e-2).wrong
    off = check_models.compared("", {**wanted, name: 1.2 * wanted[name]}, wanted, 1e-2)
    assert off.wrong
    assert off.where == ("loss" if name == "loss" else "the gradients")
    assert check_models.compared("", {**wanted, name: float("nan") * wanted[name]}, wanted, 1e-2).wrong
    less = {key: x for key, x in wanted.items() if key != name}
    assert check_models.compared("", less, wanted, 1e-2).where == f"{name}, which only one of the two has"


def test_models_of_transformers_in_bfloat16(monkeypatch: pytest.MonkeyPatch):
    """And a pass that is left out is found."""
    pytest.importorskip("accelerate")
    assert not any(one.wrong for one in check_models.check_pretrained(CPU, 128, 2, 16))
    read = check_models._read

    def once(folder: str, config: Any, tokens: Tensor, **options: Any) -> Any:
        passes = 1 if options["dtype"] == torch.bfloat16 else 2
        return read(folder, config.model_copy(update={"num_sleep_passes": passes}), tokens, **options)

    monkeypatch.setattr(check_models, "_read", once)
    assert all(one.wrong for one in check_models.check_pretrained(CPU, 128, 2, 16))


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert check_kernels.main(["--device", "cpu", "--only", "graph"]) == 0
    assert "left out  CUDA graphs: there are none on cpu" in capsys.readouterr().out
    monkeypatch.setattr(check_kernels, "check", lambda *_: iter([Found("one", 0.5, 0.1), Found("two", 0.0)]))
    assert check_kernels.main(["--device", "cpu"]) == 1
    assert capsys.readouterr().out.endswith("1 right, 1 wrong, 0 left out\n")
    assert check_kernels.main(["--only", "everything"]) == 2
    assert capsys.readouterr().err == "error: --only takes rules, models, graph, pretrained, got 'everything'\n"
