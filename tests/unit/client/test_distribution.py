"""The client as a separate distribution: its files, requirements and version."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import rerank_service
from rerank_service import client

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "rerank_service" / "client"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the wheel as `make client` does, but from a copy, since setuptools leaves folders next to the sources."""
    folder = tmp_path_factory.mktemp("client")
    source = shutil.copytree(FOLDER, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools.build_meta import build_wheel; build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def imported(wheel: Path, code: str) -> list[str]:
    """Words printed by `code`, which can import the wheel but not the repository."""
    environment = os.environ | {"PYTHONPATH": str(wheel)}
    command = [sys.executable, "-W", "error", "-c", f"import sys, rerank_service_client as client; {code}"]
    return subprocess.run(
        command, env=environment, cwd=wheel.parent, check=True, capture_output=True, text=True
    ).stdout.split()


def test_the_wheel_has_the_sources_and_two_requirements(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = [name for name in names if name.endswith("/METADATA")]
        headers = message_from_string(archive.read(metadata).decode())

    files = {name.partition("/")[2] for name in names if name.startswith("rerank_service_client/")}
    assert files == {path.name for path in FOLDER.glob("*.py")} | {"py.typed"}
    assert {requirement.partition(">")[0] for requirement in headers.get_all("Requires-Dist", [])} == {
        "httpx",
        "tenacity",
    }


def test_versions_are_equal(wheel: Path) -> None:
    assert wheel.name.split("-")[1] == client.__version__ == rerank_service.__version__
    assert imported(wheel, "print(client.__version__)") == [rerank_service.__version__]


def test_both_packages_have_the_same_names_and_neither_imports_the_other(wheel: Path) -> None:
    assert imported(wheel, "print(*client.__all__)") == list(client.__all__)
    assert "rerank_service" not in imported(wheel, "print(*sys.modules)")


def test_importing_the_client_loads_no_heavy_module() -> None:
    code = "import sys, rerank_service.client; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "httpx" in loaded
    assert not {"ray", "torch", "transformers", "fastapi", "starlette", "pydantic", "numpy", "yaml"} & set(loaded)


def test_the_service_has_the_same_requirements() -> None:
    own, service = (
        tomllib.loads(path.read_text())["project"]["dependencies"]
        for path in (FOLDER / "pyproject.toml", ROOT / "pyproject.toml")
    )
    assert set(own) <= set(service)
