"""`rerank-service batch` in one process: kills do not change the output, and only an identical job is resumed."""

import json
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rerank_service.engine import Truncate, load_engine
from rerank_service.tools.batch.chunk_scorer import ChunkScorer
from rerank_service.tools.cli.main import app
from tests.models import local_model

NUM_PAIRS = 240
CHUNK_PAIRS = 20
runner = CliRunner()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = random.Random(0)
    words = ["capital", "city", "river", "bridge", "pastry", "flour", "engine", "batch", "query", "passage"]
    path = tmp_path_factory.mktemp("input") / "pairs.jsonl"
    rows = (
        {"query": words[n // 7 % 10], "passage": " ".join(generator.choices(words, k=generator.randint(1, 9)))}
        for n in range(NUM_PAIRS)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config(tmp_path: Path, checkpoints: dict[str, Path]) -> Path:
    """A configuration with two models, each on one thread, which keeps the tests fast on a busy machine."""
    engine = {"dtype": "float32", "device": "cpu", "num_threads": 1}
    models = [
        {"id": name, "checkpoint": {"source": str(checkpoints[name])}, "engine": engine}
        for name in ("llama_bidirec", "mistral")
    ]
    path = tmp_path / "serve.yaml"
    path.write_text(json.dumps({"applications": [{"args": {"models": models}}]}))
    return path


def command(pairs: Path, output: Path, config: Path, *more: str) -> list[str]:
    options = ["--config", str(config), "--in-process", "--chunk-pairs", str(CHUNK_PAIRS)]
    return ["batch", str(pairs), str(output), *options, *more]


def run(*arguments: str) -> dict[str, Any]:
    result = runner.invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    summary: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return summary


def run_and_die(arguments: list[str], num_writes: int) -> None:
    """Runs the command and kills it at its n-th flush to disk, either of a temporary file or of a folder."""
    fsync, remaining = os.fsync, iter(range(num_writes - 1))

    def fsync_or_die(descriptor: int) -> None:
        if next(remaining, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = fsync_or_die
    app(arguments)


def killed(arguments: list[str], num_writes: int) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rerank_service.tools.cli.main", "rerank_service.engine.build"])
    process = context.Process(target=run_and_die, args=(arguments, num_writes))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(("suffix", "seed"), [(".jsonl", 0), (".jsonl", 1), (".trec", 2)])
def test_a_job_killed_repeatedly_writes_the_same_output(
    tmp_path: Path, pairs: Path, config: Path, suffix: str, seed: int
) -> None:
    undisturbed, disturbed = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    run(*command(pairs, undisturbed, config))
    writes = random.Random(seed).choices(range(1, 9), k=3)  # a chunk and the manifest have two flushes each

    folder = disturbed.with_name(disturbed.name + ".parts")
    for num_writes in writes:
        killed(command(pairs, disturbed, config), num_writes)
    assert not disturbed.exists()
    kept = len(list(folder.glob("*.jsonl"))) * CHUNK_PAIRS
    summary = run(*command(pairs, disturbed, config))

    assert disturbed.read_bytes() == undisturbed.read_bytes()
    assert (summary["num_resumed_pairs"], summary["num_scored_pairs"]) == (kept, NUM_PAIRS - kept)
    assert not folder.exists()


@pytest.mark.parametrize("num_writes", [1, 2])
def test_a_kill_while_joining_loses_nothing(tmp_path: Path, pairs: Path, config: Path, num_writes: int) -> None:
    undisturbed, disturbed = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    run(*command(pairs, undisturbed, config))
    run(*command(pairs, disturbed, config, "--keep-parts"))
    disturbed.unlink()  # all parts exist, but not the output

    killed(command(pairs, disturbed, config), num_writes)
    summary = run(*command(pairs, disturbed, config))

    assert disturbed.read_bytes() == undisturbed.read_bytes()
    assert summary["num_scored_pairs"] == 0


def test_logits_equal_those_of_the_engine(
    tmp_path: Path, pairs: Path, config: Path, checkpoints: dict[str, Path]
) -> None:
    output = tmp_path / "out.jsonl"
    run(*command(pairs, output, config))
    engine = load_engine(local_model(checkpoints["llama_bidirec"]))
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    expected = [engine.score(engine.tokenise(row["query"], [row["passage"]], Truncate.END))[0] for row in rows]

    written = [json.loads(line) for line in output.read_text().splitlines()]

    assert [row["logit"] for row in written] == pytest.approx(expected, abs=1e-5)
    assert [row["query_id"] for row in written] == [str(n + 1) for n in range(NUM_PAIRS)]


def test_a_stopped_job_reports_the_pairs_it_kept(
    tmp_path: Path, pairs: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = ChunkScorer.score

    def interrupted(scorer: ChunkScorer, chunk: Any) -> Any:
        if chunk.index == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return score(scorer, chunk)

    output = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(ChunkScorer, "score", interrupted)
        stopped = runner.invoke(app, command(pairs, output, config))
    summary = run(*command(pairs, output, config))

    assert stopped.exit_code == 130
    assert f"stopped; {3 * CHUNK_PAIRS} scored pairs are kept in {output}.parts; run the same" in stopped.stderr
    assert summary["num_resumed_pairs"] == 3 * CHUNK_PAIRS


@pytest.fixture
def begun(tmp_path: Path, pairs: Path, config: Path) -> Path:
    """Output path of an unfinished job that has half of its parts."""
    output = tmp_path / "begun.jsonl"
    run(*command(pairs, output, config, "--keep-parts"))
    output.unlink()
    for path in sorted(output.with_name("begun.jsonl.parts").glob("*.jsonl"))[::2]:
        path.unlink()
    return output


def test_a_long_passage_is_scored_by_its_best_window(tmp_path: Path, config: Path) -> None:
    settings = json.loads(config.read_text())
    settings["applications"][0]["args"]["models"][0]["window_tokens"] = 64
    config.write_text(json.dumps(settings))
    long = " ".join(f"sentence {number} of a river" for number in range(60))
    pairs = tmp_path / "long.jsonl"
    pairs.write_text("".join(json.dumps({"query": "q", "passage": text}) + "\n" for text in ("short", long)))

    cut = run(*command(pairs, tmp_path / "cut.jsonl", config))
    whole = run(*command(pairs, tmp_path / "whole.jsonl", config, "--max-windows", "99"))

    assert (cut["num_truncated_pairs"], whole["num_truncated_pairs"]) == (1, 0)
    assert whole["num_tokens"] > 5 * cut["num_tokens"]
    rows = [
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("cut.jsonl", "whole.jsonl")
    ]
    assert [row["query_id"] for row in rows[0]] == [row["query_id"] for row in rows[1]] == ["1", "2"]
    assert rows[0][0] == rows[1][0]
    assert rows[0][1]["logit"] != rows[1][1]["logit"]


def test_pairs_whose_query_fills_the_window_are_counted(tmp_path: Path, config: Path) -> None:
    settings = json.loads(config.read_text())
    settings["applications"][0]["args"]["models"][0]["window_tokens"] = 64
    config.write_text(json.dumps(settings))
    pairs = tmp_path / "long.jsonl"
    rows = ({"query": query, "passage": "short"} for query in ("q", "word " * 200))
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))

    summary = run(*command(pairs, tmp_path / "out.jsonl", config))
    shown = runner.invoke(app, command(pairs, tmp_path / "out.csv", config))

    assert (summary["num_truncated_pairs"], summary["num_unscored_pairs"]) == (1, 1)
    assert "1 truncated to the window, 1 of them with a query that fills the window" in shown.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dtype", "bfloat16"], "dtype 'float32' instead of 'bfloat16'"),
        (["--chunk-pairs", "10"], "chunk_pairs 20 instead of 10"),
        (["--truncate", "NONE"], "truncate 'END' instead of 'NONE'"),
        (["--max-windows", "4"], "windows None instead of {'max_per_passage': 4"),
    ],
)
def test_resuming_with_other_settings_is_an_error(
    begun: Path, pairs: Path, config: Path, more: list[str], message: str
) -> None:
    result = runner.invoke(app, command(pairs, begun, config, *more))

    assert result.exit_code == 2
    assert message in result.stderr
    assert "Repeat the original command, or delete the folder" in result.stderr


def test_resuming_with_another_input_or_model_is_an_error(
    begun: Path, pairs: Path, config: Path, tmp_path: Path
) -> None:
    changed = tmp_path / pairs.name
    changed.write_text(pairs.read_text().replace("capital", "Capital", 1))
    result = runner.invoke(app, command(changed, begun, config))
    assert (result.exit_code, f"input ({pairs.name} changed)" in result.stderr) == (2, True)

    result = runner.invoke(app, command(pairs, begun, config, "--model", "mistral"))
    assert (result.exit_code, "checkpoint files (" in result.stderr) == (2, True)


def test_chunks_of_different_engines_are_not_mixed(begun: Path, pairs: Path, config: Path) -> None:
    path = begun.with_name("begun.jsonl.parts") / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"engine": "another on a GPU"}))

    result = runner.invoke(app, command(pairs, begun, config))

    assert result.exit_code == 2
    assert "were scored by 'another on a GPU'" in result.stderr


