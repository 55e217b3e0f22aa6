"""The image's entrypoint serves what its arguments name, and runs the programs that KubeRay and `ray up` start."""

import os
import subprocess
from pathlib import Path

import pytest

ENTRYPOINT = Path(__file__).parents[3] / "cluster/entrypoint.sh"
SERVE = "rerank-service serve --verbose --host 0.0.0.0"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with programs that print their names and arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("rerank-service", "ray", "bash"):
        (folder / name).write_text('#!/bin/sh\necho "${0##*/} $*"\n')
        (folder / name).chmod(0o755)
    return folder


def run(programs: Path, *arguments: str, home: Path | None = None) -> str:
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(home or programs)}
    result = subprocess.run(
        [ENTRYPOINT, *arguments], cwd=programs.parent, env=environment, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "served"),
    [
        ([], SERVE),
        (["BAAI/bge-reranker-v2-m3"], f"{SERVE} BAAI/bge-reranker-v2-m3"),
        (["all-MiniLM-L6-v2", "--replicas", "2"], f"{SERVE} all-MiniLM-L6-v2 --replicas 2"),
        (["s3://bucket/model"], f"{SERVE} s3://bucket/model"),
        (["--host", "127.0.0.1"], f"{SERVE} --host 127.0.0.1"),
        (["--help"], f"{SERVE} --help"),
    ],
)
def test_arguments_name_what_is_served(programs: Path, arguments: list[str], served: str) -> None:
    assert run(programs, *arguments) == served


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["rerank-service", "pull", "x"], "rerank-service pull x"),
        (["ray", "start", "--head"], "ray start --head"),
        (["bash", "-c", "two words"], "bash -c two words"),
        (["/bin/sh", "-c", "echo shell"], "shell"),
    ],
)
def test_a_program_runs_instead(programs: Path, arguments: list[str], output: str) -> None:
    assert run(programs, *arguments) == output


def test_an_executable_file_that_is_mounted_is_served(programs: Path) -> None:
    file = programs.parent / "serve.yaml"
    file.touch(mode=0o777)  # as volumes of Windows hosts mount it

    assert run(programs, str(file)) == f"{SERVE} {file}"


def test_a_home_that_is_not_writable_is_replaced(programs: Path, tmp_path: Path) -> None:
    home = Path(run(programs, "/bin/sh", "-c", "echo $HOME", home=tmp_path / "missing"))
    try:
        assert os.access(home, os.W_OK)
        assert home != tmp_path / "missing"
    finally:
        home.rmdir()
    assert run(programs, "/bin/sh", "-c", "echo $HOME", home=tmp_path) == str(tmp_path)
