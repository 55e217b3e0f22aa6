"""Writes the records from which the service learns that a model is verified (`engine.verdicts`)."""

from datetime import UTC, datetime
from pathlib import Path

from rerank_service import __version__
from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.config import ModelConfig
from rerank_service.engine.verdicts import (
    SettingsVerdict,
    checkpoint_digest,
    has_settings_verdict,
    prompt_settings,
    settings_verdict_path,
    write_settings_verdict,
)
from rerank_service.tools.verify.verdict import Verdict

__all__ = ["record_settings"]


def record_settings(model: ModelConfig, verdict: Verdict) -> Path | None:
    """Records that the model reproduces recorded logits with its settings. Returns the file; null if the verdict
    compared no recorded logits, or if a check failed. A failed check also removes an earlier record of these settings.
    Raises `OSError` and `CheckpointError`."""
    if not verdict.recorded:
        return None
    folder = resolve_checkpoint(model.checkpoint)
    if not verdict.is_faithful:
        if has_settings_verdict(model.engine, folder):
            settings_verdict_path(model.engine, checkpoint_digest(folder)).unlink(missing_ok=True)
        return None
    return write_settings_verdict(
        model.engine,
        SettingsVerdict(
            checkpoint=checkpoint_digest(folder),
            settings=prompt_settings(model.engine),
            sources=tuple(one.recorded.source for one in verdict.recorded),
            num_pairs=sum(len(one.served) for one in verdict.recorded),
            largest_difference=max(one.largest_difference(one.served) for one in verdict.recorded),
            dtype=verdict.dtype.value,
            service=__version__,
            recorded_at=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
    )
