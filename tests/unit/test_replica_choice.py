"""Which replica a shard goes to: sums of tokens, and what they do when calls fail, are cancelled or move."""

import random

from rerank_service.replica_choice import OutstandingTokens


def test_siblings_see_each_other_before_any_is_sent() -> None:
    load = OutstandingTokens()
    for call in range(4):
        best = min("ab", key=lambda replica: load[replica])
        load.claim(call, "request", best, 100)
    assert (load["a"], load["b"]) == (200, 200)


def test_a_claim_moves_with_the_call() -> None:
    load = OutstandingTokens()
    load.claim(1, "request", "a", 100)
    load.claim(1, "request", "b", 100)  # chosen again, after a was full
    assert (load["a"], load["b"]) == (0, 100)
    load.send(1, "request", "a", 100)  # Serve gave the replica chosen for another call
    assert (load["a"], load["b"]) == (100, 0)
    load.complete("request", "a")
    assert load["a"] == 0


def test_a_call_that_never_got_there_is_forgotten() -> None:
    load = OutstandingTokens()
    load.claim(1, "request", "a", 100)
    load.complete("request", "a")
    load.complete("request", "a")  # of a request that is not known
    load.release(1)
    assert load["a"] == 0


def test_a_replica_that_is_gone_and_comes_back_starts_at_zero() -> None:
    load = OutstandingTokens()
    load.claim(1, "first", "a", 100)
    load.send(2, "second", "a", 100)
    load.send(3, "second", "b", 5)
    load.keep_only({"b"})
    assert (load["a"], load["b"]) == (0, 5)
    load.complete("second", "a")  # answers of the dead still come in
    load.release(1)
    assert load["a"] == 0


def test_whatever_happens_the_sums_end_at_zero() -> None:
    rng = random.Random(0)
    load = OutstandingTokens()
    pending: dict[int, str] = {}
    sent: list[tuple[str, str]] = []
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
        while sent and rng.random() < 0.7:
            load.complete(*sent.pop(rng.randrange(len(sent))))
    for call in pending:
        load.release(call)
    for request, replica in sent:
        load.complete(request, replica)
    assert [load[replica] for replica in "abc"] == [0, 0, 0]
    assert not load._claims
    assert not load._sent
