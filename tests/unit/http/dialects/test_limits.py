"""Keys, quotas and limits of passages apply to all APIs."""

from typing import Any

import pytest

from rerank_service.config import ModelConfig
from tests.local_service import LocalReplica
from tests.unit.http.dialects.forms import ALL_FORMS, QUERY, ask, message_of, serving

LIMITS: list[tuple[dict[str, Any], int, int]] = [
    ({}, 512, 1000),
    ({"limits": {"max_passages": 5}}, 5, 5),
    ({"limits": {"max_documents": 7}}, 512, 7),
    ({"rate_limits": {"passages_per_minute": 600}}, 512, 600),
]


@pytest.mark.parametrize(("settings", "passages", "documents"), LIMITS)
async def test_each_api_has_its_limit_of_passages(
    model: ModelConfig, settings: dict[str, Any], passages: int, documents: int
) -> None:
    async with serving(model, **settings) as client:
        own = {"query": {"text": "q"}, "passages": [{"text": "p"}] * (passages + 1)}
        answers = [await client.post("/v1/ranking", json=own)]
        answers.append(await ask(client, "cohere v2", documents=["p"] * (documents + 1)))
    assert [answer.status_code for answer in answers] == [400, 400]
    assert f"at most {passages} are allowed" in answers[0].json()["message"]
    assert f"at most {documents} are allowed" in answers[1].json()["message"]


@pytest.mark.parametrize("name", ALL_FORMS)
async def test_every_dialect_requires_the_key(model: ModelConfig, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("RERANK_SERVICE_API_KEYS", "nvapi-secret")
    path, body = ALL_FORMS[name]
    async with serving(model) as client:
        missing = await client.post(path, json=body)
        right = await client.post(path, json=body, headers={"authorization": "Bearer nvapi-secret"})

    assert (missing.status_code, missing.headers["www-authenticate"], right.status_code) == (401, "Bearer", 200)
    assert message_of(missing.json()).startswith("Missing API key")


async def test_rate_limits_count_every_dialects_passages(model: ModelConfig) -> None:
    async with serving(model, rate_limits={"passages_per_minute": 5}, limits={"max_passages": 5}) as client:
        first, second = await ask(client, "cohere v2"), await ask(client, "tei")

    assert first.headers["x-ratelimit-remaining-passages"] == "2"
    assert (second.status_code, second.json()["error_type"]) == (429, "Overloaded")
    assert int(second.headers["retry-after"]) > 0


async def test_replicas_receive_the_caller_but_never_the_key(
    model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RERANK_SERVICE_API_KEYS", "first-key,second-key")
    replica, callers = LocalReplica(model), list[str]()

    class Watching:
        def remote(self, shard: Any) -> Any:
            callers.append(shard.caller)
            return replica.remote(shard)

    async with serving(model, Watching()) as client:
        for key in ("first-key", "second-key", "first-key"):
            body = {"query": {"text": QUERY}, "passages": [{"text": "a"}]}
            await client.post("/v1/ranking", json=body, headers={"authorization": f"Bearer {key}"})

    first, second, again = (caller for caller in callers if caller)  # readiness's own pair has no caller
    assert first == again != second
    assert not any("key" in caller for caller in callers)
