"""Settings of a cascade: several models that rank one request in stages."""

from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator, model_validator

from rerank_service.config.model import ModelName
from rerank_service.config.section import Section

__all__ = ["CascadeConfig", "Keep", "MarginConfig", "StageConfig"]


class MarginConfig(Section):
    """Keeps every passage whose logit is close to the best passage's logit."""

    margin: NonNegativeFloat
    """Largest distance in logits from the best passage. The scale is the stage model's own."""

    at_most: PositiveInt | None = None
    """Maximum number of passages to keep. Null: unlimited."""


_Number = Annotated[int, Field(strict=True, ge=1)]
_Share = Annotated[float, Field(strict=True, gt=0, lt=1)]

Keep = int | float | MarginConfig
"""A number of passages, a share of the stage's passages, or a margin of logits."""


class StageConfig(Section):
    """One stage of a cascade."""

    model: Annotated[str, Field(min_length=1)]
    """Id of the model that scores the stage's passages. The model is an entry of `models` with its own replicas, and it
    also answers requests under its own name."""

    keep: _Number | _Share | MarginConfig | None = None
    """Which of the stage's passages go on to the next stage, for each request: a whole number keeps this many of the
    best passages, a number below 1 keeps this share of the stage's passages, rounded up, and `{margin: 3.0}` keeps
    every passage within 3 logits of the best one. Copies of a passage count once. The last stage has no `keep`."""

    @field_validator("keep", mode="wrap")
    @classmethod
    def _keep_has_one_of_three_forms(cls, value: Any, _: Any) -> Any:
        # The default message for a union has one line for each alternative.
        if isinstance(value, dict | MarginConfig):
            return MarginConfig.model_validate(value)
        is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if value is None or is_number or (isinstance(value, float) and 0 < value < 1):
            return value
        raise ValueError(
            "must be a whole number of passages such as 100, a share of the stage's passages above 0 and below 1 such "
            "as 0.2, or a margin of logits such as {margin: 3.0}"
        )


class CascadeConfig(Section):
    """A cascade: a name under which several models rank a request one after another. Each stage scores only the
    passages that the stage before kept."""

    id: ModelName
    """Name that clients send as `model`."""

    aliases: tuple[ModelName, ...] = ()
    """Other names for the same cascade."""

    stages: Annotated[tuple[StageConfig, ...], Field(min_length=2)]
    """The stages, cheapest model first. The last stage's logits decide the order of the best passages."""

    on_overload: Literal["refuse", "answer_early"] = "refuse"
    """What happens if a stage after the first is overloaded, unavailable, or cannot finish before the deadline.
    `refuse`: the request fails with the stage's error. `answer_early`: the ranking of the stages before is the answer,
    and the response header `x-rerank-stages` names the stages that were left out."""

    @model_validator(mode="after")
    def _all_stages_but_the_last_keep(self) -> Self:
        *earlier, last = self.stages
        if without := [stage.model for stage in earlier if stage.keep is None]:
            raise ValueError(f"stage {without[0]!r} needs keep: only the last stage has none")
        if last.keep is not None:
            raise ValueError(f"the last stage, {last.model!r}, cannot have keep: its ranking is the answer")
        counts = Counter(stage.model for stage in self.stages)
        if repeated := [model for model, count in counts.items() if count > 1]:
            raise ValueError(f"model {repeated[0]!r} is in two stages: it would give the same logits again; remove one")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The id, then the aliases."""
        return (self.id, *self.aliases)

    @property
    def last_model(self) -> str:
        """Id of the last stage's model."""
        return self.stages[-1].model
