"""The Dockerfile, scripts and compose file pass their linters and are consistent; the image has no unneeded files."""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rerank_service import __version__
from rerank_service.config import load_config

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
DOCKERFILE = CLUSTER / "Dockerfile"
SCRIPTS = [path.relative_to(ROOT).as_posix() for path in sorted(CLUSTER.rglob("*.sh"))]


def program(name: str) -> str:
    """Path of a program in the test environment."""
    path = shutil.which(name, path=str(Path(sys.executable).parent))
    assert path is not None, f"{name} is missing: install the extra `dev`"
    return path


def instructions(name: str) -> list[str]:
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    return [line.removeprefix(f"{name} ") for line in text.splitlines() if line.startswith(f"{name} ")]


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((CLUSTER / "docker-compose.yaml").read_text())
    return document


def run(*command: str) -> None:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_dockerfile_passes_its_linter() -> None:
    run(program("hadolint"), str(DOCKERFILE))


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_pass_their_linter(script: str) -> None:
    run(program("shellcheck"), script)


def test_the_compose_file_is_valid() -> None:
    run(program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(CLUSTER / "docker-compose.yaml"))


def test_the_image_runs_without_root_and_stops_cleanly() -> None:
    assert instructions("USER")[-1] == "1000:1000"
    assert instructions("STOPSIGNAL") == ["SIGINT"]
    assert json.loads(instructions("ENTRYPOINT")[-1]) == ["entrypoint.sh"]
    assert not instructions("CMD")  # without arguments, the entrypoint serves the embedded model
    assert "COPY cluster/entrypoint.sh /usr/local/bin/entrypoint.sh" in DOCKERFILE.read_text()
    assert os.access(CLUSTER / "entrypoint.sh", os.X_OK)


def test_the_image_reports_readiness_and_keeps_what_it_downloads() -> None:
    (check,) = instructions("HEALTHCHECK")
    assert check.endswith('"http://127.0.0.1:8000/v1/health/ready"]')
    (volume,) = instructions("VOLUME")
    variables = " ".join(instructions("ENV"))
    assert f"HF_HOME={volume}" in variables
    assert f"RERANK_SERVICE_KERNELS={volume}/kernels" in variables
    # Variables of torch and Triton would replace the folder by version, which only its user can read.
    assert "TORCHINDUCTOR_CACHE_DIR" not in variables
    assert "TRITON_CACHE_DIR" not in variables
    # RERANK_SERVICE_CACHE would override HF_HOME, by which the KubeRay manifests put downloads on their volume.
    assert "RERANK_SERVICE_CACHE" not in variables


def test_only_the_cuda_variant_has_a_compiler() -> None:
    (install,) = [line for line in instructions("RUN") if "apt-get install" in line]
    assert install.startswith('if [ "${VARIANT}" != cpu ]; then set -- gcc libc6-dev; fi')
    assert "gcc" not in install.partition("fi")[2]


def test_the_image_is_labelled_with_its_version() -> None:
    (labels,) = instructions("LABEL")
    assert f"VERSION={__version__}" in instructions("ARG")
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels


def test_dockerignore_allows_exactly_the_copied_files() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]]
    copied = [word.removeprefix("./") for word in copied if not word.startswith("--")]

    assert sorted(set(copied)) == sorted(allowed)
    assert all((ROOT / path).exists() for path in copied)


def test_no_weights_are_copied_into_the_image() -> None:
    files = subprocess.run(["git", "ls-files", "rerank_service"], cwd=ROOT, capture_output=True, text=True, check=True)
    weights = [name for name in files.stdout.splitlines() if fnmatch.fnmatch(name, "*.safetensors")]
    assert weights == []


def test_compose_publishes_on_loopback_by_default() -> None:
    services = compose()["services"]
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert set(published) == {"${PUBLISH:-127.0.0.1}:${PORT:-8000}:8000"}
    assert "ports" not in services["redis"]


def test_compose_waits_until_requests_in_flight_are_answered() -> None:
    for name in ("cpu", "gpu"):
        service, limits = compose()["services"][name], load_config(CLUSTER / f"compose/serve_config.{name}.yaml").limits
        assert float(service["stop_grace_period"].removesuffix("s")) > limits.ingress_grace_s


@pytest.mark.parametrize(("name", "variant"), [("cpu", "cpu"), ("gpu", "cuda")])
def test_a_profile_starts_the_image_with_its_configuration(name: str, variant: str) -> None:
    document = compose()
    service = document["services"][name]
    assert service["profiles"] == [name]
    assert service["image"] == f"rerank-service:{__version__}-{variant}"
    assert service["stop_signal"] == "SIGINT"
    assert set(document["services"]["redis"]["profiles"]) >= {name}
    inside = {mount.split(":")[1]: mount.split(":")[0] for mount in service["volumes"] if "${" not in mount}
    path = CLUSTER / inside[next(word for word in service["command"] if word.endswith(".yaml"))]
    settings = load_config(path)
    assert settings.rate_limits.storage.startswith("redis://redis:")
    assert "redis" in next(line for line in instructions("ARG") if line.startswith("EXTRAS="))


def test_the_image_has_a_supported_python() -> None:
    (given,) = [line.partition("=")[2] for line in instructions("ARG") if line.startswith("PYTHON=")]
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert oldest is not None
    assert tuple(map(int, given.split("."))) >= tuple(map(int, oldest[1].split(".")))
