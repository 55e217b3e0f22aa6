"""Shows the progress of a long command: as a bar on a terminal, otherwise as a line every 15 seconds."""

import time
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

__all__ = ["ProgressBar"]

_SILENT_S = 2.0
"""Shorter stages without a unit are not shown."""
_LINE_EVERY_S = 15.0
_WIDE_COLUMNS = 120
"""Narrower terminals have a short bar."""
_WINDOW_S = 60.0
"""Period over which the rate is averaged."""


class ProgressBar:
    """Shows one stage at a time. Call it with the stage, the amount done and the total.

    `ProgressBar(scored="pairs")` shows amount and rate for the stage `scored`, and only a percentage for other stages.
    """

    def __init__(self, **units: str) -> None:
        console = Console(stderr=True)
        self._units = units
        self._bar = Progress(
            # A long name is shortened; rich narrows only columns that may wrap.
            TextColumn("{task.description:>8}", markup=False, table_column=Column(overflow="ellipsis")),
            BarColumn(bar_width=24 if console.width >= _WIDE_COLUMNS else 8),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[words]}", table_column=Column(no_wrap=True)),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._console = console
        self._task: TaskID | None = None
        self._stage = ""
        self._seen: deque[tuple[float, int]] = deque()
        self._started = self._spoke = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Reports `done` of `total`. The rate ignores the amount reported by a stage's first call."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._started, self._spoke = stage, now, now
            self._seen.clear()
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(stage, total=total, words="", visible=False)
        words = self._words(done, total, self._rate(now, done))
        if self._task is not None:
            visible = now - self._started > _SILENT_S or self._stage in self._units
            self._bar.update(self._task, completed=done, total=total, words=words, visible=visible)
        if not self._console.is_terminal and now - self._spoke >= _LINE_EVERY_S:
            self._spoke = now
            self._console.print(f"{stage} {done / max(1, total):.0%}  {words}", highlight=False, soft_wrap=True)

    def _rate(self, now: float, done: int) -> float:
        """Amount per second over the last minute. A mean over the whole stage would include the loading of models."""
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] > _WINDOW_S:
            self._seen.popleft()
        then, before = self._seen[0]
        return (done - before) / (now - then) if now > then else 0.0

    def _words(self, done: int, total: int, rate: float) -> str:
        unit = self._units.get(self._stage)
        left = f"{_duration((total - done) / rate)} left" if rate > 0 else "just started"
        return left if unit is None else f"{done:,} of {total:,} {unit}  {rate:,.0f} {unit}/s  {left}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
