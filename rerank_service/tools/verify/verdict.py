"""From the reference's logits and the served ones to figures and a verdict. Pure: knows no model and no device."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import StatisticsError, correlation, fmean, linear_regression, pstdev

from rerank_service.config import Dtype
from rerank_service.tools.verify.recorded import RecordedLogits
from rerank_service.tools.verify.tolerances import TOLERANCES

__all__ = ["Check", "LogitFigures", "RecordedFigures", "TokenFigures", "Verdict", "figures_of", "judge"]

LogitsByQuery = Sequence[Sequence[float]]

_PROPORTIONAL = 0.999
"""Correlation from which logits that differ are the same ones on another scale."""


@dataclass(frozen=True, slots=True)
class LogitFigures:
    """How far served logits are from the reference's."""

    num_queries: int
    num_pairs: int
    logit_size: float
    """Root mean square of the reference's logits."""
    logit_spread: float
    """Their standard deviation."""
    largest_of_spread: float | None
    """The largest difference as a share of the spread; null where all logits are the same."""
    largest_difference: float
    mean_difference: float
    """Of absolute differences."""
    largest_change: float
    """Of a served logit, between its two companies."""
    ordered_alike: float
    """Share of the pairs of passages of one query that both order alike, of those that the reference tells apart."""
    kendall_tau: float
    """The same as a correlation: `2 * ordered_alike - 1`, which is Kendall's tau where there are no ties."""
    same_best: int
    """Queries whose best passage is the same."""
    correlation: float | None
    """Of all logits with the reference's; null where either are all the same."""
    slope: float | None
    """By which the reference's logits are multiplied, by least squares."""


@dataclass(frozen=True, slots=True)
class TokenFigures:
    """Whether both sides read the same."""

    unit: str
    """What was compared: the ids of `pairs`, or the numbers of tokens of `requests`."""
    num_compared: int
    num_different: int
    num_cut: int
    """Pairs that the window cut."""
    window_tokens: int


@dataclass(frozen=True, slots=True)
class RecordedFigures:
    """Logits that others recorded, beside ours."""

    recorded: RecordedLogits
    reference: tuple[float, ...]
    served: tuple[float, ...]

    def largest_difference(self, logits: Sequence[float]) -> float:
        return max(_differences([self.recorded.logits], [logits]))

    def allowed(self, dtype: Dtype = Dtype.FLOAT32) -> float:
        """For logits computed in `dtype`: half a step of how they were written down, and both sides' rounding."""
        recorded = self.recorded
        written = max(half_step(recorded.dtype, logit) for logit in recorded.logits)
        shares = TOLERANCES[recorded.computed_in].trained + TOLERANCES[dtype].trained
        return written + shares * _size(recorded.logits)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be so."""

    name: str
    is_passed: bool
    found: str
    allowed: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Is what is served what the checkpoint says?"""

    model: str
    served: str
    reference: str
    dtype: Dtype
    """Whose tolerance holds."""
    is_faithful: bool
    reason: str
    checks: tuple[Check, ...]
    figures: LogitFigures
    tokens: TokenFigures
    recorded: tuple[RecordedFigures, ...]


def half_step(dtype: Dtype, logit: float) -> float:
    """Most that writing a logit down in float16 or bfloat16 can change it."""
    significand_bits = {Dtype.FLOAT16: 11, Dtype.BFLOAT16: 8}[dtype]
    return math.ldexp(1.0, math.frexp(logit)[1] - significand_bits - 1)


def figures_of(reference: LogitsByQuery, served: LogitsByQuery, elsewhere: LogitsByQuery) -> LogitFigures:
    """All three query by query in the same order; `elsewhere` are the served ones in other company."""
    expected, found = (list(_flat(logits)) for logits in (reference, served))
    differences, spread = _differences(reference, served), pstdev(expected)
    ordered_alike = _ordered_alike(reference, served)
    slope, agreement = _line(expected, found)
    return LogitFigures(
        num_queries=len(reference),
        num_pairs=len(expected),
        logit_size=_size(expected),
        logit_spread=spread,
        largest_of_spread=max(differences) / spread if spread else None,
        largest_difference=max(differences),
        mean_difference=fmean(differences),
        largest_change=max(_differences(served, elsewhere)),
        ordered_alike=ordered_alike,
        kendall_tau=2 * ordered_alike - 1,
        same_best=sum(_best(one) == _best(other) for one, other in zip(reference, served, strict=True)),
        correlation=agreement,
        slope=slope,
    )


