"""Small checkpoints, written once per run."""

from pathlib import Path

import pytest

from rerank_service.checkpoints.make import Architecture, make_checkpoint


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny float32 checkpoint of each architecture, by its name."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        architecture.value: make_checkpoint(root / architecture.value, architecture, "tiny", dtype="float32")
        for architecture in Architecture
    }
