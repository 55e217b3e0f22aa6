"""Packs sequences of different lengths into tensors, groups them by length, and pools token states into vectors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from rerank_service.config import Pooling
from rerank_service.engine.device.fixed_shape import FixedShape
from rerank_service.engine.protocol import TokenIds

__all__ = ["PackedSequences", "length_sorted_batches", "pack", "pool", "sums_in_parts", "to_device"]

_PART_TOKENS = 64
"""Tokens that one thread of a GPU adds up."""

_TORCH_TYPES = {np.dtype(np.int64): torch.int64, np.dtype(np.int32): torch.int32, np.dtype(np.float32): torch.float32}

_UNUSED: TokenIds = np.zeros(1, np.int32)


@dataclass(frozen=True, slots=True)
class PackedSequences:
    """B sequences with T tokens in total, laid end to end without padding. With a fixed shape, T is larger: the tokens
    after the last sequence belong to none."""

    token_ids: torch.Tensor  # [1, T] int64
    position_ids: torch.Tensor  # [1, T] int64, restarting with each sequence
    lengths: torch.Tensor  # [B] int64
    cu_seqlens: torch.Tensor  # [B + 1] int32, on the device: the start of each sequence, and T
    bounds: tuple[int, ...]  # cu_seqlens on the host, so that no layer waits for the device; empty in a capture
    max_length: int  # at least the longest length; a power of two on a GPU, so that batches share compiled code
    type_ids: torch.Tensor | None = None  # [1, T] int64: query or passage, for models that distinguish them
    num_seen: tuple[int, ...] | None = None
    """Number of tokens of each sequence that attention sees: its first tokens. The others see them but stay unseen,
    like the mask tokens that ColBERT adds to a query. Null: every token is seen."""


def pack(
    sequences: Sequence[TokenIds],
    device: torch.device,
    *,
    type_ids: Sequence[TokenIds] | None = None,
    first_position: int = 0,
    shape: FixedShape | None = None,
    num_seen: Sequence[int] | None = None,
) -> PackedSequences:
    """Lays the sequences end to end, in one copy to the device (see `to_device`).

    Positions start at `first_position`. If `first_position` is not 0, the model is a RoBERTa, and its padding token has
    the id `first_position - 1`. A padding token that a text spells out also has the position `first_position - 1`, as
    in transformers' `create_position_ids_from_input_ids`.

    With `shape`, sequences of one token follow, so that all batches have the same number of sequences, and then tokens
    of no sequence, so that all batches have the same number of tokens.
    """
    if shape is not None:
        unused = [_UNUSED] * (shape.num_sequences - len(sequences))
        sequences, type_ids = [*sequences, *unused], None if type_ids is None else [*type_ids, *unused]
    lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    bounds = (0, *accumulate(lengths.tolist()))
    starts = np.repeat(np.asarray(bounds[:-1], dtype=np.int64), lengths)
    token_ids = np.concatenate(sequences).astype(np.int64)
    positions = np.arange(bounds[-1], dtype=np.int64) - starts + first_position
    if first_position and (is_padding := token_ids == first_position - 1).any():
        before = np.concatenate([[0], np.cumsum(is_padding)])  # number of padding tokens before each token
        positions = np.where(is_padding, first_position - 1, positions - (before[:-1] - before[starts]))
    of_tokens = [token_ids, positions]
    if type_ids is not None:
        of_tokens.append(np.concatenate(type_ids).astype(np.int64))
    if shape is not None:
        of_tokens = [np.pad(array, (0, shape.num_tokens - bounds[-1])) for array in of_tokens]
    longest = int(lengths.max())
    if device.type != "cpu":
        longest = max(128, 1 << (longest - 1).bit_length())
    tensors = to_device([*of_tokens, lengths, np.asarray(bounds, dtype=np.int32)], device)
    return PackedSequences(
        token_ids=tensors[0][None],
        position_ids=tensors[1][None],
        lengths=tensors[-2],
        cu_seqlens=tensors[-1],
        bounds=bounds,
        max_length=longest if shape is None else shape.max_length,
        type_ids=None if type_ids is None else tensors[2][None],
        num_seen=None if num_seen is None else tuple(num_seen),
    )


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """The arrays as tensors on `device`. For a GPU, all arrays travel in one pinned buffer and one asynchronous copy.

    Put arrays with larger elements first: an array starts where the previous array ends, and must be aligned.

    The pinned buffer comes from torch's host allocator. `copy_` registers the stream with the allocator, which records
    an event there when the buffer is freed, and hands the buffer out again only after this event. Two batches in flight
    therefore never share a buffer, and after the first batches no memory needs to be pinned. Each copy costs a launch
    and an event, whatever its size, so one copy replaces four or five.
    """
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    staged = np.concatenate([array.view(np.uint8) for array in arrays])
    on_device = torch.from_numpy(staged).pin_memory().to(device, non_blocking=True)
    parts = on_device.split([array.nbytes for array in arrays])
    return [part.view(_TORCH_TYPES[array.dtype]) for part, array in zip(parts, arrays, strict=True)]


def pool(states: torch.Tensor, packed: PackedSequences, pooling: Pooling) -> torch.Tensor:
    """Pools token states `[T, H]` of any float type into one float32 vector per sequence, `[B, H]`.

    Names and formulas come from the published checkpoints, in which `weighted_avg` is a plain sum.
    """
    if pooling is Pooling.CLS:
        return states[packed.cu_seqlens[:-1]].float()
    if pooling is Pooling.LAST:
        return states[packed.cu_seqlens[1:] - 1].float()
    is_mean = pooling is not Pooling.WEIGHTED_AVG
    if states.device.type == "cpu":
        # `unsafe` skips a check of the sum of the lengths.
        return torch.segment_reduce(states.float(), "mean" if is_mean else "sum", lengths=packed.lengths, unsafe=True)
    sums = sums_in_parts(states.float(), packed.bounds)
    return sums / packed.lengths[:, None] if is_mean else sums


def sums_in_parts(states: torch.Tensor, bounds: Sequence[int]) -> torch.Tensor:
    """Sums the float32 states `[T, H]` of each sequence, `[B, H]`.

    On a GPU, `segment_reduce` adds the rows of a sequence one after the other, in one thread for each component. Here,
    parts of `_PART_TOKENS` tokens are summed at the same time, and then the sums of the parts: 192 additions in a row
    for 8,192 tokens. The order of the additions depends only on the sequence's own length, unlike in a matrix product,
    so a sum does not depend on the other sequences of its batch, and NaN in unused rows does not reach it.
    """
    lengths = np.diff(np.asarray(bounds, dtype=np.int64))
    parts = -(-lengths // _PART_TOKENS)  # per sequence
    part_lengths = np.full(parts.sum(), _PART_TOKENS, dtype=np.int64)
    part_lengths[np.cumsum(parts) - 1] = lengths - (parts - 1) * _PART_TOKENS
    on_device = to_device([part_lengths, parts], states.device)
    # `unsafe` skips a check of the lengths, because the check makes the host wait for the device.
    for of_each in on_device:
        states = torch.segment_reduce(states, "sum", lengths=of_each, unsafe=True)
    return states


def length_sorted_batches(lengths: Sequence[int], max_padded_tokens: int, max_padding: float) -> Iterator[list[int]]:
    """Indices of `lengths` in batches of similar length, longest first, for models that need padding.

    A batch has at most `max_padded_tokens` tokens, padding included. At most the share `max_padding` of these tokens is
    padding; with 0, all sequences of a batch have the same length.
    """
    batch: list[int] = []
    real_tokens = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        padded_tokens = (len(batch) + 1) * lengths[batch[0]] if batch else 0
        padding = padded_tokens - real_tokens - lengths[index]
        if batch and (padded_tokens > max_padded_tokens or padding > max_padding * padded_tokens):
            yield batch
            batch, real_tokens = [], 0
        batch.append(index)
        real_tokens += lengths[index]
    if batch:
        yield batch
