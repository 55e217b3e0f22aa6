"""Puts the subcommands together."""

import typer

from rerank_service import __version__
from rerank_service.tools.cli.batch import batch
from rerank_service.tools.cli.bench import bench
from rerank_service.tools.cli.check import check
from rerank_service.tools.cli.config import config
from rerank_service.tools.cli.drain import drain
from rerank_service.tools.cli.environment import environment
from rerank_service.tools.cli.evaluate import evaluate_command
from rerank_service.tools.cli.make_checkpoint import make_checkpoint_command
from rerank_service.tools.cli.models import models
from rerank_service.tools.cli.plan import plan
from rerank_service.tools.cli.pull import pull_command
from rerank_service.tools.cli.rank import rank
from rerank_service.tools.cli.serve import serve
from rerank_service.tools.cli.verify import verify_command

__all__ = ["main"]

app = typer.Typer(
    name="rerank-service",
    help="Self-hosted reranking: a query and passages in, passages by relevance out.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # locals hold users' texts
)
app.command()(serve)
app.command()(check)
app.command()(config)
app.command()(environment)
app.command()(drain)
app.command()(models)
app.command("pull")(pull_command)
app.command()(rank)
app.command()(batch)
app.command("eval")(evaluate_command)
app.command("verify")(verify_command)
app.command("make-checkpoint")(make_checkpoint_command)
app.command()(plan)
app.add_typer(bench, name="bench")


@app.callback(invoke_without_command=True)
def _options(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the console script."""
    app()
