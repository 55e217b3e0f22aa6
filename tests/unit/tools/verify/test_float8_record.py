"""What `verify --record` writes, and when it refuses to."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from rerank_service import __version__
from rerank_service.config import Dtype, ModelConfig
from rerank_service.engine.device.choose import ChosenDevice
from rerank_service.engine.verdicts import checkpoint_digest, current_verdict
from rerank_service.errors import CheckpointError
from rerank_service.tools.cli.main import app
from rerank_service.tools.verify import float8_record
from rerank_service.tools.verify.float8_record import gpu_to_record, record_float8
from rerank_service.tools.verify.served import EnginePath
from rerank_service.tools.verify.verdict import Verdict
from rerank_service.tools.verify.verify import compare_served, run_reference
from tests.models import local_model

GPU = "NVIDIA H100 80GB HBM3"


@pytest.fixture(scope="module")
def model(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    verdicts = tmp_path_factory.mktemp("verdicts")
    options = {"dtype": "float8", "verdicts": str(verdicts)}
    return local_model(checkpoints["llama_bidirec"], engine=options)


@pytest.fixture(scope="module")
def verdict(model: ModelConfig) -> Verdict:
    """Emulated in float8 on this CPU."""
    path = EnginePath(model)
    try:
        return compare_served(run_reference(model), path)
    finally:
        path.close()


@pytest.mark.parametrize(
    ("share", "is_faithful", "is_accepted"), [(0.1, True, True), (0.3, True, False), (0.1, False, False)]
)
def test_float8_is_accepted_within_the_bound_of_trained_models(
    model: ModelConfig, verdict: Verdict, share: float, is_faithful: bool, is_accepted: bool
) -> None:
    figures = replace(verdict.figures, largest_difference=share * verdict.figures.logit_size)
    record, path = record_float8(model, replace(verdict, figures=figures, is_faithful=is_faithful), GPU)

    assert record.is_accepted is is_accepted
    assert record.largest_difference == pytest.approx(share)
    folder = Path(model.checkpoint.source)
    assert (record.checkpoint, record.gpu) == (checkpoint_digest(folder), GPU)
    assert (record.torch, record.service) == (torch.__version__, __version__)
    assert path.is_file()
    assert current_verdict(model.engine, folder, GPU) == record  # what the engine reads


def test_a_record_is_only_for_float8_on_a_gpu(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="runs on cpu in float8"):
        gpu_to_record(model)

    monkeypatch.setattr(float8_record, "choose_device", lambda _: ChosenDevice(torch.device("cuda", 0)))
    monkeypatch.setattr(float8_record.cuda, "name", lambda _: GPU)
    assert gpu_to_record(model) == GPU
    exact = model.model_copy(update={"engine": model.engine.model_copy(update={"dtype": Dtype.BFLOAT16})})
    with pytest.raises(CheckpointError, match="in bfloat16"):
        gpu_to_record(exact)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dtype", "float8"], "or a GPU and --dtype float8"),
        (["--url", "http://127.0.0.1:9"], "does not work with --url"),
    ],
)
def test_the_command_refuses_before_it_scores(model: ModelConfig, options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["verify", model.checkpoint.source, "--record", *options])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
