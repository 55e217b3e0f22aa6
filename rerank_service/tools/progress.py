"""How long-running tools report progress; `cli/progress.py` shows it."""

from collections.abc import Callable

__all__ = ["ReportProgress", "no_progress"]

ReportProgress = Callable[[str, int, int], None]
"""Called with the name of the current stage, the amount done in it, and its total."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Discards the report."""
