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
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rerank_service.engine.device import kernels
from rerank_service.engine.device.local_attention import local_attention
from rerank_service.engine.device.pack import PackedSequences

__all__ = [
    "PACKED_ATTENTION",
    "PACKED_CAUSAL_ATTENTION",
    "PADDED_ATTENTION",
    "attend_joined",
    "attend_sequence",
    "hidden_states",
    "packed_attention",
    "variable_length_attention",
]

PACKED_ATTENTION = "packed"
PACKED_CAUSAL_ATTENTION = "packed_causal"
PADDED_ATTENTION = "padded"

_HALF = (torch.bfloat16, torch.float16)
"""Number types that the variable-length kernel accepts."""
_LONGEST_PRODUCT = {torch.float32: 256, torch.bfloat16: 512}
"""Length of the longest sequence for which two plain matrix products beat the fused kernel on a CPU. With 12 heads of
size 32, they take 0.8 to 0.98 of the kernel's time in float32, and 0.4 to 0.45 of it in bfloat16 (docs/decisions/0002).
"""
_LONGEST_CAUSAL_PRODUCT = {torch.bfloat16: 512}
"""Length of the longest sequence for which two plain products beat the fused kernel in causal attention. The fused
kernel skips later tokens; the products do not. In bfloat16, products are 18 to 36% faster up to 512 tokens; in float32
they are never faster (16 and 32 heads of size 128 and 64 on the same machine, one thread)."""
_WEIGHTS_BYTES = {torch.float32: 2**62, torch.bfloat16: 2 * 1024**2}
"""Size of the weights that two plain products compute at once. In bfloat16, they stay in the CPU's caches: with 12
heads of size 32, groups of heads take 0.85 of the time of all heads at once with 390 tokens, and 0.76 with 512, and
compute the same bits. In float32, groups round differently and gain less than 5% in sequences of this length."""
_LOG2_E = math.log2(math.e)
_SAFE_SUMS = (2.0**-100, 2.0**100)
"""Range of a row's sum in which powers that were computed without subtracting the row's maximum are accurate: float32
and bfloat16 reach from 2^-126 to 2^128. A head of all-MiniLM-L6-v2 reaches 2^68."""
_FEWEST_ROWS = 16
"""Numbers of rows of a batch on a CPU are multiples of this number or of a larger power of two."""
_EVERYTHING, _NOTHING_LATER = (-1, -1), (-1, 0)
"""Numbers of earlier and later tokens that a token sees, as arguments of the variable-length kernel; -1 means all."""


def hidden_states(model: Any, packed: PackedSequences) -> torch.Tensor:
    """Final states `[T, H]` of a transformers base model that was loaded with `packed` or `packed_causal` attention."""
    inputs = {"input_ids": packed.token_ids, "position_ids": packed.position_ids}
    if packed.type_ids is not None:
        inputs["token_type_ids"] = packed.type_ids
    num_rows = packed.token_ids.size(1)
    if packed.token_ids.device.type == "cpu" and (num_more := _shared_rows(num_rows) - num_rows):
        inputs = {name: torch.cat([ids, ids[:, -1:].expand(1, num_more)], 1) for name, ids in inputs.items()}
    states: torch.Tensor = model(**inputs, use_cache=False, packed=packed).last_hidden_state[0]
    return states[:num_rows]


def _shared_rows(num_rows: int) -> int:
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
    limits = _LONGEST_PRODUCT if sees_later else _LONGEST_CAUSAL_PRODUCT
    # Compiled layers, which a CPU has only in tests, cannot branch on the sums of `_two_products`.
    is_plain_cpu = query.device.type == "cpu" and not torch.compiler.is_compiling()
    longest_product = limits.get(query.dtype, 0) if is_plain_cpu and packed.num_seen is None else 0
    out = torch.empty_like(query.transpose(1, 2))
    # One allocation for all sequences: new memory for each one would cost as much as the products.
    memory = query.new_empty(query.size(1) * min(longest_product, packed.max_length) ** 2)
    for number, (start, end) in enumerate(pairwise(packed.bounds)):
        if start == end:  # an empty slot of a batch for a CUDA graph
            continue
        seen = slice(start, end if packed.num_seen is None else start + packed.num_seen[number])
        q, k, v = query[:, :, start:end], key[:, :, seen], value[:, :, seen]
        of_sequence = out[:, start:end].transpose(1, 2)
        is_local = reach is not None and end - start > reach + 1
        if end - start <= longest_product and not is_local:
            _two_products(q[0], k[0], v[0], scaling, sees_later, memory, of_sequence[0])
        else:
            of_sequence.copy_(attend_sequence(q, k, v, scaling, sees_later, reach))
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


