"""Log lines go through Serve's handlers."""

import logging
from collections.abc import Iterator

import pytest

from rerank_service.telemetry.logging import log_through_serve

SERVE, OWN = logging.getLogger("ray.serve"), logging.getLogger("rerank_service")


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def kept() -> Iterator[Kept]:
    """Installs a handler as Serve's only handler, and restores both loggers afterwards."""
    handler = Kept()
    state = {logger: (logger.handlers, logger.level, logger.propagate, logger.filters[:]) for logger in (SERVE, OWN)}
    SERVE.handlers = [handler]
    SERVE.setLevel(logging.INFO)
    SERVE.propagate = False
    yield handler
    for logger, (handlers, level, propagate, filters) in state.items():
        logger.handlers, logger.propagate, logger.filters = handlers, propagate, filters
        logger.setLevel(level)


def log_all() -> None:
    OWN.getChild("scorer").info("ours")
    SERVE.info("CALL score OK 3ms", extra={"serve_access_log": True})
    SERVE.info("theirs")


def test_own_lines_use_serves_handlers_and_serves_access_log_is_dropped(kept: Kept) -> None:
    log_through_serve()
    log_all()
    assert kept.messages == ["ours", "theirs"]
