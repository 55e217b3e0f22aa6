"""Measures how long one layer of a model takes on this CPU in each precision, and keeps the result for later starts.

The layer is a random one of the model's kind and about its size, prepared like the model itself. CPU time of one thread
is compared, so other work on the machine hardly matters.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from rerank_service import __version__
from rerank_service.engine.device.forward import PACKED_ATTENTION, hidden_states
from rerank_service.engine.device.kernel_cache import kernel_cache_root, private_folder
from rerank_service.engine.device.pack import pack
from rerank_service.engine.device.precision import Precision, instruction_set
from rerank_service.engine.linear.prepare import prepare_linears
from rerank_service.engine.linear.threads import one_thread

__all__ = ["layer_seconds", "processor_name"]

logger = logging.getLogger(__name__)

_NUM_SEQUENCES = {384: 8, 768: 4, 1024: 2}
"""Sequences per pass, by the hidden sizes that are measured. Larger layers behave like the largest of these, because
nearly all of their time goes into products. With fewer sequences in a small layer, the time of Python would count."""
_LENGTH = 128
_ROUNDS, _LONGEST_S = (3, 9), 0.5
"""Fewest and most rounds, and the CPU time after which no further round begins."""
_MASKS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


@cache
def layer_seconds(precisions: tuple[Precision, ...], hidden_size: int, *, is_decoder: bool) -> tuple[float, ...]:
    """CPU-seconds of a layer in each of `precisions`, for the same tokens: the best of several rounds."""
    measured = min(_NUM_SEQUENCES, key=lambda size: abs(size - hidden_size))
    file = _file(precisions, measured, is_decoder)
    names = [str(precision) for precision in precisions]
    if (kept := _read(file, names)) is not None:
        return kept
    with one_thread():
        seconds = _measure(precisions, measured, is_decoder)
    _write(file, dict(zip(names, seconds, strict=True)))
    return seconds


def processor_name() -> str:
    """The processor and the instructions that the engine uses, for people to read."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else str(torch.cpu.get_capabilities().get("cpu_name", "CPU"))
    return f"{name}, {instruction_set().name}"


@torch.inference_mode()
def _measure(precisions: Sequence[Precision], hidden_size: int, is_decoder: bool) -> tuple[float, ...]:
    passes = _passes(precisions, hidden_size, is_decoder)
    best = [float("inf")] * len(passes)
    for run in passes:  # the first pass of each builds its kernels
        run()
    began = time.thread_time()
    for number in range(_ROUNDS[1]):
        if number >= _ROUNDS[0] and time.thread_time() - began > _LONGEST_S:
            break
        for index, run in enumerate(passes):
            started = time.thread_time()
            run()
            best[index] = min(best[index], time.thread_time() - started)
    return tuple(best)


def _passes(precisions: Sequence[Precision], hidden_size: int, is_decoder: bool) -> list[Callable[[], torch.Tensor]]:
    """A forward pass of the layer in each precision."""
    rng = np.random.default_rng(0)
    packed = pack(
        [rng.integers(1, 100, _LENGTH, np.int32) for _ in range(_NUM_SEQUENCES[hidden_size])], torch.device("cpu")
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = _layer(hidden_size, is_decoder)
    passes: list[Callable[[], torch.Tensor]] = []
    for precision in precisions:
        prepared = deepcopy(layer)
        run = partial(hidden_states, prepared, packed)
        prepare_linears(prepared, precision, None if is_decoder else run)
        passes.append(run)
    return passes


def _layer(hidden_size: int, is_decoder: bool) -> torch.nn.Module:
    common: dict[str, Any] = {
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "num_attention_heads": hidden_size // 64,
        "num_hidden_layers": 1,
        "max_position_embeddings": 2 * _LENGTH,
        "vocab_size": 100,
        "attn_implementation": PACKED_ATTENTION,
    }
    config: Any = (LlamaConfig if is_decoder else BertConfig)(**common)
    layer: torch.nn.Module = LlamaModel(config) if is_decoder else BertModel(config, add_pooling_layer=False)
    layer.eval().requires_grad_(False)
    return layer


def _file(precisions: Sequence[Precision], hidden_size: int, is_decoder: bool) -> Path:
    parts = (
        *(processor_name(), sorted(torch.cpu.get_capabilities().items()), [os.environ.get(name) for name in _MASKS]),
        *(torch.__version__, __version__, hidden_size, is_decoder, list(map(str, precisions))),
    )
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    return kernel_cache_root() / "cpu-speed" / f"{digest}.json"


def _read(file: Path, names: Sequence[str]) -> tuple[float, ...] | None:
    """The kept seconds in the order of `names`; null if there are none or if they are damaged."""
    try:
        private_folder(file.parent.parent)
        private_folder(file.parent)
        kept = json.loads(file.read_text(encoding="utf-8"))
        seconds = tuple(float(kept[name]) for name in names)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.info("the speeds kept in %s are ignored: %s", file, error)
        return None
    return seconds if all(0 < one < float("inf") for one in seconds) else None


def _write(file: Path, seconds: dict[str, float]) -> None:
    """Keeps the result. Without a folder that only this user can write to, the next start measures again."""
    unfinished = file.with_suffix(f".{os.getpid()}")
    try:
        private_folder(file.parent.parent)
        private_folder(file.parent)
        unfinished.write_text(json.dumps(seconds), encoding="utf-8")
        unfinished.replace(file)
    except OSError as error:
        logger.info("the speeds of this processor are not kept for the next start: %s", error)
