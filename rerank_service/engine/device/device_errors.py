"""Which errors of a GPU are final: the process's CUDA context is lost, and every later call fails the same way.

Known by type and by the words of CUDA, cuBLAS and cuDNN, since torch has no code for them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rerank_service.errors import DeviceFailed

__all__ = ["device_errors", "is_final"]

_ACCELERATOR_ERROR: type[Exception] | None = getattr(torch, "AcceleratorError", None)
"""Of CUDA itself; torch 2.8 and newer."""

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
_PASSING = (
    "out of memory",
    "alloc_failed",
    "invalid argument",
    "invalid configuration argument",
    "no kernel image",
    "invalid device function",
)
"""CUDA refuses these calls and works on: the engine halves a batch, or the request alone fails."""


def is_final(error: BaseException) -> bool:
    """Whether the device will answer nothing after this error."""
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
    """Raises `DeviceFailed` in place of a final error."""
    try:
        yield
    except Exception as error:
        if not is_final(error):
            raise
        raise DeviceFailed(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}") from error
