"""Buckets, selection and fallback of captured passes, tested with recordings that need no GPU."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from rerank_service.config import EngineConfig
from rerank_service.engine.device.forward import PACKED_ATTENTION, hidden_states
from rerank_service.engine.device.graphs import Capture, CapturedPass, GraphedStates, StatesOf, bucket_sizes, states_on
from rerank_service.engine.device.pack import PackedSequences, pack
from rerank_service.engine.protocol import run_here

CPU = torch.device("cpu")


def states_of(run: StatesOf, inputs: PackedSequences) -> torch.Tensor:
    """Imitates the variable-length kernel, which reads the bounds from its inputs and writes no other rows."""
    bounds = tuple(inputs.cu_seqlens.tolist())
    states = run(dataclasses.replace(inputs, bounds=bounds))
    states[bounds[-1] :] = torch.nan
    return states


class Recorder:
    """Does on a CPU what a capture of `cuda_graph_capture` does on a GPU: each replay reads the same tensors again."""

    def __init__(self, spoil: Callable[[torch.Tensor], None] = lambda _: None) -> None:
        self.captured: list[int] = []
        self.replayed: list[int] = []
        self._spoil = spoil

    def __call__(self, run: StatesOf, inputs: PackedSequences) -> CapturedPass:
        bucket = inputs.token_ids.size(1)
        self.captured.append(bucket)
        states = states_of(run, inputs)

        def replay() -> None:
            self.replayed.append(bucket)
            states.copy_(states_of(run, inputs))
            self._spoil(states)

        return CapturedPass(inputs, replay, states)


def replays_nothing(run: StatesOf, inputs: PackedSequences) -> CapturedPass:
    return CapturedPass(inputs, lambda: None, states_of(run, inputs))


def replays_what_it_captured(run: StatesOf, inputs: PackedSequences) -> CapturedPass:
    captured = states_of(run, inputs)
    states = captured.clone()
    return CapturedPass(inputs, lambda: states.copy_(captured), states)


def replays_captured_bounds(run: StatesOf, inputs: PackedSequences) -> CapturedPass:
    """A faulty capture: replays use their own tokens, but the sequence bounds of the capture."""
    fixed = dataclasses.replace(inputs, cu_seqlens=inputs.cu_seqlens.clone())
    states = states_of(run, fixed)
    return CapturedPass(inputs, lambda: states.copy_(states_of(run, fixed)), states)


def runs_the_host_bounds(run: StatesOf, inputs: PackedSequences) -> CapturedPass:
    """The pass that `cuda_graph_capture` records in float32, for which there is no variable-length kernel."""
    states = run(inputs)
    return CapturedPass(inputs, lambda: states.copy_(run(inputs)), states)


def shift_the_last_token(states: torch.Tensor) -> None:
    last = int(states[:, 0].isfinite().sum()) - 1
    states[last] = states[last].roll(1)


def lose_a_component(states: torch.Tensor) -> None:
    states[3, 7] = torch.nan


@pytest.fixture(autouse=True)
def as_in_a_launch() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def run() -> StatesOf:
    return small_model()


def small_model() -> StatesOf:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=50,
        max_position_embeddings=600,
        initializer_range=0.3,  # makes a token's state depend on its neighbours as much as in a trained model
    )
    config._attn_implementation = PACKED_ATTENTION
    return partial(hidden_states, BertModel(config).eval().requires_grad_(False))


def batch(*lengths: int, seed: int = 0) -> PackedSequences:
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(1, 50, length).astype(np.int32) for length in lengths]
    types = [rng.integers(0, 2, length).astype(np.int32) for length in lengths]
    return pack(sequences, CPU, type_ids=types)


def graphed(run: StatesOf, capture: Capture | None, buckets: Sequence[int], example: PackedSequences) -> GraphedStates:
    """Loads as `build` does: a first batch, then the captures."""
    states = GraphedStates(run, capture)
    states(example)
    states.capture_all(buckets, 512, run_here)
    return states


def test_a_replay_returns_the_states_of_its_batch_after_any_earlier_batch(run: StatesOf) -> None:
    recorder = Recorder()
    states = graphed(run, recorder, (64, 128), batch(9))
    assert recorder.captured == [128, 64]  # the largest first, because the others use its memory
    assert states.buckets == [64, 128]

    recorder.replayed.clear()
    batches = [(5, 20), (60,), (3, 3, 3), (1,), (40, 40), (90, 2), (6, 7), (128,)]
    for seed, lengths in enumerate(batches):
        packed = batch(*lengths, seed=seed)
        torch.testing.assert_close(states(packed), run(packed), atol=1e-5, rtol=1e-5)

    assert recorder.replayed == [64, 64, 64, 64, 128, 128, 64, 128]
    assert recorder.captured == [128, 64]  # nothing is captured after loading


@pytest.mark.parametrize(
    ("bucket", "lengths"),
    [(64, (40, 40)), (64, (1, 1, 1, 1, 1)), (1024, (513,))],
    ids=["more tokens than any bucket", "more sequences than slots", "longer than a captured kernel supports"],
)
def test_a_batch_that_fits_in_no_bucket_runs_without_a_graph(
    run: StatesOf, bucket: int, lengths: tuple[int, ...]
) -> None:
    recorder = Recorder()
    states, packed = graphed(run, recorder, (bucket,), batch(9)), batch(*lengths)
    recorder.replayed.clear()

    assert torch.equal(states(packed), run(packed))
    assert recorder.replayed == []


@pytest.mark.parametrize(
    "capture",
    [
        replays_nothing,
        replays_what_it_captured,
        replays_captured_bounds,
        runs_the_host_bounds,
        Recorder(shift_the_last_token),
        Recorder(lose_a_component),
    ],
)
def test_a_graph_with_wrong_states_is_never_used(
    run: StatesOf, caplog: pytest.LogCaptureFixture, capture: Capture
) -> None:
    attempts: list[int] = []

    def counted(run: StatesOf, inputs: PackedSequences) -> CapturedPass:
        attempts.append(inputs.token_ids.size(1))
        return capture(run, inputs)

    with caplog.at_level(logging.WARNING):
        states = graphed(run, counted, (64, 128), batch(5, 20))

    assert attempts == [128]  # no further attempt
    assert "CUDA graphs are turned off" in caplog.text
    assert states.buckets == []
    for lengths in ((5, 20), (64,), (100,)):
        packed = batch(*lengths)
        assert torch.equal(states(packed), run(packed))


def test_a_single_wrong_graph_turns_all_graphs_off(run: StatesOf) -> None:
    good = Recorder()

    def capture(run: StatesOf, inputs: PackedSequences) -> CapturedPass:
        return (replays_nothing if inputs.token_ids.size(1) == 32 else good)(run, inputs)

    assert graphed(run, capture, (32, 64, 128), batch(9)).buckets == []


@pytest.mark.parametrize("error", [RuntimeError, torch.AcceleratorError])
def test_a_failed_capture_is_not_an_error(run: StatesOf, error: type[Exception]) -> None:
    def fail(_: StatesOf, __: PackedSequences) -> CapturedPass:
        raise error("CUDA error: operation not permitted when stream is capturing")

    packed = batch(5, 20)
    assert torch.equal(graphed(run, fail, (64,), packed)(packed), run(packed))


def test_a_capture_that_loses_the_device_is_an_error(run: StatesOf) -> None:
    def fail(_: StatesOf, __: PackedSequences) -> CapturedPass:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        graphed(run, fail, (64,), batch(5, 20))


@pytest.mark.parametrize("window", [3, 24, 512])
def test_every_bucket_can_be_captured_for_every_window(run: StatesOf, window: int) -> None:
    recorder = Recorder()
    states = GraphedStates(run, recorder)
    states(batch(3))
    states.capture_all(bucket_sizes(512)[::5], window, run_here)
    assert states.buckets == bucket_sizes(512)[::5]


def test_each_graph_is_captured_while_no_other_thread_launches(run: StatesOf) -> None:
    alone = False

    def run_alone(call: Callable[[], None]) -> None:
        nonlocal alone
        alone = True
        call()
        alone = False

    class Watched(Recorder):
        def __call__(self, run: StatesOf, inputs: PackedSequences) -> CapturedPass:
            assert alone
            return super().__call__(run, inputs)

    watched = Watched()
    states = GraphedStates(run, watched)
    states(batch(9))
    states.capture_all((32, 64), 512, run_alone)
    assert watched.captured == [64, 32]


def test_a_cpu_uses_no_graphs(run: StatesOf) -> None:
    model = run.args[0]  # type: ignore[attr-defined]
    assert not isinstance(states_on(model, EngineConfig()), GraphedStates)
