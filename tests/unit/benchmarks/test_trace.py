"""The path of a request stays short: a ranking enters few files and functions."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_a_ranking_enters_at_most_22_files_and_90_functions() -> None:
    traced = subprocess.run(
        [sys.executable, "-m", "benchmarks.trace"], cwd=ROOT, capture_output=True, text=True, timeout=240, check=True
    )

    counts = re.fullmatch(r"(\d+) files, (\d+) functions", traced.stdout.splitlines()[-1])
    assert counts is not None, traced.stdout
    assert int(counts[1]) <= 22
    assert int(counts[2]) <= 90
