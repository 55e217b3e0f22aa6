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
from rerank_service.engine.device.pack import PackedSequences

__all__ = [
    "PACKED_ATTENTION",
    "PACKED_CAUSAL_ATTENTION",
    "PADDED_ATTENTION",
    "hidden_states",
    "packed_attention",
    "variable_length_attention",
]

PACKED_ATTENTION = "packed"
PACKED_CAUSAL_ATTENTION = "packed_causal"
PADDED_ATTENTION = "padded"

_HALF = (torch.bfloat16, torch.float16)
"""Number types that the variable-length kernel accepts."""
_LONGEST_PRODUCT = {torch.float32: 128, torch.bfloat16: 512}
"""Length of the longest sequence for which two plain matrix products beat the fused kernel on a CPU. They beat it
by 17 to 41% in bfloat16 and by 18 to 35% in float32, with 12 to 32 heads of size 32 or 64 (AMD EPYC, two threads, torch
2.13.0). From 1,024 tokens on, the products are slower."""
_LONGEST_CAUSAL_PRODUCT = {torch.bfloat16: 512}
"""Length of the longest sequence for which two plain products beat the fused kernel in causal attention. The fused
kernel skips later tokens; the products do not. In bfloat16, products are 18 to 36% faster up to 512 tokens; in float32
they are never faster (16 and 32 heads of size 128 and 64 on the same machine, one thread)."""
_EVERYTHING, _NOTHING_LATER = (-1, -1), (-1, 0)
"""Numbers of earlier and later tokens that a token sees, as arguments of the variable-length kernel; -1 means all."""


def hidden_states(model: Any, packed: PackedSequences) -> torch.Tensor:
    """Final states `[T, H]` of a transformers base model that was loaded with `packed` or `packed_causal` attention."""
    inputs = {"input_ids": packed.token_ids, "position_ids": packed.position_ids}
    if packed.type_ids is not None:
        inputs["token_type_ids"] = packed.type_ids
    states: torch.Tensor = model(**inputs, use_cache=False, packed=packed).last_hidden_state[0]
    return states


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, Hq, T, D]
    key: torch.Tensor,  # [1, Hkv, T, D]
    value: torch.Tensor,  # [1, Hkv, T, D]
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    packed: PackedSequences | None = None,
    *,
    sees_later: bool = True,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function with the signature that transformers expects; returns `[1, T, Hq, D]`.

    transformers passes `packed` on from the model's call. The registered name fixes `sees_later`, because a layer's
    own `is_causal` is true even in a bidirectional Llama.
    """
    if packed is None:
        raise ValueError("a model loaded with packed attention must be called with packed=PackedSequences")
    if query.is_cuda and query.dtype in _HALF:
        return variable_length_attention(query, key, value, packed, scaling, sees_later), None
    if not packed.bounds:
        raise RuntimeError("a CUDA graph needs the variable-length kernel, which supports only bfloat16 and float16")
    limits = _LONGEST_PRODUCT if sees_later else _LONGEST_CAUSAL_PRODUCT
    longest_product = limits.get(query.dtype, 0) if query.device.type == "cpu" else 0
    out = torch.empty_like(query.transpose(1, 2))
    for start, end in pairwise(packed.bounds):
        attend = _two_products if end - start <= longest_product else _fused
        attended = attend(query[:, :, start:end], key[:, :, start:end], value[:, :, start:end], scaling, sees_later)
        out[:, start:end] = attended.transpose(1, 2)
    return out, None


def variable_length_attention(
    query: torch.Tensor,  # [1, Hq, T, D]
    key: torch.Tensor,  # [1, Hkv, T, D]
    value: torch.Tensor,  # [1, Hkv, T, D]
    packed: PackedSequences,
    scaling: float | None,
    sees_later: bool,
    kernel: Callable[..., Any] | None = None,
) -> torch.Tensor:
    """Attention over all sequences in one call of `kernel`; returns `[1, T, Hq, D]`.

    By default, the kernel is torch's own, which runs only on a GPU in half precision.
    """
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [T, H, D]
    out: Any = (kernel or kernels.variable_length_kernel)(
        *(q, k, v),
        *(packed.cu_seqlens, packed.cu_seqlens),
        *(packed.max_length, packed.max_length),
        scale=scaling,
        window_size=_EVERYTHING if sees_later else _NOTHING_LATER,
    )
    attended: torch.Tensor = out[None]
    return attended


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, sees_later: bool
) -> torch.Tensor:
    is_gqa = query.size(1) != key.size(1)
    return F.scaled_dot_product_attention(query, key, value, scale=scaling, is_causal=not sees_later, enable_gqa=is_gqa)


def _two_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, sees_later: bool
) -> torch.Tensor:
    """Attention computed directly from its definition, with all weights `[Hq, L, L]` in memory at once."""
    q, k, v = query[0], key[0], value[0]
    if len(q) != len(k):  # grouped-query attention: several query heads share a key head
        k, v = k.repeat_interleave(len(q) // len(k), 0), v.repeat_interleave(len(q) // len(v), 0)
    alpha = query.size(-1) ** -0.5 if scaling is None else scaling
    scores = torch.baddbmm(q.new_zeros(()), q, k.transpose(1, 2), beta=0, alpha=alpha)
    if not sees_later:
        later = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu(1)
        scores.masked_fill_(later, -torch.inf)
    return torch.bmm(scores.softmax(-1), v)[None]


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
