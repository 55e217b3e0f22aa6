"""A fake CUDA runtime with several devices, under torch's own Python code. It computes nothing, and tracks the current
device and the stream on which each event is recorded. With `FakeTensorMode`, whose tensors claim to be on a GPU, the
device code runs on a machine without a GPU.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

__all__ = ["FakeCuda", "FakeStream"]


class FakeStream:
    """A queue of one device's work."""

    def __init__(self, device: int) -> None:
        self.device = device
        self.is_busy = False

    def wait_stream(self, stream: "FakeStream") -> None:
        assert stream.device == self.device


class FakeCuda:
    """A fake CUDA runtime. Every thread starts on device 0, as in CUDA."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._thread = threading.local()
        self._defaults = {index: FakeStream(index) for index in range(2)}
        self.captured_on: list[FakeStream] = []
        self.pools: list[object] = []
        """Memory pools that were passed to captures; null: a new pool."""
        runtime = self

        class Stream(FakeStream):
            def __init__(self, device: torch.device | None = None) -> None:
                super().__init__(runtime.current_device if device is None else device.index)

        class Event:
            def record(self, stream: FakeStream | None = None) -> None:
                self._stream = stream or runtime.current_stream()

            def query(self) -> bool:
                return not self._stream.is_busy

        class CUDAGraph:
            def capture_begin(self, pool: object = None, **_: Any) -> None:
                runtime.captured_on.append(runtime.current_stream())
                runtime.pools.append(pool)
                self._pool = pool or object()

            def pool(self) -> object:
                return self._pool

            def capture_end(self) -> None:
                """Does nothing, because nothing was recorded."""

            def replay(self) -> None:
                """Does nothing, because nothing was recorded."""

        for name, fake in {
            "_exchange_device": self._exchange_device,
            "_maybe_exchange_device": self._exchange_device,
            "current_stream": self.current_stream,
            "stream": self._stream,
            "synchronize": lambda device=None: None,
            "Stream": Stream,
            "Event": Event,
            "CUDAGraph": CUDAGraph,
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
