"""The scripts in `examples/`, run as a user would run them, against the running service and with real weights."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.service.running import MINILM, Service

EXAMPLES = Path(__file__).parents[2] / "examples"
LIMIT_S = 200
"""Time limit for a script that hangs."""


def printed(service: Service, script: str, *arguments: str) -> list[str]:
    command = [sys.executable, str(EXAMPLES / script), "--url", service.url, "--model", MINILM, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT_S).stdout.splitlines()


def test_the_offline_rag_finds_a_passage_that_bm25_misses(service: Service) -> None:
    lines = printed(service, "rag_offline.py")

    by_bm25 = lines[lines.index("BM25 finds") + 1 :][:3]
    reranked = lines[lines.index("Reranked (logit)") + 1 :][:3]
    assert not any("Roads" in line for line in by_bm25)
    assert "Salt lowers the freezing point of water. Roads" in reranked[0]
    assert lines[-1].startswith("Answer: Roads are strewn with it in winter")
    assert lines[-1].endswith("[passages.txt:17]")


def test_the_offline_rag_answers_any_question(service: Service) -> None:
    lines = printed(service, "rag_offline.py", "How long does sunlight take to get here?")
    assert lines[-1] == "Answer: Light from the sun takes a little over eight minutes to reach us. [passages.txt:13]"


def test_langchain(service: Service) -> None:
    question, *best = printed(service, "langchain_rerank.py")
    assert question == "Which animal has more than one heart?"
    assert best[0].endswith("[passages.txt:1]")
    assert "Octopuses have three hearts" in best[0]
    assert len(best) == 3


def test_langchain_in_process() -> None:
    command = [sys.executable, str(EXAMPLES / "langchain_in_process.py"), "How did sailors avoid scurvy?"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT_S)
    _, *best = done.stdout.splitlines()
    assert "[passages.txt:" in best[0]
    assert len(best) == 3


@pytest.mark.skipif(find_spec("llama_index") is None, reason="llama-index-postprocessor-nvidia-rerank is not installed")
def test_llamaindex(service: Service) -> None:
    _, *best = printed(service, "llamaindex_rerank.py")
    assert "Venice stands on millions of wooden piles" in best[0]
    assert best[0].endswith("[passages.txt:34]")
    assert len(best) == 3
