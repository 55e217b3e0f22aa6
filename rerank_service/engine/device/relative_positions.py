"""DeBERTa's relative positions, read from a table on the device.

transformers computes them anew in each pass, and copies a number to the device for this. The copy makes the host wait
until the device has finished the previous batch.
"""

from typing import Any

import torch

__all__ = ["tabulate_relative_positions"]


def tabulate_relative_positions(backbone: Any, longest: int) -> None:
    """Replaces the method with which a DeBERTa computes the distance between every two tokens, for sequences of at
    most `longest` tokens. Other models stay as they are."""
    encoder: Any = getattr(backbone, "encoder", None)
    if hasattr(encoder, "get_rel_pos") and encoder.relative_attention:
        encoder.get_rel_pos = _Table(encoder.get_rel_pos, longest, backbone.device)


class _Table:
    def __init__(self, compute: Any, longest: int, device: torch.device) -> None:
        # A position depends only on the distance of two tokens, so the first row and the first column contain all.
        positions = compute(torch.empty(1, longest, 1, device=device))[0]  # [longest, longest]
        self._by_distance = torch.cat([positions[0].flip(0), positions[1:, 0]])  # from 1 - longest to longest - 1
        self._longest = longest

    def __call__(
        self, hidden_states: torch.Tensor, query_states: torch.Tensor | None = None, relative_pos: Any = None
    ) -> torch.Tensor:
        tokens = torch.arange(hidden_states.size(1), device=hidden_states.device)
        return self._by_distance[tokens[:, None] - tokens + (self._longest - 1)][None]  # [1, L, L]
