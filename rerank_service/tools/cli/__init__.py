"""The `rerank-service` command, with one file per subcommand."""

from rerank_service.tools.cli.main import main

__all__ = ["main"]
