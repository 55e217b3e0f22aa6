"""The `rerank-service` command, one file a subcommand."""

from rerank_service.tools.cli.main import main

__all__ = ["main"]
