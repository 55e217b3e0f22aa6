"""CPU time of a whole process tree. Needs psutil, of the extra `bench`."""

from collections.abc import Iterator
from contextlib import suppress

import psutil

__all__ = ["cpu_seconds", "process_tree"]


def cpu_seconds(pid: int) -> float:
    """User and system CPU-seconds of a process and all its descendants, so far.

    A child that has ended counts with its parent, as soon as that has waited for it; so differences of two
    calls miss no work of processes that came and went in between. 0 if the process is gone.
    """
    return sum(sum(_cpu_times(process)) for process in process_tree(pid))


def process_tree(pid: int) -> list[psutil.Process]:
    """A process and all its descendants; none if it is gone."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def _cpu_times(process: psutil.Process) -> Iterator[float]:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        yield from (times.user, times.system, times.children_user, times.children_system)
