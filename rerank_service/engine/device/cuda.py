"""Events and captured graphs of one GPU, each for a device that is named; the one place that makes them.

torch's defaults belong to the thread's current device, in a new thread the first GPU. An event recorded there is
complete at once, whatever another GPU still computes, and its results are read before they arrive.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

__all__ = ["capture", "current", "recorded_event"]


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a GPU this thread's current device for the time being; a CPU needs nothing."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def recorded_event(device: torch.device) -> torch.cuda.Event:
    """An event that completes when the device has finished everything launched on it so far."""
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


def capture(device: torch.device, run: Callable[[], torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """The kernels of `run` as a graph, and the tensor that every replay writes."""
    with torch.cuda.device(device):
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(2):  # lets cuBLAS and Triton choose their kernels, which must not happen in a capture
                run()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Without `stream`, torch captures on one that it makes once a process, on whichever device is current then.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = run()
    return graph, result
