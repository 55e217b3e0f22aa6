"""HTTP part of the small servers: `POST /rank` {query, passages} -> {logits}, and `GET /health`.

It runs in the environments of the peers and needs only FastAPI and uvicorn. Requests are scored one at a time: on a
CPU, concurrent forward passes compete for threads and cost more than sequential ones.
"""

import argparse
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

__all__ = ["Arguments", "read_arguments", "serve"]


class Arguments(argparse.Namespace):
    """Arguments of every small server."""

    model: Path
    port: int
    threads: int
    backend: str
    """Runtime of a library that supports several."""


class RankRequest(BaseModel):
    """The body of a request."""

    query: str
    passages: list[str]


def read_arguments() -> Arguments:
    """Reads the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--backend", default="torch")
    return parser.parse_args(namespace=Arguments())


def serve(score: Callable[[str, list[str]], Sequence[float]], port: int) -> None:
    """Serves until interrupted. `score` returns one logit per passage, in order."""
    app = FastAPI()
    in_turn = threading.Lock()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/rank")
    def rank(request: RankRequest) -> dict[str, list[float]]:
        with in_turn:
            logits = score(request.query, request.passages)
        return {"logits": [float(logit) for logit in logits]}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
