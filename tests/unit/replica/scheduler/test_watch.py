"""Detection of calls that never return, with a simulated clock."""

from rerank_service.replica.scheduler import Watch


def checks(watch: Watch, times: list[float]) -> list[int]:
    return [watch.num_overdue(now_s) for now_s in times]


def test_a_call_is_overdue_once_checks_have_seen_it_run_longer_than_its_limit() -> None:
    watch = Watch()
    work = watch.begin(30.0)

    assert checks(watch, [100.0 + second for second in range(31)]) == [0] * 31
    assert watch.num_overdue(131.0) == 1
    watch.end(work)
    assert watch.num_overdue(132.0) == 0


def test_time_while_the_process_was_stopped_does_not_count() -> None:
    watch = Watch()
    watch.begin(30.0)
    checks(watch, [0.0, 1.0])

    assert checks(watch, [601.0, 602.0, 603.0]) == [0, 0, 0]  # ten minutes of SIGSTOP
    assert checks(watch, [604.0 + second for second in range(20)])[-1] == 1


def test_time_before_a_call_began_does_not_count() -> None:
    watch = Watch()
    watch.num_overdue(0.0)
    watch.begin(5.0)

    assert checks(watch, [9.0, 13.0, 14.5]) == [0, 0, 1]


def test_each_call_has_its_own_limit() -> None:
    watch = Watch()
    for limit_s in (2.0, 4.0, 60.0):
        watch.begin(limit_s)

    assert checks(watch, [0.0, 3.0, 5.0]) == [0, 1, 2]
