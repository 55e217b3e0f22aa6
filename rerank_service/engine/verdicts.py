"""Records of `verify` that float8 is accurate enough for a checkpoint on a GPU. The engine only reads them.

A record is valid for the checkpoint's files, the GPU, torch and the version of the service for which it was written.
"""

import hashlib
import json
import logging
import re
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from rerank_service import __version__
from rerank_service.checkpoints.pull import cache_root
from rerank_service.checkpoints.verification import MANIFEST_FILE, quick_digest
from rerank_service.config import Dtype, EngineConfig

__all__ = ["Float8Verdict", "checkpoint_digest", "current_verdict", "verdict_path", "verified_dtype", "write_verdict"]

logger = logging.getLogger(__name__)


class Float8Verdict(BaseModel):
    """Accuracy of a checkpoint in float8 on a GPU, compared with its reference in float32."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str
    """Digest of the checkpoint's files (`checkpoint_digest`)."""
    gpu: str
    """Name of the GPU as reported by the driver."""
    torch: str
    service: str
    is_accepted: bool
    largest_difference: float
    """Largest difference of a logit, as a share of the size of the logits."""
    allowed: float
    """Largest difference that is accepted."""
    kendall_tau: float
    num_pairs: int
    recorded_at: str
    """Time in UTC, ISO 8601."""


def checkpoint_digest(folder: Path) -> str:
    """Digest of the names and quick digests of the checkpoint's weights and JSON files."""
    files = sorted({*folder.glob("*.safetensors"), *folder.glob("*.json")} - {folder / MANIFEST_FILE})
    lines = "".join(f"{quick_digest(path)}  {path.name}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def verdict_path(options: EngineConfig, checkpoint: str, gpu: str) -> Path:
    """File of the record for a checkpoint, by its digest, and a GPU."""
    folder = Path(options.float8_verdicts).expanduser() if options.float8_verdicts else cache_root() / "verdicts"
    return folder / f"{checkpoint[:16]}-{re.sub(r'[^A-Za-z0-9]+', '-', gpu)}.json"


def write_verdict(options: EngineConfig, verdict: Float8Verdict) -> Path:
    """Writes a record, and returns its file. Raises `OSError`."""
    path = verdict_path(options, verdict.checkpoint, verdict.gpu)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(verdict.model_dump(), indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return path


def current_verdict(options: EngineConfig, folder: Path, gpu: str) -> Float8Verdict | None:
    """The record for the checkpoint in `folder`, this GPU, torch and version of the service; null if there is none."""
    checkpoint = checkpoint_digest(folder)
    path = verdict_path(options, checkpoint, gpu)
    try:
        verdict = Float8Verdict.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        logger.warning("the float8 record %s is ignored: %s", path, type(error).__name__)
        return None
    found = (verdict.checkpoint, verdict.gpu, verdict.torch, verdict.service)
    expected = (checkpoint, gpu, torch.__version__, __version__)
    if found != expected:
        logger.warning(
            "the float8 record %s is ignored, because it is for another checkpoint, GPU, torch or version of the "
            "service; write a new one: rerank-service verify MODEL --dtype float8 --record",
            path,
        )
        return None
    return verdict


def verified_dtype(options: EngineConfig, folder: Path, gpu: str) -> Dtype:
    """`float8` if a record accepts it for this checkpoint and GPU; else the configured dtype, `auto` or `fastest`."""
    verdict = current_verdict(options, folder, gpu)
    if verdict is None or not verdict.is_accepted:
        return options.dtype
    logger.info(
        "dtype %s takes float8: largest difference %.3g of the logits' size, allowed %.3g, recorded %s",
        *(options.dtype.value, verdict.largest_difference, verdict.allowed, verdict.recorded_at),
    )
    return Dtype.FLOAT8
