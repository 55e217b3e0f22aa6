"""Quality on the dev split, by which runs and mixing weights are chosen. Knows nothing of the held-out sets."""

from collections import defaultdict
from collections.abc import Sequence

import torch

from training.data import Group
from training.model import Scorer
from training.ranking import pair_logits, pool_logits

__all__ = ["dev_ndcg", "ndcg_of_rank"]


def dev_ndcg(model: Scorer, groups: Sequence[Group]) -> dict[str, list[float]]:
    """nDCG@10 of every query by source, among its source's whole pool, or its own group for a cross-encoder."""
    of_source: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        of_source[group.source].append(group)
    rank = _ranks_in_group if model.num_cross_layers else _ranks_in_pool
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        return {source: ndcg_of_rank(rank(model, chosen)) for source, chosen in of_source.items()}


def ndcg_of_rank(ranks: torch.Tensor) -> list[float]:
    """Of queries with one relevant passage, by how many passages are above it."""
    gains: list[float] = torch.where(ranks < 10, 1 / (ranks + 2.0).log2(), 0.0).tolist()
    return gains


def _ranks_in_pool(model: Scorer, groups: Sequence[Group]) -> torch.Tensor:
    pool = list(dict.fromkeys(passage for group in groups for passage in group.passages))
    queries = model.encode(model.tokenise([group.query for group in groups]))
    logits = pool_logits(model, queries, model.tokenise(pool))
    positives = torch.tensor([[pool.index(group.passages[0])] for group in groups])
    return (logits > logits.gather(1, positives)).sum(1)


def _ranks_in_group(model: Scorer, groups: Sequence[Group]) -> torch.Tensor:
    queries = model.encode(model.tokenise([group.query for group in groups]))
    owners = [row for row, group in enumerate(groups) for _ in group.passages]
    texts = model.tokenise([passage for group in groups for passage in group.passages])
    logits = pair_logits(model, queries, texts, owners).split([len(group.passages) for group in groups])
    return torch.stack([(row > row[0]).sum() for row in logits])
