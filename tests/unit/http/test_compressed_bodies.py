"""Request bodies in gzip."""

import gzip
import json
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from rerank_service.config import ModelConfig
from rerank_service.engine import Engine, load_engine
from rerank_service.http.proxies.retry import RetryLostIngress
from tests.local_service import LocalReplica, client_of, local_api
from tests.models import local_model

BODY: dict[str, Any] = {"query": {"text": "a query"}, "passages": [{"text": "one"}, {"text": "naïve 東京 🚀"}]}
RAW = json.dumps(BODY, ensure_ascii=False).encode()
GZIP = {"content-type": "application/json", "content-encoding": "gzip"}
MAX_BODY_BYTES = 64 * 1024


@pytest.fixture(scope="module")
def model(checkpoints: dict[str, Path]) -> ModelConfig:
    return local_model(checkpoints["llama_bidirec"])


@pytest.fixture(scope="module")
def engine(model: ModelConfig) -> Engine[Any]:
    return load_engine(model)


@pytest.fixture
def api(model: ModelConfig, engine: Engine[Any]) -> FastAPI:
    return local_api([model], {model.id: LocalReplica(model, engine)}, limits={"max_body_bytes": MAX_BODY_BYTES})


@pytest.fixture
async def client(api: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(api) as c:
        yield c


async def in_chunks(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip"])
@pytest.mark.parametrize("chunk_size", [None, 1, 7])
async def test_a_compressed_body_has_the_same_answer(
    client: httpx.AsyncClient, encoding: str, chunk_size: int | None
) -> None:
    packed = gzip.compress(b"\xef\xbb\xbf" + RAW)
    content: Any = packed if chunk_size is None else in_chunks(packed, chunk_size)

    answer = await client.post("/v1/ranking", content=content, headers=GZIP | {"content-encoding": encoding})

    assert answer.status_code == 200
    assert answer.json() == (await client.post("/v1/ranking", json=BODY)).json()


async def test_a_compressed_body_passes_the_proxy_that_retries(api: FastAPI) -> None:
    transport = httpx.ASGITransport(RetryLostIngress(api))
    async with api.router.lifespan_context(api), httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        answer = await client.post("/v1/ranking", content=in_chunks(gzip.compress(RAW), 9), headers=GZIP)

    assert answer.status_code == 200


@pytest.mark.parametrize(("num_bytes", "status"), [(MAX_BODY_BYTES, 200), (MAX_BODY_BYTES + 1, 413)])
async def test_the_limit_holds_after_decompression(client: httpx.AsyncClient, num_bytes: int, status: int) -> None:
    packed = gzip.compress(RAW.ljust(num_bytes))
    assert len(packed) < 1000

    assert (await client.post("/v1/ranking", content=packed, headers=GZIP)).status_code == status


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_bomb_is_refused_before_memory_grows(client: httpx.AsyncClient, is_chunked: bool) -> None:
    num_zeros = 48 * 1024 * 1024
    bomb = gzip.compress(bytes(num_zeros))
    assert len(bomb) < MAX_BODY_BYTES
    tracemalloc.start()
    try:
        content: Any = in_chunks(bomb, 1000) if is_chunked else bomb
        answer = await client.post("/v1/ranking", content=content, headers=GZIP)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert answer.status_code == 413
    assert answer.json()["detail"][0]["type"] == "body_too_large"
    assert peak_bytes < num_zeros / 4


async def test_input_without_output_is_limited_too(client: httpx.AsyncClient) -> None:
    """The file name in gzip's header has no maximum length and gives no output."""
    num_read = 0

    async def endless_name() -> AsyncIterator[bytes]:
        nonlocal num_read
        yield b"\x1f\x8b\x08\x08" + bytes(6)
        while True:
            num_read += 4096
            assert num_read < 10 * MAX_BODY_BYTES
            yield b"n" * 4096

    assert (await client.post("/v1/ranking", content=endless_name(), headers=GZIP)).status_code == 413


DAMAGED = {
    "not compressed": RAW,
    "empty": b"",
    "cut off": gzip.compress(RAW)[:-1],
    "header only": gzip.compress(RAW)[:10],
    "wrong checksum": gzip.compress(RAW)[:-8] + bytes(8),
    "trailing bytes": gzip.compress(RAW) + b"x",
    "two streams": gzip.compress(RAW) * 2,
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("chunk_size", [None, 5])
async def test_a_damaged_body_is_400(client: httpx.AsyncClient, name: str, chunk_size: int | None) -> None:
    content: Any = DAMAGED[name] if chunk_size is None else in_chunks(DAMAGED[name], chunk_size)

    answer = await client.post("/v1/ranking", content=content, headers=GZIP)

    message = "The body is not one complete gzip stream, although Content-Encoding is gzip"
    assert answer.status_code == 400
    assert answer.json()["detail"] == [{"loc": ["body"], "msg": message, "type": "gzip_invalid"}]


async def test_a_compressed_body_is_checked_like_any_other(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/ranking", content=gzip.compress(b"[]"), headers=GZIP)
    assert answer.json()["message"] == "The body must be a JSON object with query and passages"
