"""The real application behind uvicorn, and Chromium as its visitor. Without Chromium these tests are skipped."""

import asyncio
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from starlette.applications import Starlette
from starlette.routing import Mount

from rerank_service.errors import QueueFull
from rerank_service.messages import Shard, ShardScores
from rerank_service.tools.random_checkpoints.make import Architecture, make_checkpoint
from tests.local_service import LocalReplica, local_api
from tests.models import EMBEDDED, embedded_model, local_model
from tests.page.visit import BUSY, CASCADE, COSINE, CROSS_ENCODER, CROWDED, HURRIED, KEY, Visit

_CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_START_LIMIT_S = 120
expect.set_options(timeout=90_000)  # only limits a test that hangs


class BusyReplica:
    """A replica whose queue is always full."""

    def remote(self, _: Any) -> "asyncio.Task[Any]":
        async def refuse() -> None:
            raise QueueFull(queued_tokens=1000, max_queued_tokens=1000, retry_after_s=7)

        return asyncio.ensure_future(refuse())


class CrowdedReplica:
    """A replica whose window has no room for a passage next to the query."""

    def remote(self, shard: Shard) -> "asyncio.Task[ShardScores]":
        async def score() -> ShardScores:
            count = len(shard.passages)
            everything = (True,) * count
            return ShardScores((0.5,) * count, (9,) * count, everything, everything, 0.0, 0.0, 0.0)

        return asyncio.ensure_future(score())


@dataclass(frozen=True)
class Service:
    """URLs of the applications."""

    url: str
    """One model."""
    keyed_url: str
    """One model, and a key is required."""
    models_url: str
    """Several models: three that rank, one that is busy, one without room."""
    silent_url: str
    """One model, and no explanations."""
    cascades_url: str
    """Two models, and two cascades of them; the last stage of the second one is always busy."""


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The applications, each behind its own prefix."""
    hashes = tmp_path_factory.mktemp("keys") / "hashes"
    hashes.write_text(hashlib.sha256(KEY.encode()).hexdigest() + "\n")
    model = embedded_model(aliases=["minilm"])
    head = {"cosine_weight": 12.0, "maxsim_weight": 0.0, "bias": -6.0}
    cosine = embedded_model(engine={"head": head}).model_copy(update={"id": COSINE})
    folder = make_checkpoint(tmp_path_factory.mktemp("models") / "cross", Architecture.BERT, "tiny", dtype="float32")
    cross_encoder = local_model(folder).model_copy(update={"id": CROSS_ENCODER})
    busy = model.model_copy(update={"id": BUSY, "aliases": ()})
    crowded = model.model_copy(update={"id": CROWDED, "aliases": ()})
    replicas = {
        EMBEDDED: LocalReplica(model),
        COSINE: LocalReplica(cosine),
        CROSS_ENCODER: LocalReplica(cross_encoder),
        BUSY: BusyReplica(),
        CROWDED: CrowdedReplica(),
    }
    one = local_api([model], replicas)
    keyed = local_api([model], replicas, auth={"key_hashes_file": str(hashes)})
    several = local_api([model, cosine, cross_encoder, busy, crowded], replicas)
    silent = local_api([model], replicas, limits={"max_explained_passages": 0})
    cascades = [
        {"id": CASCADE, "stages": [{"model": COSINE, "keep": 2}, {"model": EMBEDDED}]},
        {
            "id": HURRIED,
            "stages": [{"model": COSINE, "keep": 2}, {"model": BUSY}],
            "on_overload": "answer_early",
        },
    ]
    staged = local_api([model, cosine, busy], replicas, cascades=cascades)
    routes = [
        Mount("/keyed", keyed),
        Mount("/silent", silent),
        Mount("/cascades", staged),
        Mount("/models", several),
        Mount("/one", one),
    ]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=0, ws="none", log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + _START_LIMIT_S
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    origin = f"http://127.0.0.1:{port}"
    yield Service(*(f"{origin}/{prefix}/" for prefix in ("one", "keyed", "models", "silent", "cascades")))
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")  # Playwright's event loop must be closed before asynchronous tests of other modules run
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        installed = (shutil.which(name) for name in _CHROMIUMS)
        path = next(filter(None, installed), playwright.chromium.executable_path)
        if not Path(path).exists():
            pytest.skip("Chromium is not installed: apt-get install chromium, or playwright install chromium")
        is_root = os.geteuid() == 0
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if is_root else [])
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, service: Service) -> Iterator[Page]:
    """An empty page. The test fails if the page logs an error or contacts another host."""
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
    origin = service.url.removesuffix("one/")
    page.on("request", lambda request: None if request.url.startswith(origin) else complaints.append(request.url))
    yield page
    # Chromium itself logs a line per error response.
    assert [line for line in complaints if not line.startswith("Failed to load resource")] == []


@pytest.fixture
def visit(page: Page, service: Service) -> Visit:
    """The application with one model, just opened."""
    return Visit(page, service.url)


@pytest.fixture
def models_visit(page: Page, service: Service) -> Visit:
    """The application with several models, just opened."""
    visit = Visit(page, service.models_url)
    expect(page.get_by_role("group", name="Model")).to_be_visible()
    return visit


@pytest.fixture
def keyed_visit(page: Page, service: Service) -> Visit:
    """The application with keys, just opened."""
    return Visit(page, service.keyed_url)


CALL = "async ([path, name, args]) => (await import(path))[name](...args)"
"""Calls an exported function of a module in the page."""


@pytest.fixture(scope="module")
def call(browser: Browser, service: Service) -> Iterator[Callable[..., Any]]:
    """Calls a function of a module: `call("order.kendallTau", [0, 1], [1, 0])`. Errors of the function are raised."""
    page = browser.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(service.url)

    def of(name: str, *args: Any) -> Any:
        module, function = name.split(".")
        return page.evaluate(CALL, [f"{service.url}playground/{module}.js", function, args])

    yield of
    page.close()
    assert complaints == []
