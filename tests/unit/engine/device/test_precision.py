import pytest
import torch

from rerank_service.config import Dtype
from rerank_service.engine.device import precision
from rerank_service.engine.device.precision import Precision, computes_bfloat16, multiplies_int8, resolve_precision
from rerank_service.errors import CheckpointError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_meaning_of_each_dtype() -> None:
    assert resolve_precision(Dtype.FLOAT32, CPU) == Precision(torch.float32)
    assert resolve_precision(Dtype.AUTO, CPU).states in (torch.float32, torch.bfloat16)
    assert resolve_precision(Dtype.FLOAT8, CPU).quantised is Dtype.FLOAT8
    assert str(Precision(torch.bfloat16, Dtype.INT8)) == "int8 with bfloat16 states"
    assert str(Precision(torch.float32)) == "float32"


@pytest.mark.parametrize(("has_vnni", "expected"), [(True, Dtype.INT8), (False, None)])
def test_fastest_quantises_if_the_processor_can(
    monkeypatch: pytest.MonkeyPatch, has_vnni: bool, expected: Dtype | None
) -> None:
    monkeypatch.setattr(precision, "multiplies_int8", lambda: has_vnni)
    assert resolve_precision(Dtype.FASTEST, CPU).quantised is expected


@pytest.mark.parametrize(
    ("in_use", "int8", "bfloat16"), [("AVX512", True, True), ("AVX2", True, False), ("DEFAULT", False, False)]
)
def test_instructions_that_torch_does_not_use_do_not_count(
    monkeypatch: pytest.MonkeyPatch, in_use: str, int8: bool, bfloat16: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: in_use)

    assert multiplies_int8() is int8
    assert computes_bfloat16() is bfloat16


def test_fastest_on_a_gpu_is_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert resolve_precision(Dtype.FASTEST, GPU) == Precision(torch.bfloat16)


def test_each_gpu_uses_a_type_that_it_supports(monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities = {torch.device("cuda", 0): (7, 5), torch.device("cuda", 1): (8, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)

    found = [resolve_precision(Dtype.AUTO, device).states for device in capabilities]

    assert found == [torch.float16, torch.bfloat16]


def test_int8_is_refused_on_a_gpu() -> None:
    with pytest.raises(CheckpointError, match="on a GPU set float8"):
        resolve_precision(Dtype.INT8, GPU)


def test_int8_needs_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "multiplies_int8", lambda: False)
    with pytest.raises(CheckpointError, match="needs an x86 CPU with AVX2"):
        resolve_precision(Dtype.INT8, CPU)


def test_float8_needs_a_recent_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(CheckpointError, match="Ada, Hopper or newer"):
        resolve_precision(Dtype.FLOAT8, GPU)