def test_an_existing_output_is_replaced_only_with_force(tmp_path: Path, pairs: Path, config: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("precious")

    refused = runner.invoke(app, command(pairs, output, config))
    assert (refused.exit_code, "already exists; --force replaces it" in refused.stderr) == (2, True)
    assert output.read_text() == "precious"

    run(*command(pairs, output, config, "--force"))
    assert len(output.read_text().splitlines()) == NUM_PAIRS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{pairs}", "{folder}/out.xlsx"], "out.xlsx must end in one of"),
        (["nowhere.jsonl", "{folder}/out.jsonl"], "nowhere.jsonl does not exist"),
        (["{pairs}", "{folder}/out.jsonl", "--in-process", "--workers", "2"], "--in-process cannot be combined"),
        (["{pairs}", "{folder}/out.jsonl", "--model", "nope"], "has no model 'nope'"),
        (["{pairs}", "{folder}/out.jsonl", "--model", "./nowhere", "--in-process"], "nowhere"),
        (["{pairs}", "{folder}/new/and/deep/out.jsonl", "--model", "./nowhere", "--in-process"], "nowhere"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, pairs: Path, config: Path, arguments: list[str], message: str) -> None:
    filled = [argument.format(pairs=pairs, folder=tmp_path) for argument in arguments]
    before = set(tmp_path.rglob("*"))
    result = runner.invoke(app, ["batch", *filled, "--config", str(config)])

    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert set(tmp_path.rglob("*")) == before  # neither folder nor lock remains


def test_a_failed_start_keeps_the_unfinished_job(begun: Path, pairs: Path, config: Path) -> None:
    parts = begun.with_name("begun.jsonl.parts")
    for path in parts.glob("0*.jsonl"):
        path.unlink()
    before = {path: path.read_bytes() for path in parts.iterdir()}

    assert runner.invoke(app, command(pairs, begun, config, "--truncate", "NONE")).exit_code == 2

    assert {path: path.read_bytes() for path in parts.iterdir()} == before


@pytest.mark.parametrize(("long", "what"), [("passage", "pair"), ("query", "query")])
def test_an_error_names_the_line_of_a_pair_that_is_too_long(tmp_path: Path, config: Path, long: str, what: str) -> None:
    path = tmp_path / "in.jsonl"
    line = json.dumps({"query": "q", "passage": "p", long: "word " * 10_000})
    path.write_text('{"query": "q", "passage": "p"}\n' + line + "\n")

    result = runner.invoke(
        app, ["batch", str(path), str(tmp_path / "o.csv"), "--config", str(config), "--truncate", "NONE"]
    )

    assert result.exit_code == 2
    assert f"{path}, line 2: the {what} has " in result.stderr


def test_a_missing_package_names_its_extra(
    tmp_path: Path, pairs: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    result = runner.invoke(app, command(pairs, tmp_path / "out.parquet", config))

    assert result.exit_code == 2
    assert "pyarrow is not installed: run `make tools` in a clone" in result.stderr
