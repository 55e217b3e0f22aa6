"""Throughput of one replica: measured by the user, measured here on a CPU, or estimated from shapes and datasheets.

The estimates are not measured on a GPU and are labelled as assumptions. They are the chip's peak times an assumed
utilisation, divided by the model's floating-point operations per token.
"""

from dataclasses import dataclass
from enum import StrEnum

from rerank_service.config import default_batch_tokens, default_min_batch_tokens
from rerank_service.engine.device.peak import GPU_PEAKS
from rerank_service.tools.bench.workload import Lengths
from rerank_service.tools.planning.workload import Mix
from rerank_service.tools.random_checkpoints.shapes import Architecture, Shape, shape_of

__all__ = [
    "ASSUMED_MFU",
    "EMBEDDED_TOKENS_PER_S",
    "PEAK_TFLOPS",
    "PlannedModel",
    "ReplicaSpeed",
    "flops_per_token",
    "speed_of",
]

ASSUMED_MFU = 0.4
"""Share of the peak that a forward pass is assumed to reach; not measured. A large matrix product alone is assumed to
reach 0.8 on an H100 (docs/appendix/gpu.md), and NVIDIA's published 150 pairs/s for the 4B at 512 tokens correspond to
0.55."""

PEAK_TFLOPS = {gpu.key: gpu.flops_per_s / 1e12 for gpu in GPU_PEAKS}

EMBEDDED_TOKENS_PER_S = {Lengths.SHORT: 9_473.0, Lengths.CHUNKS: 8_342.0, Lengths.LONG_TAIL: 8_389.0}
"""Throughput of one replica on one core in int8: tokens per pair divided by CPU time per pair, for the late-interaction
engine in benchmarks/results/engine-cpu.json (AMD EPYC, Zen 4)."""
_SHORT_TOKENS = 160
"""Up to this fixed number of tokens per pair, the speed measured for `short` applies."""

_ASSUMED_BATCH_OVERHEAD_S = 0.002


class PlannedModel(StrEnum):
    """Models whose speed can be estimated."""

    LLAMA_1B = "1b"
    """nvidia/llama-3.2-nv-rerankqa-1b-v2"""
    MISTRAL_4B = "4b"
    """nvidia/nv-rerankqa-mistral-4b-v3"""
    EMBEDDED = "embedded"
    """The default model, on a CPU."""


@dataclass(frozen=True)
class ReplicaSpeed:
    """Speed of one replica's device."""

    tokens_per_s: float
    batch_overhead_s: float = 0.0
    """Constant time per batch, in addition to the time for its tokens."""
    max_in_flight: int = 2
    """Batches that the device accepts at the same time."""
    max_batch_tokens: int = default_batch_tokens(on_gpu=True)
    shard_tokens: int = default_batch_tokens(on_gpu=True)
    """Tokens per shard when requests are split."""
    origin: str = "given"
    """Source of the throughput, in words."""
    is_measured: bool = True

    @property
    def min_batch_tokens(self) -> int:
        """The service's default of `batching.min_batch_tokens`."""
        return default_min_batch_tokens(self.max_batch_tokens)

    @property
    def full_tokens_per_s(self) -> float:
        """Maximum throughput, reached with full batches in immediate succession."""
        return self.max_batch_tokens / (self.batch_overhead_s + self.max_batch_tokens / self.tokens_per_s)


def speed_of(
    mix: Mix,
    *,
    tokens_per_s: float | None = None,
    model: PlannedModel = PlannedModel.LLAMA_1B,
    gpu: str = "h100",
    mfu: float = ASSUMED_MFU,
    batch_overhead_s: float | None = None,
) -> ReplicaSpeed:
    """Speed of a replica: `tokens_per_s` if given, else the embedded model's measured speed or an estimate for a GPU.

    Raises `ValueError` for a GPU that is not in `PEAK_TFLOPS`.
    """
    if model is PlannedModel.EMBEDDED:
        measured = tokens_per_s or EMBEDDED_TOKENS_PER_S[_lengths_like(mix)]
        on_cpu = "measured on one core of an AMD EPYC, int8 (benchmarks/results/engine-cpu.json)"
        origin = "given" if tokens_per_s else on_cpu
        batch_tokens = default_batch_tokens(on_gpu=False)
        return ReplicaSpeed(measured, batch_overhead_s or 0.0, 1, batch_tokens, batch_tokens, origin)
    overhead_s = _ASSUMED_BATCH_OVERHEAD_S if batch_overhead_s is None else batch_overhead_s
    if tokens_per_s:
        return ReplicaSpeed(tokens_per_s, overhead_s)
    if gpu not in PEAK_TFLOPS:
        raise ValueError(f"no datasheet figure for GPU {gpu!r}; known GPUs: {', '.join(PEAK_TFLOPS)}")
    is_4b = model is PlannedModel.MISTRAL_4B
    shape = shape_of(Architecture.MISTRAL, "4b") if is_4b else shape_of(Architecture.LLAMA_BIDIREC, "1b")
    flops = flops_per_token(shape, mix.attended_tokens)
    origin = (
        f"assumed, not measured: {flops / 1e9:.2f} GFLOP per token of the {model} at {mfu:g} of the "
        f"{PEAK_TFLOPS[gpu]:g} TFLOP/s of one {gpu}"
    )
    return ReplicaSpeed(PEAK_TFLOPS[gpu] * 1e12 * mfu / flops, overhead_s, origin=origin, is_measured=False)


def flops_per_token(shape: Shape, attended_tokens: float) -> float:
    """Operations per token of a decoder's forward pass: two per weight of the linear layers, plus the attention."""
    hidden = shape.hidden_size
    keys = hidden * (shape.num_kv_heads or shape.num_heads) // shape.num_heads
    weights = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * shape.intermediate_size
    return shape.num_layers * (2 * weights + 4 * hidden * attended_tokens)


def _lengths_like(mix: Mix) -> Lengths:
    if isinstance(mix.tokens, Lengths):
        return mix.tokens
    return Lengths.SHORT if mix.tokens <= _SHORT_TOKENS else Lengths.CHUNKS
