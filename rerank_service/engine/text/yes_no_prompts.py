"""Published prompts of yes/no decoders, and the tokenisation of a prompt in parts. Fixed parts are never cut."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rerank_service.config import YesNoPrompt
from rerank_service.engine.protocol import EncodedPair, Truncate
from rerank_service.engine.text import tokenise
from rerank_service.errors import CheckpointError, PairTooLong

__all__ = ["YES_NO_PROMPTS", "PromptParts", "checked_instruction"]

_QWEN3_RERANKER = YesNoPrompt(
    parts=(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
        "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {passage}",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    yes_word="yes",
    no_word="no",
    instruction="Given a web search query, retrieve relevant passages that answer the query",
)
"""For Qwen/Qwen3-Reranker-0.6B, -4B and -8B. Source: the code on their model cards, copied on GitHub in
openvinotoolkit/openvino.genai, tests/python_tests/utils/qwen3_reranker_utils.py, and in vLLM's documentation. The
published score is the softmax over the two words, which equals the sigmoid of our logit."""

_MXBAI_RERANK_V2 = YesNoPrompt(
    parts=(
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n",
        "query: {query}",
        "\n",
        "document: {passage}",
        "\n",
        "You are a search relevance expert who evaluates how well documents match search queries. For each "
        "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
        "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    yes_word="1",
    no_word="0",
)
"""For mixedbread-ai/mxbai-rerank-base-v2 and -large-v2. Source: github.com/mixedbread-ai/mxbai-rerank at commit
03324ea, mxbai_rerank/mxbai_rerank_v2.py, whose `predict` returns the same value as our logit. If an instruction is
given to that code, the second part is "instruction: ...\nquery: {query}"."""

_BGE_RERANKER_V2_GEMMA = YesNoPrompt(
    parts=(
        "<bos>",
        "A: {query}",
        "\n",
        "B: {passage}",
        "\n",
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
        "prediction of either 'Yes' or 'No'.",
    ),
    yes_word="Yes",
)
"""For BAAI/bge-reranker-v2-gemma. Source: github.com/FlagOpen/FlagEmbedding at commit 0dff36c,
FlagEmbedding/inference/reranker/decoder_only/base.py, which uses the logit of "Yes" alone; `no_word` is therefore
null."""

YES_NO_PROMPTS = {"qwen3": _QWEN3_RERANKER, "qwen2": _MXBAI_RERANK_V2, "gemma": _BGE_RERANKER_V2_GEMMA}
"""Prompt for each `model_type`, the only hint at a prompt in config.json; `engine.yes_no` overrides the prompt."""


def checked_instruction(prompt: YesNoPrompt, configured: str | None) -> str:
    """The configured instruction, or the prompt's own. Raises `CheckpointError` if the prompt has no place for it."""
    if configured is not None and not any("{instruction}" in part for part in prompt.parts):
        raise CheckpointError(
            "engine.instruction is set, but this model's prompt has no place for it: set engine.yes_no to a "
            "prompt with {instruction}"
        )
    return (prompt.instruction if configured is None else configured) or ""


class PromptParts:
    """A prompt whose parts are tokenised separately, as in the publisher's code: no token spans two parts."""

    def __init__(self, tokenizer: Any, prompt: YesNoPrompt, instruction: str | None, window_tokens: int) -> None:
        """Raises `CheckpointError` if the prompt does not fit in the window or lacks a place for the instruction."""
        self._tokenizer = tokenizer
        self._window_tokens = window_tokens
        self._parts = [tokenise.prompt_text(tokenizer, part) for part in prompt.parts]
        self._instruction = tokenise.prompt_text(tokenizer, checked_instruction(prompt, instruction))
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
        # The query keeps at most three quarters of the room, as in the code of mxbai-rerank-v2 and of
        # bge-reranker-v2-gemma. As in mxbai's code, the fixed parts between query and passage count as room.
        between = range(*sorted(variable))
        num_between = sum(len(ids) for place, ids in self._fixed.items() if place in between)
        self._max_query_tokens = (self._room + num_between) * 3 // 4

    def passage_room(self, query: str) -> int:
        """Number of passage tokens that fit in the window with this query; 0 if the query fills the window."""
        query_tokens = min(len(self._query_ids(query)), self._max_query_tokens)
        return max(0, self._room - query_tokens - len(self._lead_ids(query)))

    def encode(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[EncodedPair]:
        """Returns the pairs in the order of `passages`. Raises `PairTooLong` under `Truncate.NONE`.

        If a pair is too long, a query with its own part of the prompt is first cut to three quarters of the room for
        query and passage; then the passage is cut. A query in the same part as the passage is never cut and may push
        the passage out of the window, as in the code of Qwen3-Reranker.
        """
        query_ids = self._query_ids(query)
        passages_ids = self._ids([self._rendered(self._passage_place, query, passage) for passage in passages])
        most = self._room - len(query_ids)
        lead_ids = self._lead_ids(query) if any(len(ids) > most for ids in passages_ids) else []
        pairs = []
        for index, (passage, whole) in enumerate(zip(passages, passages_ids, strict=True)):
            num_tokens = self._num_fixed + len(query_ids) + len(whole)
            is_truncated = num_tokens > self._window_tokens
            if is_truncated and truncate is Truncate.NONE:
                raise PairTooLong(index, num_tokens, self._window_tokens)
            kept_query = query_ids[: self._max_query_tokens] if is_truncated else query_ids
            kept = whole[: self._room - len(kept_query)]
            parts = {**self._fixed, self._query_place: kept_query, self._passage_place: kept}
            token_ids = np.concatenate([np.asarray(parts[place], np.int32) for place in range(len(self._parts))])
            pairs.append(
                EncodedPair(
                    token_ids,
                    len(token_ids),
                    is_truncated,
                    is_passage_cut=len(kept) < len(whole),
                    is_unscored=is_truncated and passage != "" and tokenise.leaves_no_passage(kept, lead_ids),
                )
            )
        return pairs

    def _query_ids(self, query: str) -> list[int]:
        """Token ids of the query's own part of the prompt; empty if query and passage share a part."""
        if self._query_place == self._passage_place:
            return []
        return self._ids([self._rendered(self._query_place, query)])[0]

    def _lead_ids(self, query: str) -> list[int]:
        """Token ids that precede the passage within its part of the prompt."""
        part = self._parts[self._passage_place]
        return self._ids([tokenise.up_to_passage(part, query=query, instruction=self._instruction)])[0]

    def _rendered(self, place: int, query: str = "", passage: str = "") -> str:
        return self._parts[place].format(query=query, passage=passage, instruction=self._instruction)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
