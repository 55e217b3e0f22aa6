"""A fake CUDA runtime with several devices, under torch's own Python code: the current device of each thread, streams,
events, captured graphs, and memory.

It computes nothing by itself: `tests/gpu_less` adds tensors with numbers, and records their operators into graphs.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

__all__ = ["DeviceMemory", "FakeCuda", "FakeStream"]


class FakeStream:
    """A queue of one device's work."""

    def __init__(self, device: int) -> None:
        self.device = device
        self.is_busy = False
        self._launched: list[Callable[[], object]] = []
        self.num_done = 0

    @property
    def num_launched(self) -> int:
        """Number of copies launched so far, the arrived ones included."""
        return self.num_done + len(self._launched)

    def launch(self, copy: Callable[[], object]) -> None:
        """Adds a copy to the host, which arrives when the host waits for it."""
        self._launched.append(copy)

    def wait_stream(self, stream: "FakeStream") -> None:
        assert stream.device == self.device

    def run(self, until: int) -> None:
        """Lets the first `until` copies arrive."""
        with torch.inference_mode():
            while self.num_done < until:
                self._launched.pop(0)()
                self.num_done += 1


class Holder:
    """Keeps memory allocated; torch refuses to swap a tensor that has weak references itself."""


class DeviceMemory:
    """Bytes of tensors on the devices, counted by storage."""

    def __init__(self) -> None:
        self.allocated = self.peak = 0
        self.capacity: int | None = None
        """Bytes that fit; null: any number."""
        self.exhausted: Callable[[str], Exception] = torch.OutOfMemoryError
        """Makes the error for an allocation that does not fit."""
        self._holders: dict[int, int] = {}

    def hold(self, host: torch.Tensor) -> "Holder":
        """Counts the storage of `host` until all of its holders are gone. Raises `exhausted`."""
        storage = host.untyped_storage()
        key, num_bytes = storage._cdata, storage.nbytes()
        if key not in self._holders:
            if self.capacity is not None and self.allocated + num_bytes > self.capacity:
                raise self.exhausted(f"tried to allocate {num_bytes} bytes")
            self._holders[key] = 0
            self.allocated += num_bytes
            self.peak = max(self.peak, self.allocated)
        self._holders[key] += 1
        holder = Holder()
        weakref.finalize(holder, self._release, key, num_bytes)
        return holder

    def _release(self, key: int, num_bytes: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            self.allocated -= num_bytes


class FakeCuda:
    """A fake CUDA runtime. Every thread starts on device 0, as in CUDA."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0)) -> None:
        self._thread = threading.local()
        self._defaults = {index: FakeStream(index) for index in range(2)}
        self.captured_on: list[FakeStream] = []
        self.pools: list[object] = []
        """Memory pools that were passed to captures; null: a new pool."""
        self.num_replays = 0
        self.memory = DeviceMemory()
        self.on_wait: Callable[[str], object] = lambda _: None
        """Called when the host waits for a device."""
        self._recording: FakeGraph | None = None
        self.broken: Exception | None = None
        """Raised by every operator once a kernel has failed."""
        event, graph, stream = _classes(self)
        for name, fake in {
            "_exchange_device": lambda index: self._exchange_device(index),
            "_maybe_exchange_device": lambda index: self._exchange_device(index),  # torch compares the two functions
            "current_stream": self.current_stream,
            "stream": self._stream,
            "synchronize": self.synchronize,
            "Stream": stream,
            "Event": event,
            "CUDAGraph": graph,
            "get_device_capability": lambda device=None: capability,
            "get_device_name": lambda device=None: "NVIDIA H100 80GB HBM3",
            "get_device_properties": lambda device=None: SimpleNamespace(multi_processor_count=132),
            "set_per_process_memory_fraction": lambda fraction, device=None: None,
            "empty_cache": lambda: None,
            "memory_allocated": lambda device=None: self.memory.allocated,
            "memory_reserved": lambda device=None: self.memory.allocated,
            "max_memory_allocated": lambda device=None: self.memory.peak,
            "reset_peak_memory_stats": self._reset_peak,
            "mem_get_info": self._free_memory,
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
        monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", None)

    @property
    def current_device(self) -> int:
        """Current device of the calling thread."""
        return getattr(self._thread, "device", 0)

    def current_stream(self, device: torch.device | None = None) -> FakeStream:
        """Current stream of the calling thread on a device, by default on its current device."""
        index = self.current_device if device is None else device.index
        return self._streams.get(index, self._defaults[index])

    @property
    def is_capturing(self) -> bool:
        """Whether the calling thread records a graph."""
        return self._recording is not None and self._recording.thread == threading.get_ident()

    def record(self, run: Callable[..., Any], args: Any, kwargs: Any, outputs: Any) -> None:
        """Adds an operator to the graph that is being recorded, if there is one."""
        if self.is_capturing:
            assert self._recording is not None
            self._recording.add(run, args, kwargs, outputs)

    def begin_capture(self, graph: "FakeGraph") -> None:
        """Raises torch's error if another graph is being recorded: CUDA allows one per process."""
        if self._recording is not None:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self._recording = graph
        self.captured_on.append(self.current_stream())

    def end_capture(self) -> None:
        self._recording = None

    def synchronize(self, device: torch.device | None = None) -> None:
        self.on_wait("synchronize")
        stream = self.current_stream(device)
        stream.run(stream.num_launched)

    @property
    def _streams(self) -> dict[int, FakeStream]:
        return self._thread.__dict__.setdefault("streams", {})

    def _exchange_device(self, index: int) -> int:
        before, self._thread.device = self.current_device, index
        return before

    @contextmanager
    def _stream(self, stream: FakeStream) -> Iterator[None]:
        before_device = self._exchange_device(stream.device)
        before = self._streams.get(stream.device)
        self._streams[stream.device] = stream
        try:
            yield
        finally:
            self._exchange_device(before_device)
            self._streams[stream.device] = before or self._defaults[stream.device]

    def _reset_peak(self, device: Any = None) -> None:
        self.memory.peak = self.memory.allocated

    def _free_memory(self, device: Any = None) -> tuple[int, int]:
        total = 80 * 2**30 if self.memory.capacity is None else self.memory.capacity
        return total - self.memory.allocated, total


class FakeGraph:
    """Recorded operators. A capture computes nothing that lasts: its results are poisoned when it ends."""

    def __init__(self) -> None:
        self.thread = 0
        self._steps: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    def add(self, run: Callable[..., Any], args: Any, kwargs: Any, outputs: Any) -> None:
        self._steps.append((run, args, kwargs, outputs))

    def poison(self) -> None:
        for _, args, kwargs, outputs in self._steps:
            for output in _fresh(outputs, args, kwargs):
                if output.is_floating_point() and output.element_size() > 1:
                    output.fill_(torch.nan)

    def replay(self) -> None:
        for run, args, kwargs, outputs in self._steps:
            again = run(*args, **kwargs)
            fresh = _fresh(outputs, args, kwargs)
            for output, result in zip(tree_leaves(outputs), tree_leaves(again), strict=True):
                if any(output is some for some in fresh):
                    output.copy_(result)


def _fresh(outputs: Any, *inputs: Any) -> list[torch.Tensor]:
    """The outputs that share no memory with an input."""
    held = {leaf.untyped_storage()._cdata for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)}
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    return [tensor for tensor in tensors if tensor.untyped_storage()._cdata not in held]


