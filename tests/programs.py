"""Programs that some tests need and no Python package contains: Redis, Prometheus, promtool."""

import os
import shutil

import pytest

__all__ = ["needs_program"]


def needs_program(name: str, debian_package: str) -> pytest.MarkDecorator:
    """Skips tests if the program is not installed. For the comma-separated programs in RERANK_REQUIRE, which `.ci/run`
    sets, the tests are not skipped and fail instead.
    """
    is_required = name in os.environ.get("RERANK_REQUIRE", "").split(",")
    return pytest.mark.skipif(
        shutil.which(name) is None and not is_required,
        reason=f"{name} is not installed (Debian: {debian_package})",
    )
