"""Local attention by blocks against the whole matrix with a mask."""

import pytest
import torch

from rerank_service.engine.device.local_attention import local_attention


@pytest.mark.parametrize("reach", [1, 16, 64, 300])
@pytest.mark.parametrize(("length", "num_seen"), [(5, 5), (128, 128), (129, 129), (400, 400), (400, 3), (300, 290)])
def test_blocks_equal_the_whole_matrix(length: int, num_seen: int, reach: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 3, size, 8, generator=generator) for size in (length, num_seen, num_seen))
    is_near = (torch.arange(length)[:, None] - torch.arange(num_seen)).abs() <= reach
    weights = (query @ key.transpose(2, 3) * 0.5).masked_fill(~is_near, -torch.inf).softmax(-1).nan_to_num(0)

    found = local_attention(query, key, value, 0.5, reach)

    assert torch.allclose(found, weights @ value, atol=1e-6)
    assert is_near.any(1).all() or found[:, :, ~is_near.any(1)].abs().max() == 0
