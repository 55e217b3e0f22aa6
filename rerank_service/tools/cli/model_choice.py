"""Which model a command that loads models itself is to use; it must not know what for."""

from pathlib import Path

from pydantic import ValidationError
from rich.markup import escape

from rerank_service.config import CheckpointConfig, Dtype, ModelConfig, readable_problems
from rerank_service.tools.cli.check import checked_config
from rerank_service.tools.cli.console import fail

__all__ = ["choose_model", "is_source"]


def choose_model(name: str | None, config: str, dtype: Dtype | None = None) -> ModelConfig:
    """A model of a configuration by its id or alias, its default model, or a checkpoint by its source.

    A source is `package:NAME`, a folder (starts with `/`, `.` or `~`), or a hub id or an object store's folder with its
    revision, `organisation/name@COMMIT`. Ends the program for what is none of these.
    """
    model = _by_source(name) if name is not None and is_source(name) else _by_name(name, config)
    if dtype is None:
        return model
    return model.model_copy(update={"engine": model.engine.model_copy(update={"dtype": dtype})})


def is_source(name: str) -> bool:
    """Whether it names files rather than a model of the configuration."""
    return name.startswith(("package:", "/", ".", "~")) or "@" in name or "://" in name


def _by_source(name: str) -> ModelConfig:
    source, _, revision = name.partition("@") if not name.startswith(("/", ".", "~")) else (name, "", "")
    try:
        return ModelConfig(id=_short(source), checkpoint=CheckpointConfig(source=source, revision=revision or None))
    except ValidationError as error:
        raise fail(escape(f"{name} is no checkpoint\n{readable_problems(error)}")) from None


def _short(source: str) -> str:
    return Path(source).expanduser().resolve().name if source.startswith(("/", ".", "~")) else source


def _by_name(name: str | None, config: str) -> ModelConfig:
    settings = checked_config(config)
    wanted = (name or settings.default_model_id).casefold()
    model = next((m for m in settings.models if wanted in map(str.casefold, m.names)), None)
    if model is None:
        raise fail(
            f"{config} has no model {name!r}; it has {', '.join(m.id for m in settings.models)} "
            "(a folder starts with / or .)"
        )
    return model
