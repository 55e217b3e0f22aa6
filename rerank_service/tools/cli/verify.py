"""`rerank-service verify`: compares a served model with a plain run of its checkpoint. This file has the options and
tables; `tools.verify` compares."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from rerank_service.client import Client, ConnectionFailed, RerankClientError
from rerank_service.config import Dtype
from rerank_service.tools.cli.console import (
    DTYPE_HELP,
    MODEL_HELP,
    Key,
    fail,
    get_json,
    say,
    stdout,
    unreachable,
    with_scheme,
)
from rerank_service.tools.cli.options import ConfigOption, choose, is_source
from rerank_service.tools.cli.progress import ProgressBar

if TYPE_CHECKING:
    from rerank_service.config import ModelConfig
    from rerank_service.tools.verify.recorded import RecordedLogits
    from rerank_service.tools.verify.served import ServedPath
    from rerank_service.tools.verify.verdict import Verdict

__all__ = ["verify_command"]

_TIMEOUT_S = 300.0
_NONE = "none"

Name = Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
ServiceUrl = Annotated[
    str | None,
    typer.Option(
        help="Verify a running service at this address; by default a model loaded here.", callback=with_scheme
    ),
]
Recorded = Annotated[
    str | None,
    typer.Option(
        help="Published model whose recorded scores must match, a JSON file of recorded scores, or `none`; by default "
        "MODEL, if it has recorded scores."
    ),
]
Record = Annotated[
    bool,
    typer.Option(
        "--record",
        help="Store the verdict for services on this machine. A model whose recorded scores match counts as verified. "
        "On a GPU with --dtype float8, the verdict decides whether `dtype: auto` takes float8.",
    ),
]


def verify_command(
    model: Name = None,
    config: ConfigOption = None,
    dtype: Annotated[Dtype | None, typer.Option(help=DTYPE_HELP)] = None,
    url: ServiceUrl = None,
    key: Key = None,
    served_as: Annotated[str | None, typer.Option(help="With --url: the service's name for the model.")] = None,
    recorded: Recorded = None,
    record: Record = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict and its figures as JSON.")] = False,
) -> None:
    """Check that a served model scores like its checkpoint.

    Both score the same texts. Exit codes: 0 the scores agree; 1 they do not agree; 2 an error.
    """
    if served_as is not None and url is None:
        raise fail("--served-as needs --url")
    if record and url is not None:
        raise fail("--record verifies a model that is loaded here, and does not work with --url")
    chosen, is_configured = choose(model, config, dtype)
    # imported here, because torch and transformers take seconds and --help does not need them
    from rerank_service.tools.verify.served import EnginePath
    from rerank_service.tools.verify.verify import verify

    expected = _recorded(recorded, chosen.id)
    gpu = _gpu_to_record(chosen, is_needed=not expected) if record else None
    if url is None:
        num_cpus = chosen.replica.num_cpus if is_configured else None
        open_served: Callable[[], ServedPath] = partial(EnginePath, chosen, num_cpus)
    else:
        name = served_as or (chosen.id if model is None or not is_source(model) else None)
        open_served = _running(url, key, name, chosen.engine.dtype, is_dtype_given=dtype is not None)
    try:
        with ProgressBar(reference="pairs", served="pairs") as progress:
            verdict = verify(chosen, open_served, expected, progress)
    except ConnectionFailed as error:
        raise unreachable(url or "", error.cause) from None
    except RerankClientError as error:
        raise fail(str(error)) from None
    _show(verdict, as_json)
    if record:
        _record(chosen, verdict, gpu)
    raise typer.Exit(0 if verdict.is_faithful else 1)


def _running(
    url: str, key: str | None, name: str | None, dtype: Dtype, *, is_dtype_given: bool
) -> Callable[[], ServedPath]:
    """Connects to a running service, and so fails before the reference run, which takes half a minute."""
    from rerank_service.tools.verify.running_service import ServicePath

    served = get_json(url, "/v1/models", key)["data"]
    client = Client(url, api_key=key, model=name, timeout_s=_TIMEOUT_S)
    precision = (lambda: None) if is_dtype_given else partial(_reported_precision, url, served, name)
    return partial(ServicePath, client, url, dtype, precision)


def _gpu_to_record(model: ModelConfig, *, is_needed: bool) -> str | None:
    """Name of the GPU for a record about float8; null if the model does not run in float8 on a GPU.

    If `is_needed`, the command ends instead."""
    from rerank_service.errors import CheckpointError
    from rerank_service.tools.verify.float8_record import gpu_to_record

    try:
        return gpu_to_record(model)
    except CheckpointError as error:
        if is_needed:
            raise fail(str(error)) from None
        return None


def _record(model: ModelConfig, verdict: Verdict, gpu: str | None) -> None:
    from rerank_service.tools.verify.float8_record import record_float8
    from rerank_service.tools.verify.settings_record import record_settings

    try:
        if gpu is not None:
            record, path = record_float8(model, verdict, gpu)
            answer = "takes" if record.is_accepted else "does not take"
            typer.echo(f"recorded in {path}: dtype auto {answer} float8 for this checkpoint on {gpu}", err=True)
        if (confirmed := record_settings(model, verdict)) is not None:
            typer.echo(f"recorded in {confirmed}: {model.id} is verified with these settings", err=True)
        elif gpu is None:
            typer.echo("nothing recorded, because a check failed", err=True)
    except OSError as error:
        raise fail(f"cannot write the record: {error}") from None


def _reported_precision(url: str, served: Sequence[dict[str, Any]], name: str | None) -> str | None:
    """Precision that the service reports for the model `name`; null if the service reports none.

    `served` is the service's list of models. The default model comes first, and every alias has its own entry.
    """
    entries = [entry for entry in served if name is None or str(entry.get("id")).casefold() == name.casefold()]
    model_id = (entries or [{}])[0].get("root")
    models = get_json(url, "/v1/metadata", None).get("modelInfo", [])
    return next((model.get("precision") for model in models if model.get("shortName") == model_id), None)


def _recorded(wanted: str | None, model_id: str) -> Sequence[RecordedLogits]:
    from rerank_service.tools.verify.recorded import RECORDED, read_recorded, recorded_of

    if wanted is not None and wanted.endswith(".json"):
        return read_recorded(Path(wanted), model_id)
    found = () if wanted == _NONE else recorded_of(wanted or model_id)
    if wanted not in (None, _NONE) and not found:
        known = ", ".join(dict.fromkeys(one.model for one in RECORDED))
        raise fail(f"no logits of {wanted!r} are recorded, only logits of {known}")
    return found


def _show(verdict: Verdict, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(verdict)))
        return
    say(f"served     {verdict.served}")
    say(f"reference  {verdict.reference}")
    folded = (Column(name, overflow="fold") for name in ("check", "found", "allowed"))
    table = Table(*folded, Column("", no_wrap=True), box=None, pad_edge=False, show_edge=False)
    for check in verdict.checks:
        table.add_row(check.name, check.found, check.allowed, "yes" if check.is_passed else "[bold red]NO[/]")
    stdout.print("", table, "", sep="\n")
    for line in _words(verdict):
        say(line)


def _words(verdict: Verdict) -> Iterator[str]:
    figures = verdict.figures
    yield (
        f"{figures.num_pairs} pairs of {figures.num_queries} queries; reference logits: root mean square "
        f"{figures.logit_size:.2f}, spread {figures.logit_spread:.2f}; tolerances of {verdict.dtype.value}"
    )
    of_spread = "no spread" if figures.largest_of_spread is None else f"{figures.largest_of_spread:.2g} of the spread"
    yield (
        f"largest difference {of_spread}; {figures.ordered_alike:.1%} of passage pairs in the same order "
        f"(tau {figures.kendall_tau:.3f}); same best passage for {figures.same_best} of {figures.num_queries} queries"
    )
    for one in verdict.recorded:
        yield f"recorded   {_logits(one.recorded.logits)} ({one.recorded.source})"
        yield f"reference  {_logits(one.reference)}"
        yield f"served     {_logits(one.served)}"
    answer = "YES" if verdict.is_faithful else "NO"
    yield f"{verdict.model}: {answer}, {verdict.reason}"


def _logits(logits: Sequence[float]) -> str:
    return "  ".join(f"{logit:.4f}" for logit in logits)
