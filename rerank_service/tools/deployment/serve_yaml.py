"""Writes a Serve configuration as YAML with comments, for given models, hardware and replica counts.

The manifests in `cluster/` embed the output.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from rerank_service.config import MODEL_IMPORT_PATH, CheckpointConfig, Dtype, LimitsConfig
from rerank_service.tools.catalogue import KnownModel

__all__ = ["Bounds", "Layout", "ServedModel", "group_resource", "serve_yaml"]

_PIN_AMOUNT = 0.001
"""Amount of a worker group's resource that each replica takes. It selects the nodes, and is too small to limit the
number of replicas; Ray uses 0.001 of `accelerator_type:...` in the same way."""
_PROXY_MARGIN_S = 15.0
"""Difference between the time limits of the proxy and of the service; the service must answer first."""


class Bounds(NamedTuple):
    """Minimum and maximum number of replicas."""

    min_replicas: int
    max_replicas: int


class ServedModel(NamedTuple):
    """One model, the location of its files, and the hardware of its replicas."""

    known: KnownModel
    checkpoint: CheckpointConfig
    num_gpus: float
    num_cpus: float
    replicas: Bounds
    device: str | None = None
    """Device to set. Null: `cuda` if the replicas have GPUs, otherwise the setting is left out."""
    dtype: Dtype | None = None
    """Precision to set. Null: the catalogue's precision if `suits_its_hardware`, otherwise `auto`."""

    @property
    def suits_its_hardware(self) -> bool:
        """Whether the replicas have the kind of hardware that the catalogue's settings are meant for."""
        return bool(self.num_gpus) == bool(self.known.num_gpus)


class Layout(NamedTuple):
    """Settings that apply to all models."""

    host: str = "127.0.0.1"
    port: int = 8000
    ingresses: Bounds = Bounds(1, 1)
    ingress_cpus: float = 0
    is_pinned: bool = False
    """Whether the replicas of a GPU model are placed only on nodes with the model's `group_resource`."""
    key_hashes_file: str | None = None
    key_hashes: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    passages_per_minute: int | None = None
    rate_limit_storage: str | None = None


class _Noted(NamedTuple):
    """A value with a comment, on the same line or, if `is_above`, on the line before."""

    value: Any
    note: str
    is_above: bool = False


def group_resource(application: str) -> str:
    """Name of the Ray resource that marks the nodes of a model's worker group."""
    return f"rerank:{application}"


def serve_yaml(models: Sequence[ServedModel], layout: Layout, command: str) -> str:
    """The configuration as YAML text. The first line names `command` as the command that wrote it."""
    apart = [model for model in models if model.num_gpus]
    settings = {"logging_config": {"encoding": "JSON", "log_level": "INFO"}}
    text = [
        f"# Written by: {command}",
        "# On one machine: `rerank-service serve FILE --haproxy`. On a Ray cluster: `serve deploy FILE`, if every node",
        '# ran `eval "$(rerank-service environment --haproxy)"` and then `ray start`. Settings: docs/configuration.md',
        *_lines({"proxy_location": "EveryNode", "http_options": _http_options(layout)} | settings),
        "applications:",
    ]
    if apart:
        text.append("  # Each model is its own application: changing one does not restart the others' replicas.")
    for model in apart:
        text += [*_indented(_model_application(model, layout), "  "), ""]
    text += _indented(_ingress_application(models, layout), "  ")
    return "\n".join(line.rstrip() for line in text) + "\n"


def _http_options(layout: Layout) -> dict[str, Any]:
    open_note = "other machines can reach the service: set API keys"
    host = layout.host if layout.host.startswith("127.") else _Noted(layout.host, open_note)
    timeout_s = LimitsConfig().request_timeout_s + _PROXY_MARGIN_S
    backstop = _Noted(timeout_s, "above limits.request_timeout_s, so that the service answers first")
    return {"host": host, "port": layout.port, "request_timeout_s": backstop}


def _model_application(model: ServedModel, layout: Layout) -> list[str]:
    name = model.known.application
    return [
        f"- name: {_scalar(name)}",
        "  route_prefix: null # called only by the ingress below",
        f"  import_path: {MODEL_IMPORT_PATH}",
        f"  args: &{_anchor(name)}",
        *_indented(_lines(_model(model, layout)), "    "),
    ]


def _ingress_application(models: Sequence[ServedModel], layout: Layout) -> list[str]:
    listed: list[str] = []
    for model in models:
        name = model.known.application
        lines = (
            [f"<<: *{_anchor(name)}", f"application: {_scalar(name)}"]
            if model.num_gpus
            else list(_lines(_model(model, layout)))
        )
        listed += [f"- {lines[0]}", *_indented(lines[1:], "  ")]
    return [
        "- name: rerank",
        "  route_prefix: /",
        "  import_path: rerank_service.app:build_app",
        "  args:",
        "    models:",
        *_indented(listed, "      "),
        *_indented(_lines(_service(models, layout)), "    "),
        *([] if layout.key_hashes_file or layout.key_hashes else _indented(_KEYS_HINT, "    ")),
    ]


