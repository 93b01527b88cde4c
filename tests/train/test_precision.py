"""Low precision where it is fast."""

import pytest
import torch

from reverie.train.precision import has_fast_bfloat16


@pytest.mark.parametrize("amx", [True, False])
def test_bfloat16_is_fast_with_amx_and_on_gpus(monkeypatch: pytest.MonkeyPatch, amx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert has_fast_bfloat16("cpu") is amx
    assert has_fast_bfloat16("cuda")


def test_a_torch_that_does_not_say_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert not has_fast_bfloat16("cpu")
