"""Low-rank adapters (LoRA, arXiv 2106.09685) on the linear layers of a transformers model.

A layer computes `W x + share * scale * B (A x)`. `B` starts at zero, so an untrained adapter changes nothing. After
training, `delta` is added to `W`, so the written checkpoint has the original shapes.
"""

import math
from typing import Any

import torch

__all__ = ["Adapter", "adapt_layers"]


class Adapter(torch.nn.Module):
    """A frozen linear layer with a trainable change of low rank, in float32."""

    def __init__(self, linear: torch.nn.Linear, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        device, bound = linear.weight.device, 1 / math.sqrt(linear.in_features)
        start = torch.empty(rank, linear.in_features).uniform_(-bound, bound, generator=generator)
        self.linear = linear
        self.down = torch.nn.Parameter(start.to(device))  # A: [r, K]
        self.up = torch.nn.Parameter(torch.zeros(linear.out_features, rank, device=device))  # B: [N, r]
        self.share = 1.0
        """Share of the learned change that takes effect."""
        self._scale = scale

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.linear(inputs)
        change = inputs.to(self.down.dtype) @ self.down.T @ self.up.T
        return outputs + (self.share * self._scale * change).to(outputs.dtype)

    def delta(self) -> torch.Tensor:
        """The change `[N, K]` of the layer's weights."""
        return self.share * self._scale * (self.up.detach() @ self.down.detach())


def adapt_layers(model: torch.nn.Module, rank: int, alpha: float, seed: int) -> dict[str, Adapter]:
    """Wraps all linear layers inside the transformer layers of `model`. Returns the adapters by their layers' names."""
    generator = torch.Generator().manual_seed(seed)
    layers = [name for name, one in model.named_modules() if isinstance(one, torch.nn.ModuleList)]
    adapters: dict[str, Adapter] = {}
    for name, linear in list(model.named_modules()):
        if isinstance(linear, torch.nn.Linear) and any(name.startswith(f"{layer}.") for layer in layers):
            owner: Any = model.get_submodule(name.rpartition(".")[0])
            adapters[name] = Adapter(linear, rank, alpha / rank, generator)
            setattr(owner, name.rpartition(".")[2], adapters[name])
    return adapters
