"""Random checkpoints with the published shapes of the 1B and the 4B, and engines that say what they really do."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.on_gpu.plan import Variant
from rerank_service.config import CheckpointConfig, Dtype, EngineConfig, ModelConfig
from rerank_service.engine import Engine, load_engine
from rerank_service.engine.loading import read_model_config
from rerank_service.tools.random_checkpoints.make import Architecture, make_checkpoint

__all__ = ["MODELS", "EngineState", "collected_warnings", "counted_replays", "load", "state_of", "window", "written"]

MODELS = {
    "1b": (Architecture.LLAMA_BIDIREC, "1b"),
    "4b": (Architecture.MISTRAL, "4b"),
    "small": (Architecture.LLAMA_BIDIREC, "small"),
    "tiny": (Architecture.LLAMA_BIDIREC, "tiny"),
}
_WINDOW = 8192


def written(folder: Path, model: str, device: str) -> Path:
    """The checkpoint of a model in `folder`; written first, unless an earlier call has left it there."""
    checkpoint = folder.resolve() / f"{model}-drawn-on-{device.partition(':')[0]}"
    if not checkpoint.is_dir():
        architecture, shape = MODELS[model]
        make_checkpoint(checkpoint, architecture, shape, dtype="bfloat16", device=device)
    return checkpoint


def window(checkpoint: Path) -> int:
    """Window of the engines: at most 8,192 tokens, the published window of the 1B."""
    return min(_WINDOW, int(read_model_config(checkpoint)["max_position_embeddings"]))


def load(checkpoint: Path, variant: Variant, device: str) -> Engine[Any]:
    """Loads an engine as a replica does."""
    options = EngineConfig(
        device=device,
        dtype=Dtype(variant.dtype),
        compile=variant.is_compiled,
        cuda_graphs=variant.has_graphs,
    )
    source = CheckpointConfig(source=str(checkpoint))
    return load_engine(ModelConfig(id="bench", checkpoint=source, engine=options, window_tokens=window(checkpoint)))


class EngineState(NamedTuple):
    """What an engine does, read from torch and not from its settings."""

    precision: str
    is_compiled: bool
    num_replays: int
    """Batches that ran as a CUDA graph."""
    num_batches: int

    def __str__(self) -> str:
        parts = [self.precision, "compiled" if self.is_compiled else "eager"]
        if self.num_replays:
            is_all = self.num_replays == self.num_batches
            parts.append("graphs" if is_all else f"graphs for {self.num_replays} of {self.num_batches} batches")
        return ", ".join(parts)


def state_of(engine: Any, num_replays: int, num_batches: int) -> EngineState:
    """The state of an engine after some batches. An engine that gave up compilation has no compiled layers."""
    modules = engine.backbone.modules()
    is_compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module in modules)
    return EngineState(engine.precision, is_compiled, num_replays, num_batches)


class _Replays:
    def __init__(self) -> None:
        self.count = 0


@contextmanager
def counted_replays() -> Iterator[_Replays]:
    """Counts the replays of CUDA graphs by engines that are loaded in this context."""
    replays, replay = _Replays(), torch.cuda.CUDAGraph.replay

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        replays.count += 1
        replay(graph)

    torch.cuda.CUDAGraph.replay = counted  # type: ignore[method-assign]
    try:
        yield replays
    finally:
        torch.cuda.CUDAGraph.replay = replay  # type: ignore[method-assign]


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collects the service's warnings, for example that graphs were turned off, and still prints them."""
    collector, logger = _Collector(), logging.getLogger("rerank_service")
    logger.addHandler(collector)
    try:
        yield collector.messages
    finally:
        logger.removeHandler(collector)
