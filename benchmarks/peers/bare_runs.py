"""The bare forward pass of the shared checkpoint, and its matrix products alone: the limits of the comparison."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.peers.shared_model import Workload
from rerank_service.config import Dtype
from rerank_service.engine.device.precision import multiplies_int8
from rerank_service.engine.linear.packed import can_pack
from rerank_service.tools.bench.bare import BARE_BATCHES, bare_forward, product_runs

__all__ = ["BareFigures", "mean_of", "measure_bare"]


@dataclass(frozen=True)
class BareFigures:
    """Figures of the bare float32 forward pass in this process, padded or one pair at a time, whichever is faster."""

    cpu_s_per_1k_pairs: float
    pairs_per_s: float
    batch_pairs: float
    """Pairs per batch: 1 or 32; in a mean of two runs, their mean."""

    products_cpu_s_per_1k_pairs: dict[str, float]
    """CPU-seconds of the matrix products alone, by precision, at the fastest speed measured: the processor's peak."""


def measure_bare(model: Any, workload: Workload, num_pairs: int) -> BareFigures:
    """Runs the forward pass on about `num_pairs` pairs, then the products in every precision of this processor."""
    sequences = workload.sample(num_pairs)
    per_1k_pairs = 1000 / len(sequences)
    taken = {size: _timed(partial(bare_forward, model, sequences, size)) for size in BARE_BATCHES}
    size = min(taken, key=lambda size: taken[size])
    cpu_s, wall_s = taken[size]
    products = {
        dtype.value: per_1k_pairs
        * min(_timed(run)[0] for run in product_runs(model, dtype, sum(map(len, sequences))).values())
        for dtype in _precisions()
    }
    return BareFigures(per_1k_pairs * cpu_s, len(sequences) / wall_s, size, products)


def mean_of(runs: Sequence[BareFigures]) -> BareFigures:
    """Mean of each figure."""
    products = [run.products_cpu_s_per_1k_pairs for run in runs]
    return BareFigures(
        cpu_s_per_1k_pairs=statistics.mean(run.cpu_s_per_1k_pairs for run in runs),
        pairs_per_s=statistics.mean(run.pairs_per_s for run in runs),
        batch_pairs=statistics.mean(run.batch_pairs for run in runs),
        products_cpu_s_per_1k_pairs={name: statistics.mean(one[name] for one in products) for name in products[0]},
    )


def _precisions() -> list[Dtype]:
    """Without instructions for bfloat16, its products are slower than those of float32 and are no limit."""
    import torch

    found = [Dtype.FLOAT32]
    if can_pack(torch.bfloat16):
        found.append(Dtype.BFLOAT16)
    if multiplies_int8():
        found.append(Dtype.INT8)
    return found


def _timed(run: Callable[[], None]) -> tuple[float, float]:
    """CPU-seconds of this process, and seconds on the clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall
