"""From a pair to the token ids of a yes/no decoder's prompt, whose end is never cut.

Knows nothing of models: only a tokenizer and the parts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rerank_service.config import YesNoPrompt
from rerank_service.engine.protocol import EncodedPair, TokenIds, Truncate
from rerank_service.engine.text import tokenise
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
        self._parts = [tokenise.prompt_text(tokenizer, part) for part in prompt.parts]
        self._instruction = tokenise.prompt_text(
            tokenizer, (prompt.instruction if instruction is None else instruction) or ""
        )
        self._passage_place = next(place for place, part in enumerate(prompt.parts) if "{passage}" in part)
        self._query_place = next(place for place, part in enumerate(prompt.parts) if "{query}" in part)
        variable = (self._passage_place, self._query_place)
        fixed_places = [place for place in range(len(prompt.parts)) if place not in variable]
        self._fixed = {place: self._ids([self._rendered(place)])[0] for place in fixed_places}
        self._num_fixed = sum(map(len, self._fixed.values()))
        self._room = window_tokens - self._num_fixed
        if self._room <= 0:
            raise CheckpointError(
                f"the prompt alone takes {self._num_fixed} tokens, and the window is {window_tokens}: raise "
                "window_tokens"
            )
        between = range(*sorted(variable))  # mxbai's room includes what stands between query and passage
        num_between = sum(len(ids) for place, ids in self._fixed.items() if place in between)
        self._max_query_tokens = (self._room + num_between) * 3 // 4

    def passage_room(self, query: str) -> int:
        """Tokens of a passage that fit beside this query."""
        query_tokens = min(len(self._query_ids(query)), self._max_query_tokens)
        (lead_ids,) = self._ids([self._lead(query)])
        return max(0, self._room - query_tokens - len(lead_ids))

    def encode(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[EncodedPair]:
        """Pairs in the order of `passages`. Raises `PairTooLong` under `Truncate.NONE`.

        Of a pair that is too long, a query with a part of its own keeps three quarters of the room for both, as in the
        code of mxbai-rerank-v2 and bge-reranker-v2-gemma; then the passage is cut. A query in the passage's part pushes
        the passage out of the window, as in the code of Qwen3-Reranker.
        """
        query_ids = self._query_ids(query)
        passages_ids = self._ids([self._rendered(self._passage_place, query, passage) for passage in passages])
        most = self._room - len(query_ids)
        lead_ids = self._ids([self._lead(query)])[0] if any(len(ids) > most for ids in passages_ids) else []
        pairs = []
        for index, (passage, whole) in enumerate(zip(passages, passages_ids, strict=True)):
            num_tokens = self._num_fixed + len(query_ids) + len(whole)
            is_truncated = num_tokens > self._window_tokens
            if is_truncated and truncate is Truncate.NONE:
                raise PairTooLong(index, num_tokens, self._window_tokens)
            kept_query = query_ids[: self._max_query_tokens] if is_truncated else query_ids
            kept = whole[: self._room - len(kept_query)]
            token_ids = self._joined(kept_query, kept)
            is_unscored = is_truncated and passage != "" and tokenise.leaves_no_passage(kept, lead_ids)
            is_passage_cut = len(kept) < len(whole)
            pairs.append(
                EncodedPair(
                    token_ids, len(token_ids), is_truncated, is_passage_cut=is_passage_cut, is_unscored=is_unscored
                )
            )
        return pairs

    def _joined(self, query_ids: list[int], passage_ids: list[int]) -> TokenIds:
        parts = {**self._fixed, self._query_place: query_ids, self._passage_place: passage_ids}
        return np.concatenate([np.asarray(parts[place], np.int32) for place in range(len(self._parts))])

    def _query_ids(self, query: str) -> list[int]:
        """Of the query's own part; none where it shares the passage's."""
        if self._query_place == self._passage_place:
            return []
        return self._ids([self._rendered(self._query_place, query)])[0]

    def _lead(self, query: str) -> str:
        part = self._parts[self._passage_place]
        return tokenise.up_to_passage(part, query=query, instruction=self._instruction)

    def _rendered(self, place: int, query: str = "", passage: str = "") -> str:
        return self._parts[place].format(query=query, passage=passage, instruction=self._instruction)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = tokenise.encode_texts(self._tokenizer, texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]