def attend_joined(qkv: torch.Tensor, head_size: int, scaling: float, packed: PackedSequences) -> torch.Tensor:
    """`packed_attention` on a CPU, without a causal mask, of queries, keys and values that one product computed.

    Maps `[1, T, 3 * Hq * D]` to `[1, T, Hq * D]`. Each sequence is copied once, because products of matrices that are
    not contiguous would copy its queries, keys and values one by one.
    """
    num_tokens, num_heads = packed.bounds[-1], qkv.size(-1) // head_size // 3
    out = qkv.new_empty(qkv.size(1), num_heads, head_size)
    longest_product = _LONGEST_PRODUCT.get(qkv.dtype, 0) if packed.num_seen is None else 0
    memory = qkv.new_empty(num_heads * min(longest_product, packed.max_length) ** 2)
    copies = qkv.new_empty(3 * num_heads * packed.max_length * head_size)
    for number, (start, end) in enumerate(pairwise(packed.bounds)):
        heads = qkv[0, start:end].view(end - start, -1, head_size).transpose(0, 1)  # [3 * Hq, L, D]
        copy = copies[: heads.numel()].view(heads.shape).copy_(heads)
        q, k, v = copy[:num_heads], copy[num_heads : 2 * num_heads], copy[2 * num_heads :]
        of_sequence = out[start:end].transpose(0, 1)
        if end - start <= longest_product:
            _two_products(q, k, v, scaling, True, memory, of_sequence)
        else:
            if packed.num_seen is not None:
                k, v = k[:, : packed.num_seen[number]], v[:, : packed.num_seen[number]]
            of_sequence.copy_(F.scaled_dot_product_attention(q[None], k[None], v[None], scale=scaling)[0])
    out[num_tokens:] = out[num_tokens - 1]
    return out.view(1, len(out), -1)


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


def _two_products(
    q: torch.Tensor,  # [Hq, L, D]
    k: torch.Tensor,  # [Hkv, L, D]
    v: torch.Tensor,  # [Hkv, L, D]
    scaling: float | None,
    sees_later: bool,
    memory: torch.Tensor,
    out: torch.Tensor,  # [Hq, L, D]
) -> None:
    """Attention computed directly from its definition into `out`, with the weights of a few heads at once in `memory`.

    Powers of two are computed without subtracting each row's maximum first, which takes a third (float32) or half
    (bfloat16) of softmax's time. If a row's sum then leaves the accurate range, softmax computes the heads.
    """
    k = k.contiguous()  # oneDNN would copy other keys transposed, which is slow
    if len(q) != len(k):  # grouped-query attention: several query heads share a key head
        k, v = k.repeat_interleave(len(q) // len(k), 0), v.repeat_interleave(len(q) // len(v), 0)
    alpha, length = q.size(-1) ** -0.5 if scaling is None else scaling, q.size(1)
    is_later = None if sees_later else torch.ones(length, length, dtype=torch.bool).triu(1)
    heads_at_once = max(1, min(len(q), _WEIGHTS_BYTES[q.dtype] // (length**2 * q.element_size())))
    for first in range(0, len(q), heads_at_once):
        heads = slice(first, first + heads_at_once)
        queries, keys, values, result = q[heads], k[heads], v[heads], out[heads]
        weights = memory[: len(queries) * length**2].view(len(queries), length, length)
        if sees_later:  # rounds a little differently, which decoders in float8 amplify
            _multiply_into(weights, queries, keys, alpha * _LOG2_E, None)
            sums = weights.exp2_().sum(-1, keepdim=True, dtype=torch.float32)
            of_rows = sums.numpy()  # a tensor's own minimum would look as if the host waited for a device
            if _SAFE_SUMS[0] < of_rows.min() and of_rows.max() < _SAFE_SUMS[1]:
                torch.div(torch.bmm(weights, values), sums, out=result)
                continue
        _multiply_into(weights, queries, keys, alpha, is_later)
        result.copy_(torch.bmm(torch.softmax(weights, -1, out=weights), values))


def _multiply_into(
    scores: torch.Tensor, q: torch.Tensor, k: torch.Tensor, alpha: float, is_later: torch.Tensor | None
) -> None:
    torch.baddbmm(q.new_zeros(()), q, k.transpose(1, 2), beta=0, alpha=alpha, out=scores)
    if is_later is not None:
        scores.masked_fill_(is_later, -torch.inf)


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
