"""Attention of one sequence as two matrix products."""

from collections.abc import Iterator

import pytest
import torch

from rerank_service.engine.device import forward
from rerank_service.engine.device.forward import padded_length, products_for, weights_memory


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> torch.Tensor:
    num_heads, length, head_size = queries.shape
    out = torch.full((num_heads, length + 1, head_size), torch.nan, dtype=queries.dtype)
    memory = weights_memory(queries.dtype, num_heads, length + 7)
    function = products_for(queries.dtype, length, head_size, sees_later=True)
    assert function is not None

    more = padded_length(length) - length
    padded = [torch.nn.functional.pad(heads, (0, 0, 0, more)) for heads in (queries, keys, values)]
    function(*padded, scaling, True, memory, out[:, :length])

    assert out[:, length].isnan().all()
    return out[:, :length]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("length", "head_size"), [(1, 32), (130, 128), (256, 8), (400, 32), (725, 32), (1500, 64)])
@pytest.mark.usefixtures("threads")
def test_products_are_attention(length: int, head_size: int, dtype: torch.dtype) -> None:
    """By length and size: all heads at once, one head at once, and parts of a head."""
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(4, length, head_size).to(dtype) for _ in range(3))

    attended = attend(queries, keys, values, 0.2)

    expected = (queries.double() @ keys.double().mT * 0.2).softmax(-1) @ values.double()
    tolerance = 1e-5 if dtype is torch.float32 else 0.03
    torch.testing.assert_close(attended.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("shift", [-300.0, -70.0, 70.0, 300.0])
@pytest.mark.parametrize("length", [60, 725])
def test_extreme_scores_neither_overflow_nor_vanish(length: int, shift: float) -> None:
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(2, length, 32) for _ in range(3))
    queries[..., 0], keys[..., 0] = 0.0, 1.0
    plain = attend(queries, keys, values, 1.0)

    queries[1, length - 20 :, 0] = shift  # the last rows of the second head
    moved = attend(queries, keys, values, 1.0)

    torch.testing.assert_close(moved, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_take_little_memory(dtype: torch.dtype) -> None:
    memory = weights_memory(dtype, 16, 8192)
    assert memory.numel() * memory.element_size() <= 4 * 1024**2


@pytest.mark.parametrize("length", [126, 230, 390, 725])
def test_results_do_not_depend_on_the_number_of_threads(length: int) -> None:
    queries, keys, values = (torch.randn(4, length, 32) for _ in range(3))
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(attend(queries, keys, values, 0.2))
    torch.set_num_threads(before)
    assert torch.equal(*results)


def test_without_onednn_the_fused_kernel_computes_long_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch for Apple's processors has no oneDNN."""
    monkeypatch.setattr(forward, "can_pack", lambda _: False)
    assert products_for(torch.float32, 2000, 64, sees_later=True) is None
    assert products_for(torch.float32, 126, 32, sees_later=True) is not None
