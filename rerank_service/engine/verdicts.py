"""Records about a checkpoint that `verify` writes and the engine only reads: whether float8 is accurate enough on a
GPU, and whether assumed settings reproduce recorded logits.

A record is valid for the checkpoint's files. A record about float8 is also bound to the GPU, torch and the version of
the service for which it was written, and a record about settings to these settings.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from rerank_service import __version__
from rerank_service.checkpoints.pull import cache_root
from rerank_service.checkpoints.verification import MANIFEST_FILE, quick_digest
from rerank_service.config import Dtype, EngineConfig, ModelConfig

__all__ = [
    "Float8Verdict",
    "SettingsVerdict",
    "checkpoint_digest",
    "current_verdict",
    "has_settings_verdict",
    "prompt_settings",
    "settings_verdict_path",
    "unverified_reason",
    "verdict_path",
    "verified_dtype",
    "write_settings_verdict",
    "write_verdict",
]

logger = logging.getLogger(__name__)

_VerdictT = TypeVar("_VerdictT", bound=BaseModel)


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


class SettingsVerdict(BaseModel):
    """Recorded logits that a checkpoint reproduces with assumed settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str
    """Digest of the checkpoint's files (`checkpoint_digest`)."""
    settings: Mapping[str, str | float | None]
    """The settings that decide what the model computes (`prompt_settings`)."""
    sources: tuple[str, ...]
    """Sources of the recorded logits."""
    num_pairs: int
    largest_difference: float
    dtype: str
    """Precision in which the logits were reproduced."""
    service: str
    recorded_at: str
    """Time in UTC, ISO 8601."""


def checkpoint_digest(folder: Path) -> str:
    """Digest of the names and quick digests of the checkpoint's weights and JSON files."""
    files = sorted({*folder.glob("*.safetensors"), *folder.glob("*.json")} - {folder / MANIFEST_FILE})
    lines = "".join(f"{quick_digest(path)}  {path.name}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def verdict_path(options: EngineConfig, checkpoint: str, gpu: str) -> Path:
    """File of the record for a checkpoint, by its digest, and a GPU."""
    return _folder(options) / f"{checkpoint[:16]}-{re.sub(r'[^A-Za-z0-9]+', '-', gpu)}.json"


def settings_verdict_path(options: EngineConfig, checkpoint: str) -> Path:
    """File of the record about a checkpoint's assumed settings."""
    return _folder(options) / f"{checkpoint[:16]}.settings.json"


def _folder(options: EngineConfig) -> Path:
    return Path(options.verdicts).expanduser() if options.verdicts else cache_root() / "verdicts"


def write_verdict(options: EngineConfig, verdict: Float8Verdict) -> Path:
    """Writes a record, and returns its file. Raises `OSError`."""
    return _write(verdict_path(options, verdict.checkpoint, verdict.gpu), verdict)


def write_settings_verdict(options: EngineConfig, verdict: SettingsVerdict) -> Path:
    """Writes a record, and returns its file. Raises `OSError`."""
    return _write(settings_verdict_path(options, verdict.checkpoint), verdict)


def _write(path: Path, verdict: BaseModel) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(verdict.model_dump(), indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return path


def _read(path: Path, kind: type[_VerdictT]) -> _VerdictT | None:
    """The record in a file; null if there is none or if it is damaged, which is logged."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        logger.warning("the record %s is ignored: %s", path, type(error).__name__)
        return None


def current_verdict(options: EngineConfig, folder: Path, gpu: str) -> Float8Verdict | None:
    """The record for the checkpoint in `folder`, this GPU, torch and version of the service; null if there is none."""
    checkpoint = checkpoint_digest(folder)
    path = verdict_path(options, checkpoint, gpu)
    if (verdict := _read(path, Float8Verdict)) is None:
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


def prompt_settings(options: EngineConfig) -> dict[str, str | float | None]:
    """The settings of a decoder that decide what it computes; null: the checkpoint's value, or the assumed one."""
    return {
        "prompt_template": options.prompt_template,
        "pooling": options.pooling and options.pooling.value,
        "temperature": options.temperature,
        "special_tokens": options.special_tokens,
    }


def has_settings_verdict(options: EngineConfig, folder: Path) -> bool:
    """Whether recorded logits were reproduced with the checkpoint in `folder` and these settings."""
    checkpoint = checkpoint_digest(folder)
    verdict = _read(settings_verdict_path(options, checkpoint), SettingsVerdict)
    return verdict is not None and (verdict.checkpoint, dict(verdict.settings)) == (
        checkpoint,
        prompt_settings(options),
    )


def unverified_reason(assumptions: Sequence[str], model: ModelConfig, folder: Path) -> str | None:
    """Why a model is unverified; also logs the reason. `assumptions` name what the model's files do not state. Null:
    nothing is assumed, or recorded logits have confirmed the assumptions."""
    if not assumptions or has_settings_verdict(model.engine, folder):
        return None
    reason = (
        f"the checkpoint's files do not state {_listed(assumptions)}: those of NVIDIA's 1B are assumed, with which a "
        "causal classifier would rank wrongly, and no recorded scores have confirmed them (rerank-service verify MODEL "
        "--recorded FILE.json --record)"
    )
    logger.warning("model=%s is unverified: %s", model.id, reason)
    return reason


def _listed(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
