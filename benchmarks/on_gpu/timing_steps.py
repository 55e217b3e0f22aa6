"""Where the time of a batch goes: kernels of a layer, gaps between batches, and the sizes for which graphs pay off."""

import argparse
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.on_gpu.limits import measure_rates, operations
from benchmarks.on_gpu.measure import draw_pairs, score
from benchmarks.on_gpu.models import load, written
from benchmarks.on_gpu.plan import Variant
from rerank_service.engine.loading import read_model_config

__all__ = ["STEPS", "Kernel", "busy_share", "summary"]

_BATCH_TOKENS = 16_384
_CPU_BATCH_TOKENS = 256
_SIZES = (64, 128, 256, 512, 1024, 2048, 3072, 4096, 8192, 16384)


class Kernel(NamedTuple):
    """One run of a kernel, or of an operator on a CPU; times in microseconds."""

    name: str
    start_us: float
    end_us: float


def profile_batch(options: argparse.Namespace) -> Iterator[str]:
    """Kernels of one batch, eager and compiled. Writes the whole tables to files."""
    checkpoint = _checkpoint(options)
    pairs = draw_pairs(checkpoint, _pair_tokens(options), _batch_tokens(options) // _pair_tokens(options))
    rates = measure_rates(options.device)
    config = read_model_config(checkpoint)
    least_s = rates.least_seconds(operations(config, [pair.num_tokens for pair in pairs]), options.dtype)
    layers = config["num_hidden_layers"]
    for variant in _variants(options):
        engine = load(checkpoint, variant, options.device)
        kernels, text = _profiled(options.device, partial(engine.score, pairs))
        busy_us = sum(kernel.end_us - kernel.start_us for kernel in kernels)
        path: Path = options.out / f"profile-{options.model}-{variant.name.replace(', ', '-')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        yield (
            f"ok: {variant.name}: {len(kernels) / layers:.1f} launches a layer, {busy_us / 1e3:.1f} ms of kernels, "
            f"{least_s * 1e3:.1f} ms at the limit; {path}"
        )
        yield from summary(kernels, layers)
        del engine


def summary(kernels: Iterable[Kernel], num_layers: int, limit: int = 14) -> Iterator[str]:
    """The kernels that take the most time: total, share, and launches a layer."""
    counts: Counter[str] = Counter()
    times: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        counts[kernel.name] += 1
        times[kernel.name] += kernel.end_us - kernel.start_us
    whole = sum(times.values()) or 1
    for name, taken_us in sorted(times.items(), key=lambda entry: -entry[1])[:limit]:
        per_layer = counts[name] / num_layers
        yield f"    {taken_us / 1e3:8.2f} ms {taken_us / whole:4.0%} {per_layer:6.1f} a layer  {name[:80]}"


def gaps(options: argparse.Namespace) -> Iterator[str]:
    """Share of the time in which the device computes while a queue is worked off, with batches in flight."""
    checkpoint = _checkpoint(options)
    length = _pair_tokens(options)
    pairs = draw_pairs(checkpoint, length, 8 * _batch_tokens(options) // length)
    for variant in _variants(options):
        engine = load(checkpoint, variant, options.device)
        kernels, _ = _profiled(options.device, partial(score, engine, pairs, _batch_tokens(options)))
        share, longest_us = busy_share(kernels)
        is_fine = share >= 0.97 or not options.device.startswith("cuda")
        yield (
            f"{'ok' if is_fine else 'FAIL'}: {variant.name}: device busy {share:.1%} (aim 97%), "
            f"longest gap {longest_us:.0f} us, {engine.max_in_flight} batches in flight"
        )
        del engine


def busy_share(kernels: Iterable[Kernel]) -> tuple[float, float]:
    """Share of the time from the first to the last kernel in which one runs, and the longest gap in microseconds."""
    ordered = sorted(kernels, key=lambda kernel: kernel.start_us)
    busy = longest = 0.0
    end = first = ordered[0].start_us
    for kernel in ordered:
        longest = max(longest, kernel.start_us - end)
        busy += max(0.0, kernel.end_us - max(end, kernel.start_us))
        end = max(end, kernel.end_us)
    return busy / max(end - first, 1e-9), longest


def buckets(options: argparse.Namespace) -> Iterator[str]:
    """Time of one batch of each size, launched kernel by kernel and as the engine runs it with graphs."""
    checkpoint = _checkpoint(options)
    is_cuda = options.device.startswith("cuda")
    engines = [load(checkpoint, Variant(options.dtype, is_cuda, graphs), options.device) for graphs in (False, True)]
    for num_tokens in _SIZES if is_cuda else _SIZES[:2]:
        pairs = draw_pairs(checkpoint, min(num_tokens, 256), max(1, num_tokens // 256))
        single, graphed = (_median_ms(partial(engine.score, pairs)) for engine in engines)
        yield f"ok: {num_tokens:6} tokens: {single:7.2f} ms kernel by kernel, {graphed:7.2f} ms with graphs"


def _median_ms(run: Callable[[], Any], repeats: int = 15) -> float:
    taken = []
    for _ in range(repeats + 3):
        started = time.perf_counter()
        run()
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken[3:])


def _profiled(device: str, run: Callable[[], Any]) -> tuple[list[Kernel], str]:
    """The kernels of `run`, after two runs that warm up, and torch's table of them."""
    is_cuda = device.startswith("cuda")
    run()
    run()
    with profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]) as profiler:
        run()
        if is_cuda:
            torch.cuda.synchronize(torch.device(device))
    kind = torch.autograd.DeviceType.CUDA if is_cuda else torch.autograd.DeviceType.CPU
    kernels = [
        Kernel(event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == kind and (is_cuda or event.cpu_parent is None)
    ]
    column = "self_device_time_total" if is_cuda else "self_cpu_time_total"
    return kernels, profiler.key_averages().table(sort_by=column, row_limit=60, max_name_column_width=100)


def _variants(options: argparse.Namespace) -> tuple[Variant, ...]:
    eager = Variant(options.dtype, is_compiled=False, has_graphs=False)
    return (eager, Variant(options.dtype)) if options.device.startswith("cuda") else (eager,)


def _batch_tokens(options: argparse.Namespace) -> int:
    return _BATCH_TOKENS if options.device.startswith("cuda") else _CPU_BATCH_TOKENS


def _pair_tokens(options: argparse.Namespace) -> int:
    return min(512, _batch_tokens(options) // 2)


def _checkpoint(options: argparse.Namespace) -> Path:
    return written(options.checkpoints, options.model, options.device)


STEPS: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "profile": profile_batch,
    "gaps": gaps,
    "buckets": buckets,
}