_KEYS_HINT = (
    "# API keys: the environment variable RERANK_SERVICE_API_KEYS of the ingresses, or a file of SHA-256 hashes:",
    "# auth:",
    "#   key_hashes_file: /etc/rerank-service/key-hashes",
)


def _service(models: Sequence[ServedModel], layout: Layout) -> dict[str, Any]:
    ingress = {**layout.ingresses._asdict(), "num_cpus": layout.ingress_cpus}
    settings: dict[str, Any] = {"service": {"default_model": models[0].known.id, "ingress": ingress}}
    if layout.key_hashes_file:
        settings["auth"] = {"key_hashes_file": layout.key_hashes_file}
    elif layout.key_hashes:
        settings["auth"] = {"key_hashes": list(layout.key_hashes)}
    limits = {
        "requests_per_minute": layout.requests_per_minute,
        "passages_per_minute": layout.passages_per_minute,
        "storage": layout.rate_limit_storage,
    }
    if set_limits := {name: value for name, value in limits.items() if value is not None}:
        settings["rate_limits"] = set_limits
    return settings


def _model(model: ServedModel, layout: Layout) -> dict[str, Any]:
    known = model.known
    settings: dict[str, Any] = {"id": _Noted(known.id, known.note, is_above=True)}
    if known.aliases:
        settings["aliases"] = list(known.aliases)
    settings["checkpoint"] = _checkpoint(model)
    if known.window_tokens is not None:
        settings["window_tokens"] = known.window_tokens
    if engine := _engine(model):
        settings["engine"] = engine
    if model.suits_its_hardware and known.max_batch_tokens is not None:
        settings["batching"] = {"max_batch_tokens": known.max_batch_tokens}
    return settings | {"replica": _replica(model, layout), "autoscaling": dict(model.replicas._asdict())}


def _checkpoint(model: ServedModel) -> dict[str, Any]:
    checkpoint = model.checkpoint
    settings = {"source": checkpoint.source, "revision": checkpoint.revision}
    if checkpoint.is_folder:
        fetched = f"a folder on every node with this model; to fetch from the hub: {model.known.name}=ORG/NAME@COMMIT"
        settings["source"] = _Noted(checkpoint.source, fetched, is_above=True)  # type: ignore[assignment]
    return {name: value for name, value in settings.items() if value is not None}


def _engine(model: ServedModel) -> dict[str, Any]:
    settings: dict[str, Any] = {**model.known.engine_settings}
    if device := model.device or ("cuda" if model.num_gpus else None):
        settings["device"] = device
    dtype = model.dtype or (model.known.dtype if model.suits_its_hardware else Dtype.AUTO)
    if dtype is not Dtype.AUTO:
        settings["dtype"] = dtype.value
    return settings


def _replica(model: ServedModel, layout: Layout) -> dict[str, Any]:
    if not model.num_gpus:
        return {"num_cpus": model.num_cpus}
    settings = {
        "num_gpus": model.num_gpus,
        "num_cpus": model.num_cpus,
        "tokeniser_threads": max(1, int(model.num_cpus) - 1),
    }
    if not layout.is_pinned:
        return settings
    pin = _Noted(_PIN_AMOUNT, "places replicas only on nodes with this resource; the amount is too small to limit them")
    return settings | {"resources": {group_resource(model.known.application): pin}}


def _lines(settings: Mapping[str, Any]) -> Iterator[str]:
    """Formats mappings, lists of scalars and scalars as block YAML."""
    for key, noted in settings.items():
        value, note, is_above = noted if isinstance(noted, _Noted) else (noted, "", False)
        behind = f" # {note}" if note and not is_above else ""
        if note and is_above:
            yield f"# {note}"
        if isinstance(value, Mapping):
            yield f"{_scalar(key)}:{behind}"
            yield from _indented(_lines(value), "  ")
        elif isinstance(value, list):
            yield f"{_scalar(key)}:{behind}"
            yield from (f"  - {_scalar(entry)}" for entry in value)
        else:
            yield f"{_scalar(key)}: {_scalar(value)}{behind}"


def _indented(lines: Sequence[str] | Iterator[str], indent: str) -> list[str]:
    return [f"{indent}{line}" if line else "" for line in lines]


def _scalar(value: str | float) -> str:
    """One scalar, quoted if YAML would read it back as another value."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    plain = str(value)
    is_plain = yaml.safe_load(f"[{plain}]") == [value] if _PLAIN.fullmatch(plain) else False
    return plain if is_plain else json.dumps(value)  # a JSON scalar is a YAML scalar


_PLAIN = re.compile(r"[A-Za-z0-9/~.][A-Za-z0-9_./:~-]*")


def _anchor(application: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", application)
