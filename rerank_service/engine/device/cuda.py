"""Direct use of CUDA: the current device, events, captured graphs, and errors after which CUDA is unusable.

Every call names its device, because otherwise torch uses the thread's current device, which in a new thread is the
first GPU. If the model runs on another GPU, an event recorded on the first GPU completes at once, and the host reads
results that have not arrived yet.
"""

import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch

from rerank_service.errors import DeviceFailed

__all__ = [
    "GraphRecorder",
    "Memory",
    "current",
    "device_errors",
    "forbid_divided_sums",
    "is_final",
    "is_out_of_memory",
    "limit_memory",
    "memory",
    "name",
    "num_multiprocessors",
    "num_visible",
    "peak_bytes",
    "recorded_event",
    "release_unused_memory",
    "reserved_bytes",
    "visible",
]

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
    "too many resources requested",
    "operation not supported",
    *("capturing", "during capture", "capture sequence", "capture was not ended", "uncaptured work"),
)
"""Phrases in messages of errors after which CUDA keeps working: the engine halves a batch, one request fails, or graphs
are turned off."""

_CAPTURES = threading.Lock()


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Makes `device` this thread's current device within the context; does nothing for a CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def recorded_event(device: torch.device) -> torch.cuda.Event:
    """An event that completes when `device` has finished all work launched so far on its current stream."""
    event = torch.cuda.Event(blocking=True)  # otherwise the waiting thread may occupy a core
    event.record(torch.cuda.current_stream(device))
    return event


class GraphRecorder:
    """Records the kernels of functions as CUDA graphs that share their memory. Replay one graph at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            # One stream for all graphs, because cuBLAS allocates a workspace of 32 MiB for each stream.
            self._stream = torch.cuda.Stream(device)
        self._first: torch.cuda.CUDAGraph | None = None

    def record(self, run: Callable[[], object]) -> Callable[[], None]:
        """Captures the kernels of `run`, and returns a function that replays them.

        Between the call and the return, no other thread may launch work for a graph; other captures of the process
        wait, because CUDA allows one at a time.
        """
        graph = torch.cuda.CUDAGraph()
        current, stream = torch.cuda.current_stream(self._device), self._stream
        with _CAPTURES, torch.cuda.device(self._device):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                for _ in range(2):  # cuBLAS and Triton choose kernels in these runs; a capture does not allow it
                    run()
                torch.cuda.synchronize(self._device)
                # Not `torch.cuda.graph`, which empties the allocator's cache for each graph.
                with _no_garbage_collection():  # freeing a tensor during a capture can end the capture
                    pool = None if self._first is None else self._first.pool()
                    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                    try:
                        run()
                    finally:
                        graph.capture_end()
            current.wait_stream(stream)
        self._first = self._first or graph
        return graph.replay


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


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


class Memory(NamedTuple):
    """Memory of one GPU, or of one MIG slice, in bytes."""

    free: int
    """Memory that no process holds."""
    total: int
    reserved: int
    """Memory held by this process's allocator, in use or not."""


def num_visible() -> int:
    """Number of GPUs or MIG slices that this process may use; 0 without a driver."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def visible() -> list[tuple[str, int]]:
    """Name and memory in bytes of each GPU or MIG slice that this process may use."""
    properties = [torch.cuda.get_device_properties(index) for index in range(num_visible())]
    return [(gpu.name, gpu.total_memory) for gpu in properties]


def name(device: torch.device) -> str:
    """Name that the driver reports, which contains the profile of a MIG slice."""
    return torch.cuda.get_device_name(device)


def num_multiprocessors(device: torch.device) -> int:
    """Number of multiprocessors of a GPU or MIG slice."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def memory(device: torch.device) -> Memory:
    """Memory of the device now."""
    free, total = torch.cuda.mem_get_info(device)
    return Memory(free, total, reserved_bytes(device))


def reserved_bytes(device: torch.device) -> int:
    """Memory held by this process's allocator. Asks no driver, so each answer to a request may report it."""
    return int(torch.cuda.memory_reserved(device))


def peak_bytes(device: torch.device, run: Callable[[], object]) -> int:
    """Peak memory of tensors during `run`, minus the memory held before. Waits for the device."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device) - held)


def limit_memory(device: torch.device, share: float) -> None:
    """Limits this process's tensors to a share of the device's memory. An allocation beyond it raises
    `torch.OutOfMemoryError`, as if the device had no more memory."""
    torch.cuda.set_per_process_memory_fraction(share, device)


def forbid_divided_sums() -> None:
    """Makes cuBLAS compute each element of a product in one block, in one order. Call it before the first product.

    cuBLAS divides long sums among blocks (split-K, stream-K), depending on the place of the element, and adds the parts
    in a workspace. In a workspace this small, no parts fit. vLLM's batch-invariant mode does the same on Hopper.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":16:8"
    os.environ["CUBLASLT_WORKSPACE_SIZE"] = "1"  # KiB
    torch.backends.cuda.preferred_blas_library("cublaslt")
    # The second value forbids split-K.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = (False, False)
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = (False, False)


def release_unused_memory() -> None:
    """Returns memory without tensors to the driver; does nothing without a GPU."""
    torch.cuda.empty_cache()
