import re
from pathlib import Path

import pytest
import torch

from rerank_service.config import Dtype
from rerank_service.engine.device import precision
from rerank_service.engine.device.precision import (
    INSTRUCTION_SETS,
    Precision,
    allowed_precisions,
    computes_bfloat16,
    instruction_set,
    multiplies_int8,
)
from rerank_service.errors import CheckpointError

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FLOAT32, BFLOAT16, FLOAT16 = Precision(torch.float32), Precision(torch.bfloat16), Precision(torch.float16)


def names(dtype: Dtype, device: torch.device = CPU) -> list[str]:
    return list(map(str, allowed_precisions(dtype, device)))


def test_a_configured_float_type_is_the_only_one() -> None:
    for dtype, expected in ((Dtype.FLOAT32, FLOAT32), (Dtype.BFLOAT16, BFLOAT16), (Dtype.FLOAT16, FLOAT16)):
        assert allowed_precisions(dtype, CPU) == (expected,)
    assert all(one.quantised is Dtype.FLOAT8 for one in allowed_precisions(Dtype.FLOAT8, CPU))


@pytest.mark.parametrize(
    ("name", "auto", "quantised"),
    [
        ("AMX", ["float32", "bfloat16"], ["int8 with float32 states", "int8 with bfloat16 states"]),
        ("AVX512-BF16", ["float32", "bfloat16"], ["int8 with float32 states", "int8 with bfloat16 states"]),
        ("AVX512-VNNI", ["float32"], ["int8 with float32 states"]),
        ("AVX-512", ["float32"], ["int8 with float32 states"]),
        ("AVX-VNNI", ["float32"], ["int8 with float32 states"]),
        ("AVX2", ["float32"], ["int8 with float32 states"]),
        ("ARM with i8mm and bf16", ["float32"], []),
        ("ARM NEON", ["float32"], []),
        ("none of these", ["float32"], []),
    ],
)
def test_what_each_instruction_set_runs(
    monkeypatch: pytest.MonkeyPatch, name: str, auto: list[str], quantised: list[str]
) -> None:
    (chosen,) = (one for one in INSTRUCTION_SETS if one.name == name)
    flags = dict.fromkeys(chosen.flags, True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: (chosen.in_use or ("DEFAULT",))[0])
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)

    assert instruction_set() is chosen
    assert names(Dtype.AUTO) == auto
    assert names(Dtype.FASTEST) == auto + quantised
    if quantised:
        assert names(Dtype.INT8) == quantised
    else:
        with pytest.raises(CheckpointError, match="needs an x86 CPU with AVX2"):
            allowed_precisions(Dtype.INT8, CPU)


@pytest.mark.parametrize(
    ("in_use", "masks", "int8", "bfloat16"),
    [
        ("AVX512", {}, True, True),
        ("AVX2", {}, True, False),
        ("DEFAULT", {}, False, False),
        ("AVX512", {"ONEDNN_MAX_CPU_ISA": "AVX2"}, True, False),
        ("AVX512", {"DNNL_MAX_CPU_ISA": "avx2_vnni"}, True, False),
        ("AVX512", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "DNNL_MAX_CPU_ISA": "AVX2"}, True, True),
        ("AVX512", {"ONEDNN_MAX_CPU_ISA": "SSE41"}, False, False),
        ("DEFAULT", {"ONEDNN_MAX_CPU_ISA": "AVX2"}, False, False),
    ],
)
def test_instructions_that_torch_or_onednn_does_not_use_do_not_count(
    monkeypatch: pytest.MonkeyPatch, in_use: str, masks: dict[str, str], int8: bool, bfloat16: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "avx_vnni": True})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: in_use)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in masks.items():
        monkeypatch.setenv(name, value)

    assert multiplies_int8() is int8
    assert computes_bfloat16() is bfloat16


def test_the_flags_are_names_that_torch_reports() -> None:
    reported = torch.cpu.get_capabilities()
    if reported["architecture"] != "x86_64":
        pytest.skip("the names of another architecture")
    x86 = [one for one in INSTRUCTION_SETS if "ARM" not in one.name]
    assert {flag for one in x86 for flag in one.flags} <= reported.keys()


@pytest.mark.parametrize(
    ("capability", "auto", "float8"),
    [((7, 5), ["float16"], None), ((8, 0), ["float16", "bfloat16"], None), ((9, 0), ["float16", "bfloat16"], True)],
)
def test_each_gpu_uses_a_type_that_it_supports(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], auto: list[str], float8: bool | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)

    assert names(Dtype.AUTO, GPU) == names(Dtype.FASTEST, GPU) == auto
    if float8:
        assert names(Dtype.FLOAT8, GPU) == ["float8 with bfloat16 states"]
    else:
        with pytest.raises(CheckpointError, match="Ada, Hopper or newer"):
            allowed_precisions(Dtype.FLOAT8, GPU)


def test_int8_is_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    with pytest.raises(CheckpointError, match="on a GPU set float8"):
        allowed_precisions(Dtype.INT8, GPU)


def test_int8_needs_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision.torch.backends.mkldnn, "is_available", lambda: False)
    assert not multiplies_int8()


def test_the_documentation_has_the_same_table() -> None:
    page = (Path(__file__).parents[4] / "docs/performance.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| (yes|no) \| (yes|no) \| (?:yes|no|masked) \|$", page, re.MULTILINE)
    documented = {
        name: (int8 == "yes", bfloat16 == "yes") for names, int8, bfloat16 in rows for name in names.split(", ")
    }

    expected = {
        one.name.partition(" ")[0]: (one.int8, one.bfloat16) for one in INSTRUCTION_SETS if one.flags or one.in_use
    }
    assert documented == expected
