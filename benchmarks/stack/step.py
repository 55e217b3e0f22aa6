"""Measures a step of load on an autoscaled service: replicas and answers in each second."""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.stack.launch import started
from benchmarks.stack.offered import Answered, offer_closed, outcomes
from benchmarks.stack.scaling import questions
from rerank_service.tools.bench.apis import NIM

__all__ = ["measure_step"]

_TOKENS_PER_S = 5_000.0
_START_S = 1.0
_CALM_S, _LOADED_S, _AFTER_S = 6.0, 40.0, 45.0
_CLIENTS = 24
_AUTOSCALING = {"upscale_delay_s": 1.0, "downscale_delay_s": 15.0}
"""Delays shorter than the defaults of `config.AutoscalingConfig`. The defaults suit GPUs and scale down slowly."""


@dataclass(frozen=True)
class Step:
    """Figures of a run; lists contain one value per second."""

    replicas: list[int]
    """Ready replicas."""
    answered_tokens_per_s: list[float]
    step_at_s: float
    end_at_s: float
    full_after_s: float | None
    """Time from the step until all four replicas are ready."""
    one_after_s: float | None
    """Time from the end of the load until one replica remains."""
    outcomes: dict[str, int]


def measure_step(haproxy: bool) -> dict[str, Any]:
    """Measures a low load, then a load for four replicas, then no load."""
    with tempfile.TemporaryDirectory() as folder:
        stack = {"tokens_per_s": _TOKENS_PER_S, "start_s": _START_S, "ready_folder": folder}
        model = {"autoscaling": {"min_replicas": 1, "max_replicas": 4, **_AUTOSCALING}}
        with started(stack, haproxy=haproxy, model=model) as server:
            return asdict(asyncio.run(_record(server.url + NIM.path, Path(folder))))


async def _record(url: str, folder: Path) -> Step:
    began = time.perf_counter()
    counting = asyncio.ensure_future(_count(folder, began, _CALM_S + _LOADED_S + _AFTER_S))
    await asyncio.sleep(_CALM_S)
    step_at_s = time.perf_counter() - began
    answers = await offer_closed(url, questions(0), _CLIENTS, _LOADED_S)
    end_at_s = time.perf_counter() - began
    counts = await counting
    full_at = next((at for at, count in counts if count >= 4), None)
    one_at = next((at for at, count in counts if at > end_at_s and count <= 1), None)
    return Step(
        replicas=_by_second(counts),
        answered_tokens_per_s=_answered(answers, began, len(_by_second(counts))),
        step_at_s=step_at_s,
        end_at_s=end_at_s,
        full_after_s=None if full_at is None else full_at - step_at_s,
        one_after_s=None if one_at is None else one_at - end_at_s,
        outcomes=outcomes(answers),
    )


async def _count(folder: Path, began: float, duration_s: float) -> list[tuple[float, int]]:
    counts = []
    while (at := time.perf_counter() - began) < duration_s:
        counts.append((at, _num_alive(folder)))
        await asyncio.sleep(0.1)
    return counts


def _num_alive(folder: Path) -> int:
    return sum(psutil.pid_exists(int(file.name)) for file in folder.iterdir())


def _by_second(counts: Sequence[tuple[float, int]]) -> list[int]:
    return list({int(at): count for at, count in counts}.values())


def _answered(answers: Sequence[Answered], began: float, num_seconds: int) -> list[float]:
    by_second: Counter[int] = Counter()
    for answer in answers:
        by_second[int(answer.done_at - began)] += answer.num_tokens
    return [float(by_second[second]) for second in range(num_seconds)]
