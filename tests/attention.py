"""Records the batches of forward passes, through the attention functions of transformers and of a CPU's encoders."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rerank_service.engine.device import encoder_layers
from rerank_service.engine.device.encoder_layers import attend_joined
from rerank_service.engine.device.forward import PACKED_ATTENTION, packed_attention
from rerank_service.engine.device.pack import PackedSequences

__all__ = ["recorded_passes"]


@contextmanager
def recorded_passes() -> Iterator[list[PackedSequences]]:
    """Yields a list to which each forward pass of a bidirectional model adds its batch while the block runs."""
    passes: list[PackedSequences] = []

    def record(packed: PackedSequences) -> None:
        if not passes or passes[-1] is not packed:  # the layers of a pass share the same object
            passes.append(packed)

    def attention(*inputs: Any, packed: PackedSequences, **options: Any) -> Any:
        record(packed)
        return packed_attention(*inputs, packed=packed, **options)

    def joined_attention(*inputs: Any) -> torch.Tensor:
        record(inputs[-1])
        return attend_joined(*inputs)

    ALL_ATTENTION_FUNCTIONS[PACKED_ATTENTION] = attention
    try:
        with patch.object(encoder_layers, "attend_joined", joined_attention):
            yield passes
    finally:
        del ALL_ATTENTION_FUNCTIONS[PACKED_ATTENTION]