def _classes(runtime: FakeCuda) -> tuple[type, type, type]:
    """Stand-ins for `torch.cuda.Event`, `CUDAGraph` and `Stream`."""

    class Stream(FakeStream):
        def __init__(self, device: torch.device | None = None) -> None:
            super().__init__(runtime.current_device if device is None else device.index)

    class Event:
        def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
            self._is_blocking = blocking

        def record(self, stream: FakeStream | None = None) -> None:
            self._stream = stream or runtime.current_stream()
            self._until = self._stream.num_launched

        def query(self) -> bool:
            return not self._stream.is_busy and self._stream.num_done >= self._until

        def synchronize(self) -> None:
            assert self._is_blocking, "an event without blocking=True occupies a core while the host waits"
            runtime.on_wait("Event.synchronize")
            self._stream.run(self._until)

    class CUDAGraph(FakeGraph):
        def capture_begin(self, pool: object = None, **_: Any) -> None:
            self.thread = threading.get_ident()
            self._pool = pool or object()
            runtime.pools.append(pool)
            runtime.begin_capture(self)

        def pool(self) -> object:
            return self._pool

        def replay(self) -> None:
            runtime.num_replays += 1
            super().replay()

        def capture_end(self) -> None:
            runtime.end_capture()
            self.poison()

    return Event, CUDAGraph, Stream
