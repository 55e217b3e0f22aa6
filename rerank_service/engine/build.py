"""Builds the engine for a model's configuration and scores one pair as a check."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.checkpoints.verification import Progress, no_progress
from rerank_service.config import EngineConfig, EngineKind, ModelConfig
from rerank_service.engine import loading
from rerank_service.engine.choose_precision import choose_precision
from rerank_service.engine.device import cuda
from rerank_service.engine.device.choose import ChosenDevice, choose_device
from rerank_service.engine.device.heap import return_freed_memory
from rerank_service.engine.device.memory import measure_device
from rerank_service.engine.device.precision import Precision
from rerank_service.engine.kinds.bidirectional_decoder import BidirectionalDecoderEngine
from rerank_service.engine.kinds.checkpoint_engine import CheckpointEngine
from rerank_service.engine.kinds.late_interaction import LateInteractionEngine
from rerank_service.engine.kinds.late_interaction_format import read_format
from rerank_service.engine.kinds.sequence_classifier import SequenceClassifierEngine
from rerank_service.engine.kinds.yes_no_decoder import YesNoDecoderEngine
from rerank_service.engine.protocol import Agree, Engine, RunAlone, Truncate, choose_here, run_here
from rerank_service.engine.recognise import recognise_engine
from rerank_service.engine.score_all import score_all
from rerank_service.engine.text import tokenise
from rerank_service.engine.text.published_prompts import answer_tokens
from rerank_service.engine.verdicts import unverified_reason
from rerank_service.errors import CheckpointError, NonFiniteLogit
from rerank_service.messages import StartTimes

__all__ = ["check_checkpoint", "engine_kind", "load_engine", "load_trainable", "warm_up"]

logger = logging.getLogger(__name__)

_ENGINES: dict[EngineKind, type[CheckpointEngine[Any]]] = {
    EngineKind.BIDIRECTIONAL_DECODER: BidirectionalDecoderEngine,
    EngineKind.SEQUENCE_CLASSIFIER: SequenceClassifierEngine,
    EngineKind.LATE_INTERACTION: LateInteractionEngine,
    EngineKind.YES_NO_DECODER: YesNoDecoderEngine,
}

_KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}
"""Capacities of oneDNN's and ideep's kernel caches. Each new batch size adds over a megabyte of kernels: with the
default capacity of 1,024, a replica grows by more than a gigabyte and is no faster than with 128."""


def load_engine(
    model: ModelConfig,
    num_cpus: float | None = None,
    progress: Progress = no_progress,
    *,
    num_gpus: float | None = None,
    run_alone: RunAlone = run_here,
    agree: Agree = choose_here,
) -> Engine[Any]:
    """Resolves a model's checkpoint, loads its engine and warms it up; on a GPU, also compiles it and captures graphs.

    `num_cpus` and `num_gpus` are reserved for the replica; null: the process may use all its CPUs, and a whole GPU if
    one is visible. `progress` is told about fetching. `run_alone` runs the steps during which no other model may use
    the GPU. `agree` settles the precision. Sets the process's number of torch threads. Raises `CheckpointError`.
    """
    for name, capacity in _KERNEL_CACHES.items():
        os.environ.setdefault(name, capacity)
    torch.set_num_threads(model.engine.num_threads or _num_threads(num_cpus))
    clock = _StageClock()
    with clock("fetch"):
        folder = resolve_checkpoint(model.checkpoint, progress)
    raw, chosen = loading.read_model_config(folder), choose_device(model.engine.device, num_gpus)
    checkpoint = loading.Checkpoint(folder, raw, model.engine, model.window_tokens, chosen.device)
    with cuda.current(chosen.device):
        chosen.limit_memory()
        is_fixed = chosen.is_gpu and model.engine.batch_invariant
        if is_fixed:
            cuda.forbid_divided_sums()
        with clock("weights"):
            engine = _create(checkpoint, agree)
            if is_fixed:
                engine.fix_shape(model.batching.max_batch_tokens or engine.default_batch_tokens)
        with clock("warm_up"):
            warm_up(engine)
        if chosen.is_gpu:
            _prepare_gpu(engine, chosen, clock, run_alone)
    return_freed_memory()
    engine.start_times = clock.times
    engine.unverified = unverified_reason(engine.assumptions, model, folder)
    logger.info(
        "loaded model=%s engine=%s window_tokens=%d memory_tokens=%s num_threads=%d compiled=%s graphs=%d load_s=%.1f "
        "fetch_s=%.1f weights_s=%.1f compile_s=%.1f capture_s=%.1f warm_up_s=%.1f",
        *(model.id, engine.description, engine.window_tokens, engine.memory_tokens, torch.get_num_threads()),
        *(engine.is_compiled, engine.num_graphs, sum(engine.start_times), *engine.start_times),
    )
    return engine


def load_trainable(model: ModelConfig, progress: Progress = no_progress) -> CheckpointEngine[Any]:
    """A model's engine in float32, whose `forward` passes gradients on if the backbone's attention does. All weights
    are frozen. Sets the process's number of torch threads. Raises `CheckpointError`."""
    torch.set_num_threads(model.engine.num_threads or _num_threads(None))
    folder = resolve_checkpoint(model.checkpoint, progress)
    raw, device = loading.read_model_config(folder), choose_device(model.engine.device).device
    precision = Precision(torch.float32, is_trainable=True)
    kind = engine_kind(folder, model.engine)
    return _ENGINES[kind](loading.Checkpoint(folder, raw, model.engine, model.window_tokens, device, precision))


