"""Limits for an engine: plain forward passes of the same weights, and their matrix products alone.

The bare forward pass runs unmodified transformers in float32 on pairs that are tokenised in advance. Padded batches and
single pairs are both measured, because either can be faster: batches waste time on padding, and single pairs use
smaller products.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from rerank_service.config import Dtype
from rerank_service.engine.linear.int8 import AROUND_ZERO, ByteProduct
from rerank_service.engine.linear.packed import PackedLinear, can_pack

__all__ = ["BARE_BATCHES", "bare_forward", "product_runs"]

BARE_BATCHES = (1, 32)
"""Pairs per batch of the bare forward pass; engines are compared with the faster one."""
_ROWS = 1024
"""Most rows of a measured product; the weights are then read often enough to stay in the cache."""


@torch.inference_mode()
def bare_forward(model: Any, sequences: Sequence[Any], batch_pairs: int) -> None:
    """Runs an unmodified transformers model on token ids, sorted by length and padded in batches of `batch_pairs`."""
    ordered = sorted(sequences, key=len)
    for start in range(0, len(ordered), batch_pairs):
        batch = [torch.from_numpy(ids.astype(np.int64)) for ids in ordered[start : start + batch_pairs]]
        lengths = torch.tensor([len(ids) for ids in batch])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        model(torch.nn.utils.rnn.pad_sequence(batch, batch_first=True), attention_mask=mask)


@torch.inference_mode()
def product_runs(model: Any, dtype: Dtype, num_tokens: int) -> dict[str, Callable[[], None]]:
    """Functions that compute the products of the model's transformer layers for `num_tokens` tokens, each in another
    implementation. The fastest one shows the speed that this processor reaches on the model's shapes in `dtype`."""
    stacks = [stack for stack in model.modules() if isinstance(stack, torch.nn.ModuleList)]
    layers = [layer for stack in stacks for layer in stack.modules() if isinstance(layer, torch.nn.Linear)]
    shapes = Counter((layer.in_features, layer.out_features) for layer in layers)
    return {name: _repeat(make, shapes, num_tokens) for name, make in _implementations(dtype).items()}


_Product = tuple[Callable[[torch.Tensor], Any], torch.dtype]
"""A product with weights, and the type of its inputs."""


def _implementations(dtype: Dtype) -> dict[str, Callable[[torch.nn.Linear], _Product]]:
    if dtype is Dtype.INT8:
        return {"packed": lambda linear: (ByteProduct(linear.weight, None, AROUND_ZERO, torch.float32), torch.uint8)}
    states: torch.dtype = getattr(torch, dtype.value)
    made: dict[str, Callable[[torch.nn.Linear], _Product]] = {"plain": lambda linear: (linear.to(states), states)}
    if can_pack(states):
        made["packed"] = lambda linear: (PackedLinear(linear.to(states)), states)
    return made


def _repeat(
    make: Callable[[torch.nn.Linear], _Product], shapes: Counter[tuple[int, int]], num_tokens: int
) -> Callable[[], None]:
    products = [(make(torch.nn.Linear(*shape)), shape[0], count) for shape, count in shapes.items()]

    @torch.inference_mode()
    def run() -> None:
        for (multiply, input_type), in_features, count in products:
            inputs = torch.ones(_ROWS, in_features, dtype=input_type)
            for _ in range(count):
                for start in range(0, num_tokens, _ROWS):
                    multiply(inputs[: num_tokens - start])

    return run
