"""Runs reranking models on devices: tokenises pairs, runs forward passes, returns logits. Uses neither Ray nor HTTP."""

from typing import Any

from rerank_service.checkpoints.verification import Progress, no_progress
from rerank_service.config import ModelConfig
from rerank_service.engine.protocol import (
    Agree,
    CacheCounts,
    DeviceFacts,
    EncodedPair,
    Engine,
    RunAlone,
    TokenSpan,
    Truncate,
    choose_here,
    run_here,
)

__all__ = ["Agree", "CacheCounts", "DeviceFacts", "EncodedPair", "Engine", "TokenSpan", "Truncate", "load_engine"]


def load_engine(
    model: ModelConfig,
    num_cpus: float | None = None,
    progress: Progress = no_progress,
    *,
    num_gpus: float | None = None,
    run_alone: RunAlone = run_here,
    agree: Agree = choose_here,
) -> Engine[Any]:
    """Loads a model's engine with `build.load_engine`. The first call imports torch and transformers, which is slow."""
    from rerank_service.engine import build

    return build.load_engine(model, num_cpus, progress, num_gpus=num_gpus, run_alone=run_alone, agree=agree)
