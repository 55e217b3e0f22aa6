from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaEmbeddings

from rerank_service.config import Pooling
from rerank_service.engine.device.pack import length_sorted_batches, pack, pool, sums_in_parts, to_device

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 600), max_size=80)


def test_sequences_are_laid_end_to_end_and_positions_restart() -> None:
    packed = pack([np.array([7, 8], np.int32), np.array([9], np.int32), np.array([1, 2, 3], np.int32)], CPU)

    assert packed.token_ids.tolist() == [[7, 8, 9, 1, 2, 3]]
    assert packed.position_ids.tolist() == [[0, 1, 0, 0, 1, 2]]
    assert packed.cu_seqlens.tolist() == list(packed.bounds) == [0, 2, 3, 6]
    assert packed.cu_seqlens.dtype == torch.int32
    assert packed.lengths.tolist() == [2, 1, 3]
    assert packed.max_length == 3


def test_positions_that_start_after_the_padding_id_do_not_count_padding() -> None:
    """transformers numbers RoBERTa's tokens the same way. Only parsed texts contain padding tokens."""
    sequences = [np.array(ids, np.int32) for ids in ([0, 5, 1, 6, 1, 1, 2], [0, 1, 7, 2], [5, 6])]

    packed = pack(sequences, CPU, first_position=2)

    positions = packed.position_ids[0].split(packed.lengths.tolist())
    for sequence, own in zip(sequences, positions, strict=True):
        ids = torch.tensor(sequence[None])
        expected = XLMRobertaEmbeddings.create_position_ids_from_input_ids(ids, 1)
        assert own.tolist() == expected[0].tolist()


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (Pooling.AVG, [[2.0, 3.0], [5.0, 6.0]]),
        (Pooling.WEIGHTED_AVG, [[4.0, 6.0], [5.0, 6.0]]),
        (Pooling.CLS, [[1.0, 2.0], [5.0, 6.0]]),
        (Pooling.LAST, [[3.0, 4.0], [5.0, 6.0]]),
    ],
)
def test_pooling(pooling: Pooling, expected: list[list[float]]) -> None:
    packed = pack([np.array([1, 2], np.int32), np.array([3], np.int32)], CPU)
    states = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.bfloat16)

    pooled = pool(states, packed, pooling)

    assert pooled.dtype == torch.float32
    assert pooled.tolist() == expected


@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.integers(0, 9))
def test_sums_in_parts_depend_only_on_their_own_sequence(lengths: list[int], seed: int) -> None:
    states = torch.randn(sum(lengths), 3, generator=torch.Generator().manual_seed(seed))
    bounds = (0, *np.cumsum(lengths).tolist())

    sums = sums_in_parts(states, bounds)

    own = states.split(lengths)
    alone = torch.cat([sums_in_parts(part, (0, len(part))) for part in own])
    assert torch.equal(sums, alone)
    exact = torch.stack([part.double().sum(0) for part in own])
    torch.testing.assert_close(sums.double(), exact, atol=1e-4, rtol=0)


def test_nan_in_one_sequence_does_not_reach_the_sum_of_another() -> None:
    states = torch.ones(200, 2)
    states[:70] = torch.nan

    sums = sums_in_parts(states, (0, 70, 200))

    assert sums[0].isnan().all()
    assert sums[1].tolist() == [130, 130]


class Transfers(TorchDispatchMode):
    """Records the copies between host and device, and the allocations of pinned memory."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in {"_pin_memory", "_to_copy"}:
            self.seen.append(name)
            if name == "_to_copy":
                assert kwargs["non_blocking"]
        return func(*args, **kwargs or {})


def test_a_batch_reaches_the_gpu_in_one_pinned_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the `meta` device as the GPU: it computes nothing, but shapes, types and the calls are those of a GPU."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    pinned: list[torch.Tensor] = []
    sequences = [np.array([7, 8], np.int32), np.array([9], np.int32), np.array([1, 2, 3], np.int32)]

    with Transfers() as transfers:
        on_gpu = pack(sequences, torch.device("meta"), type_ids=sequences)
    on_cpu = pack(sequences, CPU, type_ids=sequences)

    assert transfers.seen == ["_to_copy"]
    assert len(pinned) == 1
    for name in ("token_ids", "position_ids", "lengths", "cu_seqlens", "type_ids"):
        expected, found = getattr(on_cpu, name), getattr(on_gpu, name)
        assert (found.shape, found.dtype, found.device.type) == (expected.shape, expected.dtype, "meta"), name


def test_arrays_keep_their_values_in_the_common_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [np.array([1, -2, 1 << 40]), np.empty(0, np.int64), np.array([0.5], np.float32), np.array([3], np.int32)]
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)

    class HostAsGpu:
        type = "cuda"

    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, non_blocking: tensor.clone())

    for array, tensor in zip(arrays, to_device(arrays, HostAsGpu()), strict=True):  # type: ignore[arg-type]
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert tensor.numpy().dtype == array.dtype


@given(LENGTHS, st.sampled_from([0.0, 0.1, 0.5]))
def test_sorted_batches_contain_every_sequence_once_with_little_padding(lengths: list[int], max_padding: float) -> None:
    batches = list(length_sorted_batches(lengths, 2_000, max_padding))

    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[index] for index in batch)
        assert padded <= 2_000 or len(batch) == 1
        assert padded - sum(lengths[index] for index in batch) <= max_padding * padded
