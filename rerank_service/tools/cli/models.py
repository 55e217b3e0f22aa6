"""`rerank-service models`: lists the models of a running service, or the known models and the device for each."""

import json
from collections.abc import Iterator
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.table import Column, Table
from rich.text import Text

from rerank_service.checkpoints.pull import cached_folder
from rerank_service.checkpoints.resolve import PACKAGED_CHECKPOINTS
from rerank_service.tools.catalogue import CATALOGUE, KnownModel
from rerank_service.tools.catalogue.fit import Fit, Machine, fit, gigabytes
from rerank_service.tools.cli.console import Key, get_json, say, stdout, with_scheme

__all__ = ["models"]

_DEFAULT_URL = "http://127.0.0.1:8000"

ServiceUrl = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="List the models of the running service at this address.",
        envvar="RERANK_SERVICE_URL",
        callback=with_scheme,
    ),
]


class _Files(StrEnum):
    """State of a model's files on this machine."""

    HERE = "here"
    """The files are in a package, in the models folder, in the cache of `pull`, or in huggingface_hub's local cache."""
    TO_INSTALL = "to install"
    TO_PULL = "to pull"
    """The files are published on the model hub."""
    TO_BRING = "to bring"
    """The files are not public: the user has to provide them."""
    USELESS = "-"
    """No engine runs this model."""


_FILES_IN_WORDS = {
    _Files.HERE: "here",
    _Files.TO_INSTALL: "to install",
    _Files.TO_PULL: "to download",
    _Files.TO_BRING: "not public",
    _Files.USELESS: "",
}

_GROUPS = {
    "Run on this machine's GPU": ("GPU", False),
    "Run on this machine's CPU": ("CPU", False),
    "Run on this machine's CPU, but slowly: they are made for a GPU": ("CPU", True),
}
"""Headings of the list, each with the place and `is_slow` of its models."""


class _Entry(NamedTuple):
    model: KnownModel
    fit: Fit
    files: _Files


def models(
    url: ServiceUrl = None,
    served: Annotated[
        bool | None,
        typer.Option(
            "--served/--known",
            help=f"List the models of a running service (default: {_DEFAULT_URL}), or the known models.",
        ),
    ] = None,
    models_dir: Annotated[
        str, typer.Option(help="Folder where downloaded models may already be, one folder per model.")
    ] = "/models",
    key: Key = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: for a running service, the service's own answer.")
    ] = False,
) -> None:
    """List the known models, or the models of a running service.

    For known models, the list says whether this machine can run them and where their files are.
    """
    if served if served is not None else url is not None:
        _list_served(url or _DEFAULT_URL, key, as_json)
    else:
        _list_known(models_dir, as_json)


def _list_served(url: str, key: str | None, as_json: bool) -> None:
    answer = get_json(url, "/v1/models", key)
    if as_json:
        typer.echo(json.dumps(answer))
        return
    aliases: dict[str, list[str]] = {}
    for entry in answer["data"]:
        names = aliases.setdefault(entry["root"], [])
        if entry["id"] != entry["root"]:
            names.append(entry["id"])
    table = Table(*(Column(name, overflow="fold") for name in ("model", "also called")), box=None, pad_edge=False)
    for model, names in aliases.items():
        table.add_row(Text(model), Text("\n".join(names)))
    stdout.print(table)
    unverified = {entry["root"]: entry["unverified"] for entry in answer["data"] if "unverified" in entry}
    for model, reason in unverified.items():
        say(f"\n{model} is unverified: {reason}")
    cascades = {entry["root"]: entry["stages"] for entry in answer["data"] if "stages" in entry}
    for model, stages in cascades.items():
        say(f"\n{model} is a cascade: {' > '.join(map(_stage_in_words, stages))}")


def _stage_in_words(stage: dict[str, Any]) -> str:
    """A stage of a cascade, such as `small (keeps 100)`."""
    match stage.get("keep"):
        case None:
            return str(stage["model"])
        case {"margin": margin, **more}:
            bound = f", at most {more['at_most']}" if "at_most" in more else ""
            return f"{stage['model']} (keeps a margin of {margin:g}{bound})"
        case float(share):
            return f"{stage['model']} (keeps {share:.0%})"
        case number:
            return f"{stage['model']} (keeps {number})"


