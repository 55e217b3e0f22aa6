"""Programs that some tests start and that no Python package contains: Redis, Prometheus, promtool."""

import os
import shutil

import pytest

__all__ = ["needs_program"]


def needs_program(name: str, debian_package: str) -> pytest.MarkDecorator:
    """Skips tests where the program is not installed.

    RERANK_REQUIRE lists programs, comma-separated, without which the tests run and fail instead: `.ci/run` sets it.
    """
    is_required = name in os.environ.get("RERANK_REQUIRE", "").split(",")
    return pytest.mark.skipif(
        shutil.which(name) is None and not is_required,
        reason=f"{name} is not installed (Debian: {debian_package})",
    )
