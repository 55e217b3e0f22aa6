import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaEmbeddings

from rerank_service.config import Pooling
from rerank_service.engine.device.pack import length_sorted_batches, pack, pool, token_budget_batches
from rerank_service.engine.protocol import EncodedPair

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 600), max_size=80)


def test_sequences_lie_end_to_end_with_positions_restarting() -> None:
    packed = pack([np.array([7, 8], np.int32), np.array([9], np.int32), np.array([1, 2, 3], np.int32)], CPU)

    assert packed.token_ids.tolist() == [[7, 8, 9, 1, 2, 3]]
    assert packed.position_ids.tolist() == [[0, 1, 0, 0, 1, 2]]
    assert packed.cu_seqlens.tolist() == list(packed.bounds) == [0, 2, 3, 6]
    assert packed.cu_seqlens.dtype == torch.int32
    assert packed.lengths.tolist() == [2, 1, 3]
    assert packed.max_length == 3


def test_positions_count_no_padding_where_they_begin_behind_its_id() -> None:
    """As transformers numbers RoBERTa's tokens; only a text that is parsed has padding in it."""
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


@given(LENGTHS, st.sampled_from([0.0, 0.1, 0.5]))
def test_sorted_batches_hold_every_sequence_once_with_little_padding(lengths: list[int], max_padding: float) -> None:
    batches = list(length_sorted_batches(lengths, 2_000, max_padding))

    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[index] for index in batch)
        assert padded <= 2_000 or len(batch) == 1
        assert padded - sum(lengths[index] for index in batch) <= max_padding * padded


@given(LENGTHS)
def test_budget_batches_hold_every_pair_once_within_the_budget(lengths: list[int]) -> None:
    pairs = [EncodedPair(np.ones(length, np.int32), length, False) for length in lengths]  # equal lengths are equal

    batches = list(token_budget_batches(pairs, 500))

    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in batch) <= 500 or len(batch) == 1 for batch in batches)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 90)), max_size=80), st.integers(1, 3))
def test_a_passage_that_queries_share_counts_once_a_batch(drawn: list[tuple[int, int]], scale: int) -> None:
    """As a late-interaction engine has them: a pair's own tokens are the passage's, and the query's come on top."""
    passages = [np.full(40 * scale + number, number, np.int32) for number in range(6)]
    pairs = [EncodedPair(passages[number], len(passages[number]) + extra, False) for number, extra in drawn]

    batches = list(token_budget_batches(pairs, 500))

    assert sorted(index for batch in batches for index in batch) == list(range(len(drawn)))
    for batch in batches:
        encoded = sum(len(passages[number]) for number in {drawn[index][0] for index in batch})
        assert encoded + sum(drawn[index][1] for index in batch) <= 500 or len(batch) == 1
    held = [{drawn[index][0] for index in batch} for batch in batches]
    assert sum(map(len, held)) <= len({number for number, _ in drawn}) + len(batches)  # once, but where a batch ends
