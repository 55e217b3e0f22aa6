"""Measures several models in turn, in pairs per second, so other work on the machine affects all of them."""

import time
from collections.abc import Mapping
from statistics import median

import torch

from rerank_service.tools.evaluation.evaluate import Task
from training.model import Scorer
from training.ranking import pair_logits

__all__ = ["pairs_per_second"]


def pairs_per_second(models: Mapping[str, Scorer], task: Task, num_rounds: int) -> dict[str, dict[str, float]]:
    """Median rate of each model. In each round, every model scores all candidates and encodes each query once."""
    rates: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(num_rounds):
        for name, model in models.items():
            started = time.process_time()  # CPU time, because other processes may use the cores
            for query, passages in task.candidates.items():
                _score(model, task.collection.queries[query], [task.collection.passages[p] for p in passages])
            rates[name].append(task.num_pairs / (time.process_time() - started))
    return {name: {"pairs_per_cpu_s": median(values), "slowest": min(values)} for name, values in rates.items()}


@torch.inference_mode()
def _score(model: Scorer, query: str, passages: list[str]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        encoded = model.encode(model.tokenise([query]))
        pair_logits(model, encoded, model.tokenise(passages), [0] * len(passages))
