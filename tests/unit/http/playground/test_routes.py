"""The page's files over HTTP. tests/page covers the page in a browser."""

import re
from collections.abc import AsyncIterator
from importlib import resources
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.local_service import local_api
from tests.models import embedded_model

FOLDER = resources.files("rerank_service.http") / "playground"
PAGE_FILES = sorted(path.name for path in FOLDER.iterdir() if path.is_file() and not path.name.endswith(".py"))
FILES = ["/" if name == "index.html" else f"/playground/{name}" for name in PAGE_FILES]


def client_of(prefix: str = "", **settings: Any) -> httpx.AsyncClient:
    model = embedded_model()  # never loaded in this test
    api = local_api([model], {model.id: None}, **settings)
    application = Starlette(routes=[Mount(prefix, api)]) if prefix else api
    return httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://rerank")


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with client_of() as client:
        yield client


@pytest.mark.parametrize("path", FILES)
async def test_files_have_a_strict_content_security_policy(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)

    assert response.status_code == 200
    policy = dict(part.split(maxsplit=1) for part in response.headers["content-security-policy"].split("; "))
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert policy.pop("default-src") == "'none'"
    assert set(policy.values()) == {"'self'", "'none'"}
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", FILES)
async def test_a_cached_file_is_not_sent_again(client: httpx.AsyncClient, path: str) -> None:
    first = await client.get(path)
    etag = first.headers["etag"]

    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = await client.get(path, headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    changed = await client.get(path, headers={"if-none-match": '"other"'})
    assert (changed.status_code, changed.content) == (200, first.content)
    assert first.headers["cache-control"] == "no-cache"


async def test_head_has_the_headers_of_get(client: httpx.AsyncClient) -> None:
    get, head = await client.get("/"), await client.head("/")
    assert head.status_code == 200
    assert head.headers == get.headers


async def test_other_methods_get_an_error_envelope(client: httpx.AsyncClient) -> None:
    response = await client.post("/", json={})
    assert (response.status_code, response.json()["object"]) == (405, "error")


@pytest.mark.parametrize("path", FILES)
async def test_one_setting_turns_the_playground_off(path: str) -> None:
    async with client_of(service={"playground": False}) as client:
        response = await client.get(path)
    assert (response.status_code, response.json()["type"]) == (404, "not_found_error")


async def test_openapi_does_not_list_the_playground(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert not {path for path in paths if path == "/" or "playground" in path}


@pytest.mark.parametrize("prefix", ["/keyed", "/a/b"])
async def test_addresses_resolve_behind_a_prefix(prefix: str) -> None:
    async with client_of(prefix) as client:
        page = await client.get(f"{prefix}/")
        assert page.status_code == 200
        for address in re.findall(r'(?:href|src)="(playground/[^"]+)"', page.text):
            assert (await client.get(page.url.join(address))).status_code == 200


async def test_a_prefix_without_a_slash_redirects_to_the_prefix_with_a_slash() -> None:
    """For a request without the final slash, Serve's proxy forwards the prefix as the path."""
    model = embedded_model()
    transport = httpx.ASGITransport(local_api([model], {model.id: None}), root_path="/a/keyed")
    async with httpx.AsyncClient(transport=transport, base_url="http://rerank") as client:
        response = await client.get("/a/keyed")
        assert (response.status_code, response.headers["location"]) == (307, "./keyed/")
        assert response.next_request is not None
        assert response.next_request.url.path == "/a/keyed/"
        assert (await client.get("/a/keyed/")).status_code == 200


@pytest.mark.parametrize("name", PAGE_FILES)
def test_no_file_names_another_host_or_an_absolute_address(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"//[\w-]+\.[\w.]", text.replace("http://127.0.0.1", ""))
    assert not re.search(r"""(?:href|src)=["']/|url\(|@import|["'`]/v1""", text)


async def test_pythons_files_are_not_served(client: httpx.AsyncClient) -> None:
    for name in ("routes.py", "__init__.py", "index.html"):
        assert (await client.get(f"/playground/{name}")).status_code == 404


def test_the_page_loads_all_its_files_at_once() -> None:
    """A module that only another module names would be requested after that one has arrived."""
    named = re.findall(r'(?:href|src)="playground/([^"]+)"', (FOLDER / "index.html").read_text(encoding="utf-8"))
    assert sorted([*named, "index.html"]) == PAGE_FILES


@pytest.mark.parametrize("name", [name for name in PAGE_FILES if name.endswith(".js")])
def test_modules_import_only_files_of_the_page(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    imported = re.findall(r"""\bfrom ["'](.*)["']|\bimport\(""", text)
    assert all(path.startswith("./") and path[2:] in PAGE_FILES for path in imported)
    assert len(text.splitlines()) <= 400
