"""The state that an ingress keeps about replicas: their reports, its own outstanding tokens, and recent failures."""

import random
from collections import Counter

import pytest

from rerank_service.messages import Fitting, ReplicaLoad, Shard
from rerank_service.routing.replica_table import ReplicaTable


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> ReplicaTable:
    return ReplicaTable(clock)


def load(replica: str, waiting_tokens: int, tokens_per_s: float = 1_000.0, at_s: float = 0.0) -> ReplicaLoad:
    return ReplicaLoad(replica, waiting_tokens, tokens_per_s, at_s)


def best(table: ReplicaTable, replicas: str, num_tokens: int = 100) -> str:
    return table.best(replicas, str, num_tokens, limit=1)[0]


def test_tokens_sent_by_other_ingresses_count(table: ReplicaTable) -> None:
    table.send(1, "mine", "b", 500)
    table.add_report(load("a", 2_000))
    table.add_report(load("b", 500))

    assert best(table, "ab") == "b"


def test_a_report_does_not_count_the_senders_own_tokens_twice(table: ReplicaTable, clock: Clock) -> None:
    table.send(1, "mine", "a", 500)
    clock.now_s += 1
    table.add_report(load("a", 700))
    assert table.expected_tokens("a") == 700

    clock.now_s += 0.001
    table.send(2, "mine too", "a", 300)  # later than the report
    assert table.expected_tokens("a") == pytest.approx(1_000, abs=1)


def test_an_older_report_that_arrives_late_is_dropped(table: ReplicaTable) -> None:
    table.add_report(load("a", 900, at_s=7.0))
    table.add_report(load("a", 0, at_s=6.0))

    assert table.expected_tokens("a") == 900


def test_an_old_report_fades_into_the_mean(table: ReplicaTable, clock: Clock) -> None:
    table.send(1, "mine", "c", 1_000)
    table.complete("mine", "c")
    table.add_report(load("a", 0))
    table.add_report(load("b", 2_000))
    clock.now_s += 1_000

    assert table.expected_tokens("a") == pytest.approx(1_000)
    assert table.expected_tokens("b") == pytest.approx(1_000)


def test_a_replica_at_half_the_speed_gets_half_the_tokens(table: ReplicaTable) -> None:
    for replica, tokens_per_s in (("a", 1_000.0), ("b", 1_000.0), ("slow", 500.0)):
        table.add_report(load(replica, 0, tokens_per_s))
    for call in range(1, 251):
        table.send(call, str(call), table.best(["a", "b", "slow"], str, 100, limit=1)[0], 100)

    sent = {replica: table.outstanding[replica] for replica in ("a", "b", "slow")}
    assert sent["slow"] == pytest.approx(5_000, abs=200)
    assert sent["a"] == pytest.approx(10_000, abs=200)


def test_a_new_replica_gets_its_share_and_no_flood(table: ReplicaTable) -> None:
    for replica in "abc":
        table.add_report(load(replica, 1_000))
    chosen: Counter[str] = Counter()
    for call in range(1, 401):
        replica = best(table, "abcn")
        table.send(call, str(call), replica, 100)
        chosen[replica] += 1

    assert chosen["n"] == pytest.approx(100, abs=5)


def test_the_nearest_of_about_equal_replicas_is_chosen(table: ReplicaTable) -> None:
    for replica, waiting in (("far", 0), ("near", 5), ("busy", 400)):
        table.add_report(load(replica, waiting))
    distances = {"far": 2, "near": 1, "busy": 0}

    ranked = table.best(list(distances), str, 100, distance_of=lambda one: distances[one])

    assert ranked == ["near", "far", "busy"]


def test_a_replica_declines_only_a_shard_that_would_wait_much_longer_than_expected(table: ReplicaTable) -> None:
    assert table.decline_above("a", 100) is None  # no speed known yet
    table.add_report(load("a", 1_000))
    limit = table.decline_above("a", 100)

    assert limit is not None
    assert 1_100 < limit < 1_500


def test_a_failed_replica_is_avoided_then_tried_once_then_used_again(table: ReplicaTable, clock: Clock) -> None:
    table.mark_failed("a")
    assert table.usable("ab", str) == ["b"]
    assert table.usable("a", str) == ["a"]  # no other replica remains

    clock.now_s += 6
    assert table.usable("ab", str) == ["a", "b"]
    table.claim(1, "trial", "a", 10)
    assert table.usable("ab", str) == ["b"]  # one trial at a time
    table.mark_answered("a")
    assert list(table.usable("ab", str)) == ["a", "b"]


def test_a_failed_trial_avoids_the_replica_again(table: ReplicaTable, clock: Clock) -> None:
    table.mark_failed("a")
    table.mark_answered("a")  # the answer to a call sent before the failure
    assert table.usable("ab", str) == ["b"]
    clock.now_s += 6
    table.claim(1, "trial", "a", 10)
    table.mark_failed("a")
    clock.now_s += 1
    assert table.usable("ab", str) == ["b"]


def test_a_shard_avoids_its_own_replicas_before_those_that_failed_for_others(table: ReplicaTable) -> None:
    table.mark_failed("b")

    assert table.usable("ab", str, avoid=["a"]) == ["b"]
    assert list(table.usable("a", str, avoid=["a"])) == ["a"]


