"""Turns an encoder's token states into the vectors that a ColBERT model compares: projections, and tokens left out.

The projections are the Dense modules of pylate and sentence-transformers, or the matrix among the weights of Stanford's
checkpoints. They run in float32 on every device.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from rerank_service.engine import loading
from rerank_service.engine.device.pack import to_device
from rerank_service.engine.protocol import TokenIds
from rerank_service.errors import CheckpointError

__all__ = ["TokenVectors", "read_projection"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "Identity": nn.Identity,
    "Tanh": nn.Tanh,
    "GELU": nn.GELU,
    "ReLU": nn.ReLU,
    "SiLU": nn.SiLU,
    "Sigmoid": nn.Sigmoid,
}
"""Activation functions by the last part of their name. A checkpoint names a class, and no other class is imported."""

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_STANFORD_WEIGHT = "linear.weight"


class TokenVectors:
    """Computes the vectors of texts from their token states."""

    def __init__(self, projection: nn.Module, skipped_ids: frozenset[int]) -> None:
        self._project = projection
        self._skipped = np.asarray(sorted(skipped_ids), np.int32)

    def of(
        self, states: torch.Tensor, sequences: Sequence[TokenIds], are_passages: Sequence[bool]
    ) -> list[torch.Tensor]:
        """Float32 vectors `[L', D]` of each text, from the states `[T, H]` of all tokens. Only passages leave out
        tokens."""
        kept = [
            self.kept(token_ids) if is_passage else np.arange(len(token_ids))
            for token_ids, is_passage in zip(sequences, are_passages, strict=True)
        ]
        lengths = [len(token_ids) for token_ids in sequences]
        if states.device.type == "cpu":  # text by text, because a product's rounding can depend on its number of rows
            vectors = torch.cat([self._project(part.float()) for part in states.split(lengths)])
        else:
            vectors = self._project(states.float())
        starts = np.cumsum(lengths) - lengths
        (rows,) = to_device(
            [np.concatenate([places + start for places, start in zip(kept, starts, strict=True)])], states.device
        )
        return list(vectors.index_select(0, rows).split([len(places) for places in kept]))

    def kept(self, token_ids: TokenIds) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Places of the passage tokens that count."""
        return np.flatnonzero(~np.isin(token_ids, self._skipped))


def read_projection(folder: Path, modules: Sequence[str], device: torch.device, width: int) -> nn.Module:
    """The projections of a checkpoint, in their order; without `modules`, the one among the weights of Stanford's
    format. `width` is the size of a token's state. Raises `CheckpointError`."""
    if modules:
        parts = [_Dense.read(folder / name) for name in modules]
    else:
        weight = loading.read_rows(folder, _STANFORD_WEIGHT)
        parts = [_Dense(weight, None, nn.Identity(), has_residual=False, residual=None)]
    for name, part in zip(modules or [_STANFORD_WEIGHT], parts, strict=True):
        if part.weight.size(1) != width:
            raise CheckpointError(f"{folder / name} takes {part.weight.size(1)} numbers; it gets {width}")
        width = part.weight.size(0)
    return nn.Sequential(*parts).to(device).eval().requires_grad_(False)


class _Dense(nn.Module):
    """`activation(x W^T + b)`, plus x or its own projection if the module has a residual."""

    def __init__(
        self,
        weight: torch.Tensor,  # [out, in]
        bias: torch.Tensor | None,  # [out]
        activation: nn.Module,
        *,
        has_residual: bool,
        residual: torch.Tensor | None,  # [out, in]; null: x itself
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("residual", residual)
        self._activation = activation
        self._has_residual = has_residual

    weight: torch.Tensor
    bias: torch.Tensor | None
    residual: torch.Tensor | None

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self._activation(nn.functional.linear(states, self.weight, self.bias))
        if not self._has_residual:
            return projected
        return projected + (states if self.residual is None else nn.functional.linear(states, self.residual))

    @classmethod
    def read(cls, folder: Path) -> "_Dense":
        """Reads a module's folder. Raises `CheckpointError` unless its tensors are exactly those of its settings."""
        settings = loading.read_json(folder / "config.json")
        name = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
        module, _, activation = name.rpartition(".")
        if activation not in _ACTIVATIONS or not module.startswith("torch.nn"):
            raise CheckpointError(
                f"{folder} has the activation function {name}; supported are {', '.join(_ACTIVATIONS)} of torch.nn"
            )
        try:
            loading.refuse_pickles(folder)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; the projection must be in {folder / 'model.safetensors'}") from None
        try:
            tensors = load_file(folder / "model.safetensors")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {folder / 'model.safetensors'} ({error}): fetch it again") from error
        size_in, size_out = settings.get("in_features"), settings.get("out_features")
        has_residual = bool(settings.get("use_residual", False))
        expected: dict[str, tuple[Any, ...]] = {"linear.weight": (size_out, size_in)}
        if settings.get("bias", True):
            expected["linear.bias"] = (size_out,)
        if has_residual and size_in != size_out:
            expected["residual.weight"] = (size_out, size_in)
        for tensor_name, tensor in tensors.items():
            if tensor.dtype not in _FLOATS:
                raise CheckpointError(
                    f"{tensor_name} in {folder / 'model.safetensors'} has numbers of type {tensor.dtype}, and no scale "
                    "says what they stand for: use the original weights of this module"
                )
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != expected:
            raise CheckpointError(f"the tensors of {folder} are {found}; its config.json calls for {expected}")
        return cls(
            tensors["linear.weight"].float(),
            tensors["linear.bias"].float() if "linear.bias" in tensors else None,
            _ACTIVATIONS[activation](),
            has_residual=has_residual,
            residual=tensors["residual.weight"].float() if "residual.weight" in tensors else None,
        )
