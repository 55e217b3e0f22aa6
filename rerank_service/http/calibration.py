"""Probabilities of the models' logits, and rankings that end at a minimum probability."""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import replace

from rerank_service.config import Probability, RerankConfig
from rerank_service.errors import FieldProblem, InvalidRequest
from rerank_service.messages import Ranked

__all__ = ["cut_at", "probabilities_of"]


def probabilities_of(config: RerankConfig) -> Mapping[str, Probability]:
    """The functions that turn logits into probabilities, by the ids of the models that have a calibration."""
    return {model.id: model.calibration.probability for model in config.models if model.calibration is not None}


def cut_at(
    min_probability: float, model_id: str, probabilities: Mapping[str, Probability]
) -> Callable[[Ranked], Ranked]:
    """Returns a function that removes the passages with a lower probability from a ranking's order.

    Raises `InvalidRequest` if the model has no calibration. The plain logistic function is no substitute: a result of
    0.5 only says that the logit is 0.
    """
    if (probability := probabilities.get(model_id)) is None:
        message = (
            f"min_probability needs a calibrated model, and {model_id} has no models[].calibration; leave it out, or "
            "measure a calibration with `rerank-service calibrate`"
        )
        raise InvalidRequest([FieldProblem(("body", "min_probability"), message, "not_calibrated")])

    def cut(ranked: Ranked) -> Ranked:
        # The logits descend in this order, and a probability increases with its logit.
        kept = bisect_right(ranked.order, -min_probability, key=lambda index: -probability(ranked.logits[index]))
        return replace(ranked, order=ranked.order[:kept])

    return cut
