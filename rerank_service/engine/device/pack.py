"""From sequences of different lengths to tensors without waste: packed end to end, or sorted and padded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from rerank_service.engine.protocol import EncodedPair, TokenIds

__all__ = ["PackedSequences", "length_sorted_batches", "pack", "token_budget_batches"]


@dataclass(frozen=True, slots=True)
class PackedSequences:
    """B sequences laid end to end, T tokens in all, no padding."""

    token_ids: torch.Tensor  # [1, T] int64
    position_ids: torch.Tensor  # [1, T] int64, starting anew with each sequence
    lengths: torch.Tensor  # [B] int64
    cu_seqlens: torch.Tensor  # [B + 1] int32, on the device: where each sequence starts
    bounds: tuple[int, ...]  # the same on the host, so that no layer has to wait for the device; empty in a capture
    max_length: int  # at least the longest's; on a GPU a power of two, so that compiled code fits many batches
    type_ids: torch.Tensor | None = None  # [1, T] int64: query or passage, where the model tells them apart


def pack(
    sequences: Sequence[TokenIds],
    device: torch.device,
    *,
    type_ids: Sequence[TokenIds] | None = None,
    first_position: int = 0,
) -> PackedSequences:
    """Lays the sequences end to end; on a GPU the copies are pinned and asynchronous.

    Positions begin at `first_position`. Where that is not 0, the token before it is RoBERTa's padding, and keeps that
    position wherever a text spells it, as in transformers' `create_position_ids_from_input_ids`.
    """
    lengths = np.fromiter((len(sequence) for sequence in sequences), dtype=np.int64, count=len(sequences))
    bounds = (0, *accumulate(lengths.tolist()))
    starts = np.repeat(np.asarray(bounds[:-1], dtype=np.int64), lengths)
    token_ids = np.concatenate(sequences).astype(np.int64)
    positions = np.arange(bounds[-1], dtype=np.int64) - starts + first_position
    if first_position and (is_padding := token_ids == first_position - 1).any():
        before = np.concatenate([[0], np.cumsum(is_padding)])  # padding up to each token
        positions = np.where(is_padding, first_position - 1, positions - (before[:-1] - before[starts]))
    return PackedSequences(
        token_ids=_to_device(token_ids, device)[None],
        position_ids=_to_device(positions, device)[None],
        lengths=_to_device(lengths, device),
        cu_seqlens=_to_device(np.asarray(bounds, dtype=np.int32), device),
        bounds=bounds,
        max_length=int(lengths.max()) if device.type == "cpu" else _power_of_two(int(lengths.max())),
        type_ids=None if type_ids is None else _to_device(np.concatenate(type_ids).astype(np.int64), device)[None],
    )


def length_sorted_batches(lengths: Sequence[int], max_padded_tokens: int, max_padding: float) -> Iterator[list[int]]:
    """Indices of `lengths` in batches of similar length, longest first, for models that need padding.

    A batch stays within `max_padded_tokens` with its padding, of which it has at most the share `max_padding`;
    0 puts only equal lengths together.
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


def token_budget_batches(pairs: Sequence[EncodedPair], max_tokens: int) -> Iterator[list[int]]:
    """Indices of `pairs` in batches of at most `max_tokens`, longest first, a longer one alone.

    Pairs of one passage adjoin: a late-interaction engine encodes it once a batch, so there its tokens count once.
    """
    same_text: dict[bytes, list[int]] = {}
    for index, pair in enumerate(pairs):
        same_text.setdefault(pair.token_ids.tobytes(), []).append(index)
    batch: list[int] = []
    num_tokens = 0
    for group in sorted(same_text.values(), key=lambda group: -len(pairs[group[0]].token_ids)):
        for place, index in enumerate(group):
            pair = pairs[index]
            query_tokens = pair.num_tokens - len(pair.token_ids)  # 0 where query and passage are one text
            added = query_tokens if place and query_tokens else pair.num_tokens
            if batch and num_tokens + added > max_tokens:
                yield batch
                batch, num_tokens, added = [], 0, pair.num_tokens
            batch.append(index)
            num_tokens += added
    if batch:
        yield batch


def _power_of_two(length: int) -> int:
    return max(128, 1 << (length - 1).bit_length())


def _to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
