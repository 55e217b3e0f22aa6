"""`python -m benchmarks.quality_study measure DATA`, then `python -m benchmarks.report`. Needs the extra `tools`."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.provenance import provenance, save_record
from benchmarks.quality_study.measure import measure_sets

app = typer.Typer(no_args_is_help=True)

_PACKAGES = ("rerank-service", "torch", "transformers", "tokenizers", "bm25s", "PyStemmer", "pytrec-eval-terrier")
_RESULTS = Path("benchmarks/results/quality.json")


@app.callback()
def main() -> None:
    """Measures the quality of rankings. With this callback, Typer expects the name of the only command."""


@app.command()
def measure(
    data: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder with one BEIR folder per set.")],
    json_file: Annotated[Path, typer.Option("--json")] = _RESULTS,
) -> None:
    """Measures every variant on every set; takes half an hour on two cores."""
    console = Console()
    record: dict[str, Any] = provenance(_PACKAGES) | {"command": "python -m benchmarks.quality_study measure DATA"}
    with tempfile.TemporaryDirectory() as scratch:
        record["sets"] = list(measure_sets(data, Path(scratch), console.print))
    save_record(json_file, record)


if __name__ == "__main__":
    app()
