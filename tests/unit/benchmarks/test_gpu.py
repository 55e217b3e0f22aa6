"""The GPU benchmark, as far as a machine without a GPU can run it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import flops

ROOT = Path(__file__).parents[3]


def test_the_script_runs_without_an_installation_and_prints_a_table(tmp_path: Path) -> None:
    """The script runs from a checkout, in another folder, without importing Ray."""
    code = (
        "import runpy, sys; sys.modules['ray'] = None; "
        f"sys.argv = ['gpu.py', '--device', 'cpu', '--sizes', 'tiny', '--pairs', '4', '--repeats', '1', "
        f"'--json', 'out.json']; runpy.run_path({str(ROOT / 'benchmarks' / 'gpu.py')!r}, run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.strip().splitlines()
    assert lines[0].startswith("| model | how |")
    assert len(lines) == 2 + 4  # one variant on a CPU, four distributions
    rows = json.loads((tmp_path / "out.json").read_text())["results"]
    assert all(row["pairs_per_s"] > 0 for row in rows)
    assert all(row["mfu"] >= 0 for row in rows)


def test_flops_of_the_published_shapes() -> None:
    """Twice the layers' parameters per token (973M for the 1B), plus the operations of attention."""
    llama_1b = {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    assert flops(llama_1b, [1]) == pytest.approx(2 * 973e6, rel=0.001)
    assert flops(llama_1b, [512]) / 512 == pytest.approx(2 * 973e6 + 16 * 4 * 2048 * 512, rel=0.001)
