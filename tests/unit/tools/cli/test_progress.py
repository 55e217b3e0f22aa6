"""Without a terminal, progress lines show the amount, the rate and the time left."""

import pytest

from rerank_service.tools.cli import progress
from rerank_service.tools.cli.progress import ProgressBar


def test_lines_with_rate_and_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with ProgressBar(scored="pairs") as report:
        for seconds in range(0, 130, 10):
            now = 1_000.0 + seconds
            # 500 pairs done before the start, no progress for ten seconds, then 100 pairs per second
            report("scored", 500 + 100 * max(0, seconds - 10), 20_000)

    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "scored 8%  1,500 of 20,000 pairs  50 pairs/s  6:10 left"
    assert lines[-1] == "scored 57%  11,500 of 20,000 pairs  100 pairs/s  1:25 left"
    assert len(lines) == 6


def test_stages_without_a_unit_show_only_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with ProgressBar(scored="pairs") as report:
        report("read", 0, 100_000)
        now = 20.0
        report("read", 500, 100_000)

    assert capsys.readouterr().err == "read 0%  1:06:20 left\n"
