"""Writes the figures of `rerank-service bench engine` to a file, with commit and hardware.

python -m benchmarks.engine --json benchmarks/results/NAME.json
"""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.provenance import provenance, save_record
from rerank_service.tools.bench.engine import bench_engines
from rerank_service.tools.bench.workload import Lengths


def main(
    json_path: Annotated[Path, typer.Option("--json", help="File for the figures.")],
    num_pairs: Annotated[int, typer.Option("--pairs", min=1)] = 64,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    num_threads: Annotated[int | None, typer.Option("--threads", min=1)] = None,
) -> None:
    """Measures every engine and precision on every distribution of lengths."""
    record = provenance(["rerank-service", "torch", "transformers"])
    record["results"] = [
        {"lengths": lengths.value, **figures._asdict()}
        for lengths in Lengths
        for figures in bench_engines(lengths, num_pairs, repeats, num_threads)
    ]
    save_record(json_path, record)


if __name__ == "__main__":
    typer.run(main)
