"""Estimates how many tokens of a batch fit in a GPU's memory, by running one batch.

With packed sequences and fused attention, a forward pass needs memory in proportion to its tokens, so measuring one
pass is enough. The result is only an estimate: `launch` halves a batch that does not fit after all.
"""

import logging
from collections.abc import Callable
from typing import Any, Protocol, cast

from rerank_service.engine.device import cuda
from rerank_service.engine.device.choose import ChosenDevice
from rerank_service.engine.device.launch import TorchEngine
from rerank_service.engine.protocol import Engine, Truncate

__all__ = ["GpuMeter", "MemoryMeter", "find_memory_tokens", "measure_device"]

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


class GpuMeter:
    """Memory of a replica's share of a GPU."""

    def __init__(self, chosen: ChosenDevice) -> None:
        self._chosen = chosen

    def free_bytes(self) -> int:
        return self._chosen.free_bytes

    def peak_bytes(self, run: Callable[[], object]) -> int:
        return cuda.peak_bytes(self._chosen.device, run)


def measure_device(engine: TorchEngine[Any], chosen: ChosenDevice) -> None:
    """Sets the engine's limits on a GPU: its memory, the tokens of its largest batch, and its peak speed. Does nothing
    on a CPU."""
    if not chosen.is_gpu:
        return
    peak = chosen.peak_flops_per_s
    engine.peak_tokens_per_s = peak and peak / engine.flops_per_token
    engine.memory_limit_bytes = chosen.memory_limit_bytes
    engine.memory_tokens = find_memory_tokens(cast(Engine[Any], engine), GpuMeter(chosen))


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
