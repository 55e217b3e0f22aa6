"""List-wise loss, with a softmax over all passages of the batch for each query."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name

from training.data import Group

__all__ = ["listwise_loss", "targets_and_rivals"]


def targets_and_rivals(groups: Sequence[Group]) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of each query's positive among all passages `[Q]`, and mask of the passages in its softmax `[Q, P]`.

    The mask contains the positive, but no other passage with the positive's text.
    """
    passages = [passage for group in groups for passage in group.passages]
    lengths = torch.tensor([0, *(len(group.passages) for group in groups)])
    targets = lengths.cumsum(0)[:-1]
    rivals = torch.tensor([[passage != group.passages[0] for passage in passages] for group in groups])
    rivals[torch.arange(len(groups)), targets] = True
    return targets, rivals


def listwise_loss(logits: torch.Tensor, targets: torch.Tensor, rivals: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the positives in a softmax over the masked passages: `[Q, P]`, `[Q]`, `[Q, P]` -> scalar."""
    return F.cross_entropy(logits.masked_fill(~rivals, -torch.inf), targets)
