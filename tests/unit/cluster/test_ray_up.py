"""The cluster files for `ray up` are valid by Ray's schema and consistent with the Serve configuration."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from rerank_service import __version__
from rerank_service.config import load_config

FOLDER = Path(__file__).parents[3] / "cluster" / "ray-up"

pytestmark = pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])


def read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return document


def test_ray_accepts_the_file(name: str) -> None:
    validate_config(prepare_config(read(name)))


def test_a_mistake_is_detected(name: str) -> None:
    with pytest.raises(Exception, match="head_node_types"):
        validate_config(prepare_config(read(name) | {"head_node_types": "head"}))


def test_each_model_fits_on_one_node_type(name: str) -> None:
    kinds = read(name)["available_node_types"]
    for model in load_config(FOLDER / "serve_config.yaml").models:
        wanted = {"CPU": model.replica.num_cpus, "GPU": model.replica.num_gpus} | dict(model.replica.resources)
        fitting = [
            kind
            for kind in kinds.values()
            if all(kind["resources"].get(resource, 0) >= amount for resource, amount in wanted.items())
        ]
        assert len(fitting) == 1
        assert fitting[0]["max_workers"] >= model.autoscaling.max_replicas


def test_every_node_sets_the_environment_before_ray_starts(name: str) -> None:
    document = read(name)
    for role in ("head", "worker"):
        (command,) = [line for line in document[f"{role}_start_ray_commands"] if "ray start" in line]
        before = command[: command.index("ray start")]
        assert 'eval "$(rerank-service environment --haproxy)";' in before
        assert "export RAY_AUTH_MODE=token;" in before


def test_api_keys_are_required_and_mounted(name: str) -> None:
    path = load_config(FOLDER / "serve_config.yaml").auth.key_hashes_file
    assert str(path) in read(name)["file_mounts"]


def test_the_image_has_this_version(name: str) -> None:
    assert read(name)["docker"]["image"].endswith(f"rerank-service:{__version__}-cuda")
