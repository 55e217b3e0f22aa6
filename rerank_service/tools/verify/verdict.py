"""Compares served logits with the reference's logits: figures, tolerances and the verdict. Pure arithmetic."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rerank_service.config import Dtype
from rerank_service.tools.verify.recorded import RecordedLogits

__all__ = [
    "TOLERANCES",
    "Check",
    "LogitFigures",
    "RecordedFigures",
    "TokenFigures",
    "Verdict",
    "figures_of",
    "half_step",
    "judge",
]

LogitsByQuery = Sequence[Sequence[float]]

_PROPORTIONAL = 0.999
"""Correlation above which logits that differ are reported as equal logits on another scale."""


class Tolerance(NamedTuple):
    """Allowed differences from the reference's logits, as shares of the size of these logits.

    The size is the root mean square, which covers both spread and offset, because rounding affects both.

    Differences were measured on 2026-11-23 (AMD EPYC with AVX512-BF16 and VNNI, torch 2.13.0) on eighteen random
    checkpoints of `make-checkpoint`, tiny and small, and on all-MiniLM-L6-v2. Random models are the worst case: a
    trained model's differences are a tenth to a fifth as large. The bounds are about twice the largest differences
    found, and wider in float32. Every wrong model exceeded a bound (`tests/unit/tools/verify/test_verify.py`).
    """

    largest: float
    """Bound for the largest difference of a pair."""
    mean: float
    """Bound for the mean absolute difference. The mean varies less than the largest difference, and exposes small
    errors in all logits, such as a wrong temperature."""
    trained: float
    """Bound for recorded logits of trained models: about four times the difference found on all-MiniLM-L6-v2. NVIDIA's
    1B rounds more often, in 16 layers instead of 6; independent errors add up to `sqrt(16 / 6) = 1.6` times as much."""


TOLERANCES = {
    # Largest and mean found: 3e-6 and 1e-6, from a different order of summation; larger on GPUs and in deeper models.
    Dtype.FLOAT32: Tolerance(1e-4, 2e-5, 1e-4),
    # Found: 0.0041 and 0.0013, with a significand of 11 bits.
    Dtype.FLOAT16: Tolerance(0.01, 0.004, 0.002),
    # Found: 0.048 and 0.014, with 8 bits; rounding steps are eight times as large as in float16.
    Dtype.BFLOAT16: Tolerance(0.1, 0.03, 0.02),
    # Found: 0.095 and 0.031, with 8 bits per row or channel; values beyond the calibrated range are clipped.
    Dtype.INT8: Tolerance(0.2, 0.06, 0.08),
    # Found: 0.33 and 0.10, with 4 bits, emulated on a CPU; rounding steps are sixteen times as large as in bfloat16.
    Dtype.FLOAT8: Tolerance(0.5, 0.16, 0.15),
}


@dataclass(frozen=True, slots=True)
class LogitFigures:
    """Differences between the served logits and the reference's logits."""

    num_queries: int
    num_pairs: int
    logit_size: float
    """Root mean square of the reference's logits."""
    logit_spread: float
    """Standard deviation of the reference's logits."""
    largest_of_spread: float | None
    """Largest difference as a share of the spread; null if all logits are equal."""
    largest_difference: float
    mean_difference: float
    """Mean absolute difference."""
    largest_change: float
    """Largest difference between two served logits of the same pair, computed in different batches."""
    ordered_alike: float
    """Share of passage pairs, within each query, that both sides put in the same order. Pairs with equal reference
    logits are not counted."""
    kendall_tau: float
    """`2 * ordered_alike - 1`, which is Kendall's tau if there are no ties."""
    same_best: int
    """Number of queries whose best passage is the same on both sides."""
    correlation: float | None
    """Correlation with the reference's logits; null if all logits of a side are equal."""
    slope: float | None
    """Factor from the reference's logits to the served logits, by least squares."""


@dataclass(frozen=True, slots=True)
class TokenFigures:
    """Comparison of the tokens on both sides."""

    unit: str
    """`pairs` if token ids were compared, `requests` if only the numbers of tokens were compared."""
    num_compared: int
    num_different: int
    num_cut: int
    """Pairs truncated to the window."""
    window_tokens: int


@dataclass(frozen=True, slots=True)
class RecordedFigures:
    """Recorded logits, and the logits of the same pairs as computed here."""

    recorded: RecordedLogits
    reference: tuple[float, ...]
    served: tuple[float, ...]

    def largest_difference(self, logits: Sequence[float]) -> float:
        return float(np.abs(np.subtract(self.recorded.logits, logits)).max())

    def allowed(self, dtype: Dtype = Dtype.FLOAT32) -> float:
        """Allowed difference of logits computed in `dtype`.

        The allowed difference is half a rounding step of the recorded digits, plus the rounding errors of both
        computations.
        """
        recorded = self.recorded
        written = max(half_step(recorded.dtype, logit) for logit in recorded.logits)
        shares = TOLERANCES[recorded.computed_in].trained + TOLERANCES[dtype].trained
        return written + shares * _size(recorded.logits)


