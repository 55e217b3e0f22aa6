"""Helpers for tests that fetch checkpoints: a fake hub with a small checkpoint, and an isolated environment."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fake_hub import FakeHub, fake_hub

__all__ = ["ID", "contents", "hub_with", "isolated_environment", "record_pauses"]

ID = "org/tiny"


def contents(folder: Path) -> dict[str, bytes]:
    """Content of each file in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def isolated_environment(monkeypatch: pytest.MonkeyPatch, root: Path, endpoint: str) -> dict[str, str]:
    """Sets the caches to folders in `root` and the hub to `endpoint`, and removes any token. Returns the variables for
    subprocesses."""
    environment = {
        "RERANK_SERVICE_CACHE": str(root / "cache"),
        "HF_HOME": str(root / "hf"),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root / "hf" / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(root / "hf" / "token"))
    return environment


@contextmanager
def hub_with(files: dict[str, bytes], **settings: Any) -> Iterator[tuple[FakeHub, str]]:
    """Returns a fake hub with these files as `org/tiny`, and their commit."""
    with fake_hub() as hub:
        yield hub, hub.put(ID, files, **settings)


def record_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replaces sleeping in huggingface_hub and in the service's retries. Returns the list that collects the pauses in
    seconds."""
    pauses: list[float] = []

    class Clock:
        sleep = staticmethod(pauses.append)

        def __getattr__(self, name: str) -> Any:
            return getattr(time, name)

    monkeypatch.setattr("huggingface_hub.utils._http.time", Clock())
    monkeypatch.setattr("rerank_service.checkpoints.fetch.time", Clock())
    return pauses
