"""Products of bytes are exact at the extremes, on this processor and with its instructions masked to AVX2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rerank_service.engine.device.precision import multiplies_int8
from rerank_service.engine.linear.int8 import AROUND_ZERO, LARGEST, ByteProduct

_ROOT = Path(__file__).parents[4]
_AVX2_ONLY = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
_PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]

needs_int8 = pytest.mark.skipif(not multiplies_int8(), reason="this processor does not multiply 8-bit integers")


@needs_int8
@pytest.mark.parametrize("num_inputs", [8, 96, 97, 384])
def test_products_are_exact_at_the_extremes(num_inputs: int) -> None:
    rng = torch.Generator().manual_seed(num_inputs)
    weight = torch.randn(32, num_inputs, generator=rng)
    weight[:8] = weight[:8].sign()  # all at the limit, with equal and with opposite neighbours
    weight[8] = 1.0
    weight[9, 0] = 50.0  # one outlier
    weight[10] = 0.0
    inputs = 255 * torch.randint(0, 2, (40, num_inputs), generator=rng, dtype=torch.uint8)
    inputs[0] = 255
    product = ByteProduct(weight, None, AROUND_ZERO, torch.float32)

    outputs = product(inputs)

    scales = product._scales.double()[:, None]
    quantised = (weight.double() / scales).round()
    exact = (inputs.double() - AROUND_ZERO.zero_point) @ (quantised * scales).T
    torch.testing.assert_close(outputs.double(), exact, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(quantised * scales, weight.double(), rtol=0, atol=float(scales.max()))


@pytest.mark.skipif(os.environ.get("ONEDNN_MAX_CPU_ISA") != "AVX2", reason="runs with the instructions masked")
def test_the_mask_leaves_an_instruction_that_overflows() -> None:
    size = 64
    packed = torch.ops.onednn.qlinear_prepack(torch.full((size, size), LARGEST, dtype=torch.int8), [size, size])

    product = torch.ops.onednn.qlinear_pointwise(
        *(torch.full((size, size), 255, dtype=torch.uint8), 1.0, 0),
        *(packed, torch.ones(size), torch.zeros(size, dtype=torch.int32), None),
        *(1.0, 0, torch.float32, "none", [], ""),
    )

    assert (product != 255 * LARGEST * size).any()


@needs_int8
@pytest.mark.parametrize("masks", [_AVX2_ONLY, {"ONEDNN_MAX_CPU_ISA": "AVX2"}], ids=["both", "oneDNN's"])
def test_with_avx2_alone_products_are_exact_and_rows_are_independent(masks: dict[str, str]) -> None:
    """Runs the tests of the 8-bit layers, and a layer in every allowed precision, with the instructions masked."""
    if "ONEDNN_MAX_CPU_ISA" in os.environ:
        pytest.skip("already masked")
    files = ("test_int8.py", "test_calibrated_int8.py", "test_speed.py")
    chosen = "extremes or overflows or clipped or (rounding_errors and states0) or every_allowed_precision"

    command = [*_PYTEST, "-k", chosen, *(f"tests/unit/engine/linear/{file}" for file in files)]
    result = subprocess.run(command, cwd=_ROOT, env=os.environ | masks, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout[-3000:]
    assert "skipped" not in result.stdout.splitlines()[-1]
