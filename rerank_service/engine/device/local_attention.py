"""Attention in which a token sees only the tokens near it, as in ModernBERT's local layers, computed block by block."""

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name

__all__ = ["local_attention"]

_BLOCK = 128
"""Rows of a block. A block compares its rows with `_BLOCK` + 2 `reach` keys, so the work grows with the length of a
sequence and not with the length's square."""


def local_attention(
    query: torch.Tensor,  # [1, H, L, D]
    key: torch.Tensor,  # [1, H, K, D]: the sequence's first K tokens are seen
    value: torch.Tensor,  # [1, H, K, D]
    scaling: float | None,
    reach: int,
) -> torch.Tensor:
    """Attention of one sequence, `[1, H, L, D]`; a token sees the tokens at most `reach` places away.

    A token that sees none, as a mask token far behind the query can, gets zeros, as with torch's own masked attention.
    """
    num_seen = key.size(2)
    num_seeing = min(query.size(2), num_seen + reach)
    out = torch.zeros_like(query)
    for start in range(0, num_seeing, _BLOCK):
        end = min(start + _BLOCK, num_seeing)
        first, last = max(0, start - reach), min(num_seen, end + reach)
        rows, columns = torch.arange(start, end, device=query.device), torch.arange(first, last, device=query.device)
        is_near = (rows[:, None] - columns).abs() <= reach
        out[:, :, start:end] = F.scaled_dot_product_attention(
            query[:, :, start:end], key[:, :, first:last], value[:, :, first:last], attn_mask=is_near, scale=scaling
        )
    return out
