"""Ranks one request: cuts it into shards, has the model's replicas score them, and combines the scores into a ranking.

This module does not import Ray, because the planner and `verify` use its estimates.
"""

import asyncio
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from rerank_service.config import RerankConfig
from rerank_service.errors import QueueFull, ReplicaUnavailable, RequestTimedOut, WaitTooLong
from rerank_service.messages import (
    Deadline,
    Fitting,
    PassageWindows,
    Ranked,
    Shard,
    ShardScores,
    TokenMatch,
    rank_by_logit,
)

__all__ = ["Ranker", "RefusedRequests", "ShardScorer", "cut_into_shards", "estimate_tokens", "even_slices"]

_BYTES_PER_TOKEN = 4
_SPECIAL_TOKENS = 8
_WINDOW_TOKENS = 256
"""Assumed number of passage tokens per window if the request sets none, because only replicas know the model's window.
The value is low so that the estimate includes several windows."""
_REMEMBERED_REFUSALS = 10_000
_REMEMBERED_S = 120.0
"""How long a refusal is remembered: twice the longest `Retry-After`, which is a minute."""
_MAX_REPEATS = 3
"""Number of times that shards of a request are scored again because their numerics differ."""


class ShardScorer(Protocol):
    """The part of `ModelRouter` that a ranker uses. Importing the router itself would load Ray."""

    async def score(self, shard: Shard, deadline: Deadline) -> ShardScores:
        """Scores a shard on one of the model's replicas."""


class Ranker:
    """Ranks passages on all replicas of a model in parallel."""

    def __init__(self, router: ShardScorer, config: RerankConfig) -> None:
        self._router = router
        self._refused = RefusedRequests()
        self._shard_tokens = {model.id: config.shard_tokens_of(model) for model in config.models}

    async def rank(
        self,
        model_id: str,
        query: str,
        passages: Sequence[str],
        fitting: Fitting,
        deadline: Deadline,
        request_id: str | None = None,
        client_id: str | None = None,
        caller: str = "",
        explain: bool = False,
    ) -> Ranked:
        """Ranks `passages`. A shard's first error cancels the other shards. Raises it, or `RequestTimedOut`.

        Calls with the same `request_id` share one request's portion of device time, and all requests from one `caller`
        share one caller's portion. `client_id` is the id that the client gave the request. A retry with the same id
        after a refusal does not count as load again. With `explain`, the scores include token matches if the model can
        report them. All logits have the same numerics.
        """
        started = time.perf_counter()
        cut = cut_into_shards(
            *(request_id or uuid.uuid4().hex, model_id, query, passages, fitting, self._shard_tokens[model_id]),
            is_counted=client_id is not None and self._refused.has(client_id, query, passages),
            caller=caller,
            explain=explain,
        )
        shards = list(cut)
        try:
            async with asyncio.timeout(deadline.remaining_s()) as limit:
                if len(shards) == 1:  # the usual case, which needs no task
                    answers = [await self._router.score(shards[0], deadline)]
                else:
                    answers = await self._score_alike(shards, deadline)
        except (Exception, asyncio.CancelledError) as failure:
            if limit.expired() and isinstance(failure, TimeoutError):
                raise RequestTimedOut(deadline.timeout_s) from None
            error = failure.exceptions[0] if isinstance(failure, ExceptionGroup) else failure
            # A query is cancelled when another query of the same HTTP request is refused; the client then retries both.
            if client_id is not None and isinstance(error, QueueFull | WaitTooLong | asyncio.CancelledError):
                self._refused.add(client_id, query, passages)
            raise error from error.__cause__
        return _assemble(passages, shards, answers, time.perf_counter() - started)

    async def _score_alike(self, shards: Sequence[Shard], deadline: Deadline) -> list[ShardScores]:
        """Scores all shards at the same time, and again until all logits have the same numerics.

        Replicas differ only while a rolling update changes a deployment's precision. Raises `ReplicaUnavailable` if
        their numerics keep changing.
        """
        answers = await self._score_all(shards, deadline)
        sizes: Counter[str] = Counter()
        for shard, answer in zip(shards, answers, strict=True):
            sizes[answer.numerics] += shard.num_tokens
        wanted = max(sizes, key=sizes.__getitem__)
        for _ in range(_MAX_REPEATS):
            different = [index for index, answer in enumerate(answers) if answer.numerics != wanted]
            if not different:
                return answers
            repeated = [replace(shards[index], numerics=wanted, is_counted=True) for index in different]
            for index, answer in zip(different, await self._score_all(repeated, deadline), strict=True):
                answers[index] = answer
            # If no replica with these numerics is left, the others must be scored like the newest answers.
            wanted = answers[different[0]].numerics
        if any(answer.numerics != wanted for answer in answers):
            raise ReplicaUnavailable(shards[0].model)
        return answers

    async def _score_all(self, shards: Sequence[Shard], deadline: Deadline) -> list[ShardScores]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._router.score(shard, deadline)) for shard in shards]
        return [task.result() for task in tasks]


