"""`rerank-service make-checkpoint`: writes a randomly initialised checkpoint."""

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rerank_service.tools.cli.console import fail
from rerank_service.tools.files import file_problem
from rerank_service.tools.random_checkpoints.shapes import Architecture

__all__ = ["make_checkpoint_command"]

_SMALL_SIZES = {"tiny", "small"}


class DType(StrEnum):
    """The element type of the weights."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


def make_checkpoint_command(
    architecture: Annotated[Architecture, typer.Argument(help="The model family.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write to; created if missing.")],
    size: Annotated[
        str, typer.Option(help="tiny or small; also 1b (llama_bidirec), 4b (mistral), and 0.6b, 4b or 8b (qwen3).")
    ] = "tiny",
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights.")] = 0,
    dtype: Annotated[DType, typer.Option(help="Number format of the weights.")] = DType.BFLOAT16,
    head_bias: Annotated[bool, typer.Option("--head-bias", help="Add score.bias; mistral only.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing checkpoint.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a randomly initialised reranker checkpoint.

    Its rankings are meaningless: it is for tests and speed measurements.
    """
    # imported here, because torch and transformers take seconds and --help does not need them
    from rerank_service.tools.random_checkpoints.make import count_parameters, make_checkpoint

    started = time.monotonic()
    try:
        make_checkpoint(
            folder,
            architecture,
            size,
            seed=seed,
            dtype=dtype.value,
            head_bias=head_bias,
            overwrite=force,
            progress=size not in _SMALL_SIZES,
        )
    except ValueError as error:
        raise fail(str(error)) from error
    except OSError as error:
        raise fail(file_problem(error, folder, is_output=True)) from None
    num_parameters = count_parameters(architecture, size, head_bias=head_bias)
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    seconds = time.monotonic() - started
    if as_json:
        facts = {"folder": str(folder), "parameters": num_parameters, "bytes": num_bytes, "seconds": round(seconds, 2)}
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"{folder}: {num_parameters:,} parameters, {num_bytes:,} bytes, {seconds:.1f} s")
