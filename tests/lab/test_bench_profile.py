"""`deltahalt bench --profile`: where the time of a prefill goes."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from deltahalt.lab.bench import profile
from deltahalt.lab.bench.profile import ATTENTION, MATRIX, ProfileRow, cells
from deltahalt.lab.rows.base import read_rows

BENCH = ["bench", "--shape", "4,128,256,4,2,32", "--policies", "dense dash:start=0", "--lengths", "600", "--profile"]


def test_parts_add_up_to_the_prefill(deltahalt: Callable[..., int], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert deltahalt(*BENCH, "--repeats", "2", "--rows", file) == 0
    full, dense, dash = read_rows(file, ProfileRow)
    assert (full.policy, dense.policy, dash.policy) == ("full model", "dense", "dash:start=0")
    for row in (full, dense, dash):
        assert row.matrix + row.attention_kernels + row.other + row.waiting == pytest.approx(row.prefill)
        assert min(row.matrix, row.attention_kernels, row.other) > 0
    assert dash.flops < full.flops == dense.flops
    assert len(cells([full, dash])["waiting"]) == 2


def test_what_does_not_fit_has_no_row(
    deltahalt: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = profile.fitting

    def limited(model: Any, context: Any, *others: Any) -> Any:
        return None if context is nullcontext else run(model, context, *others)

    monkeypatch.setattr(profile, "fitting", limited)
    assert deltahalt(*BENCH, "--repeats", "1", "--rows", tmp_path / "rows.jsonl") == 0
    assert [row.policy for row in read_rows(tmp_path / "rows.jsonl", ProfileRow)] == ["dense", "dash:start=0"]


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_tst_192x192_64x4_1x2_h_bz_coopB_TNT", MATRIX),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", MATRIX),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_tn_align8>", MATRIX),
        ("aten::addmm", MATRIX),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3", ATTENTION),
        ("kernel_cutlass_kernel_flash_attncuteflash_fwd_sm90FlashAttentionForwardSm90_object", ATTENTION),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64>>", ATTENTION),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>", None),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel", None),
        ("_triton_rope", None),
    ],
)
def test_kernels_by_their_names(kernel: str, kind: object) -> None:
    found = ATTENTION if ATTENTION.search(kernel) else MATRIX if MATRIX.search(kernel) else None
    assert found is kind
