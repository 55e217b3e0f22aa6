"""Options that several subcommands share: the configuration file, a model, windows for long passages.

`rank` uses these options with a running service too, and must not wait for `rerank_service.config`, which takes a
third of a second to import: only the functions that read a configuration import it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rerank_service.messages import DEFAULT_OVERLAP_TOKENS, MIN_WINDOW_TOKENS, PassageWindows
from rerank_service.tools.cli.console import fail, stderr

if TYPE_CHECKING:
    from rerank_service.config import Dtype, ModelConfig, RerankConfig

__all__ = [
    "DEFAULT_OVERLAP_TOKENS",
    "ConfigOption",
    "ConfigPath",
    "MaxWindows",
    "OverlapTokens",
    "WindowTokens",
    "checked_config",
    "choose_model",
    "config_file",
    "is_source",
    "passage_windows",
]

_CONFIG = "serve_config.yaml"
_PACKAGED_CONFIG = Path(__file__).parents[1] / "deployment" / _CONFIG

ConfigPath = Annotated[str | None, typer.Argument(help="Serve configuration file.", show_default=_CONFIG)]
ConfigOption = Annotated[str | None, typer.Option(help="Where the models are configured.", show_default=_CONFIG)]

MaxWindows = Annotated[
    int, typer.Option(min=1, help="Score a long passage in up to this many windows; the best counts. 1 truncates it.")
]
WindowTokens = Annotated[
    int | None,
    typer.Option(min=MIN_WINDOW_TOKENS, help="Tokens of the passage in a window; as many as fit if not given."),
]
OverlapTokens = Annotated[int, typer.Option(min=0, help="Tokens that consecutive windows share.")]


def passage_windows(max_windows: int, window_tokens: int | None, overlap_tokens: int) -> PassageWindows | None:
    """Null: long passages are truncated."""
    return PassageWindows(max_windows, window_tokens, overlap_tokens) if max_windows > 1 else None


def config_file(path: str | None) -> str:
    """`path`; if not given, this folder's `serve_config.yaml`, or else the packaged one, which serves the embedded
    model."""
    if path is not None or Path(_CONFIG).exists():
        return path or _CONFIG
    stderr.print(f"no {_CONFIG} here: using {_PACKAGED_CONFIG}", markup=False, highlight=False, soft_wrap=True)
    return str(_PACKAGED_CONFIG)


def checked_config(path: str) -> "RerankConfig":
    """The settings of a file. Ends the program with every problem found in it."""
    from rerank_service.config import load_config
    from rerank_service.errors import ConfigError

    try:
        return load_config(Path(path))
    except ConfigError as error:
        raise fail(f"{path} cannot be served\n{error}") from None


def choose_model(name: str | None, config: str | None, dtype: "Dtype | None" = None) -> "ModelConfig":
    """A model of a configuration by its id or alias (null: its default model), or a checkpoint by its source.

    A source is `package:NAME`, a folder (starts with `/`, `.` or `~`), or a hub id or an object store's folder with its
    revision, `organisation/name@COMMIT`. Ends the program if `name` is none of these.
    """
    if name is not None and is_source(name):
        model = _checkpoint_model(name)
    else:
        path = config_file(config)
        settings = checked_config(path)
        wanted = (name or settings.default_model_id).casefold()
        found = next((one for one in settings.models if wanted in map(str.casefold, one.names)), None)
        if found is None:
            known = ", ".join(one.id for one in settings.models)
            raise fail(f"{path} has no model {name!r}; it has {known} (a folder starts with / or .)")
        model = found
    if dtype is None:
        return model
    return model.model_copy(update={"engine": model.engine.model_copy(update={"dtype": dtype})})


def is_source(name: str) -> bool:
    """Whether `name` is a checkpoint's source rather than a model of the configuration."""
    return name.startswith(("package:", "/", ".", "~")) or "@" in name or "://" in name


def _checkpoint_model(name: str) -> "ModelConfig":
    from pydantic import ValidationError

    from rerank_service.config import CheckpointConfig, ModelConfig, readable_problems

    is_folder = name.startswith(("/", ".", "~"))
    source, _, revision = (name, "", "") if is_folder else name.partition("@")
    try:
        model_id = Path(source).expanduser().resolve().name if is_folder else source
        return ModelConfig(id=model_id, checkpoint=CheckpointConfig(source=source, revision=revision or None))
    except ValidationError as error:
        raise fail(f"{name} is not a checkpoint\n{readable_problems(error)}") from None
