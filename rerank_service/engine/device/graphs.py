"""CUDA graphs for small batches, whose kernels take longer to launch one by one than to run.

A graph is captured for a fixed number of tokens (a bucket), and a batch is copied into the smallest bucket that holds
it. The padding tokens, after the end of the batch, belong to no sequence: no other token attends to them, and their
states are dropped. A batch that fits in no bucket runs without a graph. All graphs are captured while the model loads.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch

from rerank_service.config import EngineConfig
from rerank_service.engine.device import cuda
from rerank_service.engine.device.compile import batch_like
from rerank_service.engine.device.forward import hidden_states
from rerank_service.engine.device.pack import PackedSequences
from rerank_service.engine.protocol import RunAlone

__all__ = [
    "Capture",
    "CapturedPass",
    "GraphedStates",
    "StatesOf",
    "bucket_sizes",
    "cuda_graph_capture",
    "largest_bucket",
    "states_on",
]

logger = logging.getLogger(__name__)

StatesOf: TypeAlias = Callable[[PackedSequences], torch.Tensor]
"""A function from packed sequences to their final states `[T, H]`."""

_SMALLEST_BUCKET = 32
_BUCKETS_PER_DOUBLING = 8
"""With 8 buckets from each size to its double, padding adds 4 to 7% to the tokens of requests with 1 to 50 passages
(`tests/unit/engine/device/test_buckets.py`); with 4, it adds 8 to 10%."""
_LARGEST_BUCKETS = (512, 8192)
"""Limits of the largest bucket, in tokens."""
_LAUNCH_S_PER_LAYER = 300e-6
"""Time for launching one layer without a graph. Estimated, not measured: 39 kernels of an uncompiled layer, at 5 to 10
microseconds for each operation of PyTorch in Python."""
_SHARE_OF_PEAK = 0.5
"""Share of its peak that a GPU reaches in small batches. Estimated, not measured."""
_FAST_GPU_FLOPS_PER_S = 989e12
"""Peak assumed for an unknown GPU: that of an H100. On a slower GPU, some of the buckets bring no gain."""
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

    def __init__(self, run: StatesOf, capture: Capture | None) -> None:
        """Without `capture`, no batch uses a graph."""
        self._run = run
        self._capture = capture
        self._passes: dict[int, CapturedPass] = {}
        self.example: PackedSequences | None = None
        """The first batch. Later batches of the model have the same types, first position and optional tensors."""

    def __call__(self, packed: PackedSequences) -> torch.Tensor:
        """Final states `[T, H]` of a batch. The next call may overwrite them."""
        if self.example is None:
            self.example = packed
        captured = self._pass_for(packed)
        if captured is None:
            return self._run(packed)
        _lay_into(captured.inputs, packed)
        captured.replay()
        return captured.states[: packed.bounds[-1]]

    @property
    def buckets(self) -> list[int]:
        """Sizes of the captured graphs in tokens, ascending."""
        return list(self._passes)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within the context, no batch uses a graph."""
        passes, self._passes = self._passes, {}
        try:
            yield
        finally:
            self._passes = passes

    def capture_all(self, buckets: Sequence[int], longest: int, run_alone: RunAlone) -> None:
        """Captures and checks a graph for each bucket. Call it after the first batch.

        `longest` is the model's window in tokens. If a graph fails or computes wrong states, no graph is used. Each
        graph is captured alone, so that in between other threads can launch batches of other models.
        """
        example, capture = self.example, self._capture
        if capture is None or example is None:
            return
        longest = min(_LONGEST, longest)
        buffers = _placeholder(max(buckets), longest, example)
        passes: dict[int, CapturedPass] = {}

        def capture_one(bucket: int) -> None:
            with cuda.current(example.token_ids.device):  # perhaps in another thread
                passes[bucket] = _checked(capture, self._run, _first_tokens(buffers, bucket, longest), example)

        try:
            # The largest first: the graphs share memory, and each smaller graph fits in the memory of the largest.
            for bucket in sorted(buckets, reverse=True):
                run_alone(partial(capture_one, bucket))
        except RuntimeError as problem:
            if cuda.is_final(problem):
                raise
            logger.warning("CUDA graphs are turned off (bucket=%d): %s", bucket, problem)
            return
        self._passes = dict(sorted(passes.items()))

    def _pass_for(self, packed: PackedSequences) -> CapturedPass | None:
        if packed.max_length > _LONGEST or packed.num_seen is not None or not self._passes:
            return None
        num_tokens, num_sequences = packed.bounds[-1], len(packed.bounds) - 1
        for bucket, captured in self._passes.items():
            if num_tokens <= bucket and num_sequences <= _num_slots(bucket):
                return captured
        return None


def states_on(model: Any, options: EngineConfig) -> StatesOf:
    """Returns a function that runs a transformers base model; on a GPU, a `GraphedStates`."""
    run = partial(hidden_states, model)
    if model.device.type != "cuda":
        return run
    return GraphedStates(run, cuda_graph_capture(model.device) if options.cuda_graphs else None)


