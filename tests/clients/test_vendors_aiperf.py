"""AIPerf's three ranking endpoints, unchanged: the program measures the running service with a few requests."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

CLIENT = "aiperf 0.13.0"
NUM_REQUESTS = 3
LIMIT_S = 300
"""Time limit for a program that hangs."""

Profile = Callable[..., Path]


@pytest.fixture
def profile(url: str, query: str, texts: list[str], tmp_path: Path) -> Profile:
    """Returns a function that runs `aiperf profile` and returns the folder with its results."""
    named = [{"name": "query", "contents": [query]}, {"name": "passages", "contents": texts}]
    inputs, tokenizer = tmp_path / "inputs.jsonl", tmp_path / "tokenizer"
    inputs.write_text(f"{json.dumps({'texts': named})}\n" * NUM_REQUESTS, encoding="utf-8")
    words = Tokenizer(WordLevel({"?": 0}, unk_token="?"))  # counts input tokens; aiperf's own are downloaded
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tokenizer)
    environment = {**os.environ, "HOME": str(tmp_path)}

    def run(endpoint: str, model: str) -> Path:
        results = tmp_path / endpoint
        options = {
            "url": url, "model": model, "endpoint-type": endpoint, "input-file": inputs, "tokenizer": tokenizer,
            "custom-dataset-type": "single_turn", "request-count": NUM_REQUESTS, "concurrency": 1, "workers-max": 1,
            "record-processors": 1, "ui": "none", "export-level": "raw", "output-artifact-dir": results,
        }  # fmt: skip
        command = [str(Path(sys.executable).parent / "aiperf"), "profile"]
        command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        command += ["--no-gpu-telemetry", "--no-server-metrics", "--no-auto-plot"]
        subprocess.run(command, check=False, capture_output=True, timeout=LIMIT_S, env=environment, cwd=tmp_path)
        return results

    return run


def summary(results: Path) -> dict[str, Any]:
    return json.loads((results / "profile_export_aiperf.json").read_text(encoding="utf-8"))


def answers(results: Path) -> list[Any]:
    """Returns the body of each response."""
    lines = (results / "profile_export_raw.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(response["text"]) for line in lines for response in json.loads(line)["responses"]]


def assert_measured(results: Path) -> list[Any]:
    """Checks that aiperf found a ranking in every response, and returns the bodies."""
    assert summary(results)["request_count"]["avg"] == NUM_REQUESTS
    assert len(answers(results)) == NUM_REQUESTS
    return answers(results)


def assert_ranked(found: list[tuple[int, float]], scores: Sequence[float]) -> None:
    assert found == [(index, pytest.approx(scores[index], abs=1e-3)) for index in (1, 2, 0)]


@pytest.mark.client(f"{CLIENT}, nim_rankings", "NVIDIA")
def test_nim_rankings(profile: Profile, model: str, logits: list[float]) -> None:
    for answer in assert_measured(profile("nim_rankings", model)):
        assert_ranked([(one["index"], one["logit"]) for one in answer["rankings"]], logits)


@pytest.mark.client(f"{CLIENT}, cohere_rankings", "Cohere v2")
def test_cohere_rankings(profile: Profile, model: str, probabilities: list[float]) -> None:
    for answer in assert_measured(profile("cohere_rankings", model)):
        assert_ranked([(one["index"], one["relevance_score"]) for one in answer["results"]], probabilities)


@pytest.mark.client(f"{CLIENT}, hf_tei_rankings", "TEI")
def test_hf_tei_rankings(profile: Profile, model: str, probabilities: list[float]) -> None:
    for answer in assert_measured(profile("hf_tei_rankings", model)):
        assert_ranked([(one["index"], one["score"]) for one in answer], probabilities)


@pytest.mark.client(f"{CLIENT}, nim_rankings", "NVIDIA")
def test_aiperf_reports_our_errors(profile: Profile) -> None:
    lines = (profile("nim_rankings", "unknown") / "profile_export.jsonl").read_text(encoding="utf-8").splitlines()

    errors = [json.loads(line)["error"] for line in lines]

    assert [error["code"] for error in errors] == [404] * NUM_REQUESTS
    assert all("Unknown model 'unknown'; this service has" in error["message"] for error in errors)
