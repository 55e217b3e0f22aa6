"""From a pair to the token ids of a yes/no decoder's prompt, whose end is never cut.

Knows nothing of models: only a tokenizer and the parts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rerank_service.config import YesNoPrompt
from rerank_service.engine import tokenise
from rerank_service.engine.protocol import EncodedPair, Truncate
from rerank_service.errors import CheckpointError, PairTooLong

__all__ = ["PromptParts"]


class PromptParts:
    """A prompt whose parts are tokenised each by itself, as its publisher does: no token spans two of them."""

    def __init__(self, tokenizer: Any, prompt: YesNoPrompt, instruction: str | None, window_tokens: int) -> None:
        if instruction is not None and not any("{instruction}" in part for part in prompt.parts):
            raise CheckpointError(
                "engine.instruction is set, and this model's prompt has no place for one: give a prompt with "
                "{instruction} as engine.yes_no"
            )
        self._tokenizer = tokenizer
        self._window_tokens = window_tokens
        self._parts = prompt.parts
        self._instruction = prompt.instruction if instruction is None else instruction
        self._passage_place = next(place for place, part in enumerate(prompt.parts) if "{passage}" in part)
        self._query_place = next(place for place, part in enumerate(prompt.parts) if "{query}" in part)
        variable = (self._passage_place, self._query_place)
        fixed_places = [place for place in range(len(prompt.parts)) if place not in variable]
        self._fixed = {place: self._ids([self._rendered(place)])[0] for place in fixed_places}
        num_fixed = sum(map(len, self._fixed.values()))
        if num_fixed >= window_tokens:
            raise CheckpointError(
                f"the prompt alone takes {num_fixed} tokens, and the window is {window_tokens}: raise window_tokens"
            )

    def encode(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[EncodedPair]:
        """Pairs in the order of `passages`. Raises `PairTooLong` under `Truncate.NONE`."""
        parts = dict(self._fixed)
        if self._query_place != self._passage_place:
            parts[self._query_place] = self._ids([self._rendered(self._query_place, query)])[0]
        texts = [self._rendered(self._passage_place, query, passage) for passage in passages]
        return [self._pair(parts, ids, truncate, index) for index, ids in enumerate(self._ids(texts))]

    def _pair(self, parts: dict[int, list[int]], passage_ids: list[int], truncate: Truncate, index: int) -> EncodedPair:
        whole = parts | {self._passage_place: passage_ids}
        num_tokens = sum(map(len, whole.values()))
        excess = num_tokens - self._window_tokens
        if excess > 0 and truncate is Truncate.NONE:
            raise PairTooLong(index, num_tokens, self._window_tokens)
        for place in (self._passage_place, self._query_place):  # the passage first, the query if that is not enough
            if excess > 0:
                kept = max(0, len(whole[place]) - excess)
                excess -= len(whole[place]) - kept
                whole[place] = whole[place][:kept]
        token_ids = np.concatenate([np.asarray(whole[place], np.int32) for place in range(len(self._parts))])
        return EncodedPair(token_ids, len(token_ids), num_tokens > self._window_tokens)

    def _rendered(self, place: int, query: str = "", passage: str = "") -> str:
        return self._parts[place].format(query=query, passage=passage, instruction=self._instruction)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = tokenise.encode_texts(self._tokenizer, texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]
