"""List-wise loss: cross-entropy between the grades of a list and the softmax of its logits."""

import torch

__all__ = ["listwise_loss"]


def listwise_loss(logits: torch.Tensor, grades: torch.Tensor) -> torch.Tensor:
    """Loss of each list: `[Q, P]`, `[Q, P]` -> `[Q]`. Each row of `grades` has a grade above 0.

    This is the top-one loss of ListNet (Cao et al., 2007), with shares in proportion to the grades; with one relevant
    passage, it is the usual softmax cross-entropy.
    """
    shares = grades / grades.sum(-1, keepdim=True)
    return -(shares * logits.log_softmax(-1)).sum(-1)
