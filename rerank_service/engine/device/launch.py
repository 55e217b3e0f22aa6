"""Launches batches on a device and returns their logits: asynchronously on a GPU, and in halves if memory runs out.

`TorchEngine` is the base of all engines and works with any forward pass.
"""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Generic

import torch

from rerank_service.config import default_batch_tokens
from rerank_service.engine.device import cuda
from rerank_service.engine.device.fixed_shape import FixedShape
from rerank_service.engine.protocol import CacheCounts, DeviceFacts, PairT
from rerank_service.errors import DeviceMemoryExhausted
from rerank_service.messages import StartTimes

__all__ = ["DeviceLogits", "TorchEngine"]

logger = logging.getLogger(__name__)

_STATM = Path("/proc/self/statm")


class DeviceLogits:
    """Logits `[B]` that are being computed and copied to the host."""

    def __init__(self, logits: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._host = logits
        if logits.is_cuda:
            self._host = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
            self._host.copy_(logits, non_blocking=True)
            self._event = cuda.recorded_event(logits.device)

    @property
    @cuda.device_errors()
    def is_ready(self) -> bool:
        """Whether `wait` returns at once. Raises `DeviceFailed`."""
        return self._event is None or self._event.query()

    @cuda.device_errors()
    def wait(self) -> list[float]:
        """Waits until the logits are on the host, and returns them; other threads can run meanwhile.

        Raises `DeviceFailed`.
        """
        if self._event is not None:
            self._event.synchronize()
        logits: list[float] = self._host.tolist()
        return logits


class TorchEngine(ABC, Generic[PairT]):
    """A model on a device; subclasses implement the forward pass."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.max_in_flight = 2 if device.type == "cuda" else 1
        """On a GPU, one batch is packed and launched while another runs; a single stream keeps the batches in order."""
        self.default_batch_tokens = default_batch_tokens(on_gpu=device.type == "cuda")
        self.memory_tokens: int | None = None
        """Number of tokens in the largest batch that fits in the device's memory; null: unknown."""
        self.fixed_shape: FixedShape | None = None
        """Shape of every pass, if logits must not depend on the batch; null: a pass is as large as its batch."""
        self.flops_per_token = 0.0
        """Floating-point operations of the linear layers per token; set by `build`."""
        self.peak_tokens_per_s: float | None = None
        """The device's peak speed, as defined in `DeviceFacts`; set by `measure_device`."""
        self.memory_limit_bytes: int | None = None
        """Memory on a GPU that the engine may use; set by `measure_device`. Null: unknown, or a CPU."""

        self.start_times = StartTimes()
        """Time from the start of loading until the engine is ready, by stage; set by `build`."""

    @abstractmethod
    def forward(self, pairs: Sequence[PairT]) -> torch.Tensor:
        """Float32 logits `[B]` on the device, in the order of `pairs`; with a fixed shape, meaningless numbers may
        follow. Must not wait for the device."""

    @property
    def cache_counts(self) -> CacheCounts:
        """Zero look-ups; an engine with a cache overrides this."""
        return CacheCounts(0, 0)

    @property
    def cache_bytes(self) -> int:
        """Zero bytes; an engine with a cache overrides this."""
        return 0

    def caches_off(self) -> AbstractContextManager[None]:
        """A context without effect; an engine with a cache overrides this."""
        return nullcontext()

    @property
    def device_facts(self) -> DeviceFacts:
        """Memory in use on the device now, and the device's peak speed."""
        memory_bytes = 0
        if self.device.type == "cuda":
            memory_bytes = cuda.reserved_bytes(self.device)
        elif _STATM.exists():  # Linux: the second field of this file is the resident set, in pages
            memory_bytes = int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return DeviceFacts(memory_bytes, self.peak_tokens_per_s, self.memory_limit_bytes)

    @cuda.device_errors()
    @torch.inference_mode()
    def launch(self, pairs: Sequence[PairT]) -> DeviceLogits:
        """Starts a forward pass. A batch that does not fit in memory is halved until its parts fit.

        Raises `DeviceMemoryExhausted` if a single pair does not fit, and `DeviceFailed` if the device is lost.
        """
        with cuda.current(self.device):
            if self.fixed_shape is None:
                return DeviceLogits(self._forward_or_halves(pairs))
            parts = [self._forward_or_halves(part) for part in self.fixed_shape.parts(pairs)]
            return DeviceLogits(torch.cat(parts))

    def score(self, pairs: Sequence[PairT]) -> list[float]:
        """Float32 logits `[B]` in the order of `pairs`, from one forward pass."""
        return self.launch(pairs).wait()

    def _forward_or_halves(self, pairs: Sequence[PairT]) -> torch.Tensor:
        try:
            logits = self.forward(pairs)
            return logits if self.fixed_shape is None else logits.narrow(0, 0, len(pairs))
        except RuntimeError as error:
            if not cuda.is_out_of_memory(error):
                raise
            # Continue outside the handler: the exception keeps the tensors of the failed pass alive.
        num_tokens = sum(pair.num_tokens for pair in pairs)
        if len(pairs) == 1:
            raise DeviceMemoryExhausted(num_tokens)
        # The scheduler's next batches stay well below the size that failed.
        self.memory_tokens = min(self.memory_tokens or num_tokens, num_tokens * 3 // 4)
        logger.warning("out of memory num_pairs=%d num_tokens=%d: halved", len(pairs), num_tokens)
        cuda.release_unused_memory()
        middle = len(pairs) // 2
        return torch.cat([self._forward_or_halves(pairs[:middle]), self._forward_or_halves(pairs[middle:])])
