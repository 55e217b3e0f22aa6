"""How many replicas are wanted, and that what Serve is given is what it takes."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig as ServeAutoscalingConfig

from benchmarks.autoscaling import SCENARIOS, simulate
from rerank_service.app import serve_autoscaling
from rerank_service.autoscaling import ARRIVING, SPEED, WAITING, ModelLoad, TokenPolicy
from rerank_service.config import AutoscalingConfig

POLICY = TokenPolicy(target_utilisation=0.8, max_wait_s=2.0, steady_s=60, calls_per_replica=4.0)


def wanted(
    arriving: float, waiting: float, *, start_s: float = 0.0, speed: float | None = 1000.0, calls: float = 0.0
) -> int:
    return POLICY.wanted_replicas(ModelLoad(arriving, waiting, speed, start_s, calls))


@pytest.mark.parametrize(("arriving", "replicas"), [(0, 0), (1, 1), (800, 1), (801, 2), (2400, 3)])
def test_keeps_up_with_what_arrives(arriving: float, replicas: int) -> None:
    assert wanted(arriving, 0) == replicas


def test_catches_up_with_what_waits_once_new_replicas_can_be_there() -> None:
    assert wanted(0, 8000) == 4
    assert wanted(1000, 8000) == 5
    assert wanted(0, 8000, start_s=30) == 1  # one does it before others could start


@pytest.mark.parametrize(("calls", "replicas"), [(0, 0), (4, 1), (9, 3)])
def test_counts_calls_until_the_speed_is_known(calls: float, replicas: int) -> None:
    assert wanted(5000, 5000, speed=None, calls=calls) == replicas


class Context:
    """What Serve's controller hands over, as far as the policy looks."""

    def __init__(self, metrics: dict[str, dict[str, float]] | None, now: float = 0.0, calls: float = 0.0) -> None:
        self.aggregated_metrics = metrics
        self.total_num_requests = calls
        self.current_time = now
        self.policy_state: dict[str, Any] = {}


def test_sums_replicas_and_averages_the_speed_of_those_that_have_one() -> None:
    metrics = {ARRIVING: {"a": 800.0, "b": 800.0}, WAITING: {"a": 0.0, "b": 10.0}, SPEED: {"a": 1000.0, "b": 0.0}}
    context: Any = Context(metrics)
    assert POLICY(context)[0] == 2


def test_before_any_report_the_calls_decide() -> None:
    context: Any = Context(None, calls=8.0)
    assert POLICY(context)[0] == 2


def test_fewer_only_once_fewer_have_done_for_a_while() -> None:
    context: Any = Context(None)
    answers = {}
    for now in range(200):
        load = 2400.0 if now in (10, 100) else 300.0
        context.current_time = now + 0.5
        context.aggregated_metrics = {ARRIVING: {"a": load}, SPEED: {"a": 1000.0}}
        answers[now], context.policy_state = POLICY(context)
        assert len(context.policy_state["wanted_by_second"]) <= 61
    assert [answers[now] for now in (9, 10, 69, 71, 99, 100, 159, 161)] == [1, 3, 3, 1, 1, 3, 3, 1]


def test_serve_takes_the_options_and_finds_the_policy() -> None:
    options = serve_autoscaling(
        AutoscalingConfig(min_replicas=0, max_replicas=4, target_utilisation=0.5, max_wait_s=1.0)
    )
    policy = ServeAutoscalingConfig(**options).policy
    assert policy.policy_kwargs == {
        "target_utilisation": 0.5,
        "max_wait_s": 1.0,
        "steady_s": 300.0,
        "calls_per_replica": 4.0,
    }
    built = policy.get_policy()(**policy.policy_kwargs)
    assert built.wanted_replicas(ModelLoad(1000, 0, 1000, 0, 0)) == 2


def test_a_step_is_followed_within_eight_seconds_and_noise_does_not_make_it_swing() -> None:
    step, noisy = (simulate(scenario) for scenario in SCENARIOS)
    second = step.first_at(4)
    assert second is not None
    assert second <= 10 + 8
    assert step.reversals == 0
    assert noisy.reversals <= 2
    assert max(noisy.replicas) < 8
    assert sorted(noisy.wait_s)[len(noisy.wait_s) * 95 // 100] < 10


def test_the_recorded_runs_are_what_the_simulation_plays() -> None:
    recorded = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "autoscaling.json").read_text())
    played = [asdict(run) | {"reversals": run.reversals} for run in map(simulate, SCENARIOS)]
    assert played == recorded
