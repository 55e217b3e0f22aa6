"""Code shared by the subcommands: consoles, error messages and calls to a running service."""

import re
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.markup import escape

__all__ = [
    "DTYPE_HELP",
    "MODEL_HELP",
    "Key",
    "Url",
    "fail",
    "get_json",
    "say",
    "stderr",
    "stdout",
    "unreachable",
    "with_scheme",
]

stdout = Console()
stderr = Console(stderr=True)

_HOST = re.compile(r"(localhost|[\w-]+(\.[\w-]+)+|\[[\da-fA-F:.]+\]|[\w-]+(?=:\d))(:\d+)?(/\S*)?", re.ASCII)
"""An address without a scheme: a host name with a dot or a port, or an IP address."""


def with_scheme(url: str | None) -> str | None:
    """The URL; an address without a scheme, such as `localhost:8000`, becomes an `http` URL."""
    return f"http://{url}" if url and _HOST.fullmatch(url) else url


Url = Annotated[
    str,
    typer.Option(help="Address of a running service.", envvar="RERANK_SERVICE_URL", callback=with_scheme),
]
Key = Annotated[
    str | None,
    typer.Option(
        help="API key, if the service requires one. Set the variable instead to hide the key from the process list.",
        envvar=["RERANK_SERVICE_API_KEY", "NVIDIA_API_KEY"],
    ),
]

MODEL_HELP = (
    "A configured model, or a known model, ORG/NAME on the hub, a folder, s3://... or package:NAME. Default: the "
    "configuration's default model."
)
DTYPE_HELP = "Number format of the computation; overrides the configuration's engine.dtype."

_ERRNO = re.compile(r"^\[Errno -?\d+\] ")


def say(sentence: str) -> None:
    """Prints a sentence, wrapped between words on a terminal and in one line elsewhere."""
    stdout.print(sentence, markup=False, highlight=False, soft_wrap=not stdout.is_terminal)


def fail(message: str) -> typer.Exit:
    """Prints an error and returns the exception to raise, with exit code 2 as for wrong usage."""
    stderr.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    return typer.Exit(2)


def unreachable(url: str, cause: str) -> typer.Exit:
    """Prints that no service answers at `url` and returns the exception to raise."""
    reason = _ERRNO.sub("", cause)
    return fail(f"cannot reach {url} ({reason}); is it running? Start a service with: rerank-service serve")


def get_json(url: str, path: str, key: str | None) -> dict[str, Any]:
    """Fetches `path` from a running service. On an error, ends the program with the service's own message."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        response = httpx.get(url.rstrip("/") + path, headers=headers, timeout=120)
        if response.is_success:
            body: dict[str, Any] = response.json()
            return body
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise unreachable(url, str(error) or type(error).__name__) from None
    try:
        message = str(response.json()["message"])
    except (ValueError, KeyError, TypeError):  # a proxy in front of the service may reply without JSON
        message = response.text[:500]
    raise fail(f"{response.status_code}: {message}")
