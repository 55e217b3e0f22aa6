"""Keeps the lines of Ray's processes off the terminal, except warnings and errors of the service as a whole.

Errors of single requests stay off the terminal too, because any client can cause them. Ray's log files have every line.
"""

import logging
import re
import sys
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from typing import Any

from ray._private import ray_logging, worker

__all__ = ["WarningsOnly", "quieten_driver", "quieten_workers", "use_colour_only_on_terminals"]

_RECORD = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) \d{4}-\d\d-\d\d ")
_QUIET = frozenset({"DEBUG", "INFO"})
_START_FAILED = "Exception in Replica("
"""Serve's record of a replica that failed to start; `startup` reports the reason in words instead."""
_OF_A_REQUEST = re.compile(r"(\S+ ){5}((?!-- )|.* -- Request failed)")
"""Serve's records about one request. The level, date, time, component and component's id precede the request's id,
which clients choose; all other records have none."""
_HANDLER = "ray_print_logs"  # Ray removes the handler of this name when it disconnects


class WarningsOnly:
    """Handler of Ray's log lines that passes on only warnings and errors that concern no single request, and lines that
    belong to no record.

    Of a warning or error, only the first line is passed on; further lines, such as a traceback, are dropped.
    """

    def __init__(self, show: Callable[[dict[str, Any]], None]) -> None:
        self._show = show
        self._in_record: dict[tuple[Any, Any], bool] = {}
        self.is_starting = True
        """Whether failed starts of replicas are reported elsewhere."""

    def __call__(self, batch: Mapping[str, Any]) -> None:
        """Takes lines of one process: `lines`, `pid`, `is_err` and others."""
        stream = (batch.get("pid"), batch.get("is_err"))
        kept = []
        for line in batch.get("lines", ()):
            record = _RECORD.match(line)
            if record is not None:
                self._in_record[stream] = True
            if record is None:
                is_shown = not self._in_record.get(stream)
            else:
                is_hidden = record[1] in _QUIET or _OF_A_REQUEST.match(line) is not None
                is_shown = not (is_hidden or (self.is_starting and _START_FAILED in line))
            if is_shown:
                kept.append(line)
        if kept:
            self._show({**batch, "lines": kept})


def use_colour_only_on_terminals(environment: MutableMapping[str, str]) -> None:
    """Sets the variable that keeps Ray from colouring its lines, unless both outputs are terminals or the user set it.

    Ray reads the variable for each line.
    """
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        environment.setdefault("RAY_COLOR_PREFIX", "0")


def quieten_driver() -> None:
    """Hides what Ray and Serve print in this process while they start and stop, except warnings and errors."""
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Ray announces at this level that it protects a local cluster with a token.
    logging.getLogger("ray._private.authentication.authentication_token_setup").addFilter(_is_not_an_announcement)


def quieten_workers() -> WarningsOnly:
    """Hides the INFO lines of Ray's other processes. Call it after `ray.init`."""
    handler = WarningsOnly(partial(worker.print_to_stdstream, ignore_prefix=False))
    dispatcher = ray_logging.global_worker_stdstream_dispatcher
    dispatcher.remove_handler(_HANDLER)
    dispatcher.add_handler(_HANDLER, handler)
    return handler


def _is_not_an_announcement(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Token authentication is enabled")