def cuda_graph_capture(device: torch.device) -> Capture:
    """Returns a function that records a pass as a CUDA graph. Each replay reads the current contents of the inputs.

    All graphs write their states to one tensor, and share the memory for everything else. So all of them together need
    the memory of the first, which must be the largest.
    """
    recorder = cuda.GraphRecorder(device)
    shared: list[torch.Tensor] = []

    def capture(run: StatesOf, inputs: PackedSequences) -> CapturedPass:
        bucket = inputs.token_ids.size(1)
        if not shared:
            with cuda.current(device):
                shared.append(torch.empty_like(run(inputs)))
        states = shared[0].narrow(0, 0, bucket)
        return CapturedPass(inputs, recorder.record(lambda: states.copy_(run(inputs))), states)

    return capture


def largest_bucket(num_layers: int, flops_per_token: float, peak_flops_per_s: float | None) -> int:
    """Number of tokens up to which graphs pay off: twice as many as a GPU computes while the host launches their
    kernels.

    Twice, because the host is also busy with other threads. On an H100, this is 2,439 tokens for the 1B, whose largest
    bucket is therefore 2,304, and 8,192 for small encoders (estimated from the constants above).
    """
    device_s_per_token = flops_per_token / (_SHARE_OF_PEAK * (peak_flops_per_s or _FAST_GPU_FLOPS_PER_S))
    least, most = _LARGEST_BUCKETS
    return int(min(max(2 * num_layers * _LAUNCH_S_PER_LAYER / device_s_per_token, least), most))


def bucket_sizes(largest: int) -> list[int]:
    """Bucket sizes in tokens, ascending, up to `largest`: multiples of a step that doubles with the size."""
    sizes, step = [_SMALLEST_BUCKET], _SMALLEST_BUCKET
    while sizes[-1] + step <= largest:
        sizes.append(sizes[-1] + step)
        if sizes[-1] == 2 * _BUCKETS_PER_DOUBLING * step:
            step *= 2
    return sizes


def _checked(capture: Capture, run: StatesOf, inputs: PackedSequences, example: PackedSequences) -> CapturedPass:
    """Captures a graph on placeholder tokens, and compares its replays of two other batches with runs without a graph.

    Raises `RuntimeError` if a state differs.
    """
    with torch.inference_mode():
        captured = capture(run, inputs)
        for lengths in _trial_lengths(inputs):
            packed = batch_like(example, lengths)
            captured.states.fill_(torch.nan)  # reveals a replay that writes nothing
            _lay_into(inputs, packed)
            captured.replay()
            error = _largest_row_error(captured.states[: packed.bounds[-1]], run(packed))
            if not error <= _TOLERANCE:  # also refuses NaN
                raise RuntimeError(f"a state of the replayed graph differs by {error:.3g} times its largest component")
    return captured


def _trial_lengths(inputs: PackedSequences) -> Iterator[list[int]]:
    """Lengths of two batches for a bucket: a few long sequences that fill it, and many short ones."""
    bucket, longest = inputs.token_ids.size(1), inputs.max_length
    num_sequences = len(inputs.cu_seqlens) - 1
    whole, rest = divmod(bucket, longest)
    yield ([longest] * whole + ([rest] if rest else []))[:num_sequences]
    short = max(1, min(longest, bucket // num_sequences) - 1)
    yield [short + index % 2 for index in range(num_sequences)][: max(1, bucket // (short + 1))]


def _num_slots(bucket: int) -> int:
    return max(4, bucket // _TOKENS_PER_SEQUENCE)


def _placeholder(bucket: int, longest: int, like: PackedSequences) -> PackedSequences:
    """Tensors for the inputs of the largest bucket; those of the other buckets are parts of these."""
    device = like.token_ids.device
    return PackedSequences(
        token_ids=torch.zeros(1, bucket, dtype=torch.int64, device=device),
        position_ids=torch.arange(bucket, dtype=torch.int64, device=device)[None] % longest,
        lengths=torch.zeros(_num_slots(bucket), dtype=torch.int64, device=device),
        cu_seqlens=torch.zeros(_num_slots(bucket) + 1, dtype=torch.int32, device=device),
        bounds=(),  # bounds differ in each replay, so no kernel launch may depend on them
        max_length=longest,
        type_ids=None if like.type_ids is None else torch.zeros(1, bucket, dtype=torch.int64, device=device),
    )


def _first_tokens(buffers: PackedSequences, bucket: int, longest: int) -> PackedSequences:
    """The inputs of one bucket, laid out as sequences of equal length that fill it, as input for its capture."""
    num_slots = _num_slots(bucket)
    length = min(longest, max(1, -(-bucket // num_slots)))
    cu_seqlens = buffers.cu_seqlens[: num_slots + 1]
    starts = torch.arange(num_slots + 1, dtype=torch.int32, device=cu_seqlens.device) * length
    cu_seqlens.copy_(starts.clamp_max(bucket))
    return replace(
        buffers,
        token_ids=buffers.token_ids[:, :bucket],
        position_ids=buffers.position_ids[:, :bucket],
        lengths=buffers.lengths[:num_slots],
        cu_seqlens=cu_seqlens,
        max_length=min(bucket, longest),
        type_ids=None if buffers.type_ids is None else buffers.type_ids[:, :bucket],
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
