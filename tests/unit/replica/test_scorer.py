"""A replica's scorer with a real engine, without Ray."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from rerank_service.engine import load_engine
from rerank_service.errors import PairTooLong, QueryTooLong, RequestTimedOut, RequestTooLarge
from rerank_service.messages import Fitting, Shard, Truncate
from rerank_service.replica.scorer import ModelScorer
from tests.models import embedded_model, local_model

SMALL = Shard("r", "bert", "a query", ("one passage", "another"), (4, 7), Fitting(), 10, 10)
LONG = "word " * 500


@pytest.fixture
async def scorer(checkpoints: dict[str, Path]) -> AsyncIterator[ModelScorer]:
    model = local_model(checkpoints["bert"], window_tokens=64)
    with ThreadPoolExecutor(1) as launch_thread, ThreadPoolExecutor(1) as tokenisers:
        scorer = ModelScorer(model, launch_thread.submit(load_engine, model).result(), launch_thread, tokenisers)
        yield scorer
        await scorer.close()


async def test_an_error_affects_only_its_own_shard_of_a_job(scorer: ModelScorer) -> None:
    too_long = replace(SMALL, passages=("fits", LONG), fitting=Fitting(Truncate.NONE))

    query_too_long = replace(too_long, query=LONG)

    first, second, third, fourth = scorer.start_tokenising([SMALL, too_long, SMALL, query_too_long])

    assert (await first).passages.num_tokens == (await third).passages.num_tokens
    with pytest.raises(PairTooLong) as caught:
        await second
    assert caught.value.index == 7  # index of the passage in the request, not in the shard
    with pytest.raises(QueryTooLong):
        await fourth


async def test_concurrent_calls_get_the_same_logits_as_single_ones(scorer: ModelScorer) -> None:
    shards = [replace(SMALL, request_id=str(number), query=f"query {number}") for number in range(5)]
    alone = [(await scorer.score(shard)).logits for shard in shards]

    together = await asyncio.gather(*(scorer.score(shard) for shard in shards))

    assert [scores.logits for scores in together] == alone
    assert len(set(alone)) == 5


async def test_a_model_that_compares_no_tokens_reports_no_matches(scorer: ModelScorer) -> None:
    plain, explained = await scorer.score(SMALL), await scorer.score(replace(SMALL, explain=True))

    assert explained.logits == plain.logits
    assert (explained.can_align, explained.matches) == (False, None)


async def test_late_interaction_reports_matches_when_asked() -> None:
    model = embedded_model()
    shard = replace(SMALL, query="red house", passages=("A house that is red", "A blue boat"))
    with ThreadPoolExecutor(1) as launch_thread, ThreadPoolExecutor(1) as tokenisers:
        scorer = ModelScorer(model, launch_thread.submit(load_engine, model).result(), launch_thread, tokenisers)
        plain, explained = await scorer.score(shard), await scorer.score(replace(shard, explain=True))
        await scorer.close()

    assert (plain.can_align, plain.matches) == (True, None)
    assert explained.logits == plain.logits
    assert explained.matches is not None
    assert [match.passage for match in explained.matches[0]] == [(16, 19), (2, 7)]
    assert [match.query for match in explained.matches[1]] == [(0, 3), (4, 9)]


async def test_refusals(scorer: ModelScorer) -> None:
    scorer.reconfigure({"max_queued_tokens": 100})
    with pytest.raises(RequestTooLarge):
        await scorer.score(replace(SMALL, request_tokens=101))
    with pytest.raises(RequestTimedOut):
        await scorer.score(replace(SMALL, timeout_s=0.0))
