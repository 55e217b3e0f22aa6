"""CUDA graphs for small batches, whose kernels take longer to launch one by one than to run.

A graph is captured for a fixed number of tokens (a bucket), and a batch is copied into the smallest bucket that holds
it. The padding tokens, after the end of the batch, belong to no sequence: no other token attends to them, and their
states are dropped. A batch that fits in no bucket runs without a graph.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch

from rerank_service.config import EngineConfig
from rerank_service.engine.device import cuda
from rerank_service.engine.device.forward import hidden_states
from rerank_service.engine.device.pack import PackedSequences

__all__ = [
    "BUCKETS",
    "Capture",
    "CapturedPass",
    "GraphedStates",
    "StatesOf",
    "capture_cuda_graph",
    "compile_layers",
    "states_on",
]

logger = logging.getLogger(__name__)

StatesOf: TypeAlias = Callable[[PackedSequences], torch.Tensor]
"""A function from packed sequences to their final states `[T, H]`."""

BUCKETS = (128, 256, 512, 1024, 2048)
"""Bucket sizes in tokens. Larger batches take longer to run than to launch."""
_LONGEST = 512
"""Length of the longest sequence in a graph, in tokens; the captured attention kernel does not cover longer ones."""
_TOKENS_PER_SEQUENCE = 32
"""Bucket tokens per sequence slot. A captured attention kernel takes time for every slot, used or not."""
_TOLERANCE = 0.25
"""Largest accepted difference between a token's states with and without a graph, as a share of the state's largest
component. Rounding to bfloat16 causes differences of up to 4% (all-MiniLM-L6-v2 and a random Llama of 4 layers). If a
graph returned the states of another batch, they would differ by 130% (median)."""


class CapturedPass(NamedTuple):
    """A recorded forward pass: its inputs, a function that replays it, and the states that each replay overwrites."""

    inputs: PackedSequences
    replay: Callable[[], None]
    states: torch.Tensor  # [bucket, H]


Capture: TypeAlias = Callable[[StatesOf, PackedSequences], CapturedPass]


class GraphedStates:
    """Runs a forward pass: replays a graph if the batch fits in a bucket, and otherwise calls `run`."""

    def __init__(self, run: StatesOf, capture: Capture, buckets: Sequence[int] = BUCKETS) -> None:
        self._run = run
        self._capture = capture
        self._buckets = sorted(buckets)
        self._passes: dict[int, CapturedPass] = {}
        self._is_off = False

    def __call__(self, packed: PackedSequences) -> torch.Tensor:
        """Final states `[T, H]` of a batch. The next call may overwrite them."""
        bucket = self._bucket_of(packed)
        if bucket is None:
            return self._run(packed)
        if bucket not in self._passes and not self._capture_bucket(bucket, packed):
            return self._run(packed)
        captured = self._passes[bucket]
        _lay_into(captured.inputs, packed)
        captured.replay()
        return captured.states[: packed.bounds[-1]]

    def _bucket_of(self, packed: PackedSequences) -> int | None:
        if self._is_off or packed.max_length > _LONGEST:
            return None
        num_tokens, num_sequences = packed.bounds[-1], len(packed.bounds) - 1
        fitting = (b for b in self._buckets if num_tokens <= b and num_sequences <= _num_slots(b))
        return next(fitting, None)

    def _capture_bucket(self, bucket: int, packed: PackedSequences) -> bool:
        """Captures a graph on placeholder tokens and compares a replay of `packed` with a run without a graph.

        Returns whether the graph may be used. A graph that fails or computes wrong states turns all graphs off.
        """
        try:
            inputs = _placeholder(bucket, packed)
            captured = self._capture(self._run, inputs)
            captured.states.fill_(torch.nan)  # reveals a replay that writes nothing
            _lay_into(inputs, packed)
            captured.replay()
            error = _largest_row_error(captured.states[: packed.bounds[-1]], self._run(packed))
            if not error <= _TOLERANCE:  # also refuses NaN
                raise RuntimeError(f"a state of the replayed graph differs by {error:.3g} times its largest component")
        except RuntimeError as problem:
            logger.warning("CUDA graphs are turned off (bucket=%d): %s", bucket, problem)
            self._is_off = True
            self._passes.clear()
            return False
        self._passes[bucket] = captured
        return True


def states_on(model: Any, options: EngineConfig) -> StatesOf:
    """Returns a function that runs a transformers base model. On a GPU, `options` select compilation and CUDA
    graphs."""
    run = partial(hidden_states, model)
    if model.device.type != "cuda":
        return run
    if options.compile:
        compile_layers(model)
    return GraphedStates(run, capture_cuda_graph) if options.cuda_graphs else run


def compile_layers(model: torch.nn.Module, backend: str = "inductor") -> None:
    """Lets torch fuse the operations between a layer's matrix products: norms, rotation, activation, residuals.

    All layers share one compiled function, which serves any number of tokens.
    """
    for stack in model.modules():
        if isinstance(stack, torch.nn.ModuleList):
            for layer in stack:
                layer.compile(backend=backend, dynamic=True)


def capture_cuda_graph(run: StatesOf, inputs: PackedSequences) -> CapturedPass:
    """Records `run` on `inputs`. Each replay reads the current contents of the input tensors."""
    graph, states = cuda.capture(inputs.token_ids.device, lambda: run(inputs))
    return CapturedPass(inputs, graph.replay, states)


def _num_slots(bucket: int) -> int:
    return max(4, bucket // _TOKENS_PER_SEQUENCE)


def _placeholder(bucket: int, like: PackedSequences) -> PackedSequences:
    """Four sequences that fill a bucket, as input for a capture; their states are never used."""
    device = like.token_ids.device
    length = bucket // 4  # at most _LONGEST
    starts = torch.arange(_num_slots(bucket) + 1, dtype=torch.int32, device=device) * length
    return PackedSequences(
        token_ids=torch.zeros(1, bucket, dtype=torch.int64, device=device),
        position_ids=torch.arange(bucket, dtype=torch.int64, device=device)[None] % length,
        lengths=torch.full((4,), length, dtype=torch.int64, device=device),
        cu_seqlens=starts.clamp_max(bucket),
        bounds=(),  # bounds differ in each replay, so no kernel launch may depend on them
        max_length=min(bucket, _LONGEST),
        type_ids=None if like.type_ids is None else torch.zeros(1, bucket, dtype=torch.int64, device=device),
    )


def _lay_into(inputs: PackedSequences, packed: PackedSequences) -> None:
    """Copies a batch into a bucket. Unused slots start and end where the last sequence ends.

    Tokens of an earlier batch may remain after that end: they are valid ids and belong to no sequence.
    """
    num_tokens, num_bounds = packed.bounds[-1], len(packed.bounds)
    inputs.token_ids[:, :num_tokens].copy_(packed.token_ids)
    inputs.position_ids[:, :num_tokens].copy_(packed.position_ids)
    inputs.cu_seqlens[:num_bounds].copy_(packed.cu_seqlens)
    inputs.cu_seqlens[num_bounds:].fill_(num_tokens)
    if inputs.type_ids is not None and packed.type_ids is not None:
        inputs.type_ids[:, :num_tokens].copy_(packed.type_ids)


def _largest_row_error(states: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference between corresponding rows, as a share of the row's largest component; NaN if any is NaN."""
    expected = expected.float()
    differences = (states.float() - expected).abs().amax(1)
    return float((differences / expected.abs().amax(1).clamp_min(1e-6)).max())
