"""How many replicas are wanted, and whether Serve accepts the settings it is given."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.common import TimeStampedValue
from ray.serve.config import AutoscalingConfig as ServeAutoscalingConfig

from benchmarks.autoscaling import SCENARIOS, simulate
from benchmarks.autoscaling_requests import controller_restart, large_request, step
from rerank_service.app import serve_autoscaling
from rerank_service.config import AutoscalingConfig
from rerank_service.messages import OFFERED, SPEED, WAITING
from rerank_service.routing.autoscaling import ModelLoad, TokenPolicy

POLICY = TokenPolicy(0.8, max_wait_s=2.0, steady_s=60, calls_per_replica=4.0, upscale_delay_s=0.5)
_RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
_RECORD_S = 0.6
_LOOK_BACK_S = 3.0


def wanted(
    steady: float,
    waiting: float,
    *,
    mean: float = 0.0,
    start_s: float = 0.0,
    speed: float | None = 1000.0,
    calls: float = 0.0,
) -> int:
    return POLICY.wanted_replicas(ModelLoad(steady, mean, waiting, speed, start_s, calls))


@pytest.mark.parametrize(("arriving", "replicas"), [(0, 0), (1, 1), (800, 1), (801, 2), (2400, 3)])
def test_replicas_match_the_arrival_rate(arriving: float, replicas: int) -> None:
    assert wanted(arriving, 0) == replicas
    assert wanted(0, 0, mean=arriving) == replicas


def test_the_backlog_is_cleared_once_new_replicas_are_up() -> None:
    assert wanted(0, 8000) == 4
    assert wanted(1000, 8000) == 5
    assert wanted(0, 8000, start_s=30) == 1  # one replica finishes before others could start


@pytest.mark.parametrize(("calls", "replicas"), [(0, 0), (4, 1), (9, 3)])
def test_calls_are_counted_until_the_speed_is_known(calls: float, replicas: int) -> None:
    assert wanted(5000, 5000, speed=None, calls=calls) == replicas


class Controller:
    """Simulates the parts of Serve's controller that the policy uses. Each replica scores 1,000 tokens per second,
    records its counter at its own times, and reports once per second."""

    def __init__(self, num_replicas: int = 1, min_replicas: int = 1, policy: TokenPolicy = POLICY) -> None:
        self.num_replicas = self.target = num_replicas
        self.min_replicas = min_replicas
        self.is_recovering = False
        self.now_s = 0.0
        self._policy = policy
        self._state: dict[str, Any] = {}
        self._offered = [0.0] * num_replicas
        self._records: list[list[TimeStampedValue]] = [[] for _ in range(num_replicas)]
        self._reports: dict[str, list[TimeStampedValue]] = {}

    def restart(self) -> None:
        self._state, self._reports = {}, {}

    def offer(self, num_tokens: float) -> None:
        """Offers tokens at once, spread over the replicas."""
        self._offered = [offered + num_tokens / len(self._offered) for offered in self._offered]

    def play(self, until_s: float, load: float = 0.0, calls: float = 0.0) -> list[float]:
        """Returns the policy's answers, ten per second; `load` is in tokens per second."""
        answers = []
        while self.now_s < until_s:
            self.now_s = round(self.now_s + 0.1, 1)
            self.offer(0.1 * load)
            self._report()
            answers.append(self._ask(calls))
        return answers

    def _report(self) -> None:
        for number, records in enumerate(self._records):
            if _is_due(self.now_s + 0.23 * number, _RECORD_S):
                records.append(TimeStampedValue(self.now_s, self._offered[number]))
            if _is_due(self.now_s + 0.41 * number, 1.0) and not self.is_recovering:
                self._reports[str(number)] = [one for one in records if one.timestamp > self.now_s - _LOOK_BACK_S]

    def _ask(self, calls: float) -> float:
        reports = {} if self.is_recovering else {replica: points for replica, points in self._reports.items() if points}
        speeds = {replica: [TimeStampedValue(self.now_s, 1000.0)] for replica in reports}
        context: Any = SimpleNamespace(
            raw_metrics={OFFERED: reports, SPEED: speeds} if reports else {},
            total_num_requests=calls,
            current_time=self.now_s,
            policy_state=dict(self._state),
            current_num_replicas=0 if self.is_recovering else self.num_replicas,
            target_num_replicas=self.target,
            capacity_adjusted_min_replicas=self.min_replicas,
        )
        answer, self._state = self._policy(context)
        return answer


