"""How many tokens of a batch fit in a GPU's memory, found by running one.

With packed sequences and fused attention a forward pass needs memory in proportion to its tokens, so that one
measured pass tells the rest. A bound, not a promise: `launch` halves what does not fit all the same.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from rerank_service.engine.protocol import Engine, Truncate

__all__ = ["CudaMeter", "MemoryMeter", "find_memory_tokens", "held_bytes"]

logger = logging.getLogger(__name__)

_PROBE_TOKENS = 8192
_PROBE_WORDS = 384
_USABLE_SHARE = 0.8
"""Of the memory that is free: the rest is for fragments, other processes and longer sequences' workspaces."""


_STATM = Path("/proc/self/statm")


def held_bytes(device: torch.device) -> int:
    """What torch holds of a GPU; on a CPU, what this process holds; 0 where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    if not _STATM.exists():
        return 0
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class MemoryMeter(Protocol):
    """Memory of one device, in bytes."""

    def free_bytes(self) -> int:
        """What a pass could still take."""
        ...

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """Most that was held during `run`, above what was held before."""
        ...


class CudaMeter:
    """torch's own account of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def free_bytes(self) -> int:
        free, _ = torch.cuda.mem_get_info(self._device)
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
    """Tokens of a batch that `meter`'s device holds beside the engine's caches; never less than the longest pair, which
    is then tried. The probe runs with the caches off: a pass whose texts were all found there would need no memory.
    """
    passages = [f"{number} " + "passage " * _PROBE_WORDS for number in range(_PROBE_TOKENS // _PROBE_WORDS)]
    pairs = engine.tokenise("How much memory does a token take?", passages, Truncate.END)
    num_tokens = sum(pair.num_tokens for pair in pairs)
    with engine.caches_off():
        engine.score(pairs)  # the first pass also allocates what stays
        bytes_per_token = max(1.0, meter.peak_bytes(lambda: engine.score(pairs)) / num_tokens)
    free = meter.free_bytes() - engine.cache_bytes
    tokens = int(_USABLE_SHARE * free / bytes_per_token)
    if tokens < engine.window_tokens:
        logger.warning(
            "device memory holds %d tokens, less than one pair of window_tokens=%d: %d bytes are free beside "
            "cache_bytes=%d; lower passage_cache_bytes or window_tokens",
            *(max(0, tokens), engine.window_tokens, max(0, free), engine.cache_bytes),
        )
    return max(engine.window_tokens, tokens)
