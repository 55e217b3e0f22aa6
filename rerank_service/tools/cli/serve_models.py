"""Turns the models named on the command line of `rerank-service serve` into a Serve configuration for this machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rerank_service.checkpoints.pull import Fetched, pull
from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.config import Dtype, EngineConfig, parse_serve_config
from rerank_service.errors import CheckpointError, ConfigError
from rerank_service.tools.catalogue import KnownModel
from rerank_service.tools.catalogue.fit import Machine, sized, this_machine
from rerank_service.tools.catalogue.locate import Located, locate
from rerank_service.tools.cli.console import fail, stderr
from rerank_service.tools.cli.per_model import bounds, by_model, refuse_repeated
from rerank_service.tools.cli.progress import ProgressBar
from rerank_service.tools.deployment.placement import DeviceChoice, Placement, place
from rerank_service.tools.deployment.serve_yaml import Layout, ServedModel, serve_yaml

__all__ = ["ModelOptions", "models_yaml"]


class ModelOptions(NamedTuple):
    """Options of `serve` that apply to models."""

    layout: Layout
    device: DeviceChoice = DeviceChoice.AUTO
    dtype: Dtype | None = None
    replicas: Sequence[str] = ()


class _Files(NamedTuple):
    """A model with its pinned source, and its folder if the files are on this machine."""

    located: Located
    folder: Path | None

    @property
    def model(self) -> KnownModel:
        """The model with its sizes, as far as the catalogue or the files state them."""
        return self.located.known if self.folder is None else sized(self.located.known, self.folder)


def models_yaml(texts: Sequence[str], options: ModelOptions, command: str, *, fetches: bool) -> str:
    """The configuration that serves these models on this machine. Its first line names `command`.

    With `fetches`, missing files are fetched, and the progress and the choices are printed. Ends the program with one
    line if a model is unknown, cannot be fetched, is not supported by any engine, or does not fit this machine.
    """
    try:
        found = [locate(text) for text in texts]
        refuse_repeated([one.known for one in found])
        wanted = by_model("--replicas", options.replicas, [one.known for one in found], bounds)
        chosen = {one.known.id: number for one in found if (number := wanted(one.known)) is not None}
        files = [_files(one, fetches=fetches) for one in found]
        machine = this_machine()
        placements = place([one.model for one in files], machine, options.device, options.dtype, chosen)
        text = serve_yaml(_served(files, placements, options), options.layout, command)
        parse_serve_config(text, "this configuration")
    except (CheckpointError, ConfigError) as error:
        raise fail(str(error)) from None
    for one, placement in zip(files, placements, strict=True):
        _explain(one, placement, machine, is_brief=not fetches)
    return text


def _files(located: Located, *, fetches: bool) -> _Files:
    """Raises `CheckpointError` if the files cannot be fetched, or if no engine runs the model."""
    located = located.pinned().absolute()
    if located.is_pinned:
        try:
            folder = resolve_checkpoint(located.checkpoint.model_copy(update={"download": False}))
            return _supported(_Files(located, folder))
        except CheckpointError:
            if not located.checkpoint.is_fetched:
                raise
    if not fetches and not located.is_pinned:
        raise CheckpointError(
            f"{located.source} needs @REVISION here: the 64 digits that `rerank-service pull {located.source}` prints"
        )
    if not fetches:
        return _Files(located, None)
    fetched = _pull(located)
    return _supported(_Files(located._replace(revision=fetched.manifest.revision), fetched.folder))


def _pull(located: Located) -> Fetched:
    with ProgressBar(fetching="MB", checking="MB") as progress:
        fetched = pull(located.source, located.revision, progress=progress, thorough=False)
    _say(f"{located.source}: fetched {fetched.received_bytes / 1e6:,.1f} MB")
    return fetched


def _supported(files: _Files) -> _Files:
    """Raises `CheckpointError` if the files are not a model that an engine runs. The engines check the tensors when
    they load."""
    from rerank_service.engine.build import check_checkpoint  # imports torch

    if files.folder is not None:
        check_checkpoint(files.folder, EngineConfig.model_validate(files.located.known.engine_settings))
    return files


def _served(files: Sequence[_Files], placements: Sequence[Placement], options: ModelOptions) -> list[ServedModel]:
    return [
        ServedModel(
            one.located.known,
            one.located.checkpoint,
            placement.num_gpus,
            placement.num_cpus,
            placement.replicas,
            device="cpu" if options.device is DeviceChoice.CPU else None,
            dtype=options.dtype,
        )
        for one, placement in zip(files, placements, strict=True)
    ]


def _explain(files: _Files, placement: Placement, machine: Machine, *, is_brief: bool) -> None:
    """Prints the source and the placement of a model, or, if `is_brief`, only warnings."""
    located, (fewest, most) = files.located, placement.replicas
    kind = "commit" if located.checkpoint.is_hub_id else "revision"
    pin = f" at {kind} {located.revision}" if located.revision else ""
    number = f"{fewest} to {most} replicas" if fewest < most else f"{most} replica{'s' if most != 1 else ''}"
    each = " each" if most > 1 else ""
    amount = f"{placement.num_gpus:g} GPU" if placement.num_gpus else f"{placement.num_cpus:g} CPU"
    device = "on this machine's GPUs" if placement.num_gpus and len(machine.gpus) > 1 else "on the GPU"
    if not is_brief:
        _say(f"{located.known.id}: {located.source}{pin}")
        where = device if placement.num_gpus else "on the CPU"
        plural = "s" if placement.num_cpus != 1 and not placement.num_gpus else ""
        _say(f"  {where}, {number} of {amount}{plural}{each}")
    if placement.warning:
        _say(f"warning: {placement.warning}")
    if files.folder is None and located.known.num_parameters is None:
        _say(
            f"note: {located.source} is not on this machine; once it is, its size may change the numbers of CPUs and "
            "replicas"
        )


def _say(line: str) -> None:
    stderr.print(line, markup=False, highlight=False, soft_wrap=True)
