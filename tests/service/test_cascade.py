"""Cascades on the real stack: two tiny models in stages, a killed replica, a full queue, a stage without replicas."""

import asyncio
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from rerank_service.client import Client
from rerank_service.config import MODEL_IMPORT_PATH
from tests.service.running import (
    CLIENT_TIMEOUT_S,
    LLAMA,
    LOGIT_TOLERANCE,
    MISTRAL,
    Reference,
    Service,
    assert_error,
    long_text,
    ranking_body,
)
from tests.service.split_traffic import metric, wait_until

APPLICATION = "cascade"
SMALL, LARGE, CROWDED, MISSING, ASLEEP = (
    f"stage/{name}" for name in ("small", "large", "crowded", "missing", "asleep")
)
KEEP = 5
QUERY = "which?"
PASSAGES = [f"{number} {long_text(20 + number)}" for number in range(40)]
EARLY = {"on_overload": "answer_early"}


@dataclass(frozen=True)
class Staged:
    """The service with the cascades, and the logits of `PASSAGES` by model."""

    url: str
    logits: Mapping[str, Sequence[float]]

    def check(self, response: httpx.Response) -> str:
        """Checks the ranking against the stages that the answer names. Returns the header with the stages."""
        assert response.status_code == 200, response.text
        stages = response.headers["x-rerank-stages"]
        served = {one["index"]: one["logit"] for one in response.json()["rankings"]}
        order = [one["index"] for one in response.json()["rankings"]]
        by_small = sorted(range(len(PASSAGES)), key=lambda index: -self.logits[SMALL][index])
        if "skipped" in stages:
            assert order == by_small
            assert all(abs(served[index] - self.logits[SMALL][index]) <= LOGIT_TOLERANCE for index in order)
            return stages
        kept = by_small[:KEEP]
        assert set(order[:KEEP]) == set(kept)
        assert all(abs(served[index] - self.logits[LARGE][index]) <= LOGIT_TOLERANCE for index in kept)
        assert order[KEEP:] == by_small[KEEP:]
        assert [served[index] for index in order] == sorted(served.values(), reverse=True)
        return stages


@pytest.fixture(scope="module")
def staged(service: Service, references: dict[str, Reference]) -> Iterator[Staged]:
    """Two models that run, one with a queue for few tokens, one whose replicas find no place, and one that scales from
    zero and whose application is not deployed."""
    sources = {model.id: model.checkpoint.source for model in service.config.models}
    two: dict[str, Any] = {"autoscaling": {"min_replicas": 2, "max_replicas": 2}}
    running = {
        SMALL: _settings(SMALL, sources[MISTRAL]),
        LARGE: _settings(LARGE, sources[LLAMA]) | two,
        CROWDED: _settings(CROWDED, sources[LLAMA], max_queued_tokens=2000),
    }
    missing = _settings(MISSING, sources[LLAMA])
    missing["replica"]["resources"] = {"missing": 1}
    deployed = running | {MISSING: missing}
    asleep = _settings(ASLEEP, sources[LLAMA]) | {"autoscaling": {"min_replicas": 0}}
    cascades = [
        {"id": "both", "stages": _stages(LARGE)},
        {"id": "early", "stages": _stages(LARGE), **EARLY},
        {"id": "crowded", "stages": _stages(CROWDED), **EARLY},
        {"id": "missing", "stages": _stages(MISSING)},
        {"id": "missing-early", "stages": _stages(MISSING), **EARLY},
        {"id": "asleep", "stages": _stages(ASLEEP)},
        {"id": "asleep-early", "stages": _stages(ASLEEP), **EARLY},
    ]
    args = {
        "models": [one | {"application": _apart(name)} for name, one in (deployed | {ASLEEP: asleep}).items()],
        "cascades": cascades,
        "service": {"ingress": {"shard_tokens": 400}},  # several shards per stage
    }
    ingress = {
        "name": APPLICATION,
        "route_prefix": f"/{APPLICATION}",
        "import_path": "rerank_service.app:build_app",
        "args": args,
    }
    apart = [
        {"name": _apart(name), "route_prefix": None, "import_path": MODEL_IMPORT_PATH, "args": one}
        for name, one in deployed.items()
    ]
    url = f"{service.url}/{APPLICATION}"
    logits = {SMALL: references[MISTRAL].logits(QUERY, PASSAGES), LARGE: references[LLAMA].logits(QUERY, PASSAGES)}
    try:
        service.deploy(more_applications=[ingress, *apart])
        wait_until(lambda: all(_answers(url, name) for name in running), limit_s=300)  # five processes start
        wait_until(lambda: len(_pids_of_large(service)) == 2)
        yield Staged(url, logits)
    finally:
        service.deploy()