def _create(checkpoint: loading.Checkpoint, agree: Agree) -> CheckpointEngine[Any]:
    """The engine of the checkpoint's kind, with its weights, in the agreed precision."""
    kind = engine_kind(checkpoint.folder, checkpoint.options)
    precision, numerics = choose_precision(checkpoint, kind, agree)
    engine = _ENGINES[kind](checkpoint._replace(precision=precision))
    engine.numerics = numerics
    num_weights = loading.num_linear_weights(checkpoint.folder, engine.unused_prefixes)
    engine.flops_per_token = 2.0 * num_weights  # a multiplication and an addition
    return engine


def _prepare_gpu(
    engine: CheckpointEngine[Any], chosen: ChosenDevice, clock: "_StageClock", run_alone: RunAlone
) -> None:
    """Compiles the layers, then captures graphs, then measures memory: each step needs the earlier ones."""
    with clock("compile"):
        engine.compile_layers(torch.get_num_threads())
    with clock("capture"):
        engine.capture_graphs(chosen.peak_flops_per_s, run_alone)
    with clock("warm_up"):
        run_alone(partial(_measure, engine, chosen))
    engine.end_start()


def _measure(engine: CheckpointEngine[Any], chosen: ChosenDevice) -> None:
    with cuda.current(engine.device):  # perhaps in another thread
        warm_up(engine)  # now compiled, and as a graph
        with engine.graphs_off():
            measure_device(engine, chosen)


class _StageClock:
    """Measures the stages of a start. A stage may have several parts."""

    def __init__(self) -> None:
        self.times = StartTimes()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        field = f"{stage}_s"
        self.times = self.times._replace(**{field: getattr(self.times, field) + time.perf_counter() - started})


def check_checkpoint(folder: Path, options: EngineConfig) -> None:
    """Checks what needs no weights in memory: the kind of engine, the files of weights, the tokenizer, a classifier's
    labels, and the settings of late interaction. Raises `CheckpointError`. Only the engines themselves compare the
    tensors with config.json."""
    kind = engine_kind(folder, options)
    loading.tensor_files(folder)
    tokenise.load_tokenizer(folder, options.special_tokens)
    if kind is EngineKind.SEQUENCE_CLASSIFIER:
        loading.classifier_config(folder)
    elif kind is EngineKind.LATE_INTERACTION:
        read_format(folder, loading.read_model_config(folder))


def warm_up(engine: Engine[Any]) -> None:
    """Scores one pair. Raises `CheckpointError` if the forward pass fails or the logit is not finite."""
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
    """The configured engine kind; for `auto`, the kind that config.json calls for. Raises `CheckpointError`."""
    if options.kind is not EngineKind.AUTO:
        return options.kind
    has_answers = options.yes_no is not None or options.yes_no_prompt is not None or answer_tokens(folder) is not None
    return recognise_engine(loading.read_model_config(folder), str(folder), has_answers=has_answers)


def _num_threads(num_cpus: float | None) -> int:
    if num_cpus is None:  # the CPUs this process may use; macOS does not report them
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(num_cpus))
