"""Small checkpoints, written once per run."""

from pathlib import Path

import pytest
from hypothesis import settings

import rerank_service.tools.cli.console  # noqa: F401 - before a test sets COLUMNS, which a rich console reads once
from rerank_service.tools.random_checkpoints.make import Architecture, make_checkpoint

settings.register_profile("default", deadline=None)  # slowness of a busy machine is not a failure
settings.load_profile("default")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny float32 checkpoint of each architecture, by the architecture's name."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        architecture.value: make_checkpoint(root / architecture.value, architecture, "tiny", dtype="float32")
        for architecture in Architecture
    }
