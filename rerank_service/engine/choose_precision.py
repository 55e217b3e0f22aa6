"""Chooses the precision of a model, if its configuration leaves a choice, and agrees on it with other replicas.

Every number type that the configuration allows and this machine supports is offered. On a CPU, the fastest is measured.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from rerank_service.config import Dtype, EngineKind
from rerank_service.engine.device import cuda
from rerank_service.engine.device.compile import compiler_problem
from rerank_service.engine.device.precision import Precision, allowed_precisions
from rerank_service.engine.linear.speed import layer_seconds, processor_name
from rerank_service.engine.loading import Checkpoint
from rerank_service.engine.protocol import Agree
from rerank_service.engine.verdicts import verified_dtype
from rerank_service.messages import Numerics

__all__ = ["choose_precision"]

logger = logging.getLogger(__name__)

_OPEN = (Dtype.AUTO, Dtype.FASTEST)
_DECODERS = (EngineKind.BIDIRECTIONAL_DECODER, EngineKind.YES_NO_DECODER)
_TIE = 1.05
"""Precisions whose times differ by less than this ratio count as equally fast, and the most accurate one is taken."""


def choose_precision(checkpoint: Checkpoint, kind: EngineKind, agree: Agree) -> tuple[Precision, Numerics]:
    """The precision in which this process computes. Raises `CheckpointError` if the hardware lacks the configured one,
    or if `agree` requires one that this process cannot compute."""
    allowed = _allowed(checkpoint)
    names = {f"{precision} on {checkpoint.device.type}": precision for precision in allowed}

    def choose() -> Numerics:
        precision, reason = _choose(allowed, checkpoint, kind)
        return Numerics(f"{precision} on {checkpoint.device.type}", reason)

    numerics = agree(tuple(names), choose)
    return names[numerics.name], numerics


def _allowed(checkpoint: Checkpoint) -> tuple[Precision, ...]:
    """The precisions that the options allow here; for `auto` and `fastest` on a GPU, float8 too if it is verified and
    can be compiled."""
    options, device = checkpoint.options, checkpoint.device
    allowed = allowed_precisions(options.dtype, device)
    may_be_float8 = device.type != "cpu" and options.dtype in _OPEN and options.compile is not False
    if may_be_float8 and compiler_problem(device) is None:
        verified = verified_dtype(options, checkpoint.folder, cuda.name(device))
        allowed += allowed_precisions(verified, device) if verified is Dtype.FLOAT8 else ()
    return allowed


def _choose(allowed: Sequence[Precision], checkpoint: Checkpoint, kind: EngineKind) -> tuple[Precision, str]:
    """The precision that suits this machine, and the reason."""
    options, fastest = checkpoint.options, allowed[-1]
    if options.dtype not in _OPEN:
        return fastest, f"engine.dtype is {options.dtype.value}"
    if checkpoint.device.type != "cpu":
        return fastest, f"the fastest of {cuda.name(checkpoint.device)} that dtype {options.dtype.value} allows"
    # Types of states are compared in floats only: 8-bit layers take the type that is fastest by its instructions.
    compared = tuple(one for one in allowed if one.quantised is None or one is fastest)
    if len(compared) == 1:
        return fastest, f"the only type that dtype {options.dtype.value} allows on {processor_name()}"
    try:
        seconds = layer_seconds(compared, _hidden_size(checkpoint.raw), is_decoder=kind in _DECODERS)
    except (RuntimeError, NotImplementedError) as error:
        logger.warning("speeds cannot be measured: %s; the most accurate type is used", error)
        return allowed[0], f"the most accurate type, because speeds cannot be measured on {processor_name()}"
    within = _TIE * min(seconds)
    chosen = next(one for one, took_s in zip(compared, seconds, strict=True) if took_s <= within)
    times = ", ".join(f"{one} {1000 * took_s:.3g}" for one, took_s in zip(compared, seconds, strict=True))
    return chosen, f"measured on {processor_name()}, milliseconds for one layer: {times}"


def _hidden_size(raw: Mapping[str, Any]) -> int:
    return int(raw.get("hidden_size") or raw.get("dim") or 1024)