def test_the_stages_rank_on_their_own_replicas(staged: Staged) -> None:
    response = httpx.post(f"{staged.url}/v1/ranking", json=_body("both"), timeout=CLIENT_TIMEOUT_S)

    assert staged.check(response) == f"{SMALL}={len(PASSAGES)}, {LARGE}={KEEP}"
    assert response.headers["x-model"] == "both"
    assert "stage-2;dur=" in response.headers["Server-Timing"]
    scored = metric(staged.url, "rerank_cascade_stage_passages_total")
    assert scored[f'{{model="both",stage="{LARGE}"}}'] == KEEP


def test_a_cascade_is_deterministic(staged: Staged) -> None:
    answers = [httpx.post(f"{staged.url}/v1/ranking", json=_body("both"), timeout=CLIENT_TIMEOUT_S) for _ in range(3)]

    assert answers[0].json() == answers[1].json() == answers[2].json()


def test_our_client_shows_the_stages(staged: Staged) -> None:
    with Client(staged.url, model="both", timeout_s=CLIENT_TIMEOUT_S) as client:
        ranking = client.rank(QUERY, PASSAGES, top_n=3)

    assert ranking.stages == {SMALL: len(PASSAGES), LARGE: KEEP}
    assert len(ranking) == 3


async def test_no_request_is_lost_when_a_stage_loses_its_replica(service: Service, staged: Staged) -> None:
    async with httpx.AsyncClient(base_url=staged.url, timeout=CLIENT_TIMEOUT_S) as client:
        bodies = [_body(name) for name in ("both", "early") * 6]
        requests = [asyncio.ensure_future(client.post("/v1/ranking", json=body)) for body in bodies]
        await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
        os.kill(min(_pids_of_large(service)), signal.SIGKILL)
        responses = await asyncio.gather(*requests)
        responses += await asyncio.gather(*(client.post("/v1/ranking", json=body) for body in bodies))

    assert set(map(staged.check, responses)) == {f"{SMALL}={len(PASSAGES)}, {LARGE}={KEEP}"}


async def test_a_full_queue_of_the_last_stage_gives_early_answers(staged: Staged) -> None:
    expected = f"{CROWDED}=0;skipped=queue_full"
    async with httpx.AsyncClient(base_url=staged.url, timeout=CLIENT_TIMEOUT_S) as client:
        stages: set[str] = set()
        async with asyncio.timeout(CLIENT_TIMEOUT_S):
            while not any(expected in one for one in stages):  # requests have to meet at the replica
                answers = await asyncio.gather(*(client.post("/v1/ranking", json=_body("crowded")) for _ in range(30)))
                stages = set(map(staged.check, answers))

    assert all("skipped" not in one or expected in one for one in stages)


def test_a_stage_without_replicas_fails_or_is_left_out(staged: Staged) -> None:
    refused = httpx.post(f"{staged.url}/v1/ranking", json=_body("missing"), timeout=CLIENT_TIMEOUT_S)
    early = httpx.post(f"{staged.url}/v1/ranking", json=_body("missing-early"), timeout=CLIENT_TIMEOUT_S)

    assert_error(refused, 503)
    assert staged.check(early).endswith(f"{MISSING}=0;skipped=replica_unavailable")


def test_a_stage_that_cannot_finish_in_time_fails_or_is_left_out(staged: Staged) -> None:
    """The stage scales from zero, so a call waits for its replica until the deadline."""
    headers = {"x-request-timeout-seconds": "10"}  # far more than the first stage takes, also on a busy machine
    late, early, next_one = (
        httpx.post(f"{staged.url}/v1/ranking", json=_body(name), headers=headers, timeout=CLIENT_TIMEOUT_S)
        for name in ("asleep", "asleep-early", "asleep-early")
    )

    assert_error(late, 504)
    # The failed request has shown how slow the stage is.
    assert staged.check(early).endswith(f"{ASLEEP}=0;skipped=short_deadline")
    assert staged.check(next_one).endswith(f"{ASLEEP}=0;skipped=short_deadline")


def _body(model: str) -> dict[str, Any]:
    return ranking_body(model, QUERY, PASSAGES)


def _answers(url: str, model: str) -> bool:
    answer = httpx.post(f"{url}/v1/ranking", json=ranking_body(model, QUERY, ["one"]), timeout=CLIENT_TIMEOUT_S)
    return answer.status_code == 200


def _pids_of_large(service: Service) -> set[int]:
    return service.pids(_apart(LARGE), LARGE.replace("/", "_"))


def _apart(model: str) -> str:
    return model.replace("/", "-")


def _stages(last: str) -> list[dict[str, Any]]:
    return [{"model": SMALL, "keep": KEEP}, {"model": last}]


def _settings(model_id: str, source: str, **batching: Any) -> dict[str, Any]:
    return {
        "id": model_id,
        "checkpoint": {"source": source},
        "engine": {"dtype": "float32", "device": "cpu", "num_threads": 1},
        "batching": {"max_batch_tokens": 2048, **batching},
        "replica": {"num_cpus": 0, "graceful_shutdown_timeout_s": 61},
    }
