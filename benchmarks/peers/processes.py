"""Runs servers as child processes: starts them, waits for them, and stops them with all their children."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from rerank_service.tools.bench.measure import process_tree

__all__ = ["Command", "Server", "StartFailed", "first_cpus", "running", "stop_on_signals"]

_READY_LIMIT_S = 300
_STOP_LIMIT_S = 60
_POLL_S = 0.5


class StartFailed(Exception):
    """A server exited, or was not ready in time. The message contains the end of the server's log."""


@dataclass(frozen=True)
class Command:
    """Command line and environment of a server."""

    arguments: list[str]
    health_path: str
    variables: dict[str, str | None] = field(default_factory=dict)
    """Environment variables; a null value removes the variable."""

    folder: Path | None = None


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    pid: int


@contextmanager
def running(command: Command, port: int, num_threads: int, log: Path) -> Iterator[Server]:
    """Runs a server on a loopback port, limited to `num_threads` CPUs. Raises `StartFailed`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*_on_cpus(num_threads), *command.arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_variables(command, num_threads),
            cwd=command.folder,
            start_new_session=True,  # Ctrl-C reaches only this process, which then stops the server
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, url + command.health_path, log)
        yield Server(url, process.pid)
    finally:
        _stop(process)


def stop_on_signals() -> None:
    """Makes SIGTERM end this process like Ctrl-C, so every `finally` block runs.

    A shell makes background jobs ignore SIGINT, and children would inherit this; setting a handler prevents it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def first_cpus(count: int) -> list[int]:
    """The first CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0))[:count]


def _on_cpus(num_threads: int) -> list[str]:
    """Command prefix that limits a process tree to the first CPUs; empty if the tree may use all CPUs."""
    if num_threads >= len(os.sched_getaffinity(0)):
        return []
    return ["taskset", "--cpu-list", ",".join(map(str, first_cpus(num_threads)))]


def _variables(command: Command, num_threads: int) -> dict[str, str]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(num_threads))
    offline = {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    variables = os.environ | threads | offline | command.variables
    return {name: value for name, value in variables.items() if value is not None}


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _READY_LIMIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StartFailed(f"ended with {process.returncode}: {_end_of(log)}")
        with suppress(httpx.TransportError):
            if httpx.get(url, timeout=_READY_LIMIT_S).status_code == 200:
                return
        time.sleep(_POLL_S)
    raise StartFailed(f"not ready after {_READY_LIMIT_S} s: {_end_of(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupts a server, then kills the remaining processes of its tree."""
    tree = process_tree(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_LIMIT_S)
    for survivor in tree:
        with suppress(psutil.NoSuchProcess):
            survivor.kill()
    process.wait()


def _end_of(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " / ".join(line.strip() for line in lines[-3:])[-600:]
