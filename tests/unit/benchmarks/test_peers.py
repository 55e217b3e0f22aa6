"""The comparison with peers: what it installs and starts. No peer is downloaded."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers.contenders import CONTENDERS
from benchmarks.peers.environments import OURS
from benchmarks.peers.servers.plain import read_arguments

_ROOT = Path(__file__).parents[3]
_REQUIREMENTS = _ROOT / "benchmarks" / "peers" / "requirements"


def test_install_leaves_our_own_environment_alone() -> None:
    command = [sys.executable, "-m", "benchmarks.peers", "--install", "--only", "ours-float32"]

    result = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    assert "Installing" not in result.stdout


def test_every_peer_has_requirements_with_exact_versions() -> None:
    environments = {contender.environment for contender in CONTENDERS} - {OURS}

    assert {path.stem for path in _REQUIREMENTS.glob("*.txt")} == environments
    for path in _REQUIREMENTS.glob("*.txt"):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        assert lines
        assert all(line.count("==") == 1 for line in lines), path.name


def test_a_small_server_reads_the_arguments_it_is_started_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--model", "m", "--port", "1", "--threads", "2", "--backend", "onnx"])

    arguments = read_arguments()

    assert (arguments.model, arguments.port, arguments.threads, arguments.backend) == (Path("m"), 1, 2, "onnx")