def _is_due(now_s: float, period_s: float) -> bool:
    return now_s // period_s > (now_s - 0.1) // period_s


@pytest.mark.parametrize("num_replicas", [1, 2, 7])
def test_a_step_is_followed_within_four_seconds(num_replicas: int) -> None:
    controller = Controller(num_replicas)
    controller.play(10.0, load=500)
    assert controller.play(14.0, load=8000.0 * num_replicas)[-1] >= 8 * num_replicas


@pytest.mark.parametrize("num_replicas", [1, 2, 7])
@pytest.mark.parametrize("at_s", [10.0, 10.2, 10.5, 10.7])
def test_one_burst_that_the_replicas_clear_in_time_changes_nothing(num_replicas: int, at_s: float) -> None:
    controller = Controller(num_replicas)
    controller.play(at_s, load=10)
    controller.offer(20_000.0 * num_replicas)
    assert max(controller.play(30.0, load=10)) == num_replicas


def test_a_few_large_requests_add_up() -> None:
    """One request of 20,000 tokens every five seconds is the load of four replicas."""
    controller = Controller()
    for number in range(12):
        controller.offer(20_000)
        answers = controller.play(5.0 * (number + 1))
    assert answers[-1] in (5, 6)


def test_loads_are_summed_and_known_speeds_are_averaged() -> None:
    def series(*values: float) -> list[TimeStampedValue]:
        return [TimeStampedValue(0.1 + _RECORD_S * number, value) for number, value in enumerate(values)]

    offered = {name: series(*(480.0 * number for number in range(9))) for name in "ab"}  # 800 tokens per second each
    speeds = {"a": series(1000.0), "b": series(0.0)}
    context: Any = SimpleNamespace(
        raw_metrics={OFFERED: offered, SPEED: speeds, WAITING: {"a": series(0.0), "b": series(10.0)}},
        total_num_requests=0.0,
        current_time=6.0,
        policy_state={},
        current_num_replicas=2,
        target_num_replicas=1,
        capacity_adjusted_min_replicas=1,
    )
    assert POLICY(context)[0] == 2


def test_before_the_first_report_the_number_of_calls_decides() -> None:
    controller = Controller()
    controller.is_recovering = True
    assert controller.play(3.0, calls=8.0)[-1] == 2


def test_replicas_are_removed_only_once_fewer_have_sufficed_for_a_while() -> None:
    controller = Controller()
    before = controller.play(10.0, load=300)
    step = controller.play(16.0, load=2400)
    after = controller.play(100.0, load=300)
    assert set(before) == {1}
    assert max(step) == 3
    assert set(after[:550]) == {3}
    assert after[-1] == 1


@pytest.mark.parametrize("steady_s", [60.0, 0.5])
def test_a_recovering_controller_never_goes_below_its_target(steady_s: float) -> None:
    """For five seconds, the controller knows no replica, then all of them. Three replicas suffice for the load."""
    controller = Controller(4, policy=TokenPolicy(0.8, 2.0, steady_s, 4.0))
    controller.play(20.0, load=2400)
    controller.restart()
    controller.is_recovering = True
    assert set(controller.play(25.0, load=2400, calls=0.0)) == {4}
    controller.is_recovering = False
    assert min(controller.play(25.9, load=2400)) == 4  # until every replica has reported
    assert min(controller.play(40.0, load=2400)) >= 3


def test_a_recovering_controller_scales_down_once_fewer_have_sufficed_for_a_while() -> None:
    controller = Controller(4)
    controller.restart()
    answers = controller.play(70.0, load=300)
    assert set(answers[:590]) == {4}
    assert answers[-1] == 1


