"""The job that fills the models' volume is valid and consistent with the service's configuration."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rerank_service.config import parse_serve_config
from rerank_service.tools.catalogue import known_model
from tests.manifests import problems

KUBERAY = Path(__file__).parents[3] / "cluster" / "kuberay"


@pytest.fixture
def job() -> dict[str, Any]:
    resource: dict[str, Any] = yaml.safe_load((KUBERAY / "pull-models.yaml").read_text())
    return resource


def test_the_job_is_valid_and_a_mistake_is_detected(job: dict[str, Any]) -> None:
    assert problems(job) == []
    job["spec"]["template"]["spec"]["containers"][0]["comand"] = []
    assert any("comand" in problem for problem in problems(job))


def test_the_job_writes_a_known_model_to_the_folder_that_the_service_reads(job: dict[str, Any]) -> None:
    pod = job["spec"]["template"]["spec"]
    program, command, name, option, folder = pod["containers"][0]["command"]
    service = yaml.safe_load((KUBERAY / "base" / "rayservice.yaml").read_text())
    sources = {model.checkpoint.source for model in parse_serve_config(service["spec"]["serveConfigV2"], "base").models}
    claim = yaml.safe_load((KUBERAY / "base" / "models-volume.yaml").read_text())["metadata"]["name"]

    assert (program, command, option) == ("rerank-service", "pull", "--to")
    known = known_model(name)
    assert known is not None
    assert known.hub_id is not None
    assert folder in sources
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim
