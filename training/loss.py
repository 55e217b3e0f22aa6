"""List-wise loss: for each query, a softmax over all passages of the batch."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows

from training.data import Group

__all__ = ["listwise_loss", "targets_and_rivals"]


def targets_and_rivals(groups: Sequence[Group]) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of each query's positive among all passages `[Q]`, and the mask of the passages it competes with `[Q, P]`.

    A passage with the same text as the positive does not compete with it.
    """
    passages = [passage for group in groups for passage in group.passages]
    lengths = torch.tensor([0, *(len(group.passages) for group in groups)])
    targets = lengths.cumsum(0)[:-1]
    rivals = torch.tensor([[passage != group.passages[0] for passage in passages] for group in groups])
    rivals[torch.arange(len(groups)), targets] = True
    return targets, rivals


def listwise_loss(logits: torch.Tensor, targets: torch.Tensor, rivals: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the positives under a softmax over their rivals: `[Q, P]`, `[Q]`, `[Q, P]` -> scalar."""
    return F.cross_entropy(logits.masked_fill(~rivals, -torch.inf), targets)
