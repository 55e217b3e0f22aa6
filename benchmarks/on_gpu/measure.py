"""Measures one row: the speed of an engine under a load, and the error of the logits of the same run."""

import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.on_gpu.limits import Rates, operations
from benchmarks.on_gpu.models import EngineState, load, state_of
from benchmarks.on_gpu.plan import AIMS, FULL_QUEUE, Row, Variant
from rerank_service.engine import EncodedPair, Engine
from rerank_service.engine.loading import read_model_config
from rerank_service.engine.score_all import token_budget_batches
from rerank_service.engine.text.tokenise import load_tokenizer
from rerank_service.tools.bench.workload import QUERY, make_passages

__all__ = ["Figures", "Reference", "draw_pairs", "figures", "reference_logits", "score"]

Reference = Mapping[int, Sequence[float]]
"""Float32 logits of the first pairs of each length."""

_REFERENCE_TOKENS = 8192
"""Tokens of the pairs of each length that float32 scores: sixteen pairs at most, and at least one."""
_MOST_REFERENCE_PAIRS = 16


@dataclass(frozen=True)
class Figures:
    """A row of the table. Null errors: there was no time for the reference."""

    model: str
    asked_for: str
    ran_as: str
    load: str
    tokens_per_pair: int
    num_pairs: int
    pairs_per_s: float
    tokens_per_s: float
    run_ms: float
    """Median time of a run; for a single request, its latency without tokenising."""
    limit_pairs_per_s: float
    share_of_limit: float
    mfu: float
    """Operations per second, as a share of the rate in the large bfloat16 product."""
    aim_pairs_per_s: int | None
    """Estimated, not measured."""
    max_logit_error: float | None
    """Largest difference from float32 among the checked pairs of this run."""
    logit_std: float | None
    num_checked: int
    warnings: tuple[str, ...]


@cache
def draw_pairs(checkpoint: Path, num_tokens: int, num_pairs: int) -> list[EncodedPair]:
    """Seeded pairs of exactly `num_tokens` tokens; a smaller `num_pairs` gives the first of them.

    Only token ids matter, so passages of 64 different texts are rotated and joined.
    """
    tokenizer = load_tokenizer(checkpoint)
    query = tokenizer.encode(f"question:{QUERY} \n \n passage:", add_special_tokens=False).ids
    texts = make_passages(tokenizer, [256] * 64)
    ids = np.concatenate([encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)])
    pairs = []
    for number in range(num_pairs):
        passage = np.resize(np.roll(ids, -97 * number), num_tokens)
        token_ids = np.concatenate([query, passage])[:num_tokens].astype(np.int32)
        pairs.append(EncodedPair(token_ids, num_tokens, is_truncated=False))
    return pairs


def score(engine: Engine[Any], pairs: Sequence[EncodedPair], batch_tokens: int) -> tuple[list[float], int]:
    """Logits of all pairs and the number of batches, with as many batches in flight as in the service."""
    batch_tokens = min(batch_tokens, engine.memory_tokens or batch_tokens)
    in_flight: deque[tuple[list[int], Any]] = deque()
    logits = np.empty(len(pairs))
    batches = list(token_budget_batches(pairs, batch_tokens))
    for batch in batches:
        in_flight.append((batch, engine.launch([pairs[index] for index in batch])))
        if len(in_flight) == engine.max_in_flight:
            indices, pending = in_flight.popleft()
            logits[indices] = pending.wait()
    while in_flight:
        indices, pending = in_flight.popleft()
        logits[indices] = pending.wait()
    return logits.tolist(), len(batches)


def reference_logits(checkpoint: Path, lengths: Sequence[int], device: str) -> Reference:
    """Scores the first pairs of each length in float32, without graphs and compilation."""
    engine = load(checkpoint, Variant("float32", is_compiled=False, has_graphs=False), device)
    logits = {}
    for length in lengths:
        count = min(_MOST_REFERENCE_PAIRS, max(1, _REFERENCE_TOKENS // length))
        logits[length] = score(engine, draw_pairs(checkpoint, length, count), _REFERENCE_TOKENS)[0]
    return logits


def figures(
    row: Row,
    engine: Engine[Any],
    checkpoint: Path,
    *,
    rates: Rates,
    reference: Reference,
    batch_tokens: int,
    replays: Any,
    warnings: Sequence[str],
) -> Figures:
    """Runs a load once to warm up and then `repeats` times, and compares the logits of the last run with float32."""
    load_, pairs = row.load, draw_pairs(checkpoint, row.load.num_tokens, row.load.num_pairs)
    taken, state = [], EngineState("", False, 0, 0)
    logits: list[float] = []
    for _ in range(load_.repeats + 1):
        before, started = replays.count, time.perf_counter()
        logits, num_batches = score(engine, pairs, batch_tokens)
        taken.append(time.perf_counter() - started)
        state = state_of(engine, replays.count - before, num_batches)
    seconds = statistics.median(taken[1:])
    work = operations(read_model_config(checkpoint), [load_.num_tokens] * len(pairs))
    limit_s = rates.least_seconds(work, state.precision)
    known = reference.get(load_.num_tokens, ())
    expected = known[: len(pairs)]
    is_aim = load_.name == FULL_QUEUE and load_.num_tokens == 512 and row.variant.is_compiled
    return Figures(
        model=row.model,
        asked_for=row.variant.name,
        ran_as=str(state),
        load=load_.name,
        tokens_per_pair=load_.num_tokens,
        num_pairs=len(pairs),
        pairs_per_s=round(len(pairs) / seconds, 1),
        tokens_per_s=round(len(pairs) * load_.num_tokens / seconds),
        run_ms=round(1000 * seconds, 2),
        limit_pairs_per_s=round(len(pairs) / limit_s, 1),
        share_of_limit=round(limit_s / seconds, 3),
        mfu=round(work.total / seconds / rates.bfloat16, 3),
        aim_pairs_per_s=AIMS.get((row.model, row.variant.dtype)) if is_aim else None,
        max_logit_error=_largest_difference(logits, expected),
        logit_std=round(float(np.std(known)), 4) if known else None,
        num_checked=len(expected),
        warnings=tuple(warnings),
    )


def _largest_difference(logits: Sequence[float], expected: Sequence[float]) -> float | None:
    if not expected:
        return None
    return round(float(np.abs(np.subtract(logits[: len(expected)], expected)).max()), 4)
