"""Runs the recipe of `cluster/bare-metal` on three addresses of this machine, which stand in for three hosts."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

__all__ = ["BARE_METAL", "HEAD", "WORKERS", "Hosts", "command_line"]

BARE_METAL = Path(__file__).parents[1] / "cluster" / "bare-metal"
HEAD, WORKERS = "127.0.0.1", ["127.0.0.2", "127.0.0.3"]

# Files and ports that each host has for itself. The hosts on this machine share only the service's port: HAProxy sets
# SO_REUSEPORT, so the kernel spreads connections over the hosts' proxies.
_HAPROXY_OF_A_HOST = [
    "export RAY_SERVE_HAPROXY_CONFIG_FILE_LOC=$PWD/haproxy.cfg RAY_SERVE_HAPROXY_SOCKET_PATH=$PWD/admin",
    "export RAY_SERVE_HAPROXY_SERVER_STATE_BASE=$PWD RAY_SERVE_HAPROXY_SERVER_STATE_FILE=$PWD/server-state",
    "export RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH=$PWD/metrics",
    "number=${host##*.}",
    'eval "export RAY_SERVE_HAPROXY_METRICS_PORT=\\$METRICS_PORT_$number"',
    'eval "export RAY_SERVE_HAPROXY_STATS_PORT=\\$STATS_PORT_$number"',
]


@dataclass(frozen=True)
class Hosts:
    """Three addresses of this machine that the scripts use as three hosts."""

    folder: Path
    environment: dict[str, str]
    url: str
    ports: dict[int, int]
    """The test's port for each default port of the recipe."""

    @classmethod
    def on_this_machine(
        cls,
        folder: Path,
        head_options: Sequence[str],
        worker_options: Sequence[Sequence[str]],
        ports: dict[int, int],
        environment: Mapping[str, str],
        has_haproxy: bool = False,
    ) -> Self:
        """The options are passed to `ray start`. The scripts' environment is this process's environment without Ray's
        variables, plus `environment`."""
        remote = folder / "remote"
        # Stands in for ssh: runs the command line in a shell, in the home folder of the given host.
        lines = ["#!/bin/sh", "host=$1; shift", f'mkdir -p "{folder}/$host"; cd "{folder}/$host"']
        remote.write_text("\n".join([*lines, *(_HAPROXY_OF_A_HOST if has_haproxy else []), 'exec sh -c "$*"', ""]))
        remote.chmod(0o755)
        hosts = [[HEAD, *head_options], *([host, *more] for host, more in zip(WORKERS, worker_options, strict=True))]
        (folder / "hosts").write_text("# the head first\n" + "".join(f"{' '.join(host)}\n" for host in hosts))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        recipe = {
            "HOSTS": str(folder / "hosts"),
            "REMOTE": str(remote),
            "TOKEN": str(folder / "token"),
            "RERANK_BIN": str(Path(sys.executable).parent),
            "RERANK_HAPROXY": "1" if has_haproxy else "0",
        }
        return cls(folder, inherited | recipe | dict(environment), f"http://127.0.0.1:{ports[8000]}", ports)

    def run(self, *arguments: str, is_checked: bool = True) -> str:
        """Runs `cluster.sh` with these arguments and returns its output."""
        command = [str(BARE_METAL / "cluster.sh"), *arguments]
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=400, check=False)
        assert result.returncode == 0 or not is_checked, self._told(arguments, result)
        return result.stdout

    def processes(self) -> list[psutil.Process]:
        """Running processes of the recipe, found by the folder's name in the command lines of Ray's processes."""
        mark = str(self.folder)
        return [process for process in psutil.process_iter() if mark in command_line(process)]

    def _told(self, arguments: tuple[str, ...], result: subprocess.CompletedProcess[str]) -> str:
        logs = [f"{path}:\n{path.read_text()[-2000:]}" for path in self.folder.rglob("log")]
        return "\n".join([shlex.join(arguments), result.stdout, result.stderr, *logs])


def command_line(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return " ".join(process.cmdline())
    return ""