@dataclass(frozen=True, slots=True)
class Check:
    """A requirement, and whether it is met."""

    name: str
    is_passed: bool
    found: str
    allowed: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the served model matches its checkpoint, and why."""

    model: str
    served: str
    reference: str
    dtype: Dtype
    """Precision that sets the tolerances."""
    is_faithful: bool
    reason: str
    checks: tuple[Check, ...]
    figures: LogitFigures
    tokens: TokenFigures
    recorded: tuple[RecordedFigures, ...]


def half_step(dtype: Dtype, logit: float) -> float:
    """Largest rounding error of a logit written in float32, float16 or bfloat16."""
    significand_bits = {Dtype.FLOAT32: 24, Dtype.FLOAT16: 11, Dtype.BFLOAT16: 8}[dtype]
    return math.ldexp(1.0, math.frexp(logit)[1] - significand_bits - 1)


def figures_of(reference: LogitsByQuery, served: LogitsByQuery, elsewhere: LogitsByQuery) -> LogitFigures:
    """Compares logits, given query by query in the same order. `elsewhere` has the served logits of the same pairs,
    computed in different batches."""
    expected, found, found_elsewhere = (np.concatenate(logits) for logits in (reference, served, elsewhere))
    differences = np.abs(found - expected)
    largest, spread, found_spread = float(differences.max()), float(expected.std()), float(found.std())
    correlation = float(np.corrcoef(expected, found)[0, 1]) if spread and found_spread else None
    ordered_alike = _ordered_alike(reference, served)
    return LogitFigures(
        num_queries=len(reference),
        num_pairs=expected.size,
        logit_size=_size(expected),
        logit_spread=spread,
        largest_of_spread=largest / spread if spread else None,
        largest_difference=largest,
        mean_difference=float(differences.mean()),
        largest_change=float(np.abs(found - found_elsewhere).max()),
        ordered_alike=ordered_alike,
        kendall_tau=2 * ordered_alike - 1,
        same_best=sum(int(np.argmax(a) == np.argmax(b)) for a, b in zip(reference, served, strict=True)),
        correlation=correlation,
        slope=None if correlation is None else correlation * found_spread / spread,
    )


def judge(
    figures: LogitFigures, tokens: TokenFigures, recorded: Sequence[RecordedFigures], dtype: Dtype, must_repeat: bool
) -> tuple[tuple[Check, ...], str]:
    """Returns the checks and the reason for the verdict. `must_repeat` requires bit-equal logits in every batch."""
    tolerance, size = TOLERANCES[dtype], figures.logit_size
    checks = (
        Check(
            "tokens",
            tokens.num_different == 0,
            f"{tokens.num_compared - tokens.num_different} of {tokens.num_compared} {tokens.unit} equal, "
            f"{tokens.num_cut} truncated at {tokens.window_tokens:,}",
            "all",
        ),
        _share_check("largest difference", figures.largest_difference, tolerance.largest, size),
        _share_check("mean difference", figures.mean_difference, tolerance.mean, size),
        Check(
            "batch invariance",
            figures.largest_change <= (0.0 if must_repeat else tolerance.largest * size),
            f"changes by {figures.largest_change:.2g}" if figures.largest_change else "bit-equal",
            "bit-equal" if must_repeat else f"{tolerance.largest:g} of size",
        ),
        *(check for one in recorded for check in _recorded_checks(one, dtype)),
    )
    failed = [check.name for check in checks if not check.is_passed]
    if not failed:
        return checks, "every check passes"
    return checks, f"{', '.join(failed)}: {_likely_cause(figures, tokens, checks)}"


def _share_check(name: str, difference: float, share: float, size: float) -> Check:
    found = f"{difference:.2g}, {difference / size:.2g} of size" if size else f"{difference:.2g}"
    return Check(name, difference <= share * size, found, f"{share:g} of size")


def _recorded_checks(recorded: RecordedFigures, dtype: Dtype) -> Iterator[Check]:
    sides = (("reference", recorded.reference, Dtype.FLOAT32), ("served", recorded.served, dtype))
    for side, logits, precision in sides:
        difference, allowed = recorded.largest_difference(logits), recorded.allowed(precision)
        name = f"recorded in {recorded.recorded.dtype.value}, {side}"
        yield Check(name, difference <= allowed, f"differs by {difference:.2g}", f"{allowed:.2g}")


def _likely_cause(figures: LogitFigures, tokens: TokenFigures, checks: Sequence[Check]) -> str:
    by_name = {check.name: check.is_passed for check in checks}
    agrees = by_name["largest difference"] and by_name["mean difference"]
    if tokens.num_different:
        return "the model sees different tokens; check tokenizer, template and window"
    if agrees and not by_name["batch invariance"]:
        return "a logit depends on the other pairs in its batch"
    if agrees:
        return "weights or settings differ from the model whose logits were recorded"
    if figures.correlation is not None and figures.correlation > _PROPORTIONAL and figures.slope is not None:
        return f"logits are {figures.slope:.3g} times the reference's; check the temperature"
    return "check the checkpoint, the pooling and the direction of attention"


def _ordered_alike(reference: LogitsByQuery, served: LogitsByQuery) -> float:
    alike = [
        (expected[i] > expected[j]) == (found[i] > found[j])
        for expected, found in zip(reference, served, strict=True)
        for i, j in combinations(range(len(expected)), 2)
        if expected[i] != expected[j]
    ]
    return sum(alike) / len(alike) if alike else 1.0


def _size(logits: ArrayLike) -> float:
    """Root mean square of the logits."""
    return float(np.sqrt(np.mean(np.square(logits))))
