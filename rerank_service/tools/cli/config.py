"""`rerank-service config`: a Serve configuration for some models, their hardware and their bounds."""

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer
import yaml
from pydantic import ValidationError
from rich.markup import escape

from rerank_service.config import CheckpointConfig, parse_serve_config, readable_problems
from rerank_service.errors import ConfigError
from rerank_service.tools.catalogue import CATALOGUE, KnownModel, known_model
from rerank_service.tools.cli.console import fail
from rerank_service.tools.deployment.serve_yaml import Bounds, Layout, ServedModel, serve_yaml

__all__ = ["config"]

_Value = TypeVar("_Value")
_PLACES = ("/", ".", "~", "package:")
_KNOWN = ", ".join(model.name for model in CATALOGUE if model.refusal is None)
_GPU_MODEL_CPUS = 4.0

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...", help=f"One known here ({_KNOWN}), or ID=SOURCE[@REVISION]. The first is the default."
    ),
]


def config(
    context: typer.Context,
    models: Models,
    models_dir: Annotated[str, typer.Option(help="Folder with the known models' folders.")] = "/models",
    replicas: Annotated[list[str] | None, typer.Option(metavar="[MODEL=]MIN:MAX", help="Bounds of replicas.")] = None,
    gpus: Annotated[list[str] | None, typer.Option(metavar="[MODEL=]N", help="GPUs of a replica; 0.5: half.")] = None,
    cpus: Annotated[list[str] | None, typer.Option(metavar="[MODEL=]N", help="CPUs of a replica.")] = None,
    ingresses: Annotated[str, typer.Option(metavar="MIN:MAX", help="Bounds of HTTP replicas.")] = "1:1",
    ingress_cpus: Annotated[float, typer.Option(min=0, help="CPUs set aside for an HTTP replica.")] = 0,
    pin: Annotated[
        bool, typer.Option("--pin", help="Replicas with GPUs only on nodes with the resource rerank:APPLICATION.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    key_hashes: Annotated[str | None, typer.Option(help="File with SHA-256 hashes of keys, one a line.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Requests of one key.")] = None,
    passages_per_minute: Annotated[int | None, typer.Option(help="Passages of one key.")] = None,
    rate_limit_storage: Annotated[str | None, typer.Option(help="redis://... counts for all HTTP replicas.")] = None,
    output: Annotated[Path | None, typer.Option(help="File to write; standard output if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, which Serve reads as well.")] = False,
) -> None:
    """Write a Serve configuration. The first line of the YAML names the command that wrote it."""
    known = [_located(text, models_dir) for text in models]
    _refuse_same_applications([model for model, _ in known])
    num_gpus, num_cpus = _by_model("--gpus", gpus, known, _amount), _by_model("--cpus", cpus, known, _amount)
    bounds = _by_model("--replicas", replicas, known, _bounds)
    served = [
        ServedModel(
            model,
            checkpoint,
            model_gpus := num_gpus(model, model.num_gpus),
            num_cpus(model, _GPU_MODEL_CPUS if model_gpus else 1.0),
            bounds(model, Bounds(1, 1)),
        )
        for model, checkpoint in known
    ]
    layout = Layout(
        host=host,
        port=port,
        ingresses=_bounds(ingresses),
        ingress_cpus=ingress_cpus,
        is_pinned=pin,
        key_hashes_file=key_hashes,
        requests_per_minute=requests_per_minute,
        passages_per_minute=passages_per_minute,
        rate_limit_storage=rate_limit_storage,
    )
    text = serve_yaml(served, layout, _command(context))
    try:
        parse_serve_config(text, "this configuration")
    except ConfigError as error:
        raise fail(f"this cannot be served\n{error}") from None
    if as_json:
        text = json.dumps(yaml.safe_load(text), indent=2) + "\n"
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")


def _located(text: str, models_dir: str) -> tuple[KnownModel, CheckpointConfig]:
    """A model, and where its files are."""
    name, has_source, source = text.partition("=")
    known = known_model(name)
    if known is not None and known.refusal is not None:
        raise fail(escape(f"{known.name} cannot be served: {known.refusal}"))
    if not has_source:
        if known is None:
            wanted = f"{name!r} is not known here ({_KNOWN}): say where its files are, {name}=SOURCE[@REVISION]"
            raise fail(escape(wanted))
        source = known.source if known.source.startswith("package:") else f"{models_dir.rstrip('/')}/{known.source}"
    source, _, revision = (source, "", "") if source.startswith(_PLACES) else source.partition("@")
    try:
        checkpoint = CheckpointConfig(source=source, revision=revision or None)
    except ValidationError as error:
        raise fail(f"{text}: {readable_problems(error)}") from None
    return known or _unknown(name), checkpoint


def _unknown(model_id: str) -> KnownModel:
    slug = re.sub(r"[^a-z0-9]+", "-", model_id.rpartition("/")[2].lower()).strip("-")
    return KnownModel(name=model_id, id=model_id, application=slug or "model", source="")


def _refuse_same_applications(models: Sequence[KnownModel]) -> None:
    counts = Counter(model.application for model in models)
    if doubled := [name for name, count in counts.items() if count > 1]:
        raise fail(f"two models would be the application {', '.join(doubled)}; give each model once")


def _by_model(
    option: str,
    texts: Sequence[str] | None,
    models: Sequence[tuple[KnownModel, CheckpointConfig]],
    parse: Callable[[str], _Value],
) -> Callable[[KnownModel, _Value], _Value]:
    """Reads `[MODEL=]VALUE`; what comes back tells a model's value, or the default it is given."""
    for_all: list[_Value] = []
    for_one: dict[str, _Value] = {}
    for text in texts or ():
        name, is_one, value = text.rpartition("=")
        if not is_one:
            for_all.append(parse(value))
            continue
        wanted = name.casefold()
        owner = next((model for model, _ in models if wanted in _spellings(model)), None)
        if owner is None:
            raise fail(f"{option} {text}: {name!r} is not among the models given")
        for_one[owner.id] = parse(value)
    return lambda model, default: for_one.get(model.id, for_all[-1] if for_all else default)


def _spellings(model: KnownModel) -> set[str]:
    return {name.casefold() for name in (*model.names, model.application)}


def _bounds(text: str) -> Bounds:
    fewest, _, most = text.partition(":")
    if not (fewest.isdecimal() and most.isdecimal()):
        raise fail(f"{text!r} is not MIN:MAX, like 1:8")
    return Bounds(int(fewest), int(most))


def _amount(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise fail(f"{text!r} is not a number") from None


def _command(context: typer.Context) -> str:
    """What was asked for, less defaults and where it is written to."""
    parts = ["rerank-service", "config"]
    for parameter in context.command.params:
        name = str(parameter.name)
        value = context.params.get(name)
        if name == "output" or not value or value == parameter.get_default(context):
            continue
        if parameter.param_type_name == "argument":
            parts += value
        elif value is True:
            parts.append(parameter.opts[0])
        else:
            for one in value if isinstance(value, list | tuple) else [value]:
                parts += [parameter.opts[0], f"{one:g}" if isinstance(one, float) else str(one)]
    return shlex.join(parts)
