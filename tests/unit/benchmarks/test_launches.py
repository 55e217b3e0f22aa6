"""Bounds on what a compiled layer launches and moves, from the code that Inductor generates for an H100."""

import pytest
import torch

from benchmarks.kernels import FakeGpu, KernelLister
from benchmarks.launches import layer_cost
from rerank_service.config import Dtype


@pytest.mark.parametrize(
    ("dtype", "launches", "gigabytes"), [(Dtype.BFLOAT16, 11, 1.53), (Dtype.FLOAT8, 12, 1.43)], ids=str
)
def test_a_layer_of_the_1b_stays_within_its_bounds(dtype: Dtype, launches: int, gigabytes: float) -> None:
    """Required were 15 launches and 1.6 GB in bfloat16, and 14 launches and 1.4 GB in float8 (docs/appendix/gpu.md)."""
    cost = layer_cost("1b", dtype)

    assert cost.products == 4  # heads, attention output, gate with up, down
    assert cost.launches <= launches
    assert cost.gigabytes <= gigabytes


def test_bytes_are_those_of_the_distinct_elements_that_a_kernel_touches() -> None:
    """A sum over half of each row, then a product with the same half, in two kernels."""
    gpu, lister = FakeGpu(), KernelLister(num_tokens=1000)
    rows = gpu.empty(1000, 64, dtype=torch.float32)

    def halves(rows: torch.Tensor) -> torch.Tensor:
        return rows[:, :32] * rows[:, :32].exp()

    torch._dynamo.reset()
    with gpu.active(), torch.inference_mode():
        torch.compile(halves, backend=lister, dynamic=True)(rows)
    torch._dynamo.reset()

    ((kernel,),) = lister.graphs
    assert kernel.num_bytes == 2 * 1000 * 32 * 4  # half of the rows are read, once, and the result is written
