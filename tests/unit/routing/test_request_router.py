"""The choice of a replica: outstanding tokens of calls that fail, are cancelled or move, and the order within a
pool."""

import random
from collections import Counter

from rerank_service.routing.replica_table import OutstandingTokens
from rerank_service.routing.request_router import rank_pool


def test_shards_of_a_request_see_each_other_before_any_is_sent() -> None:
    load = OutstandingTokens()
    for call in range(4):
        best = min("ab", key=lambda replica: load[replica])
        load.claim(call, "request", best, 100)
    assert (load["a"], load["b"]) == (200, 200)


def test_a_claim_moves_with_the_call() -> None:
    load = OutstandingTokens()
    load.claim(1, "request", "a", 100)
    load.claim(1, "request", "b", 100)  # chosen again, because replica a was full
    assert (load["a"], load["b"]) == (0, 100)
    load.send(1, "request", "a", 100)  # Serve gave the replica chosen for another call
    assert (load["a"], load["b"]) == (100, 0)
    load.complete("request", "a")
    assert load["a"] == 0


def test_a_call_that_no_replica_accepted_is_forgotten() -> None:
    load = OutstandingTokens()
    load.claim(1, "request", "a", 100)
    load.complete("request", "a")
    load.complete("request", "a")  # an unknown request
    load.release(1)
    assert load["a"] == 0


def test_a_replica_that_stops_and_returns_starts_at_zero() -> None:
    load = OutstandingTokens()
    load.claim(1, "first", "a", 100)
    load.send(2, "second", "a", 100)
    load.send(3, "second", "b", 5)
    load.keep_only({"b"})
    assert (load["a"], load["b"]) == (0, 5)
    load.complete("second", "a")  # an answer of a stopped replica may arrive late
    load.release(1)
    assert load["a"] == 0


def test_the_sums_end_at_zero_and_nothing_is_kept() -> None:
    rng = random.Random(0)
    load = OutstandingTokens()
    pending: dict[int, str] = {}
    sent: list[tuple[str, str]] = []
    sent_in_all: list[tuple[str, str]] = []
    for call in range(1, 3000):
        pending[call] = f"request {call // 4}"
        load.claim(call, pending[call], rng.choice("abc"), rng.randrange(1, 5000))
        for other in rng.sample(sorted(pending), min(len(pending), rng.randrange(3))):
            request = pending.pop(other)
            replica = rng.choice("abc")
            if rng.random() < 0.2:
                load.release(other)  # cancelled
                continue
            load.send(other, request, replica, rng.randrange(1, 5000))
            sent.append((request, replica))
            sent_in_all.append((request, replica))
        while sent and rng.random() < 0.7:
            load.complete(*sent.pop(rng.randrange(len(sent))))
    for call in pending:
        load.release(call)
    for request, replica in sent:
        load.complete(request, replica)
    assert [load[replica] for replica in "abc"] == [0, 0, 0]
    # If a claim or a sent call were still kept, this would subtract it a second time.
    for call in range(1, 3000):
        load.release(call)
    for request, replica in sent_in_all:
        load.complete(request, replica)
    assert [load[replica] for replica in "abc"] == [0, 0, 0]


def test_a_pool_prefers_a_replica_that_has_the_model() -> None:
    replicas = {"a": (900, False), "b": (900, True), "c": (0, False)}

    assert rank_pool("m", replicas, 1000)[0] == "b"


def test_a_pool_spreads_a_model_only_under_load() -> None:
    assert rank_pool("m", {"a": (1000, True), "b": (0, False)}, 1000)[0] == "a"
    assert rank_pool("m", {"a": (1001, True), "b": (0, False)}, 1000)[0] == "b"
    assert rank_pool("m", {"a": (1001, True), "b": (1001, False)}, 1000)[0] == "a"


def test_all_routers_choose_the_same_replica_for_a_model_and_models_spread() -> None:
    replicas = dict.fromkeys("abcd", (0, False))
    homes = {f"model-{number}": rank_pool(f"model-{number}", replicas, 1000)[0] for number in range(400)}

    assert all(rank_pool(model, dict(reversed(replicas.items())), 1000)[0] == home for model, home in homes.items())
    assert min(Counter(homes.values()).values()) > 60
    del replicas["d"]
    assert all(rank_pool(model, replicas, 1000)[0] == home for model, home in homes.items() if home != "d")
