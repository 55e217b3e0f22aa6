"""Compares the token states of many pairs in a number of kernels that does not grow with the number of pairs.

Passages are cut into blocks of tokens, and the blocks of all pairs are compared with their queries' words in chunks of
a fixed number of tokens. A maximum over blocks is exact, and every kernel whose rounding could depend on its shape
always gets the same shape, so a logit does not depend on the other pairs of its batch. Published kernels
(flash-maxsim, late-interaction-kernels) need Triton, which needs a C compiler at run time; these operations need
neither.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from numpy.typing import NDArray

from rerank_service.engine.device.pack import to_device

__all__ = ["BestMatches", "Comparison", "compare"]

_Ints = NDArray[np.int64]

_SMALLEST_BLOCK = 32
"""Fewest passage tokens in a block. Half a block per passage is wasted on average."""
_SMALLEST_QUERY = 16
"""Fewest words for which a query is laid out; longer queries are laid out for the next power of two."""
_CHUNK_ROWS = 16_384
"""Passage tokens in a chunk, filler included. Rows are 384 to 1,024 float32 numbers, so a chunk takes 25 to 67 MB."""
_NO_ROW = np.iinfo(np.int64).max
_BELOW_ALL = -2.0
"""Smaller than every cosine."""


class BestMatches(NamedTuple):
    """The best match of each counted query token: its cosine, and the place of the passage token; both `[Nq]`."""

    similarities: torch.Tensor
    tokens: torch.Tensor


@dataclass(frozen=True, slots=True)
class Comparison:
    """Texts with their token states, and the pairs of texts to compare."""

    states: Sequence[torch.Tensor]  # one [L, H] per text
    queries: Sequence[int]  # [B], indices of texts
    passages: Sequence[int]  # [B]
    window_tokens: int  # length of the longest text
    drops_specials: bool = True  # whether a query's first and last token (CLS, SEP) do not count
    is_sum: bool = False  # whether MaxSim is the sum over the query tokens, and not their mean

    def chunk_rows(self) -> int:
        """Passage tokens in a chunk; the longest passage fits in a chunk."""
        return max(_CHUNK_ROWS, _power_of_two(self.window_tokens))


class _Chunk(NamedTuple):
    """Pairs that are compared together, U blocks of K passage tokens with W words each. Unused blocks and slots repeat
    the last used one."""

    pairs: _Ints  # rows of the batch, in the order of the chunk's slots
    num_words: _Ints  # per slot in use
    rows: _Ints  # [U, K], rows of the token states
    words: _Ints  # [U, W], rows of the token states
    slots: _Ints  # [U], slot of the pair of each block
    sides: _Ints  # [3, U], per slot: passage, query, first row of the passage


def compare(
    comparison: Comparison, device: torch.device, records: Sequence[bool]
) -> tuple[torch.Tensor, torch.Tensor, dict[int, BestMatches]]:
    """Cosines of the mean vectors and MaxSims, both float32 `[B]`, and the best matches of the pairs whose entry of
    `records` is true. Does not wait for the device."""
    lengths = np.fromiter(map(len, comparison.states), np.int64, len(comparison.states))
    starts = np.cumsum(lengths) - lengths
    chunks = list(_chunks(comparison, starts, lengths))
    shares = [_word_shares(chunk, comparison.is_sum) for chunk in chunks]
    tables = _copied([array for chunk in chunks for array in chunk[2:]], device)
    joined = _joined(comparison.states)
    means = F.normalize(_means(joined, starts, lengths), dim=-1)
    tokens = F.normalize(joined, dim=-1)
    cosines, maxsims, matches, num_slots = [], [], {}, 0
    places = np.empty(len(comparison.queries), np.int64)  # of each pair among the slots of all chunks
    for number, (chunk, share) in enumerate(zip(chunks, _copied(shares, device), strict=True)):
        rows, words, slots, (passages, queries, first_rows) = tables[4 * number : 4 * number + 4]
        similarities = _similarities(tokens, rows, words)  # [U, K, W]
        best = _best_per_pair(similarities, slots)  # [U, W]
        maxsims.append((best * share).sum(1))
        cosines.append((means.index_select(0, passages) * means.index_select(0, queries)).sum(1))
        places[chunk.pairs] = num_slots + np.arange(len(chunk.pairs))
        num_slots += len(chunk.slots)
        if any(records[pair] for pair in chunk.pairs):
            found = _first_rows_of(best, similarities, rows, slots) - first_rows[:, None]
            for slot, (pair, count) in enumerate(zip(chunk.pairs.tolist(), chunk.num_words.tolist(), strict=True)):
                if records[pair]:
                    matches[pair] = BestMatches(best[slot, :count], found[slot, :count])
    (order,) = to_device([places], device)
    return torch.cat(cosines).index_select(0, order), torch.cat(maxsims).index_select(0, order), matches


def _chunks(comparison: Comparison, starts: _Ints, lengths: _Ints) -> Iterator[_Chunk]:
    """Groups the pairs by the layout of their query, and fills chunks with the blocks of their passages."""
    queries, passages = np.asarray(comparison.queries), np.asarray(comparison.passages)
    has_specials = (lengths > 2) & comparison.drops_specials
    word_lengths = lengths - 2 * has_specials
    layouts = np.asarray([max(_SMALLEST_QUERY, _power_of_two(count)) for count in word_lengths[queries].tolist()])
    for layout in np.unique(layouts).tolist():
        block = max(_SMALLEST_BLOCK, layout)
        num_blocks = comparison.chunk_rows() // block
        shape = num_blocks, block, layout
        batch: list[int] = []
        used = 0
        for pair in np.flatnonzero(layouts == layout).tolist():
            needed = -(-int(lengths[passages[pair]]) // block)
            if used + needed > num_blocks:
                yield _chunk(np.asarray(batch), comparison, starts, lengths, word_lengths, shape)
                batch, used = [], 0
            batch.append(pair)
            used += needed
        yield _chunk(np.asarray(batch), comparison, starts, lengths, word_lengths, shape)


def _chunk(
    pairs: _Ints,
    comparison: Comparison,
    starts: _Ints,
    lengths: _Ints,
    word_lengths: _Ints,
    shape: tuple[int, int, int],
) -> _Chunk:
    num_blocks, block, layout = shape
    passage, query = np.asarray(comparison.passages)[pairs], np.asarray(comparison.queries)[pairs]
    per_pair = -(-lengths[passage] // block)
    slots = np.repeat(np.arange(len(pairs)), per_pair)
    block_of_pair = np.arange(len(slots)) - np.repeat(np.cumsum(per_pair) - per_pair, per_pair)
    slots = _filled(slots, num_blocks)
    offsets = _filled(block_of_pair, num_blocks)[:, None] * block + np.arange(block)
    num_words = word_lengths[query]
    has_specials = num_words < lengths[query]
    words = (starts[query] + has_specials)[:, None] + np.minimum(np.arange(layout), num_words[:, None] - 1)
    return _Chunk(
        pairs=pairs,
        num_words=num_words,
        rows=starts[passage][slots, None] + np.minimum(offsets, lengths[passage][slots, None] - 1),
        words=words[slots],
        slots=slots,
        sides=np.stack([_filled(side, num_blocks) for side in (passage, query, starts[passage])]),
    )


def _filled(values: _Ints, length: int) -> _Ints:
    """Repeats the last value until there are `length` values."""
    return np.pad(values, (0, length - len(values)), mode="edge")


def _word_shares(chunk: _Chunk, is_sum: bool) -> NDArray[np.float32]:
    """Weights `[U, W]` of each slot's words in their mean or sum; filler has no weight."""
    num_blocks, layout = chunk.words.shape
    counts = _filled(chunk.num_words, num_blocks)[:, None]
    return np.where(np.arange(layout) < counts, 1 if is_sum else 1 / counts, 0).astype(np.float32)


