"""Attention of one sequence on a CPU as two matrix products, whose weights stay in the CPU's caches.

Powers of two are computed without subtracting each row's maximum first, which takes a third (float32) or half
(bfloat16) of softmax's time. Rows whose sum then leaves the accurate range are computed again, with softmax.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name

__all__ = ["attend_by_products", "products_are_faster", "weights_memory"]

_LONGEST_BATCHED = 256
"""Length of the longest sequence for which MKL's products of all heads at once beat torch's fused kernel in float32."""
_FEWEST_OPERATIONS = 3 * 2**19
"""Number of operations of a head's product, by thread, from which oneDNN's single products beat MKL's and the fused
kernel in float32. oneDNN takes 10 us for a call, but MKL uses no AVX-512 on AMD processors (docs/decisions/0002)."""
_LONGEST_CAUSAL = 512
"""Length of the longest sequence for which products beat the fused kernel in causal attention in bfloat16. The fused
kernel skips later tokens; the products do not. They are 18 to 36% faster up to this length, and never in float32 (16
and 32 heads of size 128 and 64 on the same machine, one thread)."""
_WEIGHTS_BYTES = 2 * 1024**2
"""Size of the weights that are computed at once, except by MKL, whose results depend on the number of heads."""
_LOG2_E = math.log2(math.e)
_SAFE_SUMS = (2.0**-100, 2.0**100)
"""Range of a row's sum in which powers that were computed without subtracting the row's maximum are accurate: float32
and bfloat16 reach from 2^-126 to 2^128. A head of all-MiniLM-L6-v2 reaches 2^68."""


def products_are_faster(query: torch.Tensor, sees_later: bool) -> bool:
    """Whether `attend_by_products` beats torch's fused kernel for queries `[H, L, D]`."""
    if query.dtype == torch.bfloat16:
        return sees_later or query.size(1) <= _LONGEST_CAUSAL
    return query.dtype == torch.float32 and sees_later and (query.size(1) <= _LONGEST_BATCHED or _is_large(query))


def weights_memory(like: torch.Tensor, num_heads: int, longest: int) -> torch.Tensor:
    """Memory for `attend_by_products` of sequences of at most `longest` tokens, of the type of `like`. One allocation
    serves all sequences: new memory for each one would cost as much as the products."""
    if like.dtype == torch.float32:
        return like.new_empty(num_heads * min(longest, _LONGEST_BATCHED) ** 2)
    return like.new_empty(min(num_heads * longest**2, max(longest, _WEIGHTS_BYTES // like.element_size())))


def attend_by_products(
    q: torch.Tensor,  # [Hq, L, D]
    k: torch.Tensor,  # [Hkv, L, D]
    v: torch.Tensor,  # [Hkv, L, D]
    scaling: float | None,
    sees_later: bool,
    memory: torch.Tensor,
    out: torch.Tensor,  # [Hq, L, D]
) -> None:
    """Writes the attention of one sequence into `out`; `memory` comes from `weights_memory`."""
    alpha, length = q.size(-1) ** -0.5 if scaling is None else scaling, q.size(1)
    k = k.contiguous()  # oneDNN would copy other keys transposed, which is slow
    if len(q) != len(k):  # grouped-query attention: several query heads share a key head
        k, v = k.repeat_interleave(len(q) // len(k), 0), v.repeat_interleave(len(q) // len(v), 0)
    if sees_later and _is_large(q):
        _attend_by_head(q, k, v, alpha, out)
        return
    is_later = None if sees_later else torch.ones(length, length, dtype=torch.bool).triu(1)
    for heads, rows in _blocks(len(q), length, memory.numel()):
        queries, keys, values, result = q[heads, rows], k[heads], v[heads], out[heads, rows]
        shape = (len(queries), queries.size(1), length)
        weights = memory[: math.prod(shape)].view(shape)
        if sees_later:  # rounds a little differently, which decoders in float8 amplify
            _multiply_into(weights, queries, keys, alpha * _LOG2_E, None)
            sums = weights.exp2_().sum(-1, keepdim=True, dtype=torch.float32)
            if _are_accurate(sums):
                torch.div(torch.bmm(weights, values), sums, out=result)
                continue
        _multiply_into(weights, queries, keys, alpha, is_later)
        result.copy_(torch.bmm(torch.softmax(weights, -1, out=weights), values))


def _is_large(q: torch.Tensor) -> bool:
    """Whether a head's products in float32 are worth calls of their own. Depends only on the sequence, not on its
    batch."""
    num_operations = q.size(1) ** 2 * q.size(2)
    return q.dtype == torch.float32 and num_operations >= _FEWEST_OPERATIONS * torch.get_num_threads()


def _attend_by_head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, alpha: float, out: torch.Tensor) -> None:
    """Attention in float32 as products of oneDNN, which multiplies one pair of matrices in a call."""
    scaled, values = (q * (alpha * _LOG2_E)).contiguous(), v.transpose(1, 2).contiguous()
    num_values = min(q.size(1) ** 2, _WEIGHTS_BYTES // q.element_size())  # one head at most
    for heads, rows in _blocks(len(q), q.size(1), num_values):
        head = heads.start
        weights = _product(scaled[head, rows], k[head]).exp2_()
        sums = weights.sum(-1, keepdim=True)
        if _are_accurate(sums):
            torch.div(_product(weights, values[head]), sums, out=out[head, rows])
        else:
            out[heads, rows] = F.scaled_dot_product_attention(q[heads, rows], k[heads], v[heads], scale=alpha)


def _blocks(num_heads: int, length: int, num_values: int) -> Iterator[tuple[slice, slice]]:
    """Splits weights `[H, L, L]` into blocks of at most `num_values`, by heads. If one head is too large, it is split
    by rows."""
    heads_at_once = max(1, min(num_heads, num_values // length**2))
    rows_at_once = max(1, min(length, num_values // length))
    for head in range(0, num_heads, heads_at_once):
        for row in range(0, length, rows_at_once):
            yield slice(head, min(head + heads_at_once, num_heads)), slice(row, min(row + rows_at_once, length))


def _are_accurate(sums: torch.Tensor) -> bool:
    of_rows = sums.numpy()  # a tensor's own minimum would look as if the host waited for a device
    return bool(_SAFE_SUMS[0] < of_rows.min() and of_rows.max() < _SAFE_SUMS[1])


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a @ b.T` by oneDNN, also in float32."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return product


def _multiply_into(
    scores: torch.Tensor, q: torch.Tensor, k: torch.Tensor, alpha: float, is_later: torch.Tensor | None
) -> None:
    torch.baddbmm(q.new_zeros(()), q, k.transpose(1, 2), beta=0, alpha=alpha, out=scores)
    if is_later is not None:
        scores.masked_fill_(is_later, -torch.inf)
