"""Estimates how many tokens of a batch fit in a GPU's memory, by running one batch.

With packed sequences and fused attention, a forward pass needs memory in proportion to its tokens, so measuring one
pass is enough. The result is only an estimate: `launch` halves a batch that does not fit after all.
"""

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch

from rerank_service.engine.protocol import Engine, Truncate

__all__ = ["CudaMeter", "MemoryMeter", "find_memory_tokens"]

logger = logging.getLogger(__name__)

_PROBE_TOKENS = 8192
"""Approximate number of tokens in the probe batch, at one token per word."""
_PROBE_WORDS = 384
"""Words in each passage of the probe batch."""
_USABLE_SHARE = 0.8
"""Share of the free memory to use; the rest allows for fragmentation, other processes and larger workspaces."""


class MemoryMeter(Protocol):
    """Memory of one device, in bytes."""

    def free_bytes(self) -> int:
        """Memory that a forward pass can still take."""

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """Peak memory during `run`, minus the memory held before it."""


class CudaMeter:
    """Memory of a GPU as torch counts it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def free_bytes(self) -> int:
        free, _ = torch.cuda.mem_get_info(self._device)
        # Blocks that torch has reserved but not allocated are available to a pass too.
        cached = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(free + cached)

    def peak_bytes(self, run: Callable[[], object]) -> int:
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        held = torch.cuda.memory_allocated(self._device)
        run()
        torch.cuda.synchronize(self._device)
        return int(torch.cuda.max_memory_allocated(self._device) - held)


def find_memory_tokens(engine: Engine[Any], meter: MemoryMeter) -> int:
    """Number of tokens in the largest batch that fits in the device's memory together with the engine's full caches.

    The result is at least the window, because the longest pair is always tried. The probe runs with the caches off: a
    pass whose texts are all cached needs no memory.
    """
    passages = [f"{number} " + "passage " * _PROBE_WORDS for number in range(_PROBE_TOKENS // _PROBE_WORDS)]
    pairs = engine.tokenise("How much memory does a token take?", passages, Truncate.END)
    num_tokens = sum(pair.num_tokens for pair in pairs)
    with engine.caches_off():
        engine.score(pairs)  # the first pass also allocates memory that is kept, such as workspaces
        bytes_per_token = max(1.0, meter.peak_bytes(lambda: engine.score(pairs)) / num_tokens)
    free = meter.free_bytes() - engine.cache_bytes
    tokens = int(_USABLE_SHARE * free / bytes_per_token)
    if tokens < engine.window_tokens:
        logger.warning(
            "device memory holds %d tokens, but the longest pair has window_tokens=%d: after cache_bytes=%d, %d bytes "
            "are free; lower passage_cache_bytes or window_tokens",
            *(max(0, tokens), engine.window_tokens, engine.cache_bytes, max(0, free)),
        )
    return max(engine.window_tokens, tokens)