def _assemble(
    passages: Sequence[str], shards: Sequence[Shard], answers: Sequence[ShardScores], total_s: float
) -> Ranked:
    """Puts each passage's logit at its index in the request; copies of a passage share one logit."""
    scored: dict[str, tuple[float, int, bool, bool]] = {}
    matches: dict[str, Sequence[TokenMatch]] = {}
    can_align = True
    tokenise_s = queue_s = forward_s = 0.0
    for shard, scores in zip(shards, answers, strict=True):
        columns = zip(scores.logits, scores.num_tokens, scores.is_truncated, scores.is_unscored, strict=True)
        scored.update(zip(shard.passages, columns, strict=True))
        can_align &= scores.can_align
        if scores.matches is not None:
            matches.update(zip(shard.passages, scores.matches, strict=True))
        tokenise_s = max(tokenise_s, scores.tokenise_s)
        queue_s = max(queue_s, scores.queue_s)
        forward_s = max(forward_s, scores.forward_s)
    logits, num_tokens, is_truncated, is_unscored = zip(*map(scored.__getitem__, passages), strict=True)
    return Ranked(
        order=rank_by_logit(logits),
        logits=list(logits),
        num_tokens=sum(num_tokens),
        num_truncated=sum(is_truncated),
        num_shards=len(shards),
        tokenise_s=tokenise_s,
        queue_s=queue_s,
        forward_s=forward_s,
        total_s=total_s,
        num_unscored=sum(is_unscored),
        numerics=scores.numerics,
        can_align=can_align,
        matches=list(map(matches.__getitem__, passages)) if len(matches) == len(scored) else None,
    )


def cut_into_shards(
    request_id: str,
    model: str,
    query: str,
    passages: Sequence[str],
    fitting: Fitting,
    shard_tokens: int,
    timeout_s: float | None = None,
    is_counted: bool = False,
    caller: str = "",
    explain: bool = False,
) -> Iterator[Shard]:
    """Yields shards of about equal size, each with at most `shard_tokens` estimated tokens unless a pair has more.

    A passage that occurs more than once in the request is scored once. This saves work and gives all copies exactly
    the same logit, even on a GPU, where a logit may depend on the batch.
    """
    first_index: dict[str, int] = {}
    sizes: list[int] = []
    for index, passage in enumerate(passages):
        if passage not in first_index:
            first_index[passage] = index
            sizes.append(estimate_tokens(query, passage, fitting.windows))
    texts, indices, request_tokens = tuple(first_index), tuple(first_index.values()), sum(sizes)
    for start, end in even_slices(sizes, shard_tokens):
        yield Shard(
            request_id=request_id,
            model=model,
            query=query,
            passages=texts[start:end],
            indices=indices[start:end],
            fitting=fitting,
            num_tokens=sum(sizes[start:end]),
            request_tokens=request_tokens,
            timeout_s=timeout_s,
            is_counted=is_counted,
            caller=caller,
            explain=explain,
        )


def estimate_tokens(query: str, passage: str, windows: PassageWindows | None = None) -> int:
    """Estimates the tokens of a passage's pairs from the bytes of the texts, because only replicas have the tokenizer.
    Chinese, Japanese and Korean text has about one token per character, which takes three bytes."""
    # `isascii` only reads a flag of the string; encoding copies the text.
    query_bytes = len(query if query.isascii() else query.encode("utf-8", "replace"))
    passage_bytes = len(passage if passage.isascii() else passage.encode("utf-8", "replace"))
    query_tokens, passage_tokens = query_bytes // _BYTES_PER_TOKEN + _SPECIAL_TOKENS, passage_bytes // _BYTES_PER_TOKEN
    if windows is None:
        return query_tokens + passage_tokens
    window_tokens = windows.tokens or _WINDOW_TOKENS
    overlap_tokens = min(windows.overlap_tokens, window_tokens // 2)
    needed = -(-max(0, passage_tokens - overlap_tokens) // (window_tokens - overlap_tokens)) or 1
    num_windows = min(needed, windows.max_per_passage)
    seen_tokens = min(passage_tokens + (num_windows - 1) * overlap_tokens, num_windows * window_tokens)
    return num_windows * query_tokens + seen_tokens


def even_slices(sizes: Sequence[int], max_size: int) -> Iterator[tuple[int, int]]:
    """Yields consecutive slices of about equal total size, each at most `max_size` unless a single entry is larger."""
    num_slices = -(-sum(sizes) // max_size)
    even_size = -(-sum(sizes) // num_slices)
    start, filled = 0, 0
    for index, size in enumerate(sizes):
        if index > start and filled + size > min(even_size + size // 2, max_size):
            yield start, index
            start, filled = index, 0
        filled += size
    yield start, len(sizes)


class RefusedRequests:
    """Remembers requests that replicas refused in the last two minutes, so that a retry does not count as load again.

    Each ingress replica keeps its own record: a retry that reaches another ingress replica counts again.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._refused_at_s: OrderedDict[int, float] = OrderedDict()  # hashes as keys, so that no text is kept

    def add(self, client_id: str, query: str, passages: Sequence[str]) -> None:
        """Remembers a refused request. The texts are part of the key because a client may send several requests with
        the same id, for example the parts of one large call."""
        key = hash((client_id, query, tuple(passages)))
        self._refused_at_s[key] = self._now_s()
        self._refused_at_s.move_to_end(key)
        if len(self._refused_at_s) > _REMEMBERED_REFUSALS:
            self._refused_at_s.popitem(last=False)

    def has(self, client_id: str, query: str, passages: Sequence[str]) -> bool:
        """Whether this request repeats a refused request."""
        if not self._refused_at_s:  # the usual case: saves hashing the texts
            return False
        at_s = self._refused_at_s.get(hash((client_id, query, tuple(passages))))
        return at_s is not None and self._now_s() - at_s <= _REMEMBERED_S
