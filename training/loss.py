"""The list-wise loss: one softmax over all passages of a batch for each query. Knows nothing of models."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows

from training.data import Group

__all__ = ["listwise_loss", "targets_and_rivals"]


def targets_and_rivals(groups: Sequence[Group]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the passages, laid end to end, have each query's positive `[Q]`, and what competes with it `[Q, P]`.

    A passage with the positive's own text is no rival of it, in whichever group it stands.
    """
    passages = [passage for group in groups for passage in group.passages]
    lengths = torch.tensor([0, *(len(group.passages) for group in groups)])
    targets = lengths.cumsum(0)[:-1]
    rivals = torch.tensor([[passage != group.passages[0] for passage in passages] for group in groups])
    rivals[torch.arange(len(groups)), targets] = True
    return targets, rivals


def listwise_loss(logits: torch.Tensor, targets: torch.Tensor, rivals: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the positives under a softmax over their rivals: `[Q, P]`, `[Q]`, `[Q, P]` to a scalar."""
    return F.cross_entropy(logits.masked_fill(~rivals, -torch.inf), targets)
