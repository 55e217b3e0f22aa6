"""Trains a model on batches, and writes the trained weights and a log with JSON lines."""

import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from training.data import Group, batches, lengthen
from training.loss import listwise_loss, targets_and_rivals
from training.model import Scorer
from training.ranking import pair_logits, pool_logits
from training.recipes import Recipe
from training.weights import save

__all__ = ["step_loss", "train"]

_WARM_UP_SHARE = 0.06
_SAVE_EVERY_STEPS = 50
_LARGEST_GRADIENT = 5.0
_PAUSE_S = 2.0


def train(model: Scorer, groups: Sequence[Group], recipe: Recipe, out: Path, pause_file: Path | None = None) -> None:
    """Trains a model in place. Saves weights to `out` regularly and at the end, and losses to a `.jsonl` file.

    No step starts while `pause_file` exists, so other measurements can use the machine alone.
    """
    optimizer = torch.optim.AdamW(_parameter_groups(model, recipe), weight_decay=0.01, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_share(step, recipe.num_steps))
    with out.with_suffix(".jsonl").open("w", encoding="utf-8") as log:
        for step, batch in zip(range(1, recipe.num_steps + 1), _batches(groups, recipe), strict=False):
            _wait_while(pause_file)
            started = time.perf_counter()
            loss = step_loss(model, batch)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), _LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            line = {"step": step, "loss": loss.item(), "norm": norm.item(), "s": time.perf_counter() - started}
            log.write(json.dumps(line) + "\n")
            log.flush()
            if step % _SAVE_EVERY_STEPS == 0 or step == recipe.num_steps:
                save(model, out)


def step_loss(model: Scorer, batch: Sequence[Group]) -> torch.Tensor:
    """Loss over all passages of the batch or, for a cross-encoder, over the passages of the query's own group."""
    texts = model.tokenise([passage for group in batch for passage in group.passages])
    targets, rivals = targets_and_rivals(batch)
    with torch.autocast("cpu", torch.bfloat16):
        queries = model.encode(model.tokenise([group.query for group in batch]))
        if not model.num_cross_layers:
            return listwise_loss(pool_logits(model, queries, texts), targets, rivals)
        owners = [row for row, group in enumerate(batch) for _ in group.passages]
        logits = pair_logits(model, queries, texts, owners)
    own = torch.arange(len(batch))[:, None] == torch.tensor(owners)  # [Q, P]
    return listwise_loss(logits.expand(len(batch), -1), targets, rivals & own)


def _batches(groups: Sequence[Group], recipe: Recipe) -> Iterator[list[Group]]:
    generator = random.Random(recipe.seed)  # noqa: S311 - not for secrets
    for batch in batches(groups, recipe.shares, recipe.num_groups, recipe.num_passages, recipe.seed):
        yield lengthen(batch, recipe.lengthened_share, generator)


def _parameter_groups(model: Scorer, recipe: Recipe) -> list[dict[str, object]]:
    head = model.head
    scalars = [head.cosine_weight, head.maxsim_weight, head.lexical_weight, head.window_weight, head.bias, model.gates]
    return [
        {
            "params": [weight for weight in model.encoder.parameters() if weight.requires_grad],
            "lr": recipe.encoder_rate,
        },
        {"params": list(head.importance.parameters()), "lr": recipe.head_rate},
        {"params": scalars, "lr": recipe.scalar_rate, "weight_decay": 0.0},
    ]


def _rate_share(step: int, num_steps: int) -> float:
    """Factor of the learning rate, with linear warm-up, then linear decay to 0."""
    warm_up = max(1, int(num_steps * _WARM_UP_SHARE))
    return min((step + 1) / warm_up, (num_steps - step) / (num_steps - warm_up))


def _wait_while(pause_file: Path | None) -> None:
    while pause_file is not None and pause_file.exists():
        time.sleep(_PAUSE_S)
