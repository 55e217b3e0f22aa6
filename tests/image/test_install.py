"""Runs the image's install step in a plain folder, without a container engine. The test takes several minutes.

`pytest tests/image -m image`. The test needs a package index, and installs this index's build of torch.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PASSAGES = ["A croissant is a pastry.", "Paris is the capital of France.", "Berlin is in Germany."]

pytestmark = [pytest.mark.image, pytest.mark.timeout(1800)]


def test_the_sources_of_the_image_can_be_installed_and_rank(tmp_path: Path) -> None:
    context = _build_context(tmp_path / "context")
    venv = tmp_path / "rerank-service"
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}

    def run(*command: str) -> str:
        result = subprocess.run(
            command, cwd=context, env=environment | {"TORCH_CPU_INDEX": ""}, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    run("cluster/install.sh", str(venv), "cpu", "redis")
    shutil.copy(ROOT / "serve_config.yaml", context)
    (context / "passages.txt").write_text("\n".join(PASSAGES))
    ask = ["rank", "What is the capital of France?", "passages.txt", "--in-process", "--json"]
    answer = json.loads(run(str(venv / "bin/rerank-service"), *ask))

    assert answer["rankings"][0]["index"] == 1
    for program in ("ray", "serve", "rerank-service", "rerank-haproxy"):  # what the Dockerfile links
        assert (venv / "bin" / program).exists()
    assert "export RAY_SERVE_ENABLE_HA_PROXY=1" in run(str(venv / "bin/rerank-service"), "environment", "--haproxy")


def _build_context(folder: Path) -> Path:
    """Copies the files that `.dockerignore` admits."""
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            source, target = ROOT / line[1:], folder / line[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
    return folder
