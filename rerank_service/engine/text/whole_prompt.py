"""A prompt that is tokenised as one text, as in the publisher's code: a token may span a text and words around it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rerank_service.config import YesNoPrompt
from rerank_service.engine.protocol import EncodedPair, Truncate
from rerank_service.engine.text import tokenise
from rerank_service.engine.text.yes_no_prompts import checked_instruction
from rerank_service.errors import CheckpointError, PairTooLong

__all__ = ["WholePrompt", "is_whole"]

_LARGEST_QUERY = 0.75
"""Share of the room for query and passage that a query keeps if the pair is too long, as in `PromptParts`."""
_LEAST_ROOM = 8
"""Tokens beside an empty prompt. Up to four tokens at the borders of query and passage are never cut."""


def is_whole(prompt: YesNoPrompt) -> bool:
    """Whether the prompt is one part with text after the passage."""
    return len(prompt.parts) == 1 and not prompt.parts[0].endswith("{passage}")


class WholePrompt:
    """A template of one part. Tokens that the tokenizer itself adds, such as BOS, are part of the prompt.

    If a pair is too long, the passage is cut at its end; the words after the passage stay whole. The publishers' code
    cuts the whole text at its end, which removes the words by which the model is asked.
    """

    def __init__(self, tokenizer: Any, prompt: YesNoPrompt, instruction: str | None, window_tokens: int) -> None:
        """Raises `CheckpointError` if the prompt does not fit in the window or lacks a place for the instruction."""
        self._tokenizer = tokenizer
        self._window_tokens = window_tokens
        self._template = tokenise.prompt_text(tokenizer, prompt.parts[0])
        self._instruction = tokenise.prompt_text(tokenizer, checked_instruction(prompt, instruction))
        num_fixed = len(tokenizer.encode(self._rendered("", ""), add_special_tokens=True).ids)
        if num_fixed + _LEAST_ROOM > window_tokens:
            raise CheckpointError(
                f"the prompt alone takes {num_fixed} tokens, and the window is {window_tokens}: raise window_tokens"
            )

    def passage_room(self, query: str) -> int:
        """Number of passage tokens that fit in the window with this query."""
        (empty,) = self.encode(query, [""], Truncate.END)
        return self._window_tokens - len(empty.token_ids)

    def encode(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[EncodedPair]:
        """Returns the pairs in the order of `passages`. Raises `PairTooLong` under `Truncate.NONE`."""
        texts = [self._rendered(query, passage) for passage in passages]
        pairs = []
        for index, encoding in enumerate(self._tokenizer.encode_batch_fast(texts, add_special_tokens=True)):
            num_tokens = len(encoding.ids)
            if num_tokens <= self._window_tokens:
                pairs.append(EncodedPair(np.asarray(encoding.ids, np.int32), num_tokens, False))
            elif truncate is Truncate.NONE:
                raise PairTooLong(index, num_tokens, self._window_tokens)
            else:
                pairs.append(self._cut(query, passages[index]))
        return pairs

    def _cut(self, query: str, passage: str) -> EncodedPair:
        """Encodes again, with the places of the tokens. A token that spans a text and the words around it stays."""
        encoding = self._tokenizer.encode(self._rendered(query, passage), add_special_tokens=True)
        of_query = self._inside(encoding, "{query}", query, passage)
        of_passage = self._inside(encoding, "{passage}", query, passage)
        room = self._window_tokens - (len(encoding.ids) - len(of_query) - len(of_passage))
        num_query = min(len(of_query), int(room * _LARGEST_QUERY))
        num_passage = min(len(of_passage), room - num_query)
        dropped = {*of_query[num_query:], *of_passage[num_passage:]}
        token_ids = [token for place, token in enumerate(encoding.ids) if place not in dropped]
        return EncodedPair(
            np.asarray(token_ids, np.int32),
            len(token_ids),
            True,
            is_passage_cut=num_passage < len(of_passage),
            is_unscored=len(of_passage) > num_passage == 0,
        )

    def _inside(self, encoding: Any, slot: str, query: str, passage: str) -> list[int]:
        """Places of the tokens inside the text of a slot."""
        before, _, after = self._template.partition(slot)
        start = len(self._filled(before, query, passage))
        end = len(self._rendered(query, passage)) - len(self._filled(after, query, passage))
        # Some tokenizers trim the offsets of white space to its end.
        return [
            place
            for place, (first, last) in enumerate(encoding.offsets)
            if start <= first <= last <= end and (first < last or first > start)
            if not encoding.special_tokens_mask[place]
        ]

    def _rendered(self, query: str, passage: str) -> str:
        return self._filled(self._template, query, passage)

    def _filled(self, template: str, query: str, passage: str) -> str:
        return template.format(query=query, passage=passage, instruction=self._instruction)
