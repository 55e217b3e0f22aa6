"""Logits of published weights that others recorded, with sources. This project measured none of them.

If a checkpoint of one of these models gives other logits, it is a different model or runs incorrectly. The four
logits in the documentation of NVIDIA's NIM ("which way should i go?", -1.2421875 to -8.2421875) are omitted: depending
on the release, they appear under the names of three models.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from rerank_service.config import Dtype
from rerank_service.errors import CheckpointError
from rerank_service.tools.catalogue import known_model

__all__ = ["RECORDED", "RecordedLogits", "read_recorded", "recorded_of"]


@dataclass(frozen=True, slots=True)
class RecordedLogits:
    """Recorded logits of one query's passages."""

    model: str
    """Id of the model in the catalogue."""
    query: str
    passages: tuple[str, ...]
    logits: tuple[float, ...]
    dtype: Dtype
    """Precision of the recorded digits."""
    computed_in: Dtype
    """Lowest precision in which the logits may have been computed."""
    source: str


_LLAMA_1B = "nvidia/llama-3.2-nv-rerankqa-1b-v2"

RECORDED = (
    RecordedLogits(
        _LLAMA_1B,
        "how much protein should a female eat?",
        (
            "As a general guideline, the CDC's average requirement of protein for women ages 19 to 70 is 46 grams per "
            "day. But, as you can see from this chart, you'll need to increase that if you're expecting or training "
            "for a marathon. Check out the chart below to see how much protein you should be eating each day.",
            "Definition of summit for English Language Learners. : 1  the highest point of a mountain : the top of a "
            "mountain. : 2  the highest level. : 3  a meeting or series of meetings between the leaders of two or more "
            "governments.",
            "Calorie intake should not fall below 1,200 a day in women or 1,500 a day in men, except under the "
            "supervision of a health professional.",
        ),
        (20.625, -23.125, -0.2617),
        Dtype.BFLOAT16,
        Dtype.BFLOAT16,
        "model card of nvidia/llama-nemotron-rerank-1b-v2 (the model's current name), example with transformers",
    ),
    RecordedLogits(
        _LLAMA_1B,
        "how can I open a door?",
        ("Push the handle", "Ask for help", "Shout at it", "Lie down and wait"),
        (-3.697265625, -6.2578125, -7.39453125, -11.375),
        Dtype.FLOAT16,
        Dtype.BFLOAT16,
        "reply of NVIDIA's NIM for the model; its digits are those of float16 numbers, but the precision of the "
        "computation is unknown, and the original page could not be found",
    ),
)


class _RecordedInFile(BaseModel):
    """Recorded logits of one query in a user's file, for instance the answers of NVIDIA's container."""

    model_config = ConfigDict(extra="forbid")

    query: str
    passages: Annotated[tuple[str, ...], Field(min_length=1)]
    logits: tuple[FiniteFloat, ...]
    dtype: Literal[Dtype.FLOAT32, Dtype.FLOAT16, Dtype.BFLOAT16]
    computed_in: Literal[Dtype.FLOAT32, Dtype.FLOAT16, Dtype.BFLOAT16] | None = None
    source: Annotated[str, Field(min_length=1)]


def read_recorded(path: Path, model: str) -> tuple[RecordedLogits, ...]:
    """Reads recorded logits of `model` from a JSON file: a list of objects with `query`, `passages`, `logits`, `dtype`,
    `source`, and optionally `computed_in` (see `RecordedLogits`). Raises `CheckpointError`."""
    try:
        entries = TypeAdapter(list[_RecordedInFile]).validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValidationError, UnicodeDecodeError) as error:
        place = f" ({'.'.join(map(str, error.errors()[0]['loc']))})" if isinstance(error, ValidationError) else ""
        raise CheckpointError(
            f"{path} is not a JSON list of objects with query, passages, logits, dtype and source{place}"
        ) from None
    for entry in entries:
        if len(entry.logits) != len(entry.passages):
            raise CheckpointError(f"{path} has {len(entry.logits)} logits for {len(entry.passages)} passages")
    if not entries:
        raise CheckpointError(f"{path} has no recorded logits")
    return tuple(
        RecordedLogits(model, one.query, one.passages, one.logits, one.dtype, one.computed_in or one.dtype, one.source)
        for one in entries
    )


def recorded_of(name: str) -> tuple[RecordedLogits, ...]:
    """Recorded logits of a model, found by any of its names, with or without the organisation."""
    return tuple(one for one in RECORDED if _short(name) in map(_short, _names(one.model)))


def _names(model: str) -> tuple[str, ...]:
    known = known_model(model)
    return (model,) if known is None else known.names


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1].casefold()
