"""`rerank-service models`: what a running service serves."""

import json

import typer
from rich.table import Table

from rerank_service.cli.console import Key, Url, call, stdout

__all__ = ["models"]


def models(
    url: Url = "http://127.0.0.1:8000",
    key: Key = None,
    as_json: bool = typer.Option(False, "--json", help="Print the service's JSON."),
) -> None:
    """List the models of a running service, the default first."""
    answer = call("GET", url, "/v1/models", key)
    if as_json:
        typer.echo(json.dumps(answer))
        return
    aliases: dict[str, list[str]] = {}
    for entry in answer["data"]:
        names = aliases.setdefault(entry["root"], [])
        if entry["id"] != entry["root"]:
            names.append(entry["id"])
    table = Table("model", "also called")
    for model, names in aliases.items():
        table.add_row(model, "\n".join(names))
    stdout.print(table)
