"""Which version answers a request, what happens when it does not, and which requests shadows see."""

from collections import Counter
from typing import Any

import pytest

from rerank_service.config import RerankConfig, VersionConfig
from rerank_service.errors import (
    EngineFailed,
    FieldProblem,
    InvalidRequest,
    PairTooLong,
    RateLimited,
    ReplicaUnavailable,
    RequestTimedOut,
    RerankError,
    WaitTooLong,
)
from rerank_service.messages import Deadline
from rerank_service.routing.traffic import TrafficSplit
from rerank_service.telemetry.metrics import Metric

MODEL, CANARY, OTHER = "model", "canary", "other"


class Values:
    """Recorded metrics, summed up."""

    def __init__(self) -> None:
        self.values: Counter[tuple[str, ...]] = Counter()

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        self.values[metric.name, *labels] += value  # type: ignore[assignment]


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Splits:
    """A model with two versions, whose draws, clock and running replicas a test controls."""

    def __init__(self, canary: dict[str, float], other: dict[str, float] | None = None) -> None:
        models = [
            {"id": MODEL},
            {"id": CANARY, "version": {"of": MODEL} | canary},
            {"id": OTHER, "version": {"of": MODEL} | (other or {})},
            {"id": "alone"},
        ]
        checkpoint = {"checkpoint": {"source": "/somewhere"}}
        config = RerankConfig.model_validate({"models": [checkpoint | model for model in models]})
        self.running, self.clock, self.metrics = {CANARY, OTHER}, Clock(), Values()
        self.draws = [0.0]
        self.split = TrafficSplit(config, self.running.__contains__, self.metrics, self._draw, self.clock)

    def _draw(self) -> float:
        return self.draws[0] if len(self.draws) == 1 else self.draws.pop(0)

    def chosen(self, points: list[float]) -> list[str]:
        self.draws = [*points, 0.0]
        return [self.split.choose(MODEL) for _ in points]


async def _name(version: str, _: Deadline) -> str:
    return version


def test_requests_are_divided_by_the_shares() -> None:
    splits = Splits({"traffic_percent": 10}, {"traffic_percent": 20})

    assert splits.chosen([0.0, 0.099, 0.101, 0.299, 0.301, 0.999]) == [CANARY, CANARY, OTHER, OTHER, MODEL, MODEL]
    assert splits.split.choose("alone") == "alone"


def test_a_share_of_0_and_of_100_percent_have_no_exceptions() -> None:
    splits = Splits({"traffic_percent": 0})
    assert splits.chosen([0.0]) == [MODEL]

    splits.split.change({CANARY: VersionConfig(of=MODEL, traffic_percent=100)})
    assert splits.chosen([0.0, 1 - 2**-53]) == [CANARY, CANARY]


def test_a_retry_with_the_same_id_reaches_the_same_version() -> None:
    split = Splits({"traffic_percent": 30}).split
    chosen = {f"request {number}": split.choose(MODEL, f"request {number}") for number in range(2_000)}

    assert all(split.choose(MODEL, client_id) == version for client_id, version in chosen.items())
    assert 500 < Counter(chosen.values())[CANARY] < 700


def test_a_version_without_replicas_receives_no_request() -> None:
    splits = Splits({"traffic_percent": 100})
    splits.running.clear()

    assert splits.chosen([0.0, 0.5]) == [MODEL, MODEL]


async def test_the_chosen_version_answers() -> None:
    splits = Splits({"traffic_percent": 50})

    assert await splits.split.answer(MODEL, None, Deadline.after(60), _name) == (CANARY, CANARY)
    splits.draws = [0.6]
    assert await splits.split.answer(MODEL, None, Deadline.after(60), _name) == (MODEL, MODEL)


@pytest.mark.parametrize(
    ("error", "code", "rests"),
    [
        (EngineFailed("broken"), "engine_failed", True),
        (ReplicaUnavailable(CANARY), "replica_unavailable", True),
        (RequestTimedOut(30), "request_timed_out", True),
        (RuntimeError("a bug"), "internal_error", True),
        (WaitTooLong(9.0, 1.0, 0.0, True, 5), "wait_too_long", False),
        (PairTooLong(0, 600, 512), "pair_too_long", False),  # the version may have a shorter window
    ],
)
async def test_the_model_answers_what_a_version_does_not(error: Exception, code: str, rests: bool) -> None:
    splits = Splits({"traffic_percent": 100})
    deadlines: dict[str, Deadline] = {}

    async def score(version: str, deadline: Deadline) -> str:
        deadlines[version] = deadline
        if version == CANARY:
            raise error
        return version

    whole = Deadline.after(60)

    assert await splits.split.answer(MODEL, None, whole, score) == (MODEL, MODEL)
    assert deadlines[MODEL] == whole
    assert 0 < deadlines[CANARY].remaining_s() <= 30  # half of the time is left for the model
    assert splits.metrics.values["rerank_version_fallbacks_total", CANARY, code] == 1
    assert splits.split.choose(MODEL) == (MODEL if rests else CANARY)
    splits.clock.now_s += 5.1
    assert splits.split.choose(MODEL) == CANARY


@pytest.mark.parametrize(
    "error", [EngineFailed("broken"), InvalidRequest([FieldProblem(("body",), "wrong", "wrong")])], ids=["500", "400"]
)
async def test_errors_are_those_of_the_model_itself(error: RerankError) -> None:
    async def score(version: str, _: Deadline) -> str:
        raise error if version == MODEL else ReplicaUnavailable(CANARY)

    with pytest.raises(type(error)):
        await Splits({"traffic_percent": 100}).split.answer(MODEL, None, Deadline.after(60), score)


async def test_a_quota_is_not_charged_twice() -> None:
    asked: list[str] = []

    async def score(version: str, _: Deadline) -> str:
        asked.append(version)
        raise RateLimited("passages", 10, 5, "")

    with pytest.raises(RateLimited):
        await Splits({"traffic_percent": 100}).split.answer(MODEL, None, Deadline.after(60), score)
    assert asked == [CANARY]


def test_shadows_see_a_sample() -> None:
    splits = Splits({"shadow_percent": 10}, {"shadow_percent": 100})
    splits.draws = [0.099, 0.5, 0.101, 0.5, 0.0]

    assert splits.split.sampled_shadows(MODEL) == [CANARY, OTHER]
    assert splits.split.sampled_shadows(MODEL) == [OTHER]
    assert splits.split.sampled_shadows("alone") == []
    splits.running.clear()
    assert splits.split.sampled_shadows(MODEL) == []


def test_only_known_versions_change() -> None:
    split = Splits({"traffic_percent": 5}).split
    changes: dict[str, Any] = {"removed": VersionConfig(of=MODEL, traffic_percent=90)}

    split.change(changes | {CANARY: VersionConfig(of=MODEL, traffic_percent=7)})

    assert {name: share.traffic_percent for name, share in split.shares.items()} == {CANARY: 7, OTHER: 0}


def test_shares_are_metrics() -> None:
    splits = Splits({"traffic_percent": 5}, {"shadow_percent": 20})

    splits.split.record_shares()

    assert splits.metrics.values["rerank_version_traffic_ratio", CANARY, "canary"] == 0.05
    assert splits.metrics.values["rerank_version_traffic_ratio", OTHER, "shadow"] == 0.2
