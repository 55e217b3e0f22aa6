"""Kills the HAProxy that a service leaves behind, and removes its folder. `haproxy.py` runs this program, with the
folder as argument.

If the command or Ray ends in disorder, HAProxy outlives the actor that manages it, and would keep the service's port.
Examples are a SIGKILL, and a SIGTERM to all processes at once, as `timeout` and systemd send it: Ray's library then
ends the command's process a minute later. This program therefore waits for the end of its standard input, which the
command holds open while it lives.
"""

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

_ATTEMPTS = 20
_PAUSE_S = 0.5


def main(folder: str) -> None:
    """Once the command has ended, kills the processes that have a file of `folder` on their command lines, and removes
    the folder."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdin.buffer.read()
    for _ in range(_ATTEMPTS):  # an actor that still lives may start another HAProxy
        if not _kill(os.fsencode(folder + os.sep)):
            break
        time.sleep(_PAUSE_S)
    shutil.rmtree(folder, ignore_errors=True)


def _kill(of_folder: bytes) -> bool:
    """Whether it found a process."""
    is_found = False
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or belongs to another user
            arguments = (process / "cmdline").read_bytes().split(b"\0")
            if any(argument.startswith(of_folder) for argument in arguments):
                os.kill(int(process.name), signal.SIGKILL)
                is_found = True
    return is_found


if __name__ == "__main__":
    main(sys.argv[1])