def _list_known(models_dir: str, as_json: bool) -> None:
    from rerank_service.tools.catalogue.fit import this_machine

    machine = this_machine()
    entries = [_Entry(model, fit(model, machine), _files(model, models_dir)) for model in CATALOGUE]
    if as_json:
        hardware = machine._asdict() | {"gpus": [gpu._asdict() for gpu in machine.gpus]}
        typer.echo(json.dumps({"machine": hardware, "models": [_facts(entry) for entry in entries]}))
        return
    say(_summary(machine))
    runnable = [entry for entry in entries if entry.fit.place is not None]
    width = max((len(entry.model.name) for entry in runnable), default=0)  # the same in each table
    for heading, (place, is_slow) in _GROUPS.items():
        if group := [entry for entry in runnable if (entry.fit.place, entry.fit.is_slow) == (place, is_slow)]:
            stdout.print("", Text(heading, "bold"), _table(group, width), sep="\n")
    if refused := [entry for entry in entries if entry.fit.place is None]:
        table = Table(Column(no_wrap=True), Column(overflow="fold"), box=None, pad_edge=False, show_header=False)
        for entry in refused:
            table.add_row(Text(entry.model.name), Text(entry.fit.reason or ""))
        stdout.print("", Text("Do not run on this machine", "bold"), table, sep="\n")
    stdout.print()
    for line in _advice(entries):
        say(line)


def _table(entries: list[_Entry], width: int) -> Table:
    table = Table(
        Column("model", no_wrap=True, min_width=width),
        Column("languages", no_wrap=True),
        Column("memory", justify="right", no_wrap=True),
        Column("files", no_wrap=True),
        Column("licence", overflow="fold"),
        box=None,
        pad_edge=False,
    )
    for model, verdict, files in entries:
        needs = gigabytes(verdict.needed_bytes) if verdict.needed_bytes else ""
        licence = model.licence if model.is_commercial else f"{model.licence} (not for commercial use)"
        table.add_row(*map(Text, (model.name, model.languages, needs, _FILES_IN_WORDS[files], licence)))
    return table


def _summary(machine: Machine) -> str:
    gpus = ", ".join(f"{gpu.name} ({gigabytes(gpu.memory_bytes)})" for gpu in machine.gpus) or "no GPU"
    return f"This machine has {gigabytes(machine.memory_bytes)} of memory, and {gpus}."


def _advice(entries: list[_Entry]) -> Iterator[str]:
    """Lines that say how to get and serve a model."""
    for entry in entries:
        if entry.files is _Files.TO_INSTALL and entry.model.package:
            yield f"{entry.model.name}: {PACKAGED_CHECKPOINTS[entry.model.package].install}"
    yield "Download a model: rerank-service pull MODEL. Serve it: rerank-service serve MODEL."
    yield "More about each model: --json, docs/models.md. Models of a running service: --served or --url."


def _facts(entry: _Entry) -> dict[str, Any]:
    model, verdict, files = entry
    return {
        **model.model_dump(mode="json"),
        "longest_tokens": model.pair_tokens,
        "runs_on": verdict.place,
        "is_slow": verdict.is_slow,
        "needed_bytes": verdict.needed_bytes,
        "reason": verdict.reason,
        "files": files,
    }


def _files(model: KnownModel, models_dir: str) -> _Files:
    if model.refusal is not None:
        return _Files.USELESS
    if model.package:
        return _Files.HERE if find_spec(PACKAGED_CHECKPOINTS[model.package].module) else _Files.TO_INSTALL
    if (Path(models_dir).expanduser() / model.source / "config.json").is_file():
        return _Files.HERE
    if model.hub_id is None:
        return _Files.TO_BRING
    return _Files.HERE if _is_fetched(model.hub_id, model.revision) else _Files.TO_PULL


def _is_fetched(hub_id: str, revision: str | None) -> bool:
    """Whether the files were fetched by `rerank-service pull` or into huggingface_hub's local cache."""
    if revision is not None and cached_folder(hub_id, revision) is not None:
        return True
    from huggingface_hub import try_to_load_from_cache  # takes half a second to import

    return isinstance(try_to_load_from_cache(hub_id, "config.json", revision=revision), str)
