"""Small checkpoints, written once per run, and consoles whose width follows COLUMNS in each test."""

import os
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import settings

import rerank_service.tools.cli.console  # noqa: F401 - before a test sets COLUMNS, which a rich console reads once
from rerank_service.tools.random_checkpoints.make import Architecture, make_checkpoint

for _name in ("COLUMNS", "LINES"):
    os.environ.pop(_name, None)
import_module("rerank_service.tools.cli.console")  # rich fixes the width of a console that is made while COLUMNS is set

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
