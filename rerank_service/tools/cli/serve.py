"""`rerank-service serve`: serves models, a configuration file or the default model in the foreground.
`rerank-service environment`: prints Ray's environment for a shell."""

import json
import os
import shlex
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from rerank_service.config import Dtype
from rerank_service.tools.cli.api_keys import KEY_VARIABLE, key_hashes
from rerank_service.tools.cli.command_line import command_line
from rerank_service.tools.cli.console import fail, stderr
from rerank_service.tools.cli.haproxy import http_options, own_places, suits_haproxy
from rerank_service.tools.cli.options import CONFIG_FILE, checked_config, config_file, missing_folders
from rerank_service.tools.deployment.placement import DeviceChoice
from rerank_service.tools.deployment.ray_environment import HAPROXY_ENVIRONMENT, RAY_ENVIRONMENT, set_ray_environment
from rerank_service.tools.deployment.serve_yaml import Layout

__all__ = ["environment", "serve"]

_HOST, _PORT = "127.0.0.1", 8000
_SUFFIXES = (".yaml", ".yml", ".json")
_KEYS_OF_A_FILE = {
    "device": "models[].engine.device and models[].replica.num_gpus",
    "dtype": "models[].engine.dtype",
    "replicas": "models[].autoscaling",
    "api_key_file": "auth.key_hashes_file",
}
"""Options that apply only to models, and the settings of a file that correspond to them."""

_NOT_GIVEN: tuple[object, ...] = (None, (), [], DeviceChoice.AUTO)
_PANEL = "Options for models (a configuration file sets these itself)"

Target = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL_OR_FILE",
        show_default=False,
        help="One or more models: a known model, ORG/NAME on the hub, a folder, s3://..., package:NAME, or ID=SOURCE. "
        "Or one Serve configuration file. By default, serve_config.yaml in this folder or else the embedded model.",
    ),
]
Host = Annotated[str | None, typer.Option(metavar="HOST", help="Address to listen on; 0.0.0.0 admits other machines.")]
Port = Annotated[int | None, typer.Option(metavar="PORT", min=1, max=65_535, help="Port to listen on.")]
Device = Annotated[
    DeviceChoice, typer.Option(help="Where the models run. auto: on a GPU if they fit.", rich_help_panel=_PANEL)
]
Precision = Annotated[
    Dtype | None,
    typer.Option(metavar="DTYPE", help=f"Precision: {', '.join(Dtype)}.", rich_help_panel=_PANEL),
]
Replicas = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[MODEL=]MIN:MAX",
        help="Number of replicas; N: a fixed number. By default, as many as suit this machine.",
        rich_help_panel=_PANEL,
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=f"Require a key: one of those in FILE (one per line), or the one in {KEY_VARIABLE}.",
        rich_help_panel=_PANEL,
    ),
]
Print = Annotated[
    bool,
    typer.Option("--print-config", help="Print the configuration and start nothing.", rich_help_panel=_PANEL),
]
HAProxy = Annotated[
    bool | None,
    typer.Option(
        "--haproxy/--no-haproxy",
        show_default=False,
        help="Put HAProxy in front, for less CPU per request. By default, where it is installed and no TLS is set.",
    ),
]
Dashboard = Annotated[
    bool, typer.Option("--dashboard", help="Start Ray's dashboard too; `serve status` and `ray list` need it.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Print every line of the service's logs.")]


