"""Logits that others recorded of the published weights, each with its source. Nothing here was measured by us.

A checkpoint that should be one of these models and gives other logits is another one, or is run wrongly. Not here are
the four of the documentation of NVIDIA's NIM ("which way should i go?", -1.2421875 to -8.2421875): the same four stand
under three models' names, from release to release.
"""

from dataclasses import dataclass

from rerank_service.config import Dtype
from rerank_service.tools.catalogue import known_model

__all__ = ["RECORDED", "RecordedLogits", "recorded_of"]


@dataclass(frozen=True, slots=True)
class RecordedLogits:
    """What one query's passages got."""

    model: str
    """Its id in the catalogue."""
    query: str
    passages: tuple[str, ...]
    logits: tuple[float, ...]
    dtype: Dtype
    """What they were written down in."""
    computed_in: Dtype
    """The coarsest they may have been computed in."""
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
        "model card of nvidia/llama-nemotron-rerank-1b-v2 (the model's present name), example with transformers",
    ),
    RecordedLogits(
        _LLAMA_1B,
        "how can I open a door?",
        ("Push the handle", "Ask for help", "Shout at it", "Lie down and wait"),
        (-3.697265625, -6.2578125, -7.39453125, -11.375),
        Dtype.FLOAT16,
        Dtype.BFLOAT16,
        "answer of NVIDIA's NIM of the model, in float16 by its digits; what it was computed in is not known, nor was "
        "the page it is from found again",
    ),
)


def recorded_of(name: str) -> tuple[RecordedLogits, ...]:
    """Those of a model, by any of its names, with or without its organisation."""
    return tuple(one for one in RECORDED if _short(name) in map(_short, _names(one.model)))


def _names(model: str) -> tuple[str, ...]:
    known = known_model(model)
    return (model,) if known is None else known.names


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1].casefold()