def judge(
    figures: LogitFigures, tokens: TokenFigures, recorded: Sequence[RecordedFigures], dtype: Dtype, must_repeat: bool
) -> tuple[tuple[Check, ...], str]:
    """What must be so, and the verdict's reason. `must_repeat`: other company must not change a bit."""
    tolerance, size = TOLERANCES[dtype], figures.logit_size
    checks = (
        _token_check(tokens),
        _share_check("largest difference", figures.largest_difference, tolerance.largest, size),
        _share_check("mean difference", figures.mean_difference, tolerance.mean, size),
        _company_check(figures, 0.0 if must_repeat else tolerance.largest),
        *(check for one in recorded for check in _recorded_checks(one, dtype)),
    )
    failed = [check.name for check in checks if not check.is_passed]
    if not failed:
        return checks, "every check holds"
    return checks, f"{', '.join(failed)}: {_likely_cause(figures, tokens, checks)}"


def _token_check(tokens: TokenFigures) -> Check:
    alike = tokens.num_compared - tokens.num_different
    found = f"{alike} of {tokens.num_compared} {tokens.unit} alike, {tokens.num_cut} cut at {tokens.window_tokens:,}"
    return Check("tokens", tokens.num_different == 0, found, "all")


def _share_check(name: str, difference: float, share: float, size: float) -> Check:
    found = f"{difference:.2g}, {difference / size:.2g} of size" if size else f"{difference:.2g}"
    return Check(name, difference <= share * size, found, f"{share:g} of size")


def _company_check(figures: LogitFigures, share: float) -> Check:
    found = "bit-equal" if figures.largest_change == 0 else f"changes by {figures.largest_change:.2g}"
    allowed = "bit-equal" if share == 0 else f"{share:g} of size"
    return Check("other company", figures.largest_change <= share * figures.logit_size, found, allowed)


def _recorded_checks(recorded: RecordedFigures, dtype: Dtype) -> Iterator[Check]:
    sides = (("reference", recorded.reference, Dtype.FLOAT32), ("served", recorded.served, dtype))
    for side, logits, precision in sides:
        difference, allowed = recorded.largest_difference(logits), recorded.allowed(precision)
        name = f"recorded in {recorded.recorded.dtype.value}, {side}"
        yield Check(name, difference <= allowed, f"{difference:.2g} off", f"{allowed:.2g}")


def _likely_cause(figures: LogitFigures, tokens: TokenFigures, checks: Sequence[Check]) -> str:
    by_name = {check.name: check.is_passed for check in checks}
    agrees = by_name["largest difference"] and by_name["mean difference"]
    if tokens.num_different:
        return "the model reads something else; is it the same tokenizer, template and window?"
    if agrees and not by_name["other company"]:
        return "a logit depends on what it is scored with"
    if agrees:
        return "these are not the weights, or not the settings, of the model whose logits were recorded"
    if figures.correlation is not None and figures.correlation > _PROPORTIONAL and figures.slope is not None:
        return f"logits are {figures.slope:.3g} times the reference's; is it the same temperature?"
    return "is it the same checkpoint, pooling and direction of attention?"


def _ordered_alike(reference: LogitsByQuery, served: LogitsByQuery) -> float:
    alike = [
        (expected[i] > expected[j]) == (found[i] > found[j])
        for expected, found in zip(reference, served, strict=True)
        for i, j in combinations(range(len(expected)), 2)
        if expected[i] != expected[j]
    ]
    return fmean(alike) if alike else 1.0


def _line(expected: Sequence[float], found: Sequence[float]) -> tuple[float | None, float | None]:
    try:
        return linear_regression(expected, found).slope, correlation(expected, found)
    except StatisticsError:  # logits that are all the same
        return None, None


def _differences(one: LogitsByQuery, other: LogitsByQuery) -> list[float]:
    return [abs(a - b) for a, b in zip(_flat(one), _flat(other), strict=True)]


def _flat(logits: LogitsByQuery) -> Iterator[float]:
    return (logit for of_query in logits for logit in of_query)


def _size(logits: Sequence[float]) -> float:
    return math.sqrt(fmean(logit * logit for logit in logits))


def _best(logits: Sequence[float]) -> int:
    return max(range(len(logits)), key=logits.__getitem__)
