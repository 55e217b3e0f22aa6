"""A canary and a shadow on the real stack: shares change in place, no request fails, and rankings are compared."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import ray

from rerank_service.config import MODEL_IMPORT_PATH
from tests.service.running import CLIENT_TIMEOUT_S, LLAMA, MISTRAL, Reference, Service
from tests.service.split_traffic import PASSAGES, Split, metric, play_canary, wait_until

MODEL, VERSION = "split/model", "split/model-v2"
_APPLICATION = "split"
_APART = {MODEL: "split-model", VERSION: "split-version"}


@pytest.fixture(scope="module")
def split(service: Service, references: dict[str, Reference]) -> Iterator[Split]:
    """A model and a version with another checkpoint, each in its own application."""
    llama, mistral = service.config.models[:2]
    settings = {
        MODEL: _settings(MODEL, llama.checkpoint.source),
        VERSION: _settings(VERSION, mistral.checkpoint.source),
    }
    args = {
        "models": [
            settings[MODEL] | {"application": _APART[MODEL]},
            settings[VERSION] | {"application": _APART[VERSION], "version": {"of": MODEL}},
        ],
        "service": {"ingress": {"shard_tokens": 200}},  # several shards per request
    }
    ingress = {
        "name": _APPLICATION,
        "route_prefix": f"/{_APPLICATION}",
        "import_path": "rerank_service.app:build_app",
        "args": args,
    }
    apart = [
        {"name": _APART[name], "route_prefix": None, "import_path": MODEL_IMPORT_PATH, "args": settings[name]}
        for name in settings
    ]
    url = f"{service.url}/{_APPLICATION}"

    def pids(name: str) -> set[int]:
        return service.pids(_APART.get(name, _APPLICATION), name.replace("/", "_"))

    logits = {
        MODEL: references[LLAMA].logits("which?", PASSAGES),
        VERSION: references[MISTRAL].logits("which?", PASSAGES),
    }
    try:
        service.deploy(more_applications=[ingress, *apart])
        wait_until(lambda: httpx.get(f"{url}/v1/health/ready", timeout=CLIENT_TIMEOUT_S).status_code == 200)
        yield Split(url, MODEL, VERSION, logits, pids, ray.get_runtime_context().gcs_address)
    finally:
        service.deploy()


def test_no_request_fails_while_a_canary_gets_traffic_loses_its_replica_and_is_rolled_back(split: Split) -> None:
    play_canary(split)


def test_a_shadow_compares_rankings_and_never_answers(split: Split) -> None:
    printed = split.traffic(VERSION, "--shadow-percent", "100")
    assert f"{VERSION} shadows 100% of the requests for {MODEL} (before: answers 0%)" in printed
    wait_until(lambda: split.share()["shadow_percent"] == 100)
    wait_until(lambda: bool(split.share()["usable"]))

    with httpx.Client(timeout=CLIENT_TIMEOUT_S) as client:

        def is_compared() -> bool:
            assert split.rank(client) == MODEL
            compared = metric(split.url, "rerank_shadow_requests_total")
            return compared.get(f'{{model="{VERSION}",outcome="compared"}}', 0) >= 3

        wait_until(is_compared)
    split.traffic(VERSION, "--shadow-percent", "0")

    label = f'{{model="{VERSION}"}}'
    assert metric(split.url, "rerank_shadow_kendall_tau_count")[label] >= 3
    assert metric(split.url, "rerank_shadow_top_ten_overlap_ratio_count")[label] >= 3
    assert metric(split.url, "rerank_shadow_seconds_sum")[label] > 0
    differences = [abs(a - b) for a, b in zip(split.logits[MODEL], split.logits[VERSION], strict=True)]
    largest, num_compared = (
        metric(split.url, f"rerank_shadow_largest_difference_logits_{one}")[label] for one in ("sum", "count")
    )
    assert largest / num_compared == pytest.approx(max(differences), abs=1e-3)


def _settings(model_id: str, source: str) -> dict[str, Any]:
    return {
        "id": model_id,
        "checkpoint": {"source": source},
        "engine": {"dtype": "float32", "device": "cpu", "num_threads": 1},
        "batching": {"max_batch_tokens": 2048},
        "replica": {"num_cpus": 0, "graceful_shutdown_timeout_s": 61},
    }