def test_shards_that_were_on_a_failed_replica_are_retried_on_different_replicas(table: ReplicaTable) -> None:
    """One of the shards broke the replica. If both shards went to the same second replica, the harmless one would fail
    again."""
    table.claim(1, "poison", "b", 10, suspect=7)
    assert table.usable("abc", str, avoid=["a"]) == ["c"]
    assert table.usable("ab", str, avoid=["a"]) == ["b"]  # no other replica remains
    assert list(table.usable("abc", str)) == ["a", "b", "c"]  # new shards are no suspects

    table.send(1, "poison", "c", 10, attempt=7)  # replica b was full
    assert table.usable("abc", str, avoid=["a"]) == ["b"]
    table.end_attempt(7)
    assert table.usable("abc", str, avoid=["a"]) == ["b", "c"]


def test_a_stopped_replica_leaves_no_state(table: ReplicaTable) -> None:
    table.add_report(load("a", 900))
    table.add_report(load("b", 100))
    table.mark_failed("a")
    table.keep_only({"b"})

    assert table.expected_tokens("a") == 100  # the mean of the other replicas
    assert list(table.usable("ab", str)) == ["a", "b"]


def test_sums_use_the_newest_reports_in_any_order_of_arrival(table: ReplicaTable) -> None:
    rng, last = random.Random(0), dict[str, ReplicaLoad]()
    for step in range(2_000):
        report = load(rng.choice("abcde"), rng.randrange(9_000), rng.choice([0.0, 5e5, 1e6]), rng.randrange(step + 1))
        table.add_report(report)
        if report.replica not in last or report.at_s >= last[report.replica].at_s:
            last[report.replica] = report
        if rng.random() < 0.01:
            gone = rng.choice("abcde")
            table.keep_only(set("abcde") - {gone})
            last.pop(gone, None)

    backlog = sum(report.waiting_tokens for report in last.values()) / len(last)
    assert table.expected_tokens("unknown") == pytest.approx(backlog)
    # A replica declines if its backlog is above 1.1 times this backlog plus the tokens of 5 ms at the mean speed.
    speeds = [report.tokens_per_s for report in last.values() if report.tokens_per_s]
    assert table.decline_above("unknown", 0) == round(1.1 * backlog + 0.005 * sum(speeds) / len(speeds))


def test_own_tokens_are_corrected_by_the_error_of_earlier_estimates(table: ReplicaTable) -> None:
    for _ in range(200):
        table.add_size(estimated_tokens=100, num_tokens=150)
    table.send(1, "mine", "a", 1_000)

    assert table.expected_tokens("a") == pytest.approx(1_500, rel=0.01)


def shard(model: str = "m", numerics: str = "") -> Shard:
    return Shard("r", model, "q", ("p",), (0,), Fitting(), 10, 10, numerics=numerics)


@pytest.fixture
def updating(table: ReplicaTable) -> ReplicaTable:
    """A rolling update: `a` and `b` compute in int8, `c` in float32, and `d` has not answered yet."""
    for replica, numerics in (("a", "int8"), ("b", "int8"), ("c", "float32")):
        table.mark_answered(replica, "m", numerics)
    return table


def test_the_shards_of_a_request_go_to_replicas_with_the_same_numerics(updating: ReplicaTable) -> None:
    assert list(updating.usable("abcd", str, (), shard(), "mine")) == ["a", "b", "c", "d"]  # the first shard may choose
    updating.claim(1, "mine", "c", 10)
    updating.send(2, "other", "a", 10)

    assert updating.usable("abcd", str, (), shard(), "mine") == ["c"]
    assert updating.usable("abcd", str, (), shard(), "other") == ["a", "b"]
    assert updating.usable("abd", str, (), shard(), "mine") == ["d"]  # perhaps the same
    assert list(updating.usable("ab", str, (), shard(), "mine")) == ["a", "b"]  # no other replica remains

    updating.send(1, "mine", "c", 10)
    assert updating.usable("abcd", str, (), shard(), "mine") == ["c"]
    updating.complete("mine", "c")
    assert list(updating.usable("abcd", str, (), shard(), "mine")) == ["a", "b", "c", "d"]


def test_a_repeated_shard_goes_to_a_replica_with_the_wanted_numerics(updating: ReplicaTable) -> None:
    assert updating.usable("abcd", str, (), shard(numerics="float32"), "mine") == ["c"]
    assert updating.usable("abcd", str, ("a",), shard(numerics="int8"), "mine") == ["b"]


def test_other_models_of_a_pool_are_not_affected(updating: ReplicaTable) -> None:
    updating.claim(1, "mine", "c", 10)
    assert list(updating.usable("abcd", str, (), shard("another"), "mine")) == ["a", "b", "c", "d"]


def test_after_the_update_nothing_is_excluded(updating: ReplicaTable) -> None:
    updating.claim(1, "mine", "c", 10)
    updating.keep_only("cd")
    assert list(updating.usable("cd", str, (), shard(), "mine")) == ["c", "d"]

    updating.mark_answered("d", "m", "float16")
    assert updating.usable("cd", str, (), shard(), "mine") == ["c"]
    updating.mark_answered("d", "m", "float32")
    assert list(updating.usable("cd", str, (), shard(), "mine")) == ["c", "d"]
