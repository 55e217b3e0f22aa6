"""Options that several subcommands share: the configuration file, a model, windows for long passages.

`rerank_service.config` takes a third of a second to import, and `rank` does not need it with a running service. For
this reason, only the functions that read a configuration import it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from rerank_service.messages import DEFAULT_OVERLAP_TOKENS, MIN_WINDOW_TOKENS, PassageWindows
from rerank_service.tools.cli.console import fail, stderr

if TYPE_CHECKING:
    from rerank_service.config import Dtype, ModelConfig, RerankConfig

__all__ = [
    "CONFIG_FILE",
    "DEFAULT_OVERLAP_TOKENS",
    "Chosen",
    "ConfigOption",
    "ConfigPath",
    "MaxWindows",
    "OverlapTokens",
    "WindowTokens",
    "checked_config",
    "choose",
    "choose_model",
    "config_file",
    "is_source",
    "missing_folders",
    "passage_windows",
]

CONFIG_FILE = "serve_config.yaml"
"""Configuration file in the current folder that commands use by default."""
_PACKAGED_CONFIG = Path(__file__).parents[1] / "deployment" / CONFIG_FILE

ConfigPath = Annotated[str | None, typer.Argument(help="Serve configuration file.", show_default=CONFIG_FILE)]
ConfigOption = Annotated[str | None, typer.Option(help="File that configures the models.", show_default=CONFIG_FILE)]

MaxWindows = Annotated[
    int,
    typer.Option(
        min=1,
        help="Maximum number of windows per long passage; the best window's logit becomes the passage's logit. "
        "1: truncate.",
    ),
]
WindowTokens = Annotated[
    int | None,
    typer.Option(min=MIN_WINDOW_TOKENS, help="Passage tokens per window; by default all that fit."),
]
OverlapTokens = Annotated[int, typer.Option(min=0, help="Tokens that consecutive windows share.")]


class Chosen(NamedTuple):
    """A model that the command line names."""

    model: "ModelConfig"
    is_configured: bool
    """Whether the model is in the configuration."""


def passage_windows(max_windows: int, window_tokens: int | None, overlap_tokens: int) -> PassageWindows | None:
    """The windows for long passages; null if long passages are truncated."""
    return PassageWindows(max_windows, window_tokens, overlap_tokens) if max_windows > 1 else None


def config_file(path: str | None) -> str:
    """`path` if given, else `serve_config.yaml` in the current folder, else the packaged file, which serves the
    embedded model."""
    if path is not None or Path(CONFIG_FILE).exists():
        return path or CONFIG_FILE
    stderr.print(f"no {CONFIG_FILE} here: using {_PACKAGED_CONFIG}", markup=False, highlight=False, soft_wrap=True)
    return str(_PACKAGED_CONFIG)


def checked_config(path: str) -> "RerankConfig":
    """The settings in a file. If they are invalid, ends the program and prints every problem."""
    from rerank_service.config import load_config
    from rerank_service.errors import ConfigError

    try:
        return load_config(Path(path))
    except ConfigError as error:
        raise fail(f"{path} cannot be served\n{error}") from None


def missing_folders(settings: "RerankConfig") -> Iterator[str]:
    """A warning for each model whose folder this machine does not have; nodes with its replicas may have it."""
    for model in settings.models:
        source = model.checkpoint.source
        if model.checkpoint.is_folder and not Path(source).expanduser().is_dir():
            yield f"checkpoint.source {source} of {model.id} is not a folder on this machine; its replicas need it"


def choose_model(name: str | None, config: str | None, dtype: "Dtype | None" = None) -> "ModelConfig":
    """The settings of the model that the command line names; see `choose`."""
    return choose(name, config, dtype).model


def choose(name: str | None, config: str | None, dtype: "Dtype | None" = None) -> Chosen:
    """The configured model with the id or alias `name`, or else the model that `locate` finds.

    If `name` is null, returns the configuration's default model. For a cascade, returns the model of its last stage,
    and prints a note. The configuration is not read if `name` can only be
    the source of a checkpoint. Ends the program if `name` is neither configured nor found. Raises `CheckpointError`.
    """
    found = None
    if name is None or not is_source(name):
        path = config_file(config)
        settings = checked_config(path)
        wanted = (name or settings.default_model_id).casefold()
        found = _configured(wanted, settings)
        if found is None:
            _refuse_unknown(str(name), path, settings)  # the default model is always found
    model = found or _located_model(str(name))
    if dtype is not None:
        model = model.model_copy(update={"engine": model.engine.model_copy(update={"dtype": dtype})})
    return Chosen(model, is_configured=found is not None)


def _configured(wanted: str, settings: "RerankConfig") -> "ModelConfig | None":
    """The model with this name, which is in lower case. For a cascade, the model of its last stage."""
    found = next((one for one in settings.named if wanted in map(str.casefold, one.names)), None)
    if found is None:
        return None
    model = settings.single_model(found)
    if model is not found:
        note = f"{found.id} is a cascade: using the model of its last stage, {model.id}"
        stderr.print(note, markup=False, highlight=False, soft_wrap=True)
    return model


def is_source(name: str) -> bool:
    """Whether `name` is the source of a checkpoint rather than a model in the configuration."""
    return name.startswith(("package:", "/", ".", "~")) or "@" in name or "://" in name


def _refuse_unknown(name: str, path: str, settings: "RerankConfig") -> None:
    """Ends the program unless `locate` can read `name`, which needs no network."""
    from rerank_service.errors import CheckpointError
    from rerank_service.tools.catalogue.locate import locate

    try:
        locate(name)
    except CheckpointError as error:
        configured = ", ".join(one.id for one in settings.named)
        raise fail(f"{path} has no model {name!r}; it has {configured}. {error}") from None


def _located_model(name: str) -> "ModelConfig":
    from rerank_service.tools.catalogue.settings import LoadOptions, model_settings
    from rerank_service.tools.cli.progress import ProgressBar

    with ProgressBar(fetching="MB", checking="MB") as progress:  # an object store's files are fetched for their digest
        return model_settings(name, LoadOptions(), progress)
