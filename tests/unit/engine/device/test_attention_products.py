from collections.abc import Iterator

import pytest
import torch

from rerank_service.engine.device.attention_products import attend_by_products, products_are_faster, weights_memory


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(("length", "head_size"), [(1, 32), (130, 128), (256, 8), (300, 32), (725, 32), (1500, 64)])
@pytest.mark.usefixtures("threads")
def test_products_are_attention(length: int, head_size: int, kv_heads: int, dtype: torch.dtype) -> None:
    """By length and size: all heads at once, one head at once, and parts of a head."""
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(heads, length, head_size).to(dtype) for heads in (4, kv_heads, kv_heads))
    longer = torch.full((length + 1, 4, head_size), torch.nan, dtype=dtype)

    memory = weights_memory(queries, 4, length + 7)
    attend_by_products(queries, keys, values, 0.2, True, memory, longer[:length].transpose(0, 1))

    scores = queries.double() @ keys.double().repeat_interleave(4 // kv_heads, 0).mT * 0.2
    expected = scores.softmax(-1) @ values.double().repeat_interleave(4 // kv_heads, 0)
    tolerance = 1e-5 if dtype is torch.float32 else 0.03
    torch.testing.assert_close(longer[:length].transpose(0, 1).double(), expected, atol=tolerance, rtol=tolerance)
    assert longer[length].isnan().all()


@pytest.mark.parametrize("shift", [-300.0, -70.0, 70.0, 300.0])
def test_extreme_scores_of_a_long_sequence_neither_overflow_nor_vanish(shift: float) -> None:
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(2, 725, 32) for _ in range(3))
    queries[..., 0], keys[..., 0] = 0.0, 1.0
    plain, moved = torch.empty(2, 725, 32), torch.empty(2, 725, 32)
    memory = weights_memory(queries, 2, 725)
    assert products_are_faster(queries, sees_later=True)

    attend_by_products(queries, keys, values, 1.0, True, memory, plain)
    queries[1, 700:, 0] = shift  # the last rows of the second head
    attend_by_products(queries, keys, values, 1.0, True, memory, moved)

    torch.testing.assert_close(moved, plain, atol=1e-4, rtol=1e-4)
    assert torch.equal(moved[0], plain[0])


def test_weights_take_little_memory(threads: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        memory = weights_memory(torch.empty(0, dtype=dtype), 16, 8192)
        assert memory.numel() * memory.element_size() <= 4 * 1024**2
