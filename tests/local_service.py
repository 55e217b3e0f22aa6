"""The HTTP application with its models in this process: no Ray, otherwise the real path."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI

from rerank_service.config import ModelConfig, RerankConfig
from rerank_service.engine import load_engine
from rerank_service.engine.windows import encode_passages
from rerank_service.errors import PairTooLong
from rerank_service.ingress.api import build_api
from rerank_service.model_router import ModelRouter
from rerank_service.ranker import Ranker
from rerank_service.scheduler import Scheduler
from rerank_service.shards import Shard, ShardScores

__all__ = ["LocalReplica", "local_api"]


class LocalReplica:
    """Stands where a deployment handle's `score` stands, over a real engine and scheduler."""

    def __init__(self, model: ModelConfig) -> None:
        self.engine = load_engine(model)
        self.scheduler: Scheduler[Any] = Scheduler(self.engine, 2048, 1_000_000)

    def remote(self, shard: Shard) -> "asyncio.Task[ShardScores]":
        return asyncio.ensure_future(self._score(shard))

    async def _score(self, shard: Shard) -> ShardScores:
        try:
            passages = encode_passages(self.engine, shard.query, shard.passages, shard.fitting)
        except PairTooLong as error:
            raise PairTooLong(shard.indices[error.index], error.num_tokens, error.max_tokens) from None
        scored = await self.scheduler.submit(shard.request_id, passages.pairs)
        logits, num_tokens = passages.best(scored.logits), passages.num_tokens
        return ShardScores(logits, num_tokens, passages.is_truncated, 0.0, scored.queue_s, scored.forward_s)


def local_api(models: Sequence[ModelConfig], replicas: Mapping[str, Any], **settings: Any) -> FastAPI:
    """The application; `replicas` by model id have a `remote` method."""
    config = RerankConfig.model_validate({"models": [model.model_dump() for model in models], **settings})
    router = ModelRouter(config, replicas)
    return build_api(config, router, Ranker(router, config))
