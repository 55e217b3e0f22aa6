"""Runs an engine on a GPU that is not the thread's current device, with a GPU in software.

Outside `device/cuda.py`, the source must not contain CUDA calls that depend on the current device.
"""

import ast
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rerank_service.engine.device.cuda import GraphRecorder
from rerank_service.engine.device.graphs import cuda_graph_capture
from rerank_service.engine.device.launch import DeviceLogits, TorchEngine
from rerank_service.engine.device.pack import PackedSequences
from rerank_service.engine.protocol import EncodedPair
from tests.fake_cuda import FakeCuda
from tests.gpu_less.tensors import SoftwareGpu

ROOT = Path(__file__).parents[4]
SECOND = torch.device("cuda", 1)
PAIRS = [EncodedPair(np.ones(3, np.int32), 3, False)] * 2


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


class OnSecondDevice(TorchEngine[EncodedPair]):
    """An engine on the second GPU: keeps the GPU busy, and records which device was current."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__(SECOND)
        self._cuda = cuda
        self.ran_on: list[int] = []

    def forward(self, pairs: Sequence[EncodedPair]) -> torch.Tensor:
        self.ran_on.append(self._cuda.current_device)
        if len(pairs) > 2:
            raise RuntimeError("device-side assert")
        self._cuda.current_stream(SECOND).is_busy = True
        return torch.zeros(len(pairs), device=SECOND)


def test_logits_are_ready_when_their_own_device_is_done(cuda: FakeCuda) -> None:
    engine = OnSecondDevice(cuda)

    def launch() -> DeviceLogits:
        with SoftwareGpu(cuda):
            return engine.launch(PAIRS)

    with ThreadPoolExecutor(1) as thread:  # in another thread, as in the scheduler
        logits = thread.submit(launch).result()

    assert not logits.is_ready
    stream = cuda.current_stream(SECOND)
    stream.is_busy = False
    stream.run(stream.num_launched)
    assert logits.is_ready


def test_a_pass_makes_its_device_current_and_restores_the_previous_one(cuda: FakeCuda) -> None:
    engine = OnSecondDevice(cuda)
    with SoftwareGpu(cuda):
        engine.launch(PAIRS)
        with pytest.raises(RuntimeError, match="device-side assert"):
            engine.launch(PAIRS * 2)

    assert engine.ran_on == [1, 1]
    assert cuda.current_device == 0


def test_a_graph_is_captured_on_the_device_of_its_inputs(cuda: FakeCuda) -> None:
    ran_on = []

    def run(inputs: PackedSequences) -> torch.Tensor:
        ran_on.append(cuda.current_stream(SECOND))
        assert cuda.current_device == 1
        return torch.zeros(8, 4, device=SECOND)

    with SoftwareGpu(cuda):
        tokens = torch.zeros(1, 8, dtype=torch.int64, device=SECOND)
        captured = cuda_graph_capture(SECOND)(run, PackedSequences(tokens, tokens, tokens, tokens, (), 8))

    assert captured.states.device == SECOND
    assert len(ran_on) == 4  # once for the shape of the states, twice to warm up, once to record
    assert [stream.device for stream in cuda.captured_on] == [1]
    assert {id(stream) for stream in ran_on[1:]} == {id(cuda.captured_on[0])}
    assert cuda.captured_on[0] is not cuda.current_stream(SECOND)
    assert cuda.current_device == 0


def test_the_graphs_of_a_model_share_memory_and_a_stream(cuda: FakeCuda) -> None:
    def inputs(num_tokens: int) -> PackedSequences:
        tokens = torch.zeros(1, num_tokens, dtype=torch.int64, device=SECOND)
        return PackedSequences(tokens, tokens, tokens, tokens, (), 8)

    capture = cuda_graph_capture(SECOND)
    with SoftwareGpu(cuda):
        passes = [
            capture(lambda packed: torch.zeros(packed.token_ids.size(1), 4, device=SECOND), inputs(size))
            for size in (16, 8, 12)
        ]

    assert len({id(stream) for stream in cuda.captured_on}) == 1
    first, *others = cuda.pools
    assert first is None  # a new pool
    assert len(set(others)) == 1
    assert None not in others
    states: list[Any] = [captured.states for captured in passes]
    assert len({tensor.host.untyped_storage()._cdata for tensor in states}) == 1


def test_one_thread_of_a_process_captures_at_a_time(cuda: FakeCuda) -> None:
    inside, largest = 0, 0
    lock = threading.Lock()

    def run() -> None:
        nonlocal inside, largest
        with lock:
            inside += 1
            largest = max(largest, inside)
        threading.Event().wait(0.02)  # lets a second thread in, if nothing keeps it out
        with lock:
            inside -= 1

    recorders = [GraphRecorder(torch.device("cuda", index % 2)) for index in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for capture in [threads.submit(recorder.record, run) for recorder in recorders]:
            capture.result()

    assert len(cuda.captured_on) == 4
    assert largest == 1


MAKERS = {"CUDAGraph", "Event", "Stream", "current_stream", "default_stream", "graph", "set_stream", "stream"}
ABOUT_THE_CURRENT = {"current_device", "is_bf16_supported", "set_device"}
MACHINE_WIDE = {"device_count", "empty_cache", "is_available"}


def bare_calls(source: str) -> Iterator[str]:
    """Uses of torch.cuda that depend on the thread's current device, or create objects that only `device/cuda.py` may
    create."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "torch.cuda":
            yield f"line {node.lineno}: import torch, and name torch.cuda in full"
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, is_bare = node.func.attr, not node.args and not node.keywords
        if ast.unparse(node.func.value) == "torch.cuda":
            if name in MAKERS | ABOUT_THE_CURRENT or (is_bare and name not in MACHINE_WIDE):
                yield f"line {node.lineno}: {ast.unparse(node)}"
        elif name == "record" and is_bare:
            yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize(
    "source",
    [
        "event.record()",
        "torch.cuda.current_stream(device)",
        "stream = torch.cuda.Stream()",
        "torch.cuda.synchronize()",
        "torch.cuda.is_bf16_supported(including_emulation=False)",
        "from torch.cuda import Event",
    ],
)
def test_the_check_finds_bare_calls(source: str) -> None:
    assert list(bare_calls(source))


def test_no_call_depends_on_the_current_device() -> None:
    sources = [*(ROOT / "rerank_service").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    found = [
        f"{path.relative_to(ROOT)}, {call}"
        for path in sources
        if path != ROOT / "rerank_service/engine/device/cuda.py"
        for call in bare_calls(path.read_text())
    ]
    assert found == []
