"""The command tree: its imports, its list of subcommands, and its error for a package that is not installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rerank_service.tools.cli.main import SUBCOMMANDS, TOOLS_MODULES, app
from tests.http_servers import scripted

CONFIG = str(Path(__file__).parents[4] / "serve_config.yaml")
HEAVY = {"fastapi", "httpx", "numpy", "ray", "starlette", "tokenizers", "torch", "transformers", "yaml"}
"""Modules that the tree must not import. pydantic is not among them, because Typer itself imports it."""
PRINT_MODULES = """
import atexit, sys
atexit.register(lambda: print("modules", *{name.partition(".")[0] for name in sys.modules}))
"""
HIDE = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *arguments):
        return None if name.partition(".")[0] == {module!r} else self.finder.find_spec(name, *arguments)

sys.meta_path[:] = map(Hiding, sys.meta_path)
"""
RUN = """
from rerank_service.tools.cli.main import app
app(prog_name="rerank-service")
"""


def run(code: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code + RUN, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "shown"),
    [
        (["--help"], {}, "make-checkpoint"),
        (["--version"], {}, "0."),
        (
            [],
            {"_RERANK_SERVICE_COMPLETE": "complete_bash", "COMP_WORDS": "rerank-service ma", "COMP_CWORD": "1"},
            "make-checkpoint",
        ),
    ],
    ids=["help", "version", "completion"],
)
def test_the_tree_imports_nothing_heavy(arguments: list[str], environment: dict[str, str], shown: str) -> None:
    output, _, modules = run(PRINT_MODULES, *arguments, **environment).stdout.rpartition("modules ")

    assert shown in output
    assert "typer" in modules.split()
    assert set(modules.split()) & HEAVY == set()


def test_ranking_through_a_service_imports_only_an_http_client(tmp_path: Path) -> None:
    passages = tmp_path / "passages.txt"
    passages.write_text("one\ntwo\n")
    with scripted() as server:
        done = run(PRINT_MODULES, "rank", "q", str(passages), "--url", server.url, "--json")

    output, _, modules = done.stdout.rpartition("modules ")
    assert '"rankings"' in output
    assert set(modules.split()) & HEAVY == {"httpx"}


def test_the_tree_shows_the_first_paragraph_of_each_subcommands_help() -> None:
    tree = typer.main.get_command(app)
    context = typer.Context(tree)
    for name, (_, line) in SUBCOMMANDS.items():
        subcommand = tree.get_command(context, name).load()  # type: ignore[attr-defined]
        assert " ".join(str(subcommand.help).split("\n\n")[0].split()) == line


def test_the_help_keeps_square_brackets_and_joins_the_lines_of_a_paragraph() -> None:
    """Typer's default mode reads brackets as markup, and ends a line of help where the source ends one."""
    shown = run("", "pull", "--help", COLUMNS="80").stdout
    assert "ORG/NAME[@REVISION] on the hub" in shown
    assert "present are checked; only damaged or missing files" in shown


@pytest.mark.parametrize("arguments", [["rank"], ["bench", "engine"], []], ids=["command", "in a group", "tree"])
def test_the_help_shows_flags_without_a_type(arguments: list[str]) -> None:
    shown = run("", *arguments, "-h", COLUMNS="80").stdout
    assert "--help" in shown
    assert "<bool>" not in shown


def test_the_usage_shows_each_argument_in_one_pair_of_brackets() -> None:
    assert "config [OPTIONS] {MODEL}..." in run("", "config", "--help", COLUMNS="80").stdout
    assert "drain [OPTIONS] [NODE_ID]" in run("", "drain", "--help", COLUMNS="80").stdout


def test_the_package_runs_as_a_module() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "rerank_service", "pull", "--help"], capture_output=True, text=True, check=True
    )
    assert "Usage: rerank-service pull" in shown.stdout


def test_an_option_of_a_subcommand_is_completed() -> None:
    words = {"_RERANK_SERVICE_COMPLETE": "complete_bash", "COMP_WORDS": "rerank-service rank --in", "COMP_CWORD": "2"}
    assert "--in-process" in run("", **words).stdout.split()


def test_a_mistyped_subcommand_is_reported_with_a_suggestion() -> None:
    result = CliRunner().invoke(app, ["veryfy"])
    assert result.exit_code == 2
    assert "verify" in result.stderr


@pytest.mark.parametrize("module", sorted(TOOLS_MODULES))
def test_the_error_for_a_missing_package_names_its_extra(module: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"query": "q", "passage": "p"}\n')
    command = {
        "pandas": ["batch", "pairs.jsonl", "out.jsonl", "--workers", "1"],
        "psutil": ["bench", "service", "--pid", "1", "--requests", "1", "--url", "{url}"],
        "pyarrow": ["batch", "pairs.jsonl", "out.parquet"],
    }.get(module, ["eval", str(tmp_path)])
    with scripted() as server:
        code = f"import os; os.chdir({str(tmp_path)!r})" + HIDE.format(module=module)
        done = run(code, *(word.replace("{url}", server.url) for word in command))

    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"error: {module} is not installed: run `make tools` in a clone of the repository, or "
        "pip install 'rerank-service[tools]'"
    )
    assert "Traceback" not in done.stderr
