"""The command tree, with a name and one line of help per subcommand. Subcommands are imported only when called.

`--help`, `--version` and shell completion therefore load neither FastAPI nor torch, which take seconds.
"""

import errno
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand

from rerank_service import __version__
from rerank_service.errors import BatchError, CheckpointError, RerankError
from rerank_service.tools.cli.flags import Command, Group
from rerank_service.tools.files import file_problem

__all__ = ["SUBCOMMANDS", "TOOLS_MODULES", "app", "main"]

SUBCOMMANDS = {
    "serve": ("serve:serve", "Start the service in the foreground; Ctrl-C stops it."),
    "check": ("check:check", "Check a configuration file without starting anything."),
    "config": ("config:config", "Write a Serve configuration. Its first line names the command that wrote it."),
    "environment": ("serve:environment", "Print the environment variables for a node's Ray processes."),
    "drain": ("drain:drain", "Move a node's replicas to other nodes, and wait until the node has none."),
    "traffic": ("traffic:traffic", "Show or change the share of requests that versions of a model receive."),
    "models": ("models:models", "List the known models, or the models of a running service."),
    "pull": ("pull:pull_command", "Fetch a model's files and check every byte."),
    "rank": ("rank:rank", "Rank passages, one per line, for a query."),
    "batch": ("batch:batch", "Score a file of queries and passages, of any size."),
    "eval": ("evaluate:evaluate_command", "Compare models on judged queries."),
    "calibrate": ("calibrate:calibrate_command", "Turn a model's logits into probabilities, by judged queries."),
    "tune": ("tune:tune_command", "Train a model on your own judged queries."),
    "verify": ("verify:verify_command", "Check that a served model scores like its checkpoint."),
    "make-checkpoint": ("make_checkpoint:make_checkpoint_command", "Write a randomly initialised reranker checkpoint."),
    "plan": ("plan:plan", "Estimate how many GPUs a load needs, by simulation."),
    "bench": ("bench:bench", "Measure speed on this machine."),
}
"""For each name, `module:attribute` in this package and the first paragraph of the subcommand's help."""

TOOLS_MODULES = frozenset({"Stemmer", "bm25s", "matplotlib", "pandas", "psutil", "pyarrow", "pytrec_eval"})
"""Modules that only the extra `tools` installs."""


class _LazySubcommand(TyperCommand):
    """Placeholder for a subcommand; when called, it imports the real subcommand, which parses the arguments."""

    def __init__(self, name: str, target: str, help: str) -> None:
        super().__init__(name, help=help)
        self._target = target

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        return self.load().make_context(*args, **kwargs)

    def load(self) -> Any:
        """Imports the real subcommand, with its arguments and options."""
        module, _, attribute = self._target.partition(":")
        subcommand = getattr(import_module(f"rerank_service.tools.cli.{module}"), attribute)
        if not isinstance(subcommand, typer.Typer):
            function, subcommand = subcommand, typer.Typer(add_completion=False, rich_markup_mode="markdown")
            subcommand.command(self.name, cls=Command)(function)
        return typer.main.get_command(subcommand)


class _CommandTree(Group):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, (target, help_line) in SUBCOMMANDS.items():
            self.add_command(_LazySubcommand(name, target, help_line))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (BatchError, CheckpointError, RerankError) as error:
            message = str(error)
        except OSError as error:
            if error.errno in (None, errno.EPIPE):  # EPIPE: the reader of a pipe has ended, which is no failure
                raise
            message = file_problem(error)
        except ImportError as error:
            if (error.name or "").partition(".")[0] not in TOOLS_MODULES:
                raise
            message = (
                f"{error.name} is not installed: run `make tools` in a clone of the repository, or "
                "pip install 'rerank-service[tools]'"
            )
        from rerank_service.tools.cli.console import fail

        raise fail(message)


app = typer.Typer(
    cls=_CommandTree,
    name="rerank-service",
    help="Self-hosted reranking: orders passages by their relevance to a query.",
    epilog="Results go to standard output, errors and progress to standard error. Exit codes: 0 success; 1 a negative "
    "result, such as a failed verification; 2 an error or wrong usage; 130 stopped by Ctrl-C, 143 by SIGTERM; "
    "`serve`, once it is ready, then ends with 0.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},  # subcommands inherit them
    pretty_exceptions_show_locals=False,  # locals hold users' texts
)


@app.callback(invoke_without_command=True)
def _options(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the console script and of `python -m rerank_service`."""
    app(prog_name="rerank-service")