def serve(
    context: typer.Context,
    config: Target = None,
    host: Host = None,
    port: Port = None,
    device: Device = DeviceChoice.AUTO,
    dtype: Precision = None,
    replicas: Replicas = None,
    api_key_file: KeyFile = None,
    print_config: Print = False,
    haproxy: HAProxy = None,
    dashboard: Dashboard = False,
    verbose: Verbose = False,
) -> None:
    """Start the service in the foreground; Ctrl-C stops it.

    Models that are not on this machine are fetched first. Device and number
    of replicas are chosen to suit the machine. For settings without an option,
    edit the file that --print-config prints.
    """
    targets = config or []
    path = _file_among(targets)
    if path is not None:
        _refuse_model_options(context, path)
        for note in missing_folders(checked_config(path)):
            stderr.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        text = Path(path).read_text(encoding="utf-8")
    else:
        layout = Layout(host or _HOST, port or _PORT, key_hashes=key_hashes(api_key_file, os.environ))
        if targets:
            from rerank_service.tools.cli.serve_models import ModelOptions, models_yaml

            options = ModelOptions(layout, device, dtype, replicas or ())
            text = models_yaml(targets, options, command_line(context), fetches=not print_config)
        else:
            text = _default_yaml(context, layout)
    if print_config:
        typer.echo(text, nl=False)
        return
    document = yaml.safe_load(text)
    http = http_options(document)
    configured, configured_port = http.get("host"), http.get("port")
    port_setting = f"http_options.port in {path}" if path is not None and port is None else "--port"
    proxy_host = host or (configured if isinstance(configured, str) else "") or _HOST
    proxy_port = port or (configured_port if isinstance(configured_port, int) else _PORT)
    with _environment_of(document, haproxy, proxy_host, proxy_port):
        from rerank_service.tools.cli.foreground import Serving, run  # only now: Serve reads the environment on import

        run(Serving(text, path or "this configuration", port_setting, host, port, verbose, dashboard))


def _environment_of(
    document: Mapping[str, Any], haproxy: bool | None, host: str, port: int
) -> AbstractContextManager[None]:
    """Sets the environment of Ray's processes. The context holds HAProxy's files."""
    set_ray_environment(os.environ)
    if haproxy is None:
        haproxy = suits_haproxy(document, os.environ)
    elif not haproxy:
        for name in HAPROXY_ENVIRONMENT:
            os.environ.pop(name, None)
    set_ray_environment(os.environ, haproxy=haproxy)
    return own_places(os.environ, host, port) if haproxy else nullcontext()


def _file_among(targets: list[str]) -> str | None:
    """The configuration file to serve; null if models were named, or for the embedded model. Ends the program if the
    targets are both, or several files."""
    files = [one for one in targets if Path(one).exists() and not Path(one).is_dir()]
    for one in targets:
        if one not in files and one.endswith(_SUFFIXES) and "=" not in one:
            near = get_close_matches(one, [entry.name for entry in Path.cwd().iterdir() if entry.is_file()], n=1)
            raise fail(f"{one} does not exist" + (f"; did you mean {near[0]}?" if near else ""))
    if files and len(targets) > 1:
        raise fail(
            f"{files[0]} is a configuration file, which must be the only argument; to serve more models, add them "
            "under models: in the file"
        )
    if not targets and Path(CONFIG_FILE).exists():
        return CONFIG_FILE
    return files[0] if files else None


def _refuse_model_options(context: typer.Context, path: str) -> None:
    """Ends the program if options are given that a configuration file decides."""
    for name, setting in _KEYS_OF_A_FILE.items():
        if context.params[name] not in _NOT_GIVEN:
            option = f"--{name.replace('_', '-')}"
            raise fail(f"{option} applies to models named on the command line; in {path}, set {setting}")
    if context.params["print_config"]:
        raise fail(f"--print-config applies to models named on the command line; {path} is already a configuration")


def _default_yaml(context: typer.Context, layout: Layout) -> str:
    """The packaged configuration of the embedded model with the given address and keys."""
    for name in ("device", "dtype", "replicas"):
        if context.params[name] not in _NOT_GIVEN:
            raise fail(f"--{name} needs a model: rerank-service serve MODEL --{name} ...")
    document = yaml.safe_load(Path(config_file(None)).read_text(encoding="utf-8"))
    document["http_options"] |= {"host": layout.host, "port": layout.port}
    if layout.key_hashes:
        document["applications"][0]["args"]["auth"] = {"key_hashes": list(layout.key_hashes)}
    return f"# Written by: {command_line(context)}\n{yaml.safe_dump(document, sort_keys=False)}"


def environment(
    haproxy: Annotated[bool, typer.Option("--haproxy", help="Include the variables for HAProxy.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print names and values as JSON.")] = False,
) -> None:
    """Print the environment variables for a node's Ray processes.

    Set the variables before `ray start`. In a shell: eval "$(rerank-service environment --haproxy)"
    """
    variables = RAY_ENVIRONMENT | (HAPROXY_ENVIRONMENT if haproxy else {})
    if as_json:
        typer.echo(json.dumps(variables))
        return
    for name, value in variables.items():
        typer.echo(f"export {name}={shlex.quote(value)}")
