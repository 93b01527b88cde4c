"""The check of backends: it takes right ones, and sees each kind of mistake that a kernel can make."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reverie.ops import chunked, dispatch
from reverie.recipe import load_recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))
kernels: Any = importlib.import_module("kernels")
profile: Any = importlib.import_module("kernel_profile")

CPU = torch.device("cpu")
PLANS = Path(kernels.__file__).parent / "plans"
SIZES = kernels.Sizes("gated_delta", 2, 6, 10, (8, 7, 3))
Change = Callable[[Any], Any]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], str]:
    def make(recurrence: Callable[..., Any]) -> str:
        monkeypatch.setattr(dispatch, "BACKENDS", (*dispatch.BACKENDS, "tried"))
        monkeypatch.setitem(dispatch._RECURRENCES, "tried", recurrence)
        return "tried"

    return make


@pytest.mark.parametrize("rule", ["gated_delta", "delta", "hebbian"])
def test_a_right_backend_passes(rule: str) -> None:
    found = kernels.check_backend("chunked", [SIZES._replace(rule=rule)], CPU)
    assert found["passed"], found["why"]
    assert len(found["rows"]) == len(kernels.cases_of(SIZES))


def test_inputs_are_drawn_anew() -> None:
    first, second = (kernels.check_backend("chunked", [SIZES], CPU) for _ in range(2))
    assert first["seed"] != second["seed"]
    assert first["rows"] != second["rows"]


def no_state(o: Any, S: Any) -> Any:
    return o, S.detach() + 0 * S


def nan(o: Any, S: Any) -> Any:
    return (None if o is None else o * float("nan")), S


def last_token(o: Any, S: Any) -> Any:
    return (None if o is None else torch.cat([o[:, :-1], 0 * o[:, -1:]], dim=1)), S


def scaled(o: Any, S: Any) -> Any:
    return o, 1.2 * S


@pytest.mark.parametrize("spoil", [no_state, nan, last_token, scaled])
def test_a_wrong_result_or_gradient_is_seen(backend: Callable[..., str], spoil: Callable[..., Any]) -> None:
    name = backend(lambda *arguments, **options: spoil(*chunked.recurrence(*arguments, **options)))
    found = kernels.check_backend(name, [SIZES], CPU)
    assert not found["passed"]
    assert "is off by" in found["why"]


@pytest.mark.parametrize("what", ["odd lengths", "no state", "no output", "strong decay", "bfloat16"])
def test_a_mistake_in_one_case_is_enough(backend: Callable[..., str], what: str) -> None:
    def recurrence(q: Any, k: Any, v: Any, g: Any, beta: Any, **options: Any) -> Any:
        o, S = chunked.recurrence(q, k, v, g, beta, **options)
        struck = {
            "odd lengths": k.shape[1] == 7,
            "no state": options["initial_state"] is None,
            "no output": q is None,
            "strong decay": bool((g < -19).any()),
            "bfloat16": v.dtype == torch.bfloat16,
        }
        return o, S + struck[what]

    assert not kernels.check_backend(backend(recurrence), [SIZES], CPU)["passed"]


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_specification_of_every_plan_takes_little(path: Path) -> None:
    """A few GB, and some thousands of small products, whatever the windows of its recipes."""
    loaded = importlib.import_module("plan").load_plan(path)
    for group in loaded.plan.groups:
        for recipe in loaded.variants(group).values():
            sizes = kernels.sizes_of(recipe)
            assert max(sizes.lengths) <= kernels.LONGEST == 160
            assert 8 * kernels.reference_numbers(sizes) < 4e9
            assert len(kernels.cases_of(sizes)) <= 24


def test_a_backend_that_is_not_there_says_so() -> None:
    found = kernels.check_backend("fla", [SIZES], CPU)
    assert not found["passed"]
    assert found["why"].startswith("backend 'fla' needs")


def test_a_backend_that_crashes_is_left_out(backend: Callable[..., str]) -> None:
    def recurrence(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("first line\nout of resource: shared memory")

    why = kernels.check_backend(backend(recurrence), [SIZES], CPU)["why"]
    assert why.endswith("RuntimeError: out of resource: shared memory")


def test_lengths_are_those_of_the_recipe() -> None:
    assert kernels.sizes_of(load_recipe("rule110/paper-t32")).lengths == (24, 23, 4)
    sizes = kernels.sizes_of(load_recipe("depo/paper"))
    assert (sizes.H, sizes.K, sizes.V, sizes.lengths) == (4, 96, 256, (75, 73, 60))


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopB_TNT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn", "matrix products"),
        ("chunk_gated_delta_rule_fwd_kernel_h_blockdim64", "fast-weight kernels"),
        ("triton_poi_fused_add_mul_3", "fused by compile"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::sigmoid>", "other elementwise"),
        ("void pytorch_flash::flash_fwd_kernel<>", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, cutlass::bfloat16_t>>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7x128x128", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::Params)", "attention"),
        ("triton_tem_fused_flex_attention_backward_3", "attention"),
        ("triton_tem_fused_addmm_mul_2", "matrix products"),
        ("triton_red_fused__to_copy_embedding_mm_sum_1", "fused by compile"),
        ("triton_per_fused_chunk_index_put_gated_4", "fused by compile"),
        ("triton_poi_fused_cat_fill_flash_zeros_0", "fused by compile"),
        ("forward", "fast-weight kernels"),
        ("backward", "fast-weight kernels"),
        ("reverie::rule_on_window_backward", "fast-weight kernels"),
        ("recompute_w_u_fwd_kernel", "fast-weight kernels"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>", "matrix products"),
        ("void gemv2T_kernel_val<int, int, float, float>", "matrix products"),
        ("aten::bmm", "matrix products"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimiser"),
        ("void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>", "copies"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy_contig<>", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>", "copies"),
        (
            "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps>>",
            "other elementwise",
        ),
        ("void at::native::(anonymous namespace)::GammaBetaBackwardCUDAKernel", "other elementwise"),
    ],
)
def test_kernels_are_told_apart_by_name(kernel: str, kind: str) -> None:
    assert profile.kind_of(kernel) == kind
