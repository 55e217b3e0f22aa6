"""A model whose settings are assumed is unverified until recorded logits have confirmed them."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rerank_service.config import ModelConfig
from rerank_service.engine import Truncate, load_engine
from rerank_service.engine.verdicts import checkpoint_digest, settings_verdict_path
from rerank_service.tools.cli.main import app
from tests.models import embedded_model, local_model

QUERY, PASSAGES = "what is it?", ("It is a test.", "Nothing at all, or something else.", "Perhaps.")
runner = CliRunner()


@pytest.fixture
def verdicts(tmp_path: Path) -> str:
    return str(tmp_path / "verdicts")


def mistral(checkpoints: dict[str, Path], verdicts: str, **engine: Any) -> ModelConfig:
    settings = {"kind": "bidirectional_decoder", "dtype": "float32", "verdicts": verdicts, **engine}
    return local_model(checkpoints["mistral"], engine=settings)


def recorded_file(folder: Path, logits: list[float]) -> Path:
    entry = {"query": QUERY, "passages": PASSAGES, "logits": logits, "dtype": "float32", "source": "a test"}
    path = folder / "recorded.json"
    path.write_text(json.dumps([entry]))
    return path


def test_what_the_files_do_not_state_is_named(
    checkpoints: dict[str, Path], verdicts: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        reason = load_engine(mistral(checkpoints, verdicts)).unverified

    assert reason is not None
    assert "do not state the direction of attention, the prompt template or the pooling" in reason
    assert f"is unverified: {reason}" in caplog.text


def test_a_setting_is_no_assumption(checkpoints: dict[str, Path], verdicts: str) -> None:
    template = "question:{query} passage:{passage}"
    reason = load_engine(mistral(checkpoints, verdicts, pooling="avg", prompt_template=template)).unverified
    assert reason is not None
    assert "do not state the direction of attention:" in reason


@pytest.mark.parametrize("name", ["llama_bidirec", "bert", "qwen3", "embedded"])
def test_other_models_need_no_verdict(checkpoints: dict[str, Path], name: str) -> None:
    model = embedded_model() if name == "embedded" else local_model(checkpoints[name])
    assert load_engine(model).unverified is None


def verify(model: ModelConfig, folder: Path, recorded: Path, *options: str) -> Any:
    config = folder / "config.yaml"
    arguments = {"models": [model.model_dump(mode="json", exclude_unset=True)]}
    serve_config = {"name": "rerank", "import_path": "rerank_service.app:build_app", "args": arguments}
    config.write_text(json.dumps({"applications": [serve_config]}))
    return runner.invoke(app, ["verify", "--config", str(config), "--recorded", str(recorded), "--record", *options])


def test_recorded_logits_that_hold_verify_the_model_with_these_settings(
    checkpoints: dict[str, Path], verdicts: str, tmp_path: Path
) -> None:
    model = mistral(checkpoints, verdicts)
    engine = load_engine(model)
    logits = engine.score(engine.tokenise(QUERY, PASSAGES, Truncate.END))

    shown = verify(model, tmp_path, recorded_file(tmp_path, logits))

    assert shown.exit_code == 0, shown.output
    assert f"{model.id} is verified with these settings" in " ".join(shown.stderr.split())
    assert load_engine(model).unverified is None
    assert load_engine(mistral(checkpoints, verdicts, pooling="last")).unverified is not None

    other = shutil.copytree(checkpoints["mistral"], tmp_path / "other")
    (other / "generation_config.json").write_text("{}")
    moved = model.model_copy(update={"checkpoint": local_model(other).checkpoint})
    assert load_engine(moved).unverified is not None


def test_recorded_logits_that_do_not_hold_verify_nothing(
    checkpoints: dict[str, Path], verdicts: str, tmp_path: Path
) -> None:
    model = mistral(checkpoints, verdicts)

    shown = verify(model, tmp_path, recorded_file(tmp_path, [3.0, 2.0, 1.0]))

    assert shown.exit_code == 1, shown.output
    assert "nothing recorded, because a check failed" in shown.stderr
    assert not Path(verdicts).exists()
    assert load_engine(model).unverified is not None


def test_a_later_no_takes_an_earlier_record_back(checkpoints: dict[str, Path], verdicts: str, tmp_path: Path) -> None:
    model = mistral(checkpoints, verdicts)
    engine = load_engine(model)
    pairs = engine.tokenise(QUERY, PASSAGES, Truncate.END)
    assert verify(model, tmp_path, recorded_file(tmp_path, engine.score(pairs))).exit_code == 0
    assert load_engine(model).unverified is None

    assert verify(model, tmp_path, recorded_file(tmp_path, [3.0, 2.0, 1.0])).exit_code == 1

    assert load_engine(model).unverified is not None


def test_a_damaged_record_is_ignored(
    checkpoints: dict[str, Path], verdicts: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = mistral(checkpoints, verdicts)
    path = settings_verdict_path(model.engine, checkpoint_digest(checkpoints["mistral"]))
    path.parent.mkdir()
    path.write_text("{}")
    assert load_engine(model).unverified is not None
    assert "is ignored" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "has no recorded logits"),
        ("nothing", "is not a JSON list of objects"),
        (
            '[{"query": "q", "passages": ["a"], "logits": [1.0, 2.0], "dtype": "float16", "source": "s"}]',
            "2 logits for 1 passages",
        ),
        ('[{"query": "q", "passages": ["a"], "logits": ["x"], "dtype": "float16", "source": "s"}]', "0.logits.0"),
    ],
)
def test_a_file_of_other_contents_is_refused(
    checkpoints: dict[str, Path], verdicts: str, tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "recorded.json"
    path.write_text(content)
    shown = verify(mistral(checkpoints, verdicts), tmp_path, path)
    assert shown.exit_code == 2
    assert message in " ".join(shown.output.split())


def test_a_record_needs_recorded_logits(checkpoints: dict[str, Path]) -> None:
    shown = runner.invoke(app, ["verify", str(checkpoints["mistral"]), "--record"], env={"COLUMNS": "200"})
    assert shown.exit_code == 2
    assert "--record needs recorded scores (--recorded FILE.json), or a GPU" in shown.output
