"""The `rerank-service` command, one file a subcommand."""

from rerank_service.cli.main import main

__all__ = ["main"]
