"""What the subcommands share: where they print, how they fail, how they call a running service."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console

__all__ = ["ConfigPath", "Key", "Url", "api_errors", "call", "fail", "progress_console", "stdout", "unreachable"]

stdout = Console()
progress_console = _stderr = Console(stderr=True)

Url = Annotated[str, typer.Option(help="Address of a running service.", envvar="RERANK_SERVICE_URL")]
Key = Annotated[str | None, typer.Option(help="API key, if the service asks for one.", envvar="NVIDIA_API_KEY")]
ConfigPath = Annotated[str, typer.Argument(help="Serve configuration file.")]


def fail(message: str) -> typer.Exit:
    """Prints one readable error; raise what it returns. Exit code 2, as for wrong usage."""
    _stderr.print(f"[bold red]error:[/] {message}", highlight=False, soft_wrap=True)
    return typer.Exit(2)


def call(method: str, url: str, path: str, key: str | None, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One request to a running service; ends the program with the service's own message on an error."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with api_errors(url):
        response = httpx.request(method, url.rstrip("/") + path, json=body, headers=headers, timeout=120)
        if response.is_error:
            raise fail(f"{response.status_code}: {_message(response)}")
        answer: dict[str, Any] = response.json()
    return answer


@contextmanager
def api_errors(url: str) -> Iterator[None]:
    """Turns failures to reach the service into one line."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise unreachable(url, str(error) or type(error).__name__) from None


def unreachable(url: str, cause: str) -> typer.Exit:
    """Prints that there is no service; raise what it returns."""
    return fail(f"cannot reach {url} ({cause}); is it running? Start one with: rerank-service serve")


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:500]
