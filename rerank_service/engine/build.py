"""From a model's configuration to the engine that runs it, scored once before anyone relies on it."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch

from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.config import EngineConfig, EngineKind, ModelConfig
from rerank_service.engine import loading
from rerank_service.engine.device import cuda
from rerank_service.engine.device.memory import CudaMeter, find_memory_tokens
from rerank_service.engine.kinds.bidirectional_decoder import BidirectionalDecoderEngine, load_bidirectional_decoder
from rerank_service.engine.kinds.late_interaction import LateInteractionEngine, load_late_interaction
from rerank_service.engine.kinds.recognise import recognise_engine
from rerank_service.engine.kinds.sequence_classifier import SequenceClassifierEngine, load_sequence_classifier
from rerank_service.engine.kinds.yes_no_decoder import YesNoDecoderEngine, load_yes_no_decoder
from rerank_service.engine.protocol import Engine, Truncate
from rerank_service.engine.score_all import score_all
from rerank_service.errors import CheckpointError, NonFiniteLogit

__all__ = ["engine_kind", "load_engine", "warm_up"]

logger = logging.getLogger(__name__)

_AnyEngine: TypeAlias = (
    BidirectionalDecoderEngine | SequenceClassifierEngine | LateInteractionEngine | YesNoDecoderEngine
)

_LOADERS: dict[EngineKind, Callable[[Path, EngineConfig, int | None], _AnyEngine]] = {
    EngineKind.BIDIRECTIONAL_DECODER: load_bidirectional_decoder,
    EngineKind.SEQUENCE_CLASSIFIER: load_sequence_classifier,
    EngineKind.LATE_INTERACTION: load_late_interaction,
    EngineKind.YES_NO_DECODER: load_yes_no_decoder,
}


_KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}
"""oneDNN's and ideep's, in kernels. Every size of batch makes its own, of a megabyte and more in all; at their own
bound of 1,024 a replica grows by over a gigabyte, and is no faster for it."""


def load_engine(model: ModelConfig, num_cpus: float | None = None) -> Engine[Any]:
    """The engine of a model, its checkpoint resolved, loaded and warm.

    `num_cpus` are those of the replica; null takes the process's. Sets torch's thread count, which is
    process-wide. Raises `CheckpointError`.
    """
    started = time.perf_counter()
    for name, capacity in _KERNEL_CACHES.items():
        os.environ.setdefault(name, capacity)
    torch.set_num_threads(model.engine.num_threads or _threads(num_cpus))
    folder = resolve_checkpoint(model.checkpoint)
    with cuda.current(loading.resolve_device(model.engine.device)):
        engine = _LOADERS[engine_kind(folder, model.engine)](folder, model.engine, model.window_tokens)
        engine.flops_per_token = 2.0 * loading.num_linear_weights(folder)
        warm_up(engine)
        if engine.device.type == "cuda":
            engine.memory_tokens = find_memory_tokens(engine, CudaMeter(engine.device))
    logger.info(
        "loaded model=%s engine=%s window_tokens=%d memory_tokens=%s num_threads=%d load_s=%.1f",
        *(model.id, engine.description, engine.window_tokens, engine.memory_tokens, torch.get_num_threads()),
        time.perf_counter() - started,
    )
    return engine


def warm_up(engine: Engine[Any]) -> None:
    """Scores one real pair; raises `CheckpointError` if that fails or gives no finite logit."""
    pairs = engine.tokenise("What is reranking?", ["Sorting passages by relevance to a query."], Truncate.END)
    try:
        with engine.caches_off():
            score_all(engine, pairs)
    except (RuntimeError, NotImplementedError) as error:
        raise CheckpointError(f"the first forward pass failed ({engine.description}): {error}") from error
    except NonFiniteLogit:
        raise CheckpointError(
            f"the logit of the first pair is not a finite number ({engine.description}); try dtype: float32"
        ) from None


def engine_kind(folder: Path, options: EngineConfig) -> EngineKind:
    if options.kind is not EngineKind.AUTO:
        return options.kind
    raw = loading.read_model_config(folder)
    kind = recognise_engine(raw, str(folder))
    if kind is EngineKind.BIDIRECTIONAL_DECODER and "pooling" not in raw and options.pooling is None:
        logger.warning(
            "%s says neither how it attends nor how it pools: taken for NVIDIA's, with full attention and average "
            "pooling. If it is one, set engine.kind: bidirectional_decoder; a causal classifier would rank wrongly",
            folder,
        )
    return kind


def _threads(num_cpus: float | None) -> int:
    if num_cpus is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(num_cpus))
