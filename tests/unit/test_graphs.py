"""Buckets, selection and fallback of captured passes, with a recording that needs no GPU."""

import dataclasses
import logging
from functools import partial

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from rerank_service.config import EngineConfig
from rerank_service.engine.forward import PACKED_ATTENTION, hidden_states
from rerank_service.engine.graphs import CapturedPass, GraphedStates, StatesOf, states_on
from rerank_service.engine.pack import PackedSequences, pack

CPU = torch.device("cpu")


class Recorder:
    """What `capture_cuda_graph` does, on a CPU: reads the same tensors again at every replay."""

    def __init__(self, offset: float = 0.0) -> None:
        self.captured: list[int] = []
        self.replayed: list[int] = []
        self._offset = offset

    def __call__(self, run: StatesOf, inputs: PackedSequences) -> CapturedPass:
        bucket = inputs.token_ids.size(1)
        self.captured.append(bucket)
        states = torch.full((bucket, 32), torch.nan)

        def replay() -> None:
            self.replayed.append(bucket)
            bounds = tuple(inputs.cu_seqlens.tolist())
            states.copy_(run(dataclasses.replace(inputs, bounds=bounds)) + self._offset)

        return CapturedPass(inputs, replay, states)


@pytest.fixture(scope="module")
def run() -> StatesOf:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=50,
        max_position_embeddings=600,
    )
    config._attn_implementation = PACKED_ATTENTION
    return partial(hidden_states, BertModel(config).eval().requires_grad_(False))


def batch(*lengths: int, seed: int = 0) -> PackedSequences:
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(1, 50, length).astype(np.int32) for length in lengths]
    types = [rng.integers(0, 2, length).astype(np.int32) for length in lengths]
    return pack(sequences, CPU, type_ids=types)


def test_a_replay_gives_the_states_of_the_batch_whatever_was_there_before(run: StatesOf) -> None:
    recorder = Recorder()
    graphed = GraphedStates(run, recorder, buckets=(64, 128))
    batches = [(5, 20), (60,), (3, 3, 3), (1,), (40, 40), (90, 2), (6, 7), (128,)]
    for seed, lengths in enumerate(batches):
        packed = batch(*lengths, seed=seed)
        torch.testing.assert_close(graphed(packed), run(packed), atol=1e-5, rtol=1e-5)

    assert recorder.captured == [64, 128]
    assert recorder.replayed == [64, 64, 64, 64, 64, 128, 128, 128, 64, 128]  # a capture is followed by a check


@pytest.mark.parametrize(
    ("bucket", "lengths"),
    [(64, (40, 40)), (64, (1, 1, 1, 1, 1)), (1024, (513,))],
    ids=["more tokens than any bucket", "more sequences than its places", "longer than a captured kernel looks"],
)
def test_what_no_bucket_holds_runs_as_usual(run: StatesOf, bucket: int, lengths: tuple[int, ...]) -> None:
    recorder = Recorder()
    packed = batch(*lengths)

    assert torch.equal(GraphedStates(run, recorder, buckets=(bucket,))(packed), run(packed))
    assert recorder.captured == []


def test_a_graph_with_other_answers_is_never_used(run: StatesOf, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(offset=1.0)
    graphed = GraphedStates(run, recorder, buckets=(64, 128))
    with caplog.at_level(logging.WARNING):
        for lengths in ((5, 20), (100,), (5, 20)):
            packed = batch(*lengths)
            assert torch.equal(graphed(packed), run(packed))

    assert recorder.captured == [64]  # and never tried again
    assert "no CUDA graphs" in caplog.text


def test_a_capture_that_fails_is_no_error(run: StatesOf) -> None:
    def fail(_: StatesOf, __: PackedSequences) -> CapturedPass:
        raise RuntimeError("operation not permitted when stream is capturing")

    packed = batch(5, 20)
    assert torch.equal(GraphedStates(run, fail)(packed), run(packed))


def test_a_cpu_has_no_graphs(run: StatesOf) -> None:
    model = run.args[0]  # type: ignore[attr-defined]
    assert not isinstance(states_on(model, EngineConfig()), GraphedStates)
