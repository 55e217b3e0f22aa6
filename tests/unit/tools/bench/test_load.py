"""Tests the load generator against a real HTTP server on loopback. No speed is asserted."""

import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner

from rerank_service.tools.bench.apis import INFINITY, NIM, PLAIN, VLLM, PreparedRequest, RankingApi, sigmoid_scores
from rerank_service.tools.bench.load import run_load
from rerank_service.tools.bench.measure import cpu_seconds, measure_load, median_figures, process_tree
from rerank_service.tools.bench.probe import probe_small_behind_big
from rerank_service.tools.cli.main import app

_SCORES = [0.25, -1.5, 3.0]


class _Ranking(BaseHTTPRequestHandler):
    """A server with NVIDIA's API. The logit of a passage is its length; a query with `refuse` is answered with 503."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        is_refused = "refuse" in body["query"]["text"]
        self._answer(503, {"message": "full"}) if is_refused else self._answer(200, _ranking(body))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keeps the test output clean."""

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 32


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with _Server(("127.0.0.1", 0), _Ranking) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def _ranking(body: dict[str, Any]) -> dict[str, Any]:
    logits = [float(len(passage["text"])) for passage in body["passages"]]
    order = sorted(range(len(logits)), key=lambda index: -logits[index])
    return {"rankings": [{"index": index, "logit": logits[index]} for index in order]}


def _requests(*queries: str) -> list[PreparedRequest]:
    """Requests with one passage, two passages, and so on."""
    return [
        NIM.request(query, ["x" * (length + 1) for length in range(count)]) for count, query in enumerate(queries, 1)
    ]


@pytest.mark.parametrize("num_clients", [1, 3, 16])
async def test_every_request_is_answered_once_and_in_order(url: str, num_clients: int) -> None:
    requests = _requests(*["q"] * 9)

    run = await run_load(url + NIM.path, requests, num_clients)

    assert not run.failures
    assert run.num_passages == sum(range(1, 10))
    for request, answer in zip(requests, run.answers, strict=True):
        expected = [float(length + 1) for length in range(request.num_passages)]
        assert NIM.logits(answer.body, answer.num_passages) == expected
    assert list(run.median_s_by_passages()) == list(range(1, 10))


async def test_failures_are_counted_by_status_and_not_timed(url: str) -> None:
    run = await run_load(url + NIM.path, _requests("q", "refuse", "q", "refuse"), num_clients=2)

    assert run.failures == {"503": 2}
    assert run.num_passages == 1 + 3
    assert run.latency_s(50) is not None


async def test_an_unreachable_server_fails_every_request() -> None:
    with _Server(("127.0.0.1", 0), _Ranking) as closed:
        port = closed.server_port

    run = await run_load(f"http://127.0.0.1:{port}{NIM.path}", _requests("q", "q"), num_clients=2)

    assert run.failures == {"no answer": 2}
    assert run.latency_s(50) is None


def test_medians_keep_nulls_and_sum_failures(url: str) -> None:
    figures, _ = measure_load(url + NIM.path, _requests("refuse"), num_clients=1)

    median = median_figures([figures, figures])

    assert median.p50_s is None
    assert median.cpu_s_per_1k_passages is None
    assert median.failures == {"503": 2}


@pytest.mark.parametrize(
    ("api", "answer"),
    [
        (NIM, {"rankings": [{"index": i, "logit": _SCORES[i]} for i in (2, 0, 1)]}),
        (INFINITY, {"results": [{"index": i, "relevance_score": _SCORES[i]} for i in (2, 0, 1)]}),
        (VLLM, {"results": [{"index": i, "relevance_score": _SCORES[i]} for i in (1, 2, 0)]}),
        (PLAIN, {"logits": _SCORES}),
        (sigmoid_scores(PLAIN), {"logits": [1 / (1 + math.exp(-score)) for score in _SCORES]}),
    ],
)
def test_logits_have_the_order_of_the_request(api: RankingApi, answer: dict[str, Any]) -> None:
    assert api.logits(json.dumps(answer).encode(), 3) == pytest.approx(_SCORES)


@pytest.mark.parametrize("indices", [(0, 1), (0, 1, 1), (0, 1, 3)])
def test_scores_that_do_not_match_the_passages_are_an_error(indices: tuple[int, ...]) -> None:
    answer = {"rankings": [{"index": index, "logit": 0.0} for index in indices]}

    with pytest.raises(ValueError, match="scores for 3 passages"):
        NIM.logits(json.dumps(answer).encode(), 3)


async def test_the_probe_has_no_share_if_the_large_request_finishes_first(url: str) -> None:
    small, big = _requests("q", "q")

    probe = await probe_small_behind_big(url + NIM.path, big, small)

    assert probe.wait_share is None
    assert probe.small_alone_s > 0


async def test_the_probe_fails_on_refusals(url: str) -> None:
    small, big = _requests("q", "refuse")

    with pytest.raises(RuntimeError, match="2 passages failed: 503"):
        await probe_small_behind_big(url + NIM.path, big, small)


_BURN = "sum(i * i for i in range(3_000_000))"
_CHILD_OF_A_CHILD = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {_BURN!r}], check=True)             # an ended child
child = subprocess.Popen([sys.executable, "-c", {_BURN + "; print('done', flush=True); input()"!r}])
child.wait()
"""


@contextmanager
def _python(code: str) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.communicate("\n")


def test_cpu_seconds_count_children_of_children_alive_or_ended() -> None:
    with _python(_CHILD_OF_A_CHILD) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        root, grandchild = process_tree(process.pid)
        parent, alive = root.cpu_times(), grandchild.cpu_times()

        total = cpu_seconds(process.pid)

    assert parent.children_user > 0
    assert alive.user > 0
    assert total > 0.99 * (parent.user + parent.children_user + alive.user)  # tolerance for sums of floats


def test_an_ended_process_has_no_cpu_time() -> None:
    with _python("input()") as process:
        pass

    assert cpu_seconds(process.pid) == 0
    assert process_tree(process.pid) == []


def test_the_command_measures_a_running_service(url: str) -> None:
    arguments = ["--url", url, "--clients", "1,2", "--requests", "2", "--passages", "3", "--passage-tokens", "8"]

    result = CliRunner().invoke(app, ["bench", "service", *arguments, "--repeats", "1", "--json"])

    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert list(figures["loads"]) == ["1 client", "2 clients", "mixed"]
    assert all(load["failures"] == {} for load in figures["loads"].values())
    assert figures["small_alone_s"] > 0


def test_the_command_reports_an_unreachable_service() -> None:
    with _Server(("127.0.0.1", 0), _Ranking) as closed:
        port = closed.server_port

    result = CliRunner().invoke(app, ["bench", "service", "--url", f"http://127.0.0.1:{port}"])

    assert result.exit_code == 2
    assert "does not answer a ranking request: no connection" in result.stderr


@pytest.mark.parametrize("clients", ["", "0", "1,x"])
def test_numbers_of_clients_are_checked(clients: str) -> None:
    result = CliRunner().invoke(app, ["bench", "service", "--clients", clients])

    assert result.exit_code == 2
    assert "is not a list of positive whole numbers" in result.stderr
