"""The code that the page's module writes sends the request unchanged, whatever the texts contain."""

import ast
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Call = Callable[..., Any]
NASTY = [
    "It's 5 o'clock; she said \"no\"",
    'two\nlines, and\r\n\ttabs\\n \\" \\\\',
    "$HOME ${HOME} $(id) `id` !! !x %s {} {{query}} #{x} \\$HOME",
    "JSON\nEOF\n'JSON'\nJSON\n",
    "東京 🍞 naïve \u2028 \u2029 \x00 \x07 \x1b[31m \x7f \x85 \x9b \ufeff \u202e",
    "-d @/etc/passwd",
    "'''\"\"\" \\",
    " indented\n    code ",
    "",
]


def request(**fields: Any) -> dict[str, Any]:
    defaults = {"url": "http://h", "model": None, "query": "q", "passages": ["a", "b"], "truncate": "END"}
    return {**defaults, "windows": None, "threshold": None, "needsKey": False, **fields}


def random_texts(count: int) -> list[str]:
    chance = random.Random(4)
    alphabet = [*"ab'\"\\$`!{}()%#\n\r\t&|;<>*?~ ", "JSON", "\n", "é", "東", "🍞", "\x00", "\x7f", "\u2028", "\u202e"]
    return ["".join(chance.choices(alphabet, k=chance.randrange(20))) for _ in range(count)]


@pytest.fixture(scope="module")
def stub() -> Iterator[tuple[str, list[Any]]]:
    """A service that ranks passages in their order, with logits 2.5, 1.5, 0.5 and so on; its URL and the requests."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, "key": self.headers["Authorization"], "body": body})
            rankings = [{"index": at, "logit": 2.5 - at} for at in range(len(body["passages"]))]
            answer = json.dumps({"rankings": rankings, "usage": {"prompt_tokens": 9, "total_tokens": 9}}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/it's", asked
        server.shutdown()
        thread.join()


def run(command: list[str], code: str) -> str:
    environment = os.environ | {"RERANK_SERVICE_API_KEY": 'a key\'s "value"'}
    done = subprocess.run(command, input=code.encode(), capture_output=True, env=environment, timeout=90)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


SHELLS = [[shell] for shell in ("bash", "dash") if shutil.which(shell)]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("needs_key", [True, False])
def test_curl_sends_the_request(call: Call, stub: tuple[str, list[Any]], shell: list[str], needs_key: bool) -> None:
    url, asked = stub
    sent = request(url=url, model="o'rg/$m", query=NASTY[0], passages=NASTY, windows=8, needsKey=needs_key)

    answer = json.loads(run(shell, call("code.curlCode", sent)))

    assert len(answer["rankings"]) == len(NASTY)
    body = {
        "model": "o'rg/$m",
        "query": {"text": NASTY[0]},
        "passages": [{"text": text} for text in NASTY],
        "passage_windows": {"max_per_passage": 8},
        "truncate": "END",
    }
    key = 'Bearer a key\'s "value"' if needs_key else None
    assert asked[-1] == {"path": "/it's/v1/ranking", "key": key, "body": body}


@pytest.mark.parametrize("windows", [8, None])
def test_python_sends_the_request(call: Call, stub: tuple[str, list[Any]], windows: int | None) -> None:
    url, asked = stub
    sent = request(url=url, model="o'rg/$m", query=NASTY[0], passages=NASTY, truncate="NONE", windows=windows)

    shown = run([sys.executable, "-X", "utf8"], call("code.pythonCode", sent))

    assert shown.startswith(f"2.50 {NASTY[0]}\n1.50 two\nlines")
    body = asked[-1]["body"]
    assert asked[-1]["path"] == "/it's/v1/ranking"
    assert (body["model"], body["query"], body["truncate"]) == ("o'rg/$m", {"text": NASTY[0]}, "NONE")
    assert [passage["text"] for passage in body["passages"]] == NASTY
    assert (body.get("passage_windows") or {}).get("max_per_passage") == windows


def test_any_text_survives_both_languages(call: Call) -> None:
    texts = random_texts(400)
    sent = request(query=texts[0], passages=texts)
    curl, python = call("code.curlCode", sent), call("code.pythonCode", sent)

    body = json.loads(run(["bash"], "curl() { cat; }\n" + curl))
    literals = {
        statement.targets[0].id: ast.literal_eval(statement.value)  # type: ignore[attr-defined]
        for statement in ast.parse(python).body
        if isinstance(statement, ast.Assign)
    }

    assert body == {"query": {"text": texts[0]}, "passages": [{"text": text} for text in texts], "truncate": "END"}
    assert literals == {"query": texts[0], "passages": texts}
    for code in (curl, python):  # nothing acts on a terminal or hides the order of the text
        assert not set(code) & set("\x00\x07\x1b\x7f\x85\x9b\r\t\u2028\u202e")


def test_the_threshold_cuts_the_ranking(call: Call, stub: tuple[str, list[Any]]) -> None:
    sent = request(url=stub[0], passages=["a", "b", "c"], threshold=1.5)
    python = call("code.pythonCode", sent)
    assert "kept = [passage for passage in ranking if passage.logit >= 1.5]\n" in python
    assert run([sys.executable], python) == "2.50 a\n1.50 b\n"
    if not shutil.which("jq"):
        pytest.skip("jq is not installed")
    answer = json.loads(run(["bash"], call("code.curlCode", sent)))
    assert [ranking["index"] for ranking in answer["rankings"]] == [0, 1]
    assert answer["usage"]["total_tokens"] == 9


def test_simple_code_is_simple(call: Call) -> None:
    python = call("code.pythonCode", request(url="http://127.0.0.1:8000", model="m", passages=["Bread", "東京"]))
    assert python == (
        'from rerank_service.client import Client\n\nquery = "q"\npassages = [\n    "Bread",\n    "東京",\n]\n\n'
        'with Client("http://127.0.0.1:8000", model="m") as client:\n    ranking = client.rank(query, passages)\n\n'
        'for passage in ranking:\n    print(f"{passage.logit:.2f}", passage.text)\n'
    )
    assert "RERANK_SERVICE_API_KEY" in call("code.pythonCode", request(needsKey=True))
    assert "windows=PassageWindows(max_per_passage=4)" in call("code.pythonCode", request(windows=4))
    assert call("code.curlCode", request(url="http://h/")).startswith("curl -sS 'http://h/v1/ranking' \\\n")
