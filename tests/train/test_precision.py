"""Low precision where it is fast."""

import pytest
import torch

from reverie.train.precision import has_fast_bfloat16

INSTRUCTIONS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


@pytest.mark.parametrize("has", [(True, False), (False, True), (False, False)])
def test_bfloat16_is_fast_where_a_processor_has_instructions_and_on_gpus(
    monkeypatch: pytest.MonkeyPatch, has: tuple[bool, bool]
) -> None:
    for name, supported in zip(INSTRUCTIONS, has, strict=True):
        monkeypatch.setattr(torch.cpu, name, lambda supported=supported: supported, raising=False)
    assert has_fast_bfloat16("cpu") is any(has)
    assert has_fast_bfloat16("cuda")


def test_a_torch_that_does_not_say_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in INSTRUCTIONS:
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not has_fast_bfloat16("cpu")
