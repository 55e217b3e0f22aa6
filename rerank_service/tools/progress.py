"""Progress reports of long-running tools; `cli/progress.py` displays them."""

from collections.abc import Callable

__all__ = ["ReportProgress", "no_progress"]

ReportProgress = Callable[[str, int, int], None]
"""A function that takes the name of the current stage, the amount of work done in this stage, and the total amount."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Discards a progress report."""
