"""Turns a model's name or location, and options of a Python program, into the settings for loading the model."""

import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from rerank_service.checkpoints.pull import pull
from rerank_service.checkpoints.verification import Progress
from rerank_service.config import ModelConfig, readable_problems
from rerank_service.tools.catalogue.locate import Located, locate

__all__ = ["LoadOptions", "ModelName", "model_settings"]

logger = logging.getLogger(__name__)

ModelName = str | os.PathLike[str] | ModelConfig
"""A text that `locate` reads, a folder, or complete settings."""


class LoadOptions(NamedTuple):
    """Options that replace a model's own settings. Null keeps the model's setting, as does `auto` for the device."""

    device: str = "auto"
    dtype: str | None = None
    num_threads: int | None = None
    window_tokens: int | None = None
    batch_tokens: int | None = None


def model_settings(model: ModelName, options: LoadOptions, progress: Progress) -> ModelConfig:
    """The settings of a model with a pinned checkpoint.

    On the kind of device that a known model is made for, it has the catalogue's precision and batch size, as with
    `rerank-service serve`. Asks the hub for the commit of a branch, and fetches an object store's files if no revision
    is given. Raises `CheckpointError`, and `ValueError` for an invalid option.
    """
    if isinstance(model, ModelConfig):
        settings = model.model_dump()
    else:
        # Absolute, because `locate` reads a relative path such as org/name as a repository on the hub.
        text = model if isinstance(model, str) else str(Path(model).expanduser().absolute())
        settings = _of_catalogue(_pinned(locate(text), progress), options.device)
    device = None if options.device == "auto" else options.device
    engine = {"device": device, "dtype": options.dtype, "num_threads": options.num_threads}
    settings["engine"] |= _chosen(engine)
    settings["batching"] |= _chosen({"max_batch_tokens": options.batch_tokens})
    settings |= _chosen({"window_tokens": options.window_tokens})
    try:
        return ModelConfig.model_validate(settings)
    except ValidationError as error:
        raise ValueError(readable_problems(error, ModelConfig)) from None


def _pinned(located: Located, progress: Progress) -> Located:
    located = located.pinned()
    if not located.is_pinned:  # only a pull computes the revision of an object store
        fetched = pull(located.source, progress=progress, thorough=False)
        located = located._replace(revision=fetched.manifest.revision)
    logger.info("model=%s source=%s revision=%s", located.known.id, located.source, located.revision)
    return located


def _of_catalogue(located: Located, device: str) -> dict[str, Any]:
    from rerank_service.engine.device.choose import choose_device  # imports torch

    known = located.known
    suits = choose_device(device).is_gpu == bool(known.num_gpus)
    return {
        "id": known.id,
        "checkpoint": located.checkpoint.model_dump(),
        "window_tokens": known.window_tokens,
        "engine": known.engine_settings | ({"dtype": known.dtype} if suits else {}),
        "batching": {"max_batch_tokens": known.max_batch_tokens} if suits else {},
    }


def _chosen(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
