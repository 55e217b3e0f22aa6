"""`rerank-service batch` on Ray: it writes the same bytes as in one process, leaves no process, and reports workers'
errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray

from rerank_service.tools.random_checkpoints.make import Architecture, make_checkpoint
from tests.service.running import Service

_MAIN = "from rerank_service.tools.cli import main; main()"
_LIMIT_S = 240
_END_S = 60
_MARK = "RERANK_TEST_FOLDER"
"""Environment variable that marks every process started by a test, because other Ray sessions may run on this
machine."""
_POISON = "a single pair that is longer than the window " * 2_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "llama"
    return make_checkpoint(folder, Architecture.LLAMA_BIDIREC, "tiny", dtype="float32")


def batch(folder: Path, output: str, model: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _MAIN, "batch", "pairs.jsonl", output, "--model", str(model)]
    chunks = ["--chunk-pairs", "16", "--json", *more]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    # The command must not use a cluster only because the environment has the cluster's address.
    environment = os.environ | {"PYTHONPATH": path, "RAY_ADDRESS": "127.0.0.1:9", _MARK: str(folder)}
    return subprocess.run(
        [*command, *chunks], cwd=folder, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )


def processes_of(folder: Path) -> list[psutil.Process]:
    found = psutil.process_iter(["environ"])
    return [process for process in found if (process.info["environ"] or {}).get(_MARK) == str(folder)]


def test_actors_write_the_same_bytes_as_one_process(tmp_path: Path, model: Path) -> None:
    rows = ({"query": f"query {n % 5}", "passages": ["passage " * (1 + n % 9), f"number {n}"]} for n in range(100))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    alone = batch(tmp_path, "alone.jsonl", model, "--in-process")
    on_ray = batch(tmp_path, "ray.jsonl", model, "--workers", "2")

    assert on_ray.returncode == 0, on_ray.stderr
    summary = json.loads(on_ray.stdout)
    assert (summary["num_pairs"], summary["num_scored_pairs"]) == (200, 200)
    assert summary["engine"] == json.loads(alone.stdout)["engine"]
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    assert "Traceback" not in on_ray.stderr
    _, alive = psutil.wait_procs(processes_of(tmp_path), timeout=_END_S)
    assert not alive


def test_a_worker_on_a_cluster_fails_the_command_with_its_error(service: Service, tmp_path: Path, model: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"query": "q", "passage": _POISON}) + "\n")

    cluster = ["--address", ray.get_runtime_context().gcs_address, "--workers", "1"]
    result = batch(tmp_path, "out.jsonl", model, *cluster, "--truncate", "NONE")

    assert result.returncode == 2
    assert "pairs.jsonl, line 1: the pair has" in result.stderr
    assert "Traceback" not in result.stderr
