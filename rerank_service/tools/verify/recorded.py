"""Logits of published weights that others recorded, with sources. This project measured none of them.

If a checkpoint of one of these models gives other logits, it is a different model or runs incorrectly. The four
logits in the documentation of NVIDIA's NIM ("which way should i go?", -1.2421875 to -8.2421875) are omitted: depending
on the release, they appear under the names of three models.
"""

from dataclasses import dataclass

from rerank_service.config import Dtype
from rerank_service.tools.catalogue import known_model

__all__ = ["RECORDED", "RecordedLogits", "recorded_of"]


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


def recorded_of(name: str) -> tuple[RecordedLogits, ...]:
    """Recorded logits of a model, found by any of its names, with or without the organisation."""
    return tuple(one for one in RECORDED if _short(name) in map(_short, _names(one.model)))


def _names(model: str) -> tuple[str, ...]:
    known = known_model(model)
    return (model,) if known is None else known.names


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1].casefold()
