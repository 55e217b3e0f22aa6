"""The generated texts in `cluster/` are up to date, and are valid Serve configurations."""

from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from cluster import chart, regenerate
from rerank_service.config import parse_serve_config
from rerank_service.tools.cli.main import app

CLUSTER = Path(__file__).parents[3] / "cluster"


WRITTEN = [path.relative_to(CLUSTER).as_posix() for path in regenerate.marked_files()]


def write(words: list[str]) -> str:
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_generated_texts_are_found() -> None:
    assert set(WRITTEN) >= {"serve_config.gpu.yaml", "ray-up/serve_config.yaml", "compose/serve_config.cpu.yaml"}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_text_equals_the_output_of_its_command(name: str) -> None:
    text = (CLUSTER / name).read_text()
    assert regenerate.regenerated(text, write) == text, "run: python -m cluster.regenerate"


@pytest.mark.parametrize("name", WRITTEN)
def test_the_service_and_serve_accept_a_text(name: str) -> None:
    texts: list[str] = []

    def keep(words: list[str]) -> str:
        texts.append(write(words))
        return texts[-1]

    regenerate.regenerated((CLUSTER / name).read_text(), keep)

    assert texts
    for text in texts:
        ServeDeploySchema.model_validate(yaml.safe_load(text))
        assert parse_serve_config(text, name).models


def test_only_the_block_is_replaced() -> None:
    text = "a: 1\nb: |\n  # Written by: rerank-service config x\n  old\n\n    older\nc: 2\n"
    assert regenerate.regenerated(text, lambda words: f"{words[-1]}\n\nnew\n") == "a: 1\nb: |\n  x\n\n  new\nc: 2\n"


def test_the_charts_files_are_up_to_date() -> None:
    files = chart.CHART / "files"
    for name, written in (("models", regenerate.catalogue(write)), ("environment", regenerate.environment(write))):
        assert (files / f"{name}.yaml").read_text() == written, "run: python -m cluster.regenerate"
    for name in regenerate.MONITORING:
        assert (files / name).read_text() == (CLUSTER / "monitoring" / name).read_text()
