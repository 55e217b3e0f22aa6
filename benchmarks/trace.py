"""Counts the files and functions of the package that one ranking enters in one process: `python -m benchmarks.trace`.

A request with three passages takes the path of the service, but without Ray: HTTP application, ranker, router, a
replica's scorer, and a small bidirectional decoder. Functions in all threads count, including lambdas, comprehensions,
generator expressions and nested functions. The first request is a warm-up; the second is traced. `--all` lists the
functions in the order in which they were entered.

Counts so far: 30 files and 145 functions at 127c9e3; 42 and 210 at 6a875ae, after the modules moved into the present
folders; 22 and 88 after the restructuring inside them.
"""

import asyncio
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import rerank_service
from rerank_service.config import ModelConfig
from rerank_service.tools.random_checkpoints.make import Architecture, make_checkpoint
from tests.local_service import LocalReplica, client_of, local_api
from tests.models import local_model

_FOLDER = str(Path(rerank_service.__file__).parent)
_BODY = {"query": {"text": "a query"}, "passages": [{"text": f"passage {number}"} for number in range(3)]}


class Trace:
    """Records the functions entered while `is_on` is true, in order. Must be installed before the replica's threads
    start."""

    def __init__(self) -> None:
        self.is_on = False
        self.functions: dict[CodeType, None] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if self.is_on and event == "call" and frame.f_code.co_filename.startswith(_FOLDER):
            self.functions[frame.f_code] = None

    @property
    def files(self) -> list[str]:
        return sorted({str(Path(code.co_filename).relative_to(_FOLDER)) for code in self.functions})


async def traced(model: ModelConfig, trace: Trace) -> None:
    """Ranks twice and traces the second ranking."""
    async with client_of(local_api([model], {model.id: LocalReplica(model)})) as client:
        for trace.is_on in (False, True):
            response = await client.post("/v1/ranking", json=_BODY)
            response.raise_for_status()
            await asyncio.sleep(0.5)
        trace.is_on = False


def main() -> None:
    trace = Trace()
    threading.setprofile(trace)
    sys.setprofile(trace)
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder), Architecture.LLAMA_BIDIREC, "tiny", overwrite=True)
        asyncio.run(traced(local_model(Path(folder)), trace))
    if "--all" in sys.argv:
        for code in trace.functions:
            print(f"{Path(code.co_filename).relative_to(_FOLDER)}:{code.co_firstlineno} {code.co_qualname}")
    print(f"{len(trace.files)} files, {len(trace.functions)} functions")


if __name__ == "__main__":
    main()
