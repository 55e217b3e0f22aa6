"""Records the batches of forward passes, through transformers' registry of attention functions."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rerank_service.engine.device.forward import PACKED_ATTENTION, packed_attention
from rerank_service.engine.device.pack import PackedSequences

__all__ = ["recorded_passes"]


@contextmanager
def recorded_passes() -> Iterator[list[PackedSequences]]:
    """Yields a list to which each forward pass of a bidirectional model adds its batch while the block runs."""
    passes: list[PackedSequences] = []

    def attention(*inputs: Any, packed: PackedSequences, **options: Any) -> Any:
        if not passes or passes[-1] is not packed:  # the layers of a pass share the same object
            passes.append(packed)
        return packed_attention(*inputs, packed=packed, **options)

    ALL_ATTENTION_FUNCTIONS[PACKED_ATTENTION] = attention
    try:
        yield passes
    finally:
        del ALL_ATTENTION_FUNCTIONS[PACKED_ATTENTION]
