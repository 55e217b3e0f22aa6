"""How far a logit may be from the reference's, by the precision it is computed in, and why.

Shares of the logits' size: the root mean square of the reference's logits, so their spread and their offset, since
rounding acts on both. Measured on 2026-11-23 (AMD EPYC with AVX512-BF16 and VNNI, torch 2.13.0) on eighteen random
checkpoints of `make-checkpoint`, tiny and small, and on all-MiniLM-L6-v2. Random models are the worst case: a trained
one is off by a tenth to a fifth of that. The bounds for any model are about twice the largest figure found, in float32
more; what is wrong rather than rounded was off by more than any (`tests/unit/test_fidelity.py`).
"""

from typing import NamedTuple

from rerank_service.config import Dtype

__all__ = ["TOLERANCES", "Tolerance"]


class Tolerance(NamedTuple):
    """Shares of the logits' size."""

    largest: float
    """For the pair that is furthest off."""
    mean: float
    """For the mean of all absolute differences: it varies less than the largest, and shows what is a little wrong
    everywhere, such as another temperature."""
    trained: float
    """For the pair that is furthest off of logits that others recorded: they come from trained models. About four times
    what was found on all-MiniLM-L6-v2, whose 6 layers round less often than the 16 of NVIDIA's 1B: independent errors
    add up to `sqrt(16 / 6) = 1.6` times as much there."""


TOLERANCES = {
    # Found 3e-6 and 1e-6, from sums in another order; GPUs and deeper models add up more.
    Dtype.FLOAT32: Tolerance(1e-4, 2e-5, 1e-4),
    # Found 0.0041 and 0.0013: a significand of 11 bits.
    Dtype.FLOAT16: Tolerance(0.01, 0.004, 0.002),
    # Found 0.048 and 0.014: 8 bits, so eight times float16's steps.
    Dtype.BFLOAT16: Tolerance(0.1, 0.03, 0.02),
    # Found 0.095 and 0.031: 8 bits a row or a channel, and what is beyond the calibrated range is clipped.
    Dtype.INT8: Tolerance(0.2, 0.06, 0.08),
    # Found 0.33 and 0.10, on a CPU that computes its rounding: 4 bits, so sixteen times bfloat16's steps.
    Dtype.FLOAT8: Tolerance(0.5, 0.16, 0.15),
}
