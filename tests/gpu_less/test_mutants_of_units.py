"""Puts the faults back whose checks are in `tests/unit`: those of several threads, and those of the benchmark.

Each check is called once more, with the fault, and must fail.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from benchmarks.on_gpu import measure, session
from benchmarks.on_gpu.models import EngineState
from benchmarks.on_gpu.record import Record
from rerank_service.engine.device import cuda
from rerank_service.engine.device.graphs import GraphedStates
from rerank_service.engine.protocol import run_here
from rerank_service.replica import base
from rerank_service.replica.pool import PoolReplica
from tests.fake_cuda import FakeCuda
from tests.unit.benchmarks import test_gpu
from tests.unit.engine.device import test_cuda, test_graphs
from tests.unit.replica import test_pool

Patch = pytest.MonkeyPatch


def brings_no_packages(patch: Patch) -> None:
    """Fault 2: the benchmark needs pydantic, which a bare GPU machine lacks."""
    patch.setattr(test_gpu, "PACKAGES", ())


def says_what_was_asked_for(patch: Patch) -> None:
    """Fault 12: a graph or a compilation that turned itself off is still in the label."""

    def asked_for(engine: Any, num_replays: int, num_batches: int) -> EngineState:
        return EngineState(engine.precision, True, num_batches, num_batches)

    patch.setattr(test_gpu, "state_of", asked_for)


def writes_at_the_end(patch: Patch) -> None:
    """Fault 12: rows are saved only when all of them are known."""
    patch.setattr(Record, "_save", lambda _: None)


def checks_short_pairs_only(patch: Patch) -> None:
    """Fault 12: the logits of the longer pairs are not compared."""
    original = measure.reference_logits

    def reference(checkpoint: Path, lengths: list[int], device: str) -> Any:
        return original(checkpoint, lengths[:1], device)

    patch.setattr(session, "reference_logits", reference)


def captures_in_two_threads(patch: Patch) -> None:
    """Fault 9: nothing keeps a second thread from capturing."""
    patch.setattr(cuda, "_CAPTURES", nullcontext())


def captures_in_the_load_thread(patch: Patch) -> None:
    """Fault 9: the thread that loads a model of a pool captures, while the launch thread launches other models."""
    patch.setattr(PoolReplica, "_run_alone", lambda _, call: call())


def captures_between_launches(patch: Patch) -> None:
    """Fault 9: graphs are captured at any time."""
    original = GraphedStates.capture_all

    def capture_all(self: Any, buckets: Any, longest: int, _: Any) -> None:
        original(self, buckets, longest, run_here)

    patch.setattr(GraphedStates, "capture_all", capture_all)


def every_length_is_checked(folder: Path) -> None:
    options = argparse.Namespace(
        models="tiny",
        device="cpu",
        commit=None,
        queue_tokens=1024,
        batch_tokens=512,
        passages=1,
        repeats=1,
        budget_s=1e6,
        checkpoints=folder / "checkpoints",
        json=None,
    )
    with pytest.MonkeyPatch.context() as patch:
        rows: list[Any] = []
        patch.setattr(measure, "_MOST_REFERENCE_PAIRS", 1)
        patch.setattr(session, "table", lambda found: rows.extend(found) or "")
        session.bench(options)
    assert {row.tokens_per_pair for row in rows} == {128, 512}
    assert [row.tokens_per_pair for row in rows if not row.num_checked] == []


@pytest.mark.parametrize(
    ("check", "mutate", "message"),
    [
        (test_gpu.test_rows_without_time_are_listed_as_skipped, brings_no_packages, "imports pydantic"),
        (test_gpu.test_every_addition_leaves_a_whole_file, writes_at_the_end, "No such file"),
        (every_length_is_checked, checks_short_pairs_only, r"assert \[512.* == \[\]"),
    ],
    ids=["the packages", "the file", "the lengths"],
)
def test_a_fault_of_the_benchmark_fails_its_check(
    monkeypatch: Patch,
    tmp_path: Path,
    check: Callable[[Path], None],
    mutate: Callable[[Patch], None],
    message: str,
) -> None:
    mutate(monkeypatch)
    with pytest.raises((AssertionError, OSError), match=message):
        check(tmp_path)


def test_every_length_is_checked(tmp_path: Path) -> None:
    every_length_is_checked(tmp_path)


def test_a_wrong_label_fails_its_check(monkeypatch: Patch) -> None:
    says_what_was_asked_for(monkeypatch)
    with pytest.raises(AssertionError, match="compiled, graphs"):
        test_gpu.test_a_row_says_what_torch_did_and_not_what_was_asked_for()


def test_captures_in_two_threads_fail_their_check(monkeypatch: Patch) -> None:
    captures_in_two_threads(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError)):
        test_cuda.test_one_thread_of_a_process_captures_at_a_time(FakeCuda(monkeypatch))


async def test_captures_in_the_load_thread_fail_their_check(monkeypatch: Patch) -> None:
    monkeypatch.setattr(base, "log_through_serve", lambda **_: None)
    captures_in_the_load_thread(monkeypatch)
    with pytest.raises(AssertionError, match="load"):
        await test_pool.test_steps_that_need_the_gpu_alone_run_between_the_batches_of_other_models(monkeypatch)


def test_captures_between_launches_fail_their_check(monkeypatch: Patch) -> None:
    captures_between_launches(monkeypatch)
    model = test_graphs.small_model()
    with pytest.raises(AssertionError):
        test_graphs.test_each_graph_is_captured_while_no_other_thread_launches(model)
