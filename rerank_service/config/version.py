"""Settings of a version: a model that answers or repeats a share of another model's requests."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from rerank_service.config.section import Section

__all__ = ["VersionConfig"]

_Percent = Annotated[float, Field(ge=0, le=100)]


class VersionConfig(Section):
    """Makes a model a version of another model. A canary answers a share of the other model's requests. A shadow scores
    a share of them a second time, without answering.

    `rerank-service traffic` changes both percentages while the service runs.
    """

    of: Annotated[str, Field(min_length=1)]
    """Id of the model whose requests the version receives. Clients keep sending that model's name."""

    traffic_percent: _Percent = 0
    """Share of the model's requests that the version answers, in percent. One request is answered by one version. If
    the version refuses a request, fails or is not running, the model itself answers."""

    shadow_percent: _Percent = 0
    """Share of the requests answered by the model that the version scores in addition, in percent. The answers are
    compared in metrics and then dropped. Under load, this work is dropped first."""

    @model_validator(mode="after")
    def _answers_or_shadows(self) -> Self:
        if self.traffic_percent and self.shadow_percent:
            raise ValueError(
                "a version has either traffic_percent or shadow_percent: shadow work must not delay requests that the "
                "version answers; set one of them to 0"
            )
        return self