def _copied(arrays: Sequence[NDArray[np.int64] | NDArray[np.float32]], device: torch.device) -> list[torch.Tensor]:
    """All arrays on the device, in a single copy."""
    (flat,) = to_device([np.concatenate([array.ravel() for array in arrays])], device)
    parts = flat.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def _joined(states: Sequence[torch.Tensor]) -> torch.Tensor:
    """All states in float32, with zeros up to a multiple of `_CHUNK_ROWS // 32`.

    torch's reductions over rows use another order of summation for fewer than 16 rows.
    """
    num_rows, multiple = sum(map(len, states)), _CHUNK_ROWS // 32
    return torch.cat([*states, states[0].new_zeros(-num_rows % multiple, states[0].size(1))]).float()


def _means(joined: torch.Tensor, starts: _Ints, lengths: _Ints) -> torch.Tensor:
    """Mean state of each text, `[S, H]`.

    Sums the blocks of all texts by products of a fixed shape, and then the few blocks of each text one after the other.
    """
    block = _SMALLEST_BLOCK
    per_text = -(-lengths // block)
    texts = np.repeat(np.arange(len(lengths)), per_text)
    first = (np.arange(len(texts)) - np.repeat(np.cumsum(per_text) - per_text, per_text)) * block
    num_blocks = _CHUNK_ROWS // block
    filled = -(-len(texts) // num_blocks) * num_blocks
    offsets = _filled(first, filled)[:, None] + np.arange(block)
    texts = _filled(texts, filled)
    count = lengths[texts][:, None]
    rows, counts = _copied([starts[texts][:, None] + np.minimum(offsets, count - 1), per_text], joined.device)
    (shares,) = _copied([np.where(offsets < count, 1 / count, 0).astype(np.float32)], joined.device)
    sums = [
        torch.bmm(share[:, None], joined.index_select(0, row.reshape(-1)).view(num_blocks, block, -1))[:, 0]
        for row, share in zip(rows.split(num_blocks), shares.split(num_blocks), strict=True)
    ]
    # `unsafe` skips a check of the lengths, because the check makes the host wait for the device.
    return torch.segment_reduce(torch.cat(sums)[: int(per_text.sum())], "sum", lengths=counts, unsafe=True)


def _similarities(tokens: torch.Tensor, rows: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Cosines `[U, K, W]` of each block's passage tokens with its query's words."""
    passages = tokens.index_select(0, rows.reshape(-1)).view(*rows.shape, -1)
    queries = tokens.index_select(0, words.reshape(-1)).view(*words.shape, -1)
    return torch.bmm(passages, queries.transpose(1, 2))


def _best_per_pair(similarities: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """The largest cosine of each word with any token of its slot's passage, `[U, W]`."""
    best = similarities.amax(1)
    return torch.full_like(best, _BELOW_ALL).scatter_reduce_(0, slots[:, None].expand_as(best), best, "amax")


def _first_rows_of(
    best: torch.Tensor, similarities: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor
) -> torch.Tensor:
    """The row of the first token that has the best cosine, `[U, W]`."""
    values, places = similarities.max(1)  # [U, W]
    found = torch.where(values == best.index_select(0, slots), rows.gather(1, places), _NO_ROW)
    return torch.full_like(found, _NO_ROW).scatter_reduce_(0, slots[:, None].expand_as(found), found, "amin")


def _power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()
