"""`rerank-service plan --cascade`: reads the stages, and shows the plan. `tools.planning.cascade` simulates."""

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Column, Table

from rerank_service.tools.cli.console import fail
from rerank_service.tools.planning.speed import PlannedModel, speed_of
from rerank_service.tools.planning.workload import Mix

if TYPE_CHECKING:
    from rerank_service.tools.planning.cascade import CascadePlan, Stage, StagePlan

__all__ = ["cascade_answer", "cascade_notes", "cascade_table", "figures_table", "in_ms", "read_stages", "several"]

_STAGE = re.compile(r"(?P<model>[^\s:=,]+)(=(?P<speed>[0-9.e+]+))?(:(?P<keep>[0-9.]+))?")
_ESTIMATED = (PlannedModel.LLAMA_1B, PlannedModel.MISTRAL_4B)


def read_stages(text: str, mix: Mix, gpu: str, mfu: float, batch_overhead_s: float | None) -> "list[Stage]":
    """Stages of `--cascade`, such as `1b:50,4b` or `small=900000:0.1,4b=61000`: model, measured speed, keep."""
    from rerank_service.tools.planning.cascade import Stage

    parts = [_STAGE.fullmatch(part.strip()) for part in text.split(",")]
    if len(parts) < 2 or not all(parts):
        raise fail(
            f"--cascade {text!r} has not the form MODEL:KEEP,...,MODEL, such as 1b:50,4b: the 1B scores all passages "
            "and keeps 50, which the 4B scores"
        )
    stages: list[Stage] = []
    for place, part in enumerate(part for part in parts if part is not None):
        model, keep = part["model"], _keep(text, part["model"], part["keep"], is_last=place == len(parts) - 1)
        measured = None if part["speed"] is None else _tokens_per_s(text, part["speed"])
        if measured is None and model not in _ESTIMATED:
            raise fail(
                f"--cascade {text!r}: the speed of {model} is not known; known are {' and '.join(_ESTIMATED)}. Measure "
                f"it (benchmarks/gpu.py) and write {model}=TOKENS_PER_S"
            )
        planned = PlannedModel.LLAMA_1B if measured else PlannedModel(model)
        try:
            speed = speed_of(
                mix, tokens_per_s=measured, model=planned, gpu=gpu, mfu=mfu, batch_overhead_s=batch_overhead_s
            )
        except ValueError as error:
            raise fail(str(error)) from None
        if model in (stage.model for stage in stages):
            raise fail(f"--cascade {text!r}: {model} is in two stages, and a cascade needs different models")
        stages.append(Stage(model, speed, keep))
    return stages


def _tokens_per_s(text: str, speed: str) -> float:
    try:
        measured = float(speed)
    except ValueError:
        measured = 0.0
    if not 0 < measured < math.inf:
        raise fail(f"--cascade {text!r}: {speed} tokens/s is no speed; it must be above 0")
    return measured


def _keep(text: str, model: str, keep: str | None, *, is_last: bool) -> int | float | None:
    if is_last:
        if keep is not None:
            raise fail(f"--cascade {text!r}: the last stage, {model}, keeps nothing; write it without :{keep}")
        return None
    try:
        number = float(keep or "")
    except ValueError:
        raise fail(
            f"--cascade {text!r}: how many passages does {model} keep? Write {model}:50 or {model}:0.1"
        ) from None
    if 0 < number < 1:
        return number
    if number >= 1 and keep and keep.isdecimal():  # 1.0 may mean one passage or all: the service refuses it too
        return int(number)
    raise fail(
        f"--cascade {text!r}: {model} must keep a whole number of passages, or a share of them above 0 and below 1"
    )


def cascade_answer(found: "CascadePlan", device: str, load: str) -> str:
    """The answer in two sentences: the fleet, and the last model without the cascade. `load` describes the requests."""
    total, last = found.replicas, found.stages[-1].stage.model
    parts = [f"{stage.replicas:,} for the {stage.stage.model}" for stage in found.stages]
    fleet = f"{', '.join(parts[:-1])} and {parts[-1]}"
    answer = (
        f"You need {several(total, device)}, {fleet}: 99% of the requests are then answered within "
        f"{in_ms(found.measured.p99_s)} (target: {in_ms(found.demand.p99_s)}), at "
        f"{found.demand.rps:g} requests/s of {load}."
    )
    if found.alone is None:
        return f"{answer} Without the cascade, no number of {device}s lets the {last} meet the target."
    return f"{answer} Without the cascade, the {last} alone needs {found.alone.replicas:,}."


def figures_table() -> Table:
    """An empty table for one row per figure: its name, its value and what it means."""
    return Table(
        Column(no_wrap=True),
        Column(style="bold", no_wrap=True, justify="right"),
        Column(style="dim"),
        box=None,
        show_header=False,
        pad_edge=False,
    )


def cascade_table(found: "CascadePlan") -> Table:
    """A table with the figures of each stage, then those of the whole."""
    table = figures_table()
    for number, stage in enumerate(found.stages, 1):
        table.add_row(f"stage {number}", f"{stage.replicas:,}", _stage_words(stage))
    measured = found.measured
    table.add_row(
        "p99 latency",
        in_ms(measured.p99_s),
        f"{in_ms(measured.p99_low_s)} to {in_ms(measured.p99_high_s)} with 95% confidence; half of the "
        f"requests take at most {in_ms(measured.p50_s)}",
    )
    table.add_row("busy", f"{measured.utilisation:.0%}", "all stages together")
    table.add_row("ingresses", f"{found.ingresses:,}", "processes that receive requests")
    table.add_row("controller", f"{found.controller_cpus:.2f}", "cores for Ray Serve's controller")
    if found.cost_per_million_passages is not None:
        table.add_row("cost", f"{found.cost_per_million_passages:.2f}", "per million passages, for replicas only")
    return table


def _stage_words(stage: "StagePlan") -> str:
    fewest = f"{stage.fewest_replicas:,} {'is' if stage.fewest_replicas == 1 else 'are'}"
    return (
        f"replica{'' if stage.replicas == 1 else 's'} of the {stage.stage.model} for {stage.mean_passages:,.4g} "
        "passages per request; "
        f"{fewest} enough to keep up with the load, and the autoscaler keeps {stage.kept_replicas:,}. Each "
        f"scores {stage.stage.speed.tokens_per_s:,.0f} tokens/s; {stage.stage.speed.origin}"
    )


def cascade_notes(found: "CascadePlan") -> Iterator[str]:
    """Limits of the plan."""
    if not all(stage.stage.speed.is_measured for stage in found.stages):
        yield (
            "Speeds are assumptions, not measurements. Measure yours with `python benchmarks/gpu.py` and write "
            "MODEL=TOKENS_PER_S in --cascade."
        )
    yield (
        "A plan says nothing about quality: measure on your own queries how many passages you must keep "
        "(docs/appendix/cascades.md)."
    )


def several(number: int, device: str) -> str:
    """A number of devices."""
    return f"{number:,} {device}{'' if number == 1 else 's'}"


def in_ms(seconds: float) -> str:
    """A time in milliseconds."""
    return f"{1000 * seconds:,.0f} ms"
