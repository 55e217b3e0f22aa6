"""`make chaos`: runs the tests of this folder, then prints the results of all requests as a table and as one JSON line.

The tests run in a separate process, so that no log line of Ray's shutdown follows the JSON line.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.load import ledger

HERE = Path(__file__).parent


def main() -> None:
    """Exits with 1 unless all runs passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--runs", type=int, default=1, help="number of consecutive runs; their JSON lines are printed at the end"
    )
    options, pytest_arguments = parser.parse_known_args()
    lines = []
    is_passed = True
    for _ in range(options.runs):
        is_run_passed, line = _run(pytest_arguments)
        is_passed = is_passed and is_run_passed
        lines.append(line)
    print("\n".join(lines))
    sys.exit(not is_passed)


def _run(pytest_arguments: list[str]) -> tuple[bool, str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger"
        # Ray leaves sockets to the garbage collector, which reports them in whichever test is running.
        quiet = ["-W", "ignore::pytest.PytestUnraisableExceptionWarning"]
        command = [sys.executable, "-m", "pytest", str(HERE), "-m", "load", "-s", *quiet, *pytest_arguments]
        is_passed = (
            subprocess.run(command, env=os.environ | {ledger.LEDGER_ENV: str(path)}, check=False).returncode == 0
        )
        entries = ledger.read(path)
    print("\n" + ledger.table(entries) + "\n", flush=True)
    return is_passed, ledger.json_line(entries, is_passed)


if __name__ == "__main__":
    main()