def test_a_deployment_changed_under_load_keeps_its_replicas() -> None:
    """Serve empties the state, and the target may have fallen, for example through Serve's own `initial_replicas`."""
    controller = Controller(4)
    controller.play(20.0, load=300)
    controller.target = 1
    controller.restart()
    assert set(controller.play(40.0, load=300)) == {4}


def test_a_new_deployment_starts_with_its_initial_replicas_and_keeps_them_for_a_while() -> None:
    controller = Controller(3, policy=TokenPolicy(0.8, 2.0, 60.0, 4.0, initial_replicas=3))
    controller.target, controller.num_replicas = 1, 0
    assert controller.play(0.1) == [3]
    controller.target = 3
    controller.is_recovering = True  # no replica runs or reports yet
    assert set(controller.play(30.0)) == {3}
    controller.is_recovering, controller.num_replicas = False, 3
    answers = controller.play(100.0)
    assert set(answers[:590]) == {3}
    assert answers[-1] == 0


def test_a_model_without_replicas_needs_one_when_it_is_called() -> None:
    controller = Controller(0, min_replicas=0)
    assert set(controller.play(10.0)) == {0}
    assert controller.play(20.0, calls=1.0)[-1] == 1


def test_serve_accepts_the_options_and_finds_the_policy() -> None:
    options = serve_autoscaling(
        AutoscalingConfig(min_replicas=0, max_replicas=4, target_utilisation=0.5, max_wait_s=1.0)
    )
    policy = ServeAutoscalingConfig(**options).policy
    assert policy.policy_kwargs == {
        "target_utilisation": 0.5,
        "max_wait_s": 1.0,
        "steady_s": 300.0,
        "calls_per_replica": 4.0,
        "look_back_s": 3.0,
        "report_interval_s": 1.0,
        "upscale_delay_s": 1.0,
        "initial_replicas": None,
    }
    built = policy.get_policy()(**policy.policy_kwargs)
    assert built.wanted_replicas(ModelLoad(1000, 0, 0, 1000, 0, 0)) == 2


def test_a_step_is_followed_within_eight_seconds_and_noise_causes_no_oscillation() -> None:
    step, noisy = (simulate(scenario) for scenario in SCENARIOS)
    second = step.first_at(4)
    assert second is not None
    assert second <= 10 + 8
    assert step.reversals == 0
    assert noisy.reversals <= 2
    assert max(noisy.replicas) < 8
    assert sorted(noisy.wait_s)[len(noisy.wait_s) * 95 // 100] < 10


def test_the_simulation_reproduces_the_recorded_runs() -> None:
    recorded = json.loads((_RESULTS / "autoscaling.json").read_text())["results"]
    played = [asdict(run) | {"reversals": run.reversals} for run in map(simulate, SCENARIOS)]
    assert played == recorded


@pytest.mark.parametrize("timeout_s", [2.0, 10.0, 60.0])
def test_a_tenfold_load_gets_its_replicas_whatever_the_time_limit(timeout_s: float) -> None:
    """Scaling takes the start time of a replica plus a few seconds, because refused requests count as load. The target
    rises with every report, so the costs of a request decide whether it is high enough after 5.7 s or 6.3 s."""
    outcome = step(timeout_s)
    assert outcome.capacity_after_s is not None
    assert outcome.capacity_after_s <= 120 + 7
    assert outcome.most_wanted <= 14  # ten replicas at the target utilisation; retries do not count again
    assert asdict(outcome) == _recorded(f"tenfold load, limit {timeout_s:g} s")


def test_one_large_request_starts_no_replica() -> None:
    outcome = large_request()
    assert outcome.most_wanted == 1
    assert asdict(outcome) == _recorded("one request of 262,144 tokens")


def test_a_restarted_controller_keeps_its_target() -> None:
    outcome = controller_restart()
    assert outcome.least_wanted >= 4
    assert asdict(outcome) == _recorded("controller restarted")


def _recorded(case: str) -> Any:
    return json.loads((_RESULTS / "autoscaling-requests.json").read_text())["results"][case]
