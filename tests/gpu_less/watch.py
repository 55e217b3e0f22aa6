"""Finds operators and calls that make the host wait for a device."""

from collections.abc import Callable
from typing import Any

import torch

from tests.fake_cuda import FakeCuda

__all__ = ["HostWaited", "Watch"]

aten = torch.ops.aten

_READ_BY_THE_HOST = {
    aten._local_scalar_dense.default,  # item(), float(), tolist(), a tensor in an `if`
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
}
"""Operators whose result, or the size of it, is read by the host."""
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class HostWaited(AssertionError):
    """The host waits for a device. Not a `RuntimeError`, so that the code under test does not handle it."""


class Watch:
    """Raises `HostWaited` at a wait, if it is on, and torch's own error during the capture of a graph."""

    def __init__(self, runtime: FakeCuda) -> None:
        self.is_on = False
        self._runtime = runtime
        runtime.on_wait = self.waits

    def check(
        self, func: Any, args: Any, kwargs: Any, inputs: list[torch.Tensor], is_pinned: Callable[[torch.Tensor], bool]
    ) -> None:
        """Examines an operator before it runs."""
        if not (self.is_on or self._runtime.is_capturing):
            return
        if func in _READ_BY_THE_HOST and any(tensor.is_cuda for tensor in inputs):
            self.waits(f"{func} is read by the host")
        if func in (aten._to_copy.default, aten.copy_.default):
            self._check_copy(func, args, kwargs, is_pinned)
        if func in _INDEXING and args[0].is_cuda:
            for index in args[1]:
                if index is not None and not index.is_cuda:
                    self.waits(f"{func} copies an index from pageable memory")
                elif index is not None and index.dtype in (torch.bool, torch.uint8):
                    self.waits(f"{func} counts the true elements of a mask")
        if func is aten.segment_reduce.default and not kwargs.get("unsafe", False):
            self.waits(f"{func} checks the lengths on the host")

    def _check_copy(self, func: Any, args: Any, kwargs: Any, is_pinned: Callable[[torch.Tensor], bool]) -> None:
        if func is aten.copy_.default:
            target, source, is_asynchronous = args[0], args[1], (*args[2:], kwargs.get("non_blocking", False))[0]
            is_to_gpu, in_host = target.is_cuda, source if target.is_cuda else target
        else:
            source, is_asynchronous = args[0], kwargs.get("non_blocking", False)
            device = kwargs.get("device")
            is_to_gpu, in_host = torch.device(device or source.device).type == "cuda", source
        if is_to_gpu == source.is_cuda:
            return
        if not is_asynchronous:
            self.waits(f"{func} blocks ({source.device} to {'cuda' if is_to_gpu else 'cpu'})")
        if in_host.is_cuda or not is_pinned(in_host):
            self.waits(f"{func} copies to or from pageable memory")

    def waits(self, what: str) -> None:
        """Called for each wait."""
        if self._runtime.is_capturing:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")
        if self.is_on:
            raise HostWaited(what)
