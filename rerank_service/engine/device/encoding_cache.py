"""The texts to encode: without duplicates, and without those whose token states are in a cache bounded in bytes.

The least recently used texts are dropped first. The cache is not thread-safe.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

import torch

from rerank_service.engine.protocol import TokenIds

__all__ = ["DistinctTexts", "EncodingCache"]

_DIGEST_BYTES = 16
_ENTRY_BYTES = 512
"""Estimated size of the Python and torch objects that each entry needs in addition to its numbers."""


class DistinctTexts:
    """Collects sequences of token ids without duplicates."""

    def __init__(self) -> None:
        self.sequences: list[TokenIds] = []
        self.num_seen: list[int] = []
        """Number of tokens of each sequence that attention sees."""
        self._index: dict[bytes, int] = {}

    def add(self, token_ids: TokenIds, num_seen: int) -> int:
        """The place of a text among the sequences; appends it if it is new."""
        index = self._index.setdefault(token_ids.tobytes(), len(self.sequences))
        if index == len(self.sequences):
            self.sequences.append(token_ids)
            self.num_seen.append(num_seen)
        return index

    def forget(self) -> None:
        """From now on, texts get new places even if they are known."""
        self._index.clear()


class EncodingCache:
    """Stores token states `[L, H]` exactly as the model returned them, so a logit from cached states is the same as
    before."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[bytes, torch.Tensor] = OrderedDict()  # least recently used first

    def get(self, token_ids: TokenIds) -> torch.Tensor | None:
        """The states `[L, H]` of a text, or null if they are not cached. Counts a hit or a miss."""
        key = _key(token_ids)
        states = self._entries.get(key)
        if states is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return states

    def put_all(self, texts: Iterable[tuple[TokenIds, torch.Tensor]]) -> None:
        """Stores copies of the states of texts that are not cached, except texts whose states exceed `max_bytes`."""
        kept = [(token_ids, states) for token_ids, states in texts if _num_bytes(states) <= self.max_bytes]
        if not kept:
            return
        copies = [torch.empty_like(states) for _, states in kept]  # views would keep the whole batch in memory
        torch._foreach_copy_(copies, [states for _, states in kept])  # a few kernels for all texts
        for (token_ids, _), states in zip(kept, copies, strict=True):
            self._entries[_key(token_ids)] = states
            self.num_bytes += _num_bytes(states)
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= _num_bytes(self._entries.popitem(last=False)[1])


def _key(token_ids: TokenIds) -> bytes:
    return hashlib.blake2b(token_ids.tobytes(), digest_size=_DIGEST_BYTES).digest()


def _num_bytes(states: torch.Tensor) -> int:
    return states.numel() * states.element_size() + _ENTRY_BYTES
