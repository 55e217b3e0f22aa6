"""The rules for cascades, and what the rest of the configuration makes of them."""

from typing import Any

import pytest

from rerank_service.config import MarginConfig, RerankConfig, parse_config
from rerank_service.errors import ConfigError

MODELS = [
    {"id": "small", "checkpoint": {"source": "/small"}, "aliases": ["tiny"]},
    {"id": "large", "checkpoint": {"source": "/large"}},
    {"id": "large-v2", "checkpoint": {"source": "/new"}, "version": {"of": "large"}},
]


def parsed(*stages: dict[str, Any], **settings: Any) -> RerankConfig:
    cascade = {"id": "both", "aliases": ["fast"], "stages": stages, **settings.pop("cascade", {})}
    return parse_config({"models": MODELS, "cascades": [cascade], **settings})


def test_a_cascade_is_listed_and_has_no_replicas() -> None:
    config = parsed({"model": "small", "keep": 100}, {"model": "large"})

    assert [one.id for one in config.listed] == ["small", "large", "both"]
    assert [model.id for model in config.models] == ["small", "large", "large-v2"]
    assert [model.id for model in config.probed_models] == ["small", "large"]
    assert config.default_model_id == "small"
    assert config.single_model(config.cascades[0]) is config.models[1]
    assert config.single_model(config.models[0]) is config.models[0]
    assert config.cascades[0].on_overload == "refuse"


def test_a_configuration_with_a_cascade_survives_a_round_trip() -> None:
    config = parsed({"model": "small", "keep": {"margin": 3, "at_most": 50}}, {"model": "large"})

    assert config.cascades[0].stages[0].keep == MarginConfig(margin=3, at_most=50)
    assert parse_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("name", ["both", "FAST"])
def test_a_cascade_can_be_the_default_model(name: str) -> None:
    config = parsed({"model": "small", "keep": 0.5}, {"model": "large"}, service={"default_model": name})

    assert config.default_model_id == name


TWO = ({"model": "small", "keep": 2}, {"model": "large"})


@pytest.mark.parametrize(
    ("stages", "cascade", "problem"),
    [
        ([{"model": "small"}, {"model": "large"}], {}, "cascades[0]: stage 'small' needs keep: only the last stage"),
        ([*TWO[:1], {"model": "large", "keep": 3}], {}, "cascades[0]: the last stage, 'large', cannot have keep"),
        ([{"model": "large"}], {}, "cascades[0].stages: must have at least 2 items, not 1"),
        ([*TWO[:1], {"model": "small"}], {}, "cascades[0]: model 'small' is in two stages"),
        ([*TWO[:1], {"model": "other"}], {}, "'other' is not the id of such a model; there are large, small"),
        ([*TWO[:1], {"model": "both"}], {}, "'both' is a cascade itself"),
        ([*TWO[:1], {"model": "large-v2"}], {}, "a stage needs the id of a model that is not a version"),
        ([{"model": "tiny", "keep": 2}, {"model": "large"}], {}, "'tiny' is not the id of such a model"),
        (TWO, {"id": "large"}, "two models have the same id: large; rename one"),
        (TWO, {"aliases": ["Tiny"]}, "name 'Tiny' belongs to both 'small' and 'both'; rename one"),
        (TWO, {"on_overload": "drop"}, "cascades[0].on_overload: must be 'refuse' or 'answer_early'"),
        (TWO, {"stage": []}, "cascades[0].stage: unknown setting; did you mean `stages`?"),
    ],
)
def test_contradictions_are_refused(stages: list[dict[str, Any]], cascade: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parsed(*stages, cascade=cascade)

    assert problem in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("keep", [0, -1, 1.0, 1.5, 0.0, True, "100", [3]])
def test_keep_has_one_of_three_forms(keep: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"stages\[0\]\.keep: must be a whole number of passages such as 100, a share"
    ):
        parsed({"model": "small", "keep": keep}, {"model": "large"})


def test_errors_in_a_margin_name_its_settings() -> None:
    with pytest.raises(ConfigError) as refused:
        parsed({"model": "small", "keep": {"margin": -1, "atmost": 3}}, {"model": "large"})

    assert str(refused.value).splitlines() == [
        "cascades[0].stages[0].keep.margin: must be greater than or equal to 0, not -1",
        "cascades[0].stages[0].keep.atmost: unknown setting; did you mean `at_most`?",
    ]


def test_a_cascade_among_the_models_is_pointed_to_its_section() -> None:
    with pytest.raises(ConfigError, match=r"models\[3\]: .*: move the entry with `stages` to `cascades`"):
        parse_config({"models": [*MODELS, {"id": "both", "stages": list(TWO)}]})
