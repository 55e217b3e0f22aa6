"""The criterion of the soak test detects growth, and ignores noise and warm-up."""

import random

import pytest

from benchmarks.soak.growth import LIMITS, rise_over

_MINUTES = [60.0 * minute for minute in range(60)]


def test_start_and_rise_of_a_line() -> None:
    level, rise = rise_over(_MINUTES, [100 + minute for minute in range(60)])

    assert level == pytest.approx(120)
    assert rise == pytest.approx(39)


def test_growth_in_the_first_third_is_ignored() -> None:
    _, rise = rise_over(_MINUTES, [min(minute, 15) * 20.0 for minute in range(60)])

    assert rise == 0


def test_a_leak_of_a_kilobyte_per_request_is_detected_in_noise() -> None:
    noise = random.Random(0)
    noisy = [400 + noise.gauss(0, 3) for _ in range(60)]
    leaking = [value + minute * 450 / 1024 for minute, value in enumerate(noisy)]  # 450 requests per minute

    assert LIMITS["rss_mb"].allows(*reversed(rise_over(_MINUTES, noisy)))
    assert not LIMITS["rss_mb"].allows(*reversed(rise_over(_MINUTES, leaking)))


def test_one_sample_is_flat() -> None:
    assert rise_over([0.0], [5.0]) == (5.0, 0.0)
