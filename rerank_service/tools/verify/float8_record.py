"""Records for the engine whether a checkpoint is accurate enough in float8 on this machine's GPU."""

from datetime import UTC, datetime
from pathlib import Path

import torch

from rerank_service import __version__
from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.config import Dtype, ModelConfig
from rerank_service.engine.device import cuda
from rerank_service.engine.device.choose import choose_device
from rerank_service.engine.verdicts import Float8Verdict, checkpoint_digest, write_verdict
from rerank_service.errors import CheckpointError
from rerank_service.tools.verify.verdict import TOLERANCES, Verdict

__all__ = ["float8_verdict", "gpu_to_record", "record_float8"]


def gpu_to_record(model: ModelConfig) -> str:
    """Name of the GPU that runs the model. Raises `CheckpointError` if the model does not run on a GPU in float8."""
    chosen = choose_device(model.engine.device)
    if model.engine.dtype is not Dtype.FLOAT8 or not chosen.is_gpu:
        raise CheckpointError(
            "--record needs recorded scores (--recorded FILE.json), or a GPU and --dtype float8; no scores of "
            f"{model.id} are recorded, and it runs on {chosen.device} in {model.engine.dtype.value}"
        )
    return cuda.name(chosen.device)


def float8_verdict(model: ModelConfig, verdict: Verdict, gpu: str) -> Float8Verdict:
    """The record of a verification on `gpu`.

    Float8 is accepted if every check passes and the largest difference is within the bound for trained models. The
    bound of the checks is wider, because random models, with which it was measured, are the worst case.
    """
    figures, allowed = verdict.figures, TOLERANCES[Dtype.FLOAT8].trained
    largest = figures.largest_difference / figures.logit_size if figures.logit_size else figures.largest_difference
    return Float8Verdict(
        checkpoint=checkpoint_digest(resolve_checkpoint(model.checkpoint)),
        gpu=gpu,
        torch=torch.__version__,
        service=__version__,
        is_accepted=verdict.is_faithful and largest <= allowed,
        largest_difference=largest,
        allowed=allowed,
        kendall_tau=figures.kendall_tau,
        num_pairs=figures.num_pairs,
        recorded_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def record_float8(model: ModelConfig, verdict: Verdict, gpu: str) -> tuple[Float8Verdict, Path]:
    """Writes the record of a verification. Returns it with its file. Raises `OSError`."""
    record = float8_verdict(model, verdict, gpu)
    return record, write_verdict(model.engine, record)
