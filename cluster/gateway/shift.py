"""Moves the traffic of the gateway from one cell to another, in steps, and returns when the old cell is idle.

    python cluster/gateway/shift.py --socket /run/gateway.sock --from a --to b [--steps 5] [--interval-s 30]

To go back, exchange the names. If the new cell fails its health checks meanwhile, all traffic returns to the old one.
Exit code 0: the old cell has no traffic. 1: the traffic is back, or the old cell still answers requests after
`--drain-s`. Needs Python's standard library only.
"""

import argparse
import csv
import socket
import sys
import time

__all__ = ["Gateway", "main"]

BACKEND = "cells"
_POLL_S = 0.2


class Gateway:
    """HAProxy's runtime API (`stats socket`)."""

    def __init__(self, path: str) -> None:
        self._path = path

    def ask(self, command: str) -> str:
        """Runs one command and returns its output."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(10)
            connection.connect(self._path)
            connection.sendall(f"{command}\n".encode())
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts).decode().strip()

    def set_weight(self, cell: str, percent: int) -> None:
        """Sets a cell's share, relative to its weight in the configuration."""
        if told := self.ask(f"set weight {BACKEND}/{cell} {percent}%"):
            raise SystemExit(f"the gateway refuses the weight of {cell}: {told}")

    def state(self, cell: str) -> dict[str, str]:
        """Statistics of a cell: `status`, `scur` (requests in progress), `weight` and others."""
        lines = self.ask(f"show stat {BACKEND} 4 -1").removeprefix("# ").splitlines()
        for row in csv.DictReader(lines):
            if row["svname"] == cell:
                return row
        raise SystemExit(f"the gateway has no cell {cell}")

    def is_up(self, cell: str) -> bool:
        """Whether the cell passes its health checks."""
        return self.state(cell)["status"].startswith("UP")


def shift(gateway: Gateway, old: str, new: str, steps: int, interval_s: float) -> bool:
    """Moves the traffic; false if the new cell failed and the traffic is back."""
    for step in range(1, steps + 1):
        gateway.set_weight(new, 100 * step // steps)
        gateway.set_weight(old, 100 - 100 * step // steps)
        sys.stdout.write(f"{new}: {100 * step // steps}%, {old}: {100 - 100 * step // steps}%\n")
        sys.stdout.flush()
        until = time.monotonic() + interval_s
        while True:
            if not gateway.is_up(new):
                gateway.set_weight(old, 100)
                gateway.set_weight(new, 0)
                sys.stdout.write(f"{new} fails its health checks: all traffic is back on {old}\n")
                return False
            if time.monotonic() >= until:
                break
            time.sleep(_POLL_S)
    return True


def drain(gateway: Gateway, cell: str, limit_s: float) -> bool:
    """Waits until a cell has no request; false after the limit."""
    until = time.monotonic() + limit_s
    while int(gateway.state(cell)["scur"]):
        if time.monotonic() >= until:
            sys.stdout.write(f"{cell} still answers requests\n")
            return False
        time.sleep(_POLL_S)
    sys.stdout.write(f"{cell} is idle: it can be stopped\n")
    return True


def main(words: list[str] | None = None) -> int:
    """Reads the options and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--socket", required=True, help="the gateway's stats socket")
    parser.add_argument("--from", dest="old", required=True, help="the cell to leave")
    parser.add_argument("--to", dest="new", required=True, help="the cell that takes over")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--interval-s", type=float, default=30.0, help="time between two steps")
    parser.add_argument("--drain-s", type=float, default=120.0, help="longest time for the last requests")
    chosen = parser.parse_args(words)
    gateway = Gateway(chosen.socket)
    if not gateway.is_up(chosen.new):
        sys.stdout.write(f"{chosen.new} fails its health checks: nothing is moved\n")
        return 1
    moved = shift(gateway, chosen.old, chosen.new, chosen.steps, chosen.interval_s)
    return 0 if moved and drain(gateway, chosen.old, chosen.drain_s) else 1


if __name__ == "__main__":
    sys.exit(main())
