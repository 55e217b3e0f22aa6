"""The model and the client of the tests of all APIs."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from rerank_service.config import ModelConfig
from tests.models import local_model
from tests.unit.http.dialects.forms import MODEL, WINDOW_TOKENS, serving


@pytest.fixture
def model(checkpoints: dict[str, Path]) -> ModelConfig:
    llama = local_model(checkpoints["llama_bidirec"], window_tokens=WINDOW_TOKENS)
    return llama.model_copy(update={"id": MODEL, "aliases": ("rerank-v3.5",)})


@pytest.fixture
async def client(model: ModelConfig) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(model, limits={"max_passages": 4, "max_body_bytes": 20_000}) as c:
        yield c
