"""Which kernels an engine calls, and what is refused at load, for each recorded release of torch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn

from rerank_service.config import Dtype
from rerank_service.engine import load_engine
from rerank_service.engine.device import kernels
from rerank_service.engine.device.precision import Precision
from rerank_service.errors import CheckpointError
from tests.gpu_less import operators
from tests.gpu_less.engines import Run, software_gpu
from tests.gpu_less.releases import TORCH_RELEASES, varlen_attn_of
from tests.models import local_model

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
HALF, FLOAT8 = Precision(torch.bfloat16), Precision(torch.bfloat16, Dtype.FLOAT8)


def test_the_installed_torch_is_recorded() -> None:
    installed = torch.__version__.split("+")[0]
    minor = installed.rpartition(".")[0]
    assert minor in {release.rpartition(".")[0] for release in TORCH_RELEASES}, f"record torch {installed}"
    assert kernels.signature_of(varlen_attn) in {kernels.signature_of(varlen_attn_of(r)) for r in TORCH_RELEASES}


@pytest.mark.parametrize("release", TORCH_RELEASES)
def test_every_recorded_release_is_supported(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    with software_gpu(monkeypatch, Run("bert", release=release)):
        kernels.refuse_unknown_kernels(GPU, FLOAT8, is_packed=True)
    assert TORCH_RELEASES[release]["_scaled_mm"] == str(torch.ops.aten._scaled_mm.default._schema)


def test_torch_2_11_gets_only_its_own_arguments() -> None:
    assert set(kernels.attention_kernel(varlen_attn_of("2.11.0")).keywords) == set()  # type: ignore[attr-defined]
    later = kernels.attention_kernel(varlen_attn_of("2.13.0")).keywords  # type: ignore[attr-defined]
    assert later == {"enable_gqa": True, "num_splits": 1}


def test_an_unknown_signature_is_refused_on_a_gpu_only(
    monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, Path]
) -> None:
    def varlen_of_the_future(query: Any, key: Any, value: Any, starts: Any, longest: int, *, sink: Any = None) -> Any:
        raise AssertionError

    def load(name: str, **settings: str) -> None:
        load_engine(local_model(checkpoints[name], engine=settings))

    with software_gpu(monkeypatch, Run("bert")), monkeypatch.context() as patch:
        patch.setattr(kernels, "varlen_attn", varlen_of_the_future)
        with pytest.raises(CheckpointError, match=r"varlen_attn that was not tested: \(query, .* torch 2\.11 or"):
            load("bert", device="cuda:0", dtype="bfloat16")
        load("modernbert", device="cuda:0", dtype="bfloat16")
        load("bert", device="cuda:0", dtype="float32")
    monkeypatch.setattr(kernels, "varlen_attn", varlen_of_the_future)
    load("bert", dtype="bfloat16")


def not_supported(*_: Any, **__: Any) -> torch.Tensor:
    raise RuntimeError("Rowwise scaling is not currently supported on your device")


def ignores_row_scales(rows: torch.Tensor, weight: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return (rows.float() @ weight.float()).to(torch.bfloat16)


@pytest.mark.parametrize("product", [not_supported, ignores_row_scales])
def test_float8_is_refused_where_the_gpu_lacks_the_product(
    monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, Path], product: Any
) -> None:
    """Compute capability 12.0 is above 8.9 and lacks it."""
    monkeypatch.setitem(operators.OPERATORS, torch.ops.aten._scaled_mm.default, product)
    with (
        software_gpu(monkeypatch, Run("bert"), capability=(12, 0)),
        pytest.raises(CheckpointError, match=r"NVIDIA .* cannot multiply 8-bit floats .* set dtype: bfloat16"),
    ):
        load_engine(local_model(checkpoints["bert"], engine={"device": "cuda:0", "dtype": "float8"}))


def test_exhausted_memory_is_no_missing_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    with software_gpu(monkeypatch, Run("bert")) as gpu:
        gpu.runtime.memory.capacity = 0
        with pytest.raises(torch.OutOfMemoryError):
            kernels.refuse_unknown_kernels(GPU, FLOAT8, is_packed=False)


def test_a_cpu_probes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "multiply_float8", not_supported)
    kernels.refuse_unknown_kernels(CPU, FLOAT8, is_packed=True)
    with software_gpu(monkeypatch, Run("bert")), pytest.raises(CheckpointError, match="cannot multiply 8-bit floats"):
        kernels.refuse_unknown_kernels(GPU, FLOAT8, is_packed=True)
