"""`rerank-service config`: writes a Serve configuration for given models, hardware and replica counts."""

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
        metavar="MODEL...", help=f"A known model ({_KNOWN}), or ID=SOURCE[@REVISION]. The first model is the default."
    ),
]
Pin = Annotated[
    bool, typer.Option("--pin", help="Place GPU replicas only on nodes with the resource rerank:APPLICATION.")
]


def config(
    context: typer.Context,
    models: Models,
    models_dir: Annotated[str, typer.Option(help="Folder that contains a folder for each known model.")] = "/models",
    replicas: Annotated[list[str] | None, typer.Option(metavar="[MODEL=]MIN:MAX", help="Number of replicas.")] = None,
    gpus: Annotated[list[str] | None, typer.Option(metavar="[MODEL=]N", help="GPUs per replica, such as 0.5.")] = None,
    cpus: Annotated[list[str] | None, typer.Option(metavar="[MODEL=]N", help="CPUs per replica.")] = None,
    ingresses: Annotated[str, typer.Option(metavar="MIN:MAX", help="Number of HTTP replicas.")] = "1:1",
    ingress_cpus: Annotated[float, typer.Option(min=0, help="CPUs reserved for each HTTP replica.")] = 0,
    pin: Pin = False,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 admits other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    key_hashes: Annotated[str | None, typer.Option(help="File with SHA-256 hashes of API keys, one per line.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Maximum requests per key and minute.")] = None,
    passages_per_minute: Annotated[int | None, typer.Option(help="Maximum passages per key and minute.")] = None,
    rate_limit_storage: Annotated[str | None, typer.Option(help="redis://... for counts shared by ingresses.")] = None,
    output: Annotated[Path | None, typer.Option(help="File to write; by default standard output.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of YAML; Serve reads both.")] = False,
) -> None:
    """Write a Serve configuration. Its first line names the command that wrote it."""
    served = _served_models(models, models_dir, replicas, gpus, cpus)
    layout = Layout(
        host,
        port,
        _bounds(ingresses),
        ingress_cpus,
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
        raise fail(f"this configuration cannot be served\n{error}") from None
    if as_json:
        text = json.dumps(yaml.safe_load(text), indent=2) + "\n"
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")


def _served_models(
    names: Sequence[str],
    models_dir: str,
    replicas: Sequence[str] | None,
    gpus: Sequence[str] | None,
    cpus: Sequence[str] | None,
) -> list[ServedModel]:
    known = [_located(name, models_dir) for name in names]
    counts = Counter(model.application for model, _ in known)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise fail(f"several models have the application name {', '.join(repeated)}; give each model once")
    num_gpus, num_cpus = _by_model("--gpus", gpus, known, _amount), _by_model("--cpus", cpus, known, _amount)
    bounds = _by_model("--replicas", replicas, known, _bounds)
    return [
        ServedModel(
            model,
            checkpoint,
            model_gpus := num_gpus(model, model.num_gpus),
            num_cpus(model, _GPU_MODEL_CPUS if model_gpus else 1.0),
            bounds(model, Bounds(1, 1)),
        )
        for model, checkpoint in known
    ]


def _located(text: str, models_dir: str) -> tuple[KnownModel, CheckpointConfig]:
    """Parses `MODEL` or `ID=SOURCE[@REVISION]` into a model and its checkpoint."""
    name, has_source, source = text.partition("=")
    known = known_model(name)
    if known is not None and known.refusal is not None:
        raise fail(f"{known.name} cannot be served: {known.refusal}")
    if not has_source:
        if known is None:
            raise fail(
                f"{name!r} is not a known model ({_KNOWN}): add the location of its files, {name}=SOURCE[@REVISION]"
            )
        source = known.source if known.source.startswith("package:") else f"{models_dir.rstrip('/')}/{known.source}"
    source, _, revision = (source, "", "") if source.startswith(_PLACES) else source.partition("@")
    try:
        checkpoint = CheckpointConfig(source=source, revision=revision or None)
    except ValidationError as error:
        raise fail(f"{text}: {readable_problems(error)}") from None
    if known is None:
        slug = re.sub(r"[^a-z0-9]+", "-", name.rpartition("/")[2].lower()).strip("-")
        known = KnownModel(name=name, id=name, application=slug or "model", source="")
    return known, checkpoint


def _by_model(
    option: str,
    texts: Sequence[str] | None,
    models: Sequence[tuple[KnownModel, CheckpointConfig]],
    parse: Callable[[str], _Value],
) -> Callable[[KnownModel, _Value], _Value]:
    """Parses options of the form `[MODEL=]VALUE` into a function that returns a model's value or a given default."""
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
        raise fail(f"{text!r} is not MIN:MAX, such as 1:8")
    return Bounds(int(fewest), int(most))


def _amount(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise fail(f"{text!r} is not a number") from None


def _command(context: typer.Context) -> str:
    """The command line that writes this configuration, without default values and without `--output`."""
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
