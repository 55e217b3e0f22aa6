"""`rerank-service pull`: fetches a model's files to this machine and verifies them before they are used."""

import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from rerank_service.checkpoints.pull import Fetched, pull
from rerank_service.checkpoints.resolve import PACKAGED_CHECKPOINTS, resolve_checkpoint
from rerank_service.config import CheckpointConfig
from rerank_service.errors import CheckpointError
from rerank_service.tools.catalogue import known_model
from rerank_service.tools.catalogue.locate import locate
from rerank_service.tools.cli.progress import ProgressBar

__all__ = ["pull_command"]


def pull_command(
    model: Annotated[
        str,
        typer.Argument(
            help="A known model's name, ORG/NAME[@REVISION] on the hub, or a folder such as s3://bucket/folder."
        ),
    ],
    to: Annotated[
        Path | None, typer.Option(help="Folder for the files instead of this machine's cache; created if missing.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fetch a model's files and check every byte.

    The files are the model's safetensors, tokenizer and configuration. Files already present are checked; only damaged
    or missing files are fetched. A pull that was stopped resumes where it ended.
    """
    started = time.monotonic()
    if to is None and (package := _installed(model)):
        folder = resolve_checkpoint(CheckpointConfig(source=package))  # checks the digest of the weights
        told = f"{model}: the weights are installed as a package and need no pull; their digest is correct"
        typer.echo(json.dumps({"source": package, "folder": str(folder)}) if as_json else f"{told}\n{folder}")
        return
    source, revision = _place(model)
    with ProgressBar(fetching="MB", checking="MB") as progress:
        fetched = pull(source, revision, to=to, progress=progress)
    seconds = time.monotonic() - started
    if as_json:
        typer.echo(json.dumps(_facts(fetched, revision, seconds)))
        return
    typer.echo("\n".join(_lines(fetched, revision, seconds, is_folder=to is not None)))


def _installed(model: str) -> str | None:
    """The `package:NAME` of a model whose files are in an installed package; null for any other model."""
    if model.startswith("package:"):
        return model
    known = known_model(model)
    if known is None or known.package is None:
        return None
    return known.source if find_spec(PACKAGED_CHECKPOINTS[known.package].module) else None


def _place(model: str) -> tuple[str, str | None]:
    """Source and revision of the model named on the command line. Raises `CheckpointError` if it cannot be fetched."""
    name, _, revision = model.partition("@")
    if not name.strip():
        raise CheckpointError(
            f"{model!r} names no model: give a known model, ORG/NAME, or a path such as s3://bucket/folder"
        )
    known = known_model(name)
    if known is not None and known.refusal is not None:
        raise CheckpointError(f"{known.name} is not fetched, because no engine runs it: {known.refusal}")
    if known is not None and known.hub_id is not None:
        return known.hub_id, revision or known.revision
    if known is not None and known.source.startswith("package:"):
        package = PACKAGED_CHECKPOINTS[known.source.removeprefix("package:")]
        raise CheckpointError(f"{name} is a Python package, not a model on the hub: {package.install}")
    if "://" in name or ("/" in name and known is None and not name.startswith(("/", ".", "~"))):
        return name, revision or None
    if known is not None:
        raise CheckpointError(f"{known.name} has no public location; give your own: ORG/NAME or s3://bucket/folder")
    located = locate(model)  # an unknown name ends here
    raise CheckpointError(f"{located.source} is a folder, which needs no pull: rerank-service serve {model}")


def _lines(fetched: Fetched, asked: str | None, seconds: float, *, is_folder: bool) -> list[str]:
    manifest = fetched.manifest
    sizes = [record.size_bytes for record in manifest.files.values()]
    num_unchecked = sum(record.checked_against is None for record in manifest.files.values())
    verified = (
        "every digest checked" if not num_unchecked else "digests recorded but not checked: the source publishes none"
    )
    source = str(fetched.folder) if is_folder else manifest.source
    pin = [] if is_folder else [f"      revision: {manifest.revision}"]
    return [
        f"{manifest.source}: {_asked(manifest.source, asked)}{manifest.revision}",
        f"{len(sizes)} files, {sum(sizes) / 1e6:,.1f} MB, of which {fetched.received_bytes / 1e6:,.1f} MB were fetched "
        f"now in {seconds:.1f} s; {verified}",
        str(fetched.folder),
        "",
        "for the model's configuration:",
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
