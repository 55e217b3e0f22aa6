"""`rerank-service serve`: check the configuration, then hand over to `serve run`."""

import os
import sys
from pathlib import Path

from rerank_service.cli.check import checked_config
from rerank_service.cli.console import ConfigPath, fail
from rerank_service.ingress.proxy import IMPORT_PATH

__all__ = ["serve"]


def serve(config: ConfigPath = "serve_config.yaml") -> None:
    """Start the service in the foreground; Ctrl-C stops it.

    The same as `serve run CONFIG`, except that a wrong configuration ends at once with a readable error
    (`serve run` would wait for ever after one), and that no client's header can turn off timeouts.
    """
    checked_config(config)
    program = Path(sys.executable).with_name("serve")
    if not program.exists():
        raise fail(f"{program} is missing; install the package with its dependencies: pip install rerank-service")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a self-hosted service calls nobody
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", IMPORT_PATH)
    os.execv(program, [str(program), "run", config])  # noqa: S606 - our own interpreter's `serve`
