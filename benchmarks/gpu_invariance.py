"""Measures on one GPU how much the logit of a pair changes with the other pairs of its batch.

    python -m benchmarks.gpu --prepare                                        # once, where there is a network
    python -m benchmarks.gpu_invariance --model 1b --json $OUT/invariance.json

Every pair is scored alone, and then in batches of several sizes and in random order. A row has the largest change of a
logit, for one precision, with and without compiled layers and CUDA graphs, and with `engine.batch_invariant`, which
must give 0. Rows are printed and saved as they come. The machine needs the same packages as `benchmarks.gpu`.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout, without an installation

from benchmarks.on_gpu.packages import FOLDER, use_packages

__all__ = ["Row", "changes"]

_LENGTHS = (17, 40, 64, 100, 128, 129, 200, 256, 300, 400, 511, 512)
_PAIRS_PER_LENGTH = 4
_BATCH_PAIRS = (2, 3, 5, 8, 16, 48)


class _Mode(NamedTuple):
    name: str
    is_compiled: bool = False
    has_graphs: bool = False
    is_invariant: bool = False


_MODES = (
    _Mode("eager"),
    _Mode("compiled", is_compiled=True),
    _Mode("compiled, graphs", is_compiled=True, has_graphs=True),
    _Mode("compiled, batch_invariant", is_compiled=True, has_graphs=True, is_invariant=True),
    _Mode("eager, batch_invariant", has_graphs=True, is_invariant=True),
)


@dataclass(frozen=True)
class Row:
    """Changes of the logits in one mode."""

    model: str
    dtype: str
    mode: str
    ran_as: str
    largest_change: float
    """Largest difference between two logits of a pair in different batches."""
    num_changed: int
    """Pairs with at least two different logits."""
    num_pairs: int
    num_batches: int
    logit_std: float
    """Standard deviation of the logits of the pairs alone."""


def changes(engine: Any, pairs: Sequence[Any], rounds: int, rng: random.Random) -> tuple[list[float], list[float], int]:
    """The logit of each pair alone, its largest change in batches of several sizes, and the number of batches."""
    alone = [engine.score([pair])[0] for pair in pairs]
    largest = [0.0] * len(pairs)
    num_batches = len(pairs)
    for _ in range(rounds):
        for size in _BATCH_PAIRS:
            order = rng.sample(range(len(pairs)), len(pairs))
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                for index, logit in zip(batch, engine.score([pairs[index] for index in batch]), strict=True):
                    largest[index] = max(largest[index], abs(logit - alone[index]))
                num_batches += 1
    return alone, largest, num_batches


def _row(checkpoint: Path, dtype: str, mode: _Mode, arguments: argparse.Namespace) -> Row:
    import numpy as np

    from benchmarks.on_gpu.measure import draw_pairs
    from benchmarks.on_gpu.models import counted_replays, state_of, window
    from rerank_service.config import BatchingConfig, CheckpointConfig, Dtype, EngineConfig, ModelConfig
    from rerank_service.engine import load_engine

    options = EngineConfig(
        device=arguments.device,
        dtype=Dtype(dtype),
        compile=mode.is_compiled,
        cuda_graphs=mode.has_graphs,
        batch_invariant=mode.is_invariant,
    )
    settings = ModelConfig(
        id="invariance",
        checkpoint=CheckpointConfig(source=str(checkpoint)),
        engine=options,
        window_tokens=min(512, window(checkpoint)),
        batching=BatchingConfig(max_batch_tokens=4096),
    )
    pairs = [pair for length in _LENGTHS for pair in draw_pairs(checkpoint, length, _PAIRS_PER_LENGTH)]
    with counted_replays() as replays:
        engine = load_engine(settings)
        before = replays.count
        alone, largest, num_batches = changes(engine, pairs, arguments.rounds, random.Random(0))  # noqa: S311
        state = state_of(engine, replays.count - before, num_batches)
    return Row(
        model=arguments.model,
        dtype=dtype,
        mode=mode.name,
        ran_as=str(state),
        largest_change=max(largest),
        num_changed=sum(change > 0 for change in largest),
        num_pairs=len(pairs),
        num_batches=num_batches,
        logit_std=float(np.std(alone)),
    )


def main() -> None:
    """Measures all modes of all precisions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="1b", help="1b, 4b, small or tiny")
    parser.add_argument("--dtypes", default="bfloat16,float8,float16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--checkpoints", type=Path, default=Path(__file__).parents[1] / ".bench" / "checkpoints")
    parser.add_argument("--rounds", type=int, default=4, help="random orders for each size of batches")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    use_packages()
    try:
        from benchmarks.on_gpu.models import written
        from benchmarks.provenance import save_record
    except ModuleNotFoundError as error:
        sys.exit(f"{error}: run `python -m benchmarks.gpu --prepare` where there is a network, and bring {FOLDER}")
    checkpoint = written(options.checkpoints, options.model, options.device)
    # The modes with the setting come last: it changes the matrix products of the whole process.
    plan = [(dtype, mode) for mode in _MODES for dtype in options.dtypes.split(",")]
    rows: list[Row] = []
    for dtype, mode in plan:
        row = _row(checkpoint, dtype, mode, options)
        rows.append(row)
        print(
            f"{row.model}  {row.dtype:9} {row.mode:26} largest change {row.largest_change:.3g} "
            f"({row.num_changed} of {row.num_pairs} pairs; logits spread {row.logit_std:.3g}); ran as {row.ran_as}",
            flush=True,
        )
        if options.json:
            save_record(options.json, [asdict(one) for one in rows])


if __name__ == "__main__":
    main()
