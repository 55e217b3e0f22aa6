"""Attention over packed sequences, registered with transformers as `packed` and `packed_causal`, and over rectangular
batches, registered as `padded`.

Each sequence attends only to itself: the packing replaces the model's own mask. With `packed`, each token sees its
whole sequence; with `packed_causal`, each token sees only itself and earlier tokens. On a GPU in half precision,
attention is one variable-length kernel per layer. Elsewhere, attention is a loop over the sequences, so the logit of a
pair does not depend on the other pairs of its batch.
"""

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
from rerank_service.engine.device.attention_products import attend_by_products, products_are_faster, weights_memory
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
    # Compiled layers, which a CPU has only in tests, cannot branch on the sums of a row's weights.
    is_plain_cpu = query.device.type == "cpu" and not torch.compiler.is_compiling() and packed.num_seen is None
    out = torch.empty_like(query.transpose(1, 2))
    memory = weights_memory(query, query.size(1), packed.max_length) if is_plain_cpu else None
    for number, (start, end) in enumerate(pairwise(packed.bounds)):
        if start == end:  # an empty slot of a batch for a CUDA graph
            continue
        seen = slice(start, end if packed.num_seen is None else start + packed.num_seen[number])
        q, k, v = query[:, :, start:end], key[:, :, seen], value[:, :, seen]
        of_sequence = out[:, start:end].transpose(1, 2)
        is_local = reach is not None and end - start > reach + 1
        if memory is not None and not is_local and products_are_faster(q[0], sees_later):
            attend_by_products(q[0], k[0], v[0], scaling, sees_later, memory, of_sequence[0])
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
    memory = weights_memory(qkv, num_heads, packed.max_length) if packed.num_seen is None else None
    copies = qkv.new_empty(3 * num_heads * packed.max_length * head_size)
    for number, (start, end) in enumerate(pairwise(packed.bounds)):
        heads = qkv[0, start:end].view(end - start, -1, head_size).transpose(0, 1)  # [3 * Hq, L, D]
        copy = copies[: heads.numel()].view(heads.shape).copy_(heads)
        q, k, v = copy[:num_heads], copy[num_heads : 2 * num_heads], copy[2 * num_heads :]
        of_sequence = out[start:end].transpose(0, 1)
        if memory is not None and products_are_faster(q, sees_later=True):
            attend_by_products(q, k, v, scaling, True, memory, of_sequence)
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
