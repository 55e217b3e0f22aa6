"""`rerank-service config`: writes a Serve configuration for given models, hardware and replica counts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
import yaml

from rerank_service.config import parse_serve_config
from rerank_service.errors import CheckpointError, ConfigError
from rerank_service.tools.catalogue import KnownModel, known_model
from rerank_service.tools.catalogue.locate import MODELS_DIR, Located, locate
from rerank_service.tools.cli.command_line import command_line
from rerank_service.tools.cli.console import fail
from rerank_service.tools.cli.per_model import amount, bounds, by_model, refuse_repeated
from rerank_service.tools.deployment.placement import DeviceChoice
from rerank_service.tools.deployment.serve_yaml import Bounds, Layout, ServedModel, serve_yaml

__all__ = ["config"]

_GPU_MODEL_CPUS = 4.0
_ONE_INGRESS = "1:1"

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL",
        help="A known model, ORG/NAME on the hub, a folder, or ID=SOURCE; @REVISION may follow. "
        "The first model is the default.",
    ),
]
ModelsDir = Annotated[
    str | None,
    typer.Option(
        help="Folder that contains a folder for each known model; by default /models if it has the model, else the hub."
    ),
]
Device = Annotated[
    DeviceChoice,
    typer.Option(
        help="Where the models run. auto: on what this machine has; with --gpus, --pin or options for the HTTP "
        "replicas, on each model's usual hardware."
    ),
]
Pin = Annotated[
    bool, typer.Option("--pin", help="Place GPU replicas only on nodes with the resource rerank:APPLICATION.")
]


def config(
    context: typer.Context,
    models: Models,
    models_dir: ModelsDir = None,
    device: Device = DeviceChoice.AUTO,
    replicas: Annotated[list[str] | None, typer.Option(metavar="[MODEL=]MIN:MAX", help="Number of replicas.")] = None,
    gpus: Annotated[list[str] | None, typer.Option(metavar="[MODEL=]N", help="GPUs per replica, such as 0.5.")] = None,
    cpus: Annotated[list[str] | None, typer.Option(metavar="[MODEL=]N", help="CPUs per replica.")] = None,
    ingresses: Annotated[str, typer.Option(metavar="MIN:MAX", help="Number of HTTP replicas.")] = _ONE_INGRESS,
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
    is_cluster = pin or ingresses != _ONE_INGRESS or ingress_cpus > 0
    served = _served_models(models, models_dir, device, is_cluster, replicas, gpus, cpus)
    layout = Layout(
        host,
        port,
        bounds(ingresses, "--ingresses"),
        ingress_cpus,
        is_pinned=pin,
        key_hashes_file=key_hashes,
        requests_per_minute=requests_per_minute,
        passages_per_minute=passages_per_minute,
        rate_limit_storage=rate_limit_storage,
    )
    text = serve_yaml(served, layout, command_line(context, omitted=("output",)))
    try:
        parse_serve_config(text, "this configuration")
    except ConfigError as error:
        raise fail(f"this configuration cannot be served\n{error}") from None
    if as_json:
        text = json.dumps(yaml.safe_load(text), indent=2) + "\n"
    _write(text, output)


def _write(text: str, output: Path | None) -> None:
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise fail(f"cannot write {output}: {error.strerror}") from None


def _served_models(
    names: Sequence[str],
    models_dir: str | None,
    device: DeviceChoice,
    is_cluster: bool,
    replicas: Sequence[str] | None,
    gpus: Sequence[str] | None,
    cpus: Sequence[str] | None,
) -> list[ServedModel]:
    located = [_pinned(name, models_dir or (MODELS_DIR if is_cluster or _is_private(name) else None)) for name in names]
    if models_dir is None and not is_cluster:  # the nodes of a cluster have folders of their own
        located = [one.absolute() for one in located]
    models = [one.known for one in located]
    refuse_repeated(models)
    num_gpus, num_cpus = by_model("--gpus", gpus, models, amount), by_model("--cpus", cpus, models, amount)
    wanted = by_model("--replicas", replicas, models, bounds)
    usual_gpus = _usual_gpus(models, device, is_elsewhere=is_cluster or bool(gpus))
    served = []
    for one in located:
        given_gpus, given_cpus = num_gpus(one.known), num_cpus(one.known)
        if device is DeviceChoice.CPU and given_gpus:
            raise fail("--device cpu and --gpus exclude each other")
        model_gpus = usual_gpus[one.known.id] if given_gpus is None else given_gpus
        served.append(
            ServedModel(
                one.known,
                one.checkpoint,
                model_gpus,
                (_GPU_MODEL_CPUS if model_gpus else 1.0) if given_cpus is None else given_cpus,
                wanted(one.known) or Bounds(1, 1),
                device="cpu" if device is DeviceChoice.CPU else None,
            )
        )
    return served


def _is_private(name: str) -> bool:
    """Whether this is a known model without public files, so that only a folder can have them."""
    known = known_model(name)
    return known is not None and known.hub_id is None and known.package is None


def _pinned(text: str, models_dir: str | None) -> Located:
    try:
        located = locate(text, models_dir).pinned()
        _ = located.checkpoint
    except CheckpointError as error:
        raise fail(str(error)) from None
    return located


def _usual_gpus(models: Sequence[KnownModel], device: DeviceChoice, *, is_elsewhere: bool) -> dict[str, float]:
    """GPUs per replica of each model, unless `--gpus` sets them."""
    if device is DeviceChoice.CPU:
        return dict.fromkeys((model.id for model in models), 0)
    usual: dict[str, float] = {model.id: model.num_gpus for model in models}
    if device is DeviceChoice.CUDA:
        return {name: number or 1 for name, number in usual.items()}
    if is_elsewhere or not any(usual.values()):
        return usual
    from rerank_service.tools.catalogue.fit import this_machine

    return usual if this_machine().gpus else dict.fromkeys(usual, 0)
