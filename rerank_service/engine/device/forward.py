"""Attention over packed sequences, registered with transformers as `packed` and `packed_causal`, and over rectangular
batches, registered as `padded`.

Each sequence attends only to itself: the packing replaces the model's own mask. With `packed`, each token sees its
whole sequence; with `packed_causal`, each token sees only itself and earlier tokens. On a GPU in half precision,
attention is one variable-length kernel per layer. Elsewhere, attention is a loop over the sequences, so the logit of a
pair does not depend on the other pairs of its batch.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise, product
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rerank_service.engine.device import kernels
from rerank_service.engine.device.local_attention import local_attention
from rerank_service.engine.device.pack import PackedSequences
from rerank_service.engine.linear.packed import can_pack

__all__ = [
    "PACKED_ATTENTION",
    "PACKED_CAUSAL_ATTENTION",
    "PADDED_ATTENTION",
    "attend_sequence",
    "hidden_states",
    "packed_attention",
    "padded_length",
    "products_for",
    "shared_rows",
    "variable_length_attention",
    "weights_memory",
]

PACKED_ATTENTION = "packed"
PACKED_CAUSAL_ATTENTION = "packed_causal"
PADDED_ATTENTION = "padded"

_HALF = (torch.bfloat16, torch.float16)
"""Number types that the variable-length kernel accepts."""
_LONGEST_TOGETHER = 256
"""Length of the longest sequence for which MKL's products of all heads at once beat torch's fused kernel in float32."""
_FEWEST_OPERATIONS = 3 * 2**19
"""Number of operations of a head's product from which oneDNN's single products beat MKL's and the fused kernel in
float32, on one thread. oneDNN takes 10 us for a call, but MKL uses no AVX-512 on AMD processors (docs/decisions/0002).
With more threads, the number would be higher, but logits would then depend on the number of threads."""
_LONGEST_CAUSAL = 512
"""Length of the longest sequence for which products beat the fused kernel in causal attention in bfloat16. The fused
kernel skips later tokens; the products do not. They are 18 to 36% faster up to this length, and never in float32 (16
and 32 heads of size 128 and 64 on the same machine, one thread)."""
_WEIGHTS_BYTES = 2 * 1024**2
"""Size of the weights that are computed at once, except by MKL, whose results depend on the number of heads."""
_MULTIPLE = 16
"""Sequences are padded to a multiple of this length. oneDNN compiles its kernels for each length, and keeps those of
128 shapes: the kernels of many lengths displaced each other, which took 11% of an encoder's time in int8
(docs/decisions/0002)."""
_LOG2_E = math.log2(math.e)
_SAFE_SUMS = (2.0**-100, 2.0**100)
"""Range of a row's sum in which powers that were computed without subtracting the row's maximum are accurate: float32
and bfloat16 reach from 2^-126 to 2^128. A head of all-MiniLM-L6-v2 reaches 2^68."""
_FEWEST_ROWS = 16
"""Numbers of rows of a batch on a CPU are multiples of this number or of a larger power of two."""
_EVERYTHING, _NOTHING_LATER = (-1, -1), (-1, 0)
"""Numbers of earlier and later tokens that a token sees, as arguments of the variable-length kernel; -1 means all."""


def hidden_states(model: Any, packed: PackedSequences) -> torch.Tensor:
    """Final states of a transformers base model that was loaded with `packed` or `packed_causal` attention: `[T, H]`,
    or `[B, H]` if its last layer computes only first tokens."""
    inputs = {"input_ids": packed.token_ids, "position_ids": packed.position_ids}
    if packed.type_ids is not None:
        inputs["token_type_ids"] = packed.type_ids
    num_rows = packed.token_ids.size(1)
    if packed.token_ids.device.type == "cpu" and (num_more := shared_rows(num_rows) - num_rows):
        for name, ids in inputs.items():
            inputs[name] = torch.cat([ids, ids[:, -1:].expand(1, num_more)], 1)
    states: torch.Tensor = model(**inputs, use_cache=False, packed=packed).last_hidden_state[0]
    return states[:num_rows]


def shared_rows(num_rows: int) -> int:
    """The smallest number of rows, at least `num_rows`, that many batches share. From 512 rows on, it adds at most 3%.

    oneDNN compiles its kernels for each number of rows, which takes 4 to 15% of a batch's time on a CPU with AVX-512.
    The last row is repeated, so that calibration sees no value that a batch does not have.
    """
    step = max(_FEWEST_ROWS, 1 << max(0, num_rows.bit_length() - 6))
    return -(-num_rows // step) * step


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, Hq, T, D]
    key: torch.Tensor,  # [1, Hkv, T, D]
    value: torch.Tensor,  # [1, Hkv, T, D]
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    packed: PackedSequences | None = None,
    sliding_window: int | None = None,
    *,
    sees_later: bool = True,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function with the signature that transformers expects; returns `[1, T, Hq, D]`.

    `packed` comes from the model's call. The registered name fixes `sees_later`, because a layer's own `is_causal` is
    true even in a bidirectional Llama. `sliding_window` counts the tokens to each side that a bidirectional layer sees,
    itself included. Outside the GPU's kernel, rows after the last sequence repeat its last row.
    """
    if packed is None:
        raise ValueError("a model loaded with packed attention must be called with packed=PackedSequences")
    reach = None if sliding_window is None or not sees_later else sliding_window - 1
    if query.is_cuda and query.dtype in _HALF and packed.num_seen is None:
        return variable_length_attention(query, key, value, packed, scaling, sees_later, reach=reach), None
    if not packed.bounds:
        raise RuntimeError("a CUDA graph needs the variable-length kernel, which supports only bfloat16 and float16")
    # Compiled layers, which a CPU has only in tests, cannot branch on the sums of a row's weights.
    is_plain_cpu = query.device.type == "cpu" and not torch.compiler.is_compiling() and packed.num_seen is None
    out = torch.empty_like(query.transpose(1, 2))
    memory = weights_memory(query.dtype, query.size(1), packed.max_length) if is_plain_cpu else None
    for number, (start, end) in enumerate(pairwise(packed.bounds)):
        if start == end:  # an empty slot of a batch for a CUDA graph
            continue
        seen = slice(start, end if packed.num_seen is None else start + packed.num_seen[number])
        q, k, v = query[:, :, start:end], key[:, :, seen], value[:, :, seen]
        of_sequence = out[:, start:end].transpose(1, 2)
        is_local = reach is not None and end - start > reach + 1
        may_multiply = memory is not None and not is_local
        attend = products_for(q.dtype, end - start, q.size(-1), sees_later) if may_multiply else None
        if attend is None:
            of_sequence.copy_(attend_sequence(q, k, v, scaling, sees_later, reach))
            continue
        padding = (0, 0, 0, padded_length(end - start) - (end - start))
        q, k, v = F.pad(q[0], padding).contiguous(), F.pad(k[0], padding).contiguous(), F.pad(v[0], padding)
        if len(q) != len(k):  # grouped-query attention: several query heads share a key head
            k, v = k.repeat_interleave(len(q) // len(k), 0), v.repeat_interleave(len(q) // len(v), 0)
        attend(q, k, v, scaling or q.size(-1) ** -0.5, sees_later, memory, of_sequence[0])
    num_tokens = packed.bounds[-1]
    out[:, num_tokens:] = out[:, num_tokens - 1 : num_tokens]
    return out, None


def attend_sequence(
    query: torch.Tensor,  # [1, Hq, L, D]
    key: torch.Tensor,  # [1, Hkv, S, D]
    value: torch.Tensor,  # [1, Hkv, S, D]
    scaling: float | None,
    sees_later: bool,
    reach: int | None,
) -> torch.Tensor:
    """Attention of one sequence by torch's own kernel, `[1, Hq, L, D]`, on every device and with gradients. In a
    bidirectional layer, a token sees tokens at most `reach` places away; null: any."""
    if reach is not None and sees_later and query.size(2) > reach + 1:
        return local_attention(query, key, value, scaling, reach)
    is_gqa = query.size(1) != key.size(1)
    return F.scaled_dot_product_attention(query, key, value, scale=scaling, is_causal=not sees_later, enable_gqa=is_gqa)


def variable_length_attention(
    query: torch.Tensor,  # [1, Hq, T, D]
    key: torch.Tensor,  # [1, Hkv, T, D]
    value: torch.Tensor,  # [1, Hkv, T, D]
    packed: PackedSequences,
    scaling: float | None,
    sees_later: bool,
    kernel: Callable[..., Any] | None = None,
    reach: int | None = None,
) -> torch.Tensor:
    """Attention over all sequences in one call of `kernel`; returns `[1, T, Hq, D]`.

    A token sees tokens at most `reach` places away; null, or at least the longest sequence: any. By default, the kernel
    is torch's own, which runs only on a GPU in half precision.
    """
    near = _EVERYTHING if reach is None or reach >= packed.max_length else (reach, reach)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [T, H, D]
    out: Any = (kernel or kernels.variable_length_kernel)(
        *(q, k, v),
        *(packed.cu_seqlens, packed.cu_seqlens),
        *(packed.max_length, packed.max_length),
        scale=scaling,
        window_size=near if sees_later else _NOTHING_LATER,
    )
    attended: torch.Tensor = out[None]
    return attended


def products_for(dtype: torch.dtype, length: int, head_size: int, sees_later: bool) -> Callable[..., None] | None:
    """The function that computes a sequence's attention on a CPU as two matrix products; null: torch's fused kernel is
    faster. Depends only on the sequence, not on its batch."""
    if dtype == torch.bfloat16:
        return _attend_together if sees_later or length <= _LONGEST_CAUSAL else None
    if dtype != torch.float32 or not sees_later:
        return None
    if length**2 * head_size >= _FEWEST_OPERATIONS and can_pack(dtype):
        return _attend_by_head
    return _attend_together if length <= _LONGEST_TOGETHER else None


def padded_length(length: int) -> int:
    """Number of rows of a sequence's queries, keys and values in products."""
    return -(-length // _MULTIPLE) * _MULTIPLE


def weights_memory(dtype: torch.dtype, num_heads: int, longest: int) -> torch.Tensor:
    """Memory for the weights of sequences of at most `longest` tokens. One allocation serves all of them: new memory
    for each one would cost as much as the products."""
    longest = padded_length(longest)
    if dtype == torch.float32:
        return torch.empty(num_heads * min(longest, _LONGEST_TOGETHER) ** 2)
    return torch.empty(min(num_heads * longest**2, max(longest, _WEIGHTS_BYTES // dtype.itemsize)), dtype=dtype)


def _attend_together(
    q: torch.Tensor,  # [Hq, P, D]; P is padded_length(L), and rows after the first L are zero
    k: torch.Tensor,  # [Hq, P, D]
    v: torch.Tensor,  # [Hq, P, D]
    alpha: float,
    sees_later: bool,
    memory: torch.Tensor,
    out: torch.Tensor,  # [Hq, L, D]
) -> None:
    """Writes attention into `out`, by products of as many heads as `memory` holds; or of one, and as many of its rows.

    Powers of two are computed without subtracting each row's maximum first, which takes a third (float32) or half
    (bfloat16) of softmax's time. Rows whose sums then leave the accurate range are computed with softmax.
    """
    (num_heads, num_rows, _), length, zero = q.shape, out.size(1), q.new_zeros(())
    heads_at_once = max(1, min(num_heads, memory.numel() // num_rows**2))
    rows_at_once = max(1, min(num_rows, memory.numel() // num_rows))
    is_later = None if sees_later else torch.ones(num_rows, num_rows, dtype=torch.bool).triu(1)
    for head, row in product(range(0, num_heads, heads_at_once), range(0, length, rows_at_once)):
        heads, rows = slice(head, head + heads_at_once), slice(row, row + rows_at_once)
        queries, keys, values, result = q[heads, rows], k[heads].transpose(1, 2), v[heads], out[heads, rows]
        num_results = result.size(1)
        weights = memory[: len(queries) * queries.size(1) * num_rows].view(len(queries), -1, num_rows)
        if sees_later:  # rounds a little differently, which decoders in float8 amplify
            torch.baddbmm(zero, queries, keys, beta=0, alpha=alpha * _LOG2_E, out=weights)
            sums, are_accurate = _to_powers(weights, length)
            if are_accurate:
                torch.div(torch.bmm(weights, values)[:, :num_results], sums[:, :num_results], out=result)
                continue
        torch.baddbmm(zero, queries, keys, beta=0, alpha=alpha, out=weights)
        if is_later is None:
            weights[..., length:] = -torch.inf
        else:
            weights.masked_fill_(is_later, -torch.inf)
        result.copy_(torch.bmm(torch.softmax(weights, -1, out=weights), values)[:, :num_results])


def _attend_by_head(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, alpha: float, _: bool, __: torch.Tensor, out: torch.Tensor
) -> None:
    """`_attend_together` in float32, without a causal mask, by products of oneDNN, which multiplies two matrices in a
    call."""
    scaled, values, length = q * (alpha * _LOG2_E), v.transpose(1, 2).contiguous(), out.size(1)
    rows_at_once = min(q.size(1), max(1, _WEIGHTS_BYTES // (q.size(1) * q.element_size())))
    multiply = partial(torch.ops.mkldnn._linear_pointwise, B=None, attr="none", scalars=[], algorithm="")
    for head, row in product(range(len(q)), range(0, length, rows_at_once)):
        queries, result = scaled[head, row : row + rows_at_once], out[head, row : row + rows_at_once]
        weights = multiply(queries, k[head])
        sums, are_accurate = _to_powers(weights, length)
        if not are_accurate:
            weights = multiply(queries, k[head])
            sums, _ = _to_powers(weights.sub_(weights[:, :length].amax(-1, keepdim=True)), length)
        torch.div(multiply(weights, values[head])[: len(result)], sums[: len(result)], out=result)


def _to_powers(scores: torch.Tensor, length: int) -> tuple[torch.Tensor, bool]:
    """Replaces scores by powers of two, and those of keys after the first `length` by zero. Returns the rows' sums, and
    whether they are in the range in which they are accurate."""
    scores.exp2_()[..., length:].zero_()
    sums = scores.sum(-1, keepdim=True, dtype=torch.float32)
    of_rows = sums.numpy()  # a tensor's own minimum would look as if the host waited for a device
    return sums, bool(_SAFE_SUMS[0] < of_rows.min() and of_rows.max() < _SAFE_SUMS[1])


def _padded_mask(
    *args: Any, attention_mask: torch.Tensor | None = None, allow_is_bidirectional_skip: bool = False, **options: Any
) -> torch.Tensor | None:
    """transformers' own mask, without its search for padding, for which the host would wait for the device."""
    options["attention_mask"] = attention_mask
    options["allow_is_bidirectional_skip"] = allow_is_bidirectional_skip and attention_mask is None
    mask: torch.Tensor | None = sdpa_mask(*args, **options)
    return mask


# Neither packed name has a mask function, so transformers passes no mask. With a mask function, transformers would
# search a causal model's positions for packed sequences, and the search would wait for the device.
AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionInterface.register(PACKED_CAUSAL_ATTENTION, partial(packed_attention, sees_later=False))
# For rectangular batches on a GPU: transformers' own attention with another mask function.
AttentionInterface.register(PADDED_ATTENTION, sdpa_attention_forward)
AttentionMaskInterface.register(PADDED_ATTENTION, _padded_mask)
