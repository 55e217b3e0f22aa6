"""Direct use of CUDA: the current device, events, captured graphs, and errors after which CUDA is unusable.

Every call names its device, because otherwise torch uses the thread's current device, which in a new thread is the
first GPU. If the model runs on another GPU, an event recorded on the first GPU completes at once, and the host reads
results that have not arrived yet.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from rerank_service.errors import DeviceFailed

__all__ = ["capture", "current", "device_errors", "is_final", "is_out_of_memory", "recorded_event"]

_ACCELERATOR_ERROR: type[Exception] | None = getattr(torch, "AcceleratorError", None)
"""torch's class for CUDA errors; available since torch 2.8."""

_FINAL = (
    "illegal memory access",
    "illegal instruction",
    "device-side assert",
    "unspecified launch failure",
    "launch timed out",
    "misaligned address",
    "invalid program counter",
    "invalid address space",
    "hardware stack error",
    "uncorrectable",  # ECC and NVLink
    "nvlink",
    "device is lost",
    "gpu is lost",
    "gpu has fallen off the bus",
    "execution_failed",  # CUBLAS_STATUS_, CUDNN_STATUS_
    "cublas_status_internal_error",
    "xid",
)
"""Phrases in messages of CUDA, cuBLAS and cuDNN that report a lost context; torch has no error codes for them."""
_EXHAUSTED = ("out of memory", "alloc_failed")  # CUBLAS_STATUS_, CUDNN_STATUS_
"""Phrases in messages of errors that report exhausted memory and are not of torch's class for it."""
_PASSING = (
    *_EXHAUSTED,
    "invalid argument",
    "invalid configuration argument",
    "no kernel image",
    "invalid device function",
)
"""Phrases in messages of errors after which CUDA keeps working: the engine halves a batch, or one request fails."""


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Makes `device` this thread's current device within the context; does nothing for a CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def recorded_event(device: torch.device) -> torch.cuda.Event:
    """An event that completes when `device` has finished all work launched so far on its current stream."""
    event = torch.cuda.Event(blocking=True)  # otherwise the waiting thread may occupy a core
    event.record(torch.cuda.current_stream(device))
    return event


def capture(device: torch.device, run: Callable[[], torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """Captures the kernels of `run` as a graph. Also returns the output tensor, which each replay overwrites."""
    with torch.cuda.device(device):
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(2):  # cuBLAS and Triton choose kernels in these runs; a capture does not allow it
                run()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Without `stream`, torch would create one stream per process, on the device that is current at that moment.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = run()
    return graph, result


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device's memory is exhausted. The allocator of torch raises `OutOfMemoryError`; CUDA and its
    libraries raise other errors for their own allocations."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in _EXHAUSTED)


def is_final(error: BaseException) -> bool:
    """Whether the process's CUDA context is lost, so that every later call fails the same way."""
    if isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError):
        return False
    words = str(error).lower()
    if any(phrase in words for phrase in _PASSING):
        return False
    if _ACCELERATOR_ERROR is not None and isinstance(error, _ACCELERATOR_ERROR):
        return True
    is_of_cuda = any(name in words for name in ("cuda", "cublas", "cudnn", "nccl", "gpu"))
    return is_of_cuda and any(phrase in words for phrase in _FINAL)


@contextmanager
def device_errors() -> Iterator[None]:
    """Turns an error that loses the CUDA context into `DeviceFailed`; all other errors pass through."""
    try:
        yield
    except Exception as error:
        if not is_final(error):
            raise
        raise DeviceFailed(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}") from error
