"""How a batch gets onto a device and its logits back: without waiting on a GPU, in halves if memory runs out.

What all engines share. Knows nothing of any model.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Generic

import torch

from rerank_service.config import default_batch_tokens
from rerank_service.engine.device import cuda
from rerank_service.engine.device.device_errors import device_errors
from rerank_service.engine.device.memory import held_bytes
from rerank_service.engine.device.peak import peak_flops
from rerank_service.engine.protocol import CacheCounts, DeviceFacts, PairT
from rerank_service.errors import DeviceMemoryExhausted

__all__ = ["DeviceLogits", "TorchEngine"]

logger = logging.getLogger(__name__)


class DeviceLogits:
    """Logits `[B]` on their way from the device."""

    def __init__(self, logits: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._host = logits
        if logits.is_cuda:
            self._host = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
            self._host.copy_(logits, non_blocking=True)
            self._event = cuda.recorded_event(logits.device)

    @property
    @device_errors()
    def is_ready(self) -> bool:
        """Whether `wait` returns at once."""
        return self._event is None or self._event.query()

    @device_errors()
    def wait(self) -> list[float]:
        """The logits, once they are on the host. Other threads run meanwhile."""
        if self._event is not None:
            self._event.synchronize()
        logits: list[float] = self._host.tolist()
        return logits


class TorchEngine(ABC, Generic[PairT]):
    """A model on a device, by its forward pass."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.max_in_flight = 2 if device.type == "cuda" else 1
        """On a GPU the next batch is laid out and launched while one runs; one stream keeps them in order."""
        self.default_batch_tokens = default_batch_tokens(on_gpu=device.type == "cuda")
        self.memory_tokens: int | None = None
        """Tokens of a batch that fit in the device's memory; null: unknown or no matter."""
        self.flops_per_token = 0.0
        """Of the linear layers; 0 until whoever loads the engine says."""

    @abstractmethod
    def forward(self, pairs: Sequence[PairT]) -> torch.Tensor:
        """Float32 logits `[B]` on the device, in the order of `pairs`; must not wait for the device."""

    @property
    def cache_counts(self) -> CacheCounts:
        """None is kept, unless the engine says otherwise."""
        return CacheCounts(0, 0)

    @property
    def cache_bytes(self) -> int:
        """None, unless the engine keeps something."""
        return 0

    def caches_off(self) -> AbstractContextManager[None]:
        """Changes nothing, unless the engine keeps something."""
        return nullcontext()

    @property
    def device_facts(self) -> DeviceFacts:
        """What the device holds now, and could do at most."""
        return DeviceFacts(held_bytes(self.device), self.flops_per_token, peak_flops(self.device))

    @device_errors()
    @torch.inference_mode()
    def launch(self, pairs: Sequence[PairT]) -> DeviceLogits:
        """Starts a forward pass. A batch that does not fit in memory is halved until it does.

        Raises `DeviceMemoryExhausted` if one pair alone does not fit, `DeviceFailed` if the device is lost.
        """
        with cuda.current(self.device):
            return DeviceLogits(self._forward_or_halves(pairs))

    def score(self, pairs: Sequence[PairT]) -> list[float]:
        """Logits `[B]` in the order of `pairs`, of one forward pass."""
        return self.launch(pairs).wait()

    def _forward_or_halves(self, pairs: Sequence[PairT]) -> torch.Tensor:
        try:
            return self.forward(pairs)
        except torch.OutOfMemoryError:
            pass  # left here: the exception holds the tensors of the failed pass
        num_tokens = sum(pair.num_tokens for pair in pairs)
        if len(pairs) == 1:
            raise DeviceMemoryExhausted(num_tokens)
        self.memory_tokens = min(self.memory_tokens or num_tokens, num_tokens * 3 // 4)
        logger.warning("out of memory num_pairs=%d num_tokens=%d: halved", len(pairs), num_tokens)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(pairs) // 2
        return torch.cat([self._forward_or_halves(pairs[:middle]), self._forward_or_halves(pairs[middle:])])
