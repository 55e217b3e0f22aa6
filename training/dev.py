"""Measures quality on the dev split, to choose mixtures."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch

from training.data import Group
from training.model import Scorer
from training.ranking import buckets, pair_logits

__all__ = ["dev_ndcg", "ndcg_of_rank"]


def dev_ndcg(models: Mapping[str, Scorer], groups: Sequence[Group]) -> dict[str, dict[str, float]]:
    """Mean nDCG@10 of each model by source. For each query, all passages of the query's source are ranked.

    If a model is a cross-encoder, only the passages of the query's own group are ranked. All models share their frozen
    layers.
    """
    of_source: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        of_source[group.source].append(group)
    figures: dict[str, dict[str, float]] = {name: {} for name in models}
    is_cross = any(model.num_cross_layers for model in models.values())
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for source, chosen in of_source.items():
            ranks = _ranks_in_group(models, chosen) if is_cross else _ranks_in_pool(models, chosen)
            for name, of_model in ranks.items():
                gains = ndcg_of_rank(of_model)
                figures[name][source] = sum(gains) / len(gains)
    return figures


def ndcg_of_rank(ranks: torch.Tensor) -> list[float]:
    """nDCG@10 of queries with one relevant passage, given the number of passages ranked above it."""
    gains: list[float] = torch.where(ranks < 10, 1 / (ranks + 2.0).log2(), 0.0).tolist()
    return gains


def _ranks_in_pool(models: Mapping[str, Scorer], groups: Sequence[Group]) -> dict[str, torch.Tensor]:
    first = next(iter(models.values()))
    pool = list(dict.fromkeys(passage for group in groups for passage in group.passages))
    texts = first.tokenise(pool)
    begun = first.begin(first.tokenise([group.query for group in groups]))
    queries = {name: model.finish(begun) for name, model in models.items()}
    logits = {name: torch.empty(len(groups), len(pool)) for name in models}
    for rows in buckets(texts):
        begun = first.begin([texts[row] for row in rows])
        for name, model in models.items():
            logits[name][:, rows] = model.head.all_pairs(queries[name], model.finish(begun))
    positives = torch.tensor([[pool.index(group.passages[0])] for group in groups])
    return {name: (values > values.gather(1, positives)).sum(1) for name, values in logits.items()}


def _ranks_in_group(models: Mapping[str, Scorer], groups: Sequence[Group]) -> dict[str, torch.Tensor]:
    ranks = {}
    for name, model in models.items():
        queries = model.encode(model.tokenise([group.query for group in groups]))
        owners = [row for row, group in enumerate(groups) for _ in group.passages]
        texts = model.tokenise([passage for group in groups for passage in group.passages])
        logits = pair_logits(model, queries, texts, owners).split([len(group.passages) for group in groups])
        ranks[name] = torch.stack([(row > row[0]).sum() for row in logits])
    return ranks
