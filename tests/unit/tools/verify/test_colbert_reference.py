"""`verify` of ColBERT checkpoints: a second reading of the files agrees, and tells a wrong engine from a right one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from rerank_service.config import Dtype, ModelConfig
from rerank_service.engine.device.precision import multiplies_int8
from rerank_service.tools.verify.served import EnginePath
from rerank_service.tools.verify.verdict import Verdict
from rerank_service.tools.verify.verify import compare_served, run_reference
from tests.colbert import CASES, make_all
from tests.models import local_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_all(tmp_path_factory.mktemp("colbert"))


def verdict_of(reference: ModelConfig, model: ModelConfig) -> Verdict:
    path = EnginePath(model)
    try:
        return compare_served(run_reference(reference), path)
    finally:
        path.close()


@pytest.mark.parametrize("name", CASES)
def test_every_format_is_faithful(folders: dict[str, Path], name: str) -> None:
    model = local_model(folders[name])
    verdict = verdict_of(model, model)

    assert verdict.is_faithful, verdict
    assert verdict.tokens.num_cut >= 1


@pytest.mark.parametrize("dtype", [Dtype.BFLOAT16, Dtype.INT8])
@pytest.mark.parametrize("name", ["bert", "modernbert", "xlm_roberta"])
def test_reduced_precision_is_faithful(folders: dict[str, Path], name: str, dtype: Dtype) -> None:
    if dtype is Dtype.INT8 and not multiplies_int8():
        pytest.skip("this processor does not multiply 8-bit integers")
    verdict = verdict_of(local_model(folders[name]), local_model(folders[name], engine={"dtype": dtype}))

    assert verdict.is_faithful, verdict


def changed(folder: Path, target: Path, **settings: Any) -> Path:
    copy = shutil.copytree(folder, target / folder.name)
    path = copy / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return copy


@pytest.mark.parametrize(
    "settings",
    [
        {"attend_to_expansion_tokens": True},
        {"do_query_expansion": False},
        {"query_prefix": "[D] "},
        {"document_prefix": ""},
        {"query_length": 15},
        {"document_length": 39},
        {"skiplist_words": []},
        {"prompts": {"query": "search: "}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_an_engine_with_another_setting_is_rejected(
    folders: dict[str, Path], tmp_path: Path, settings: dict[str, Any]
) -> None:
    wrong = changed(folders["bert"], tmp_path, **settings)

    engine = {} if "query_length" in settings else {"query_tokens": 60}  # longer than the questions, so expanded
    assert not verdict_of(local_model(folders["bert"], engine=engine), local_model(wrong, engine=engine)).is_faithful


def test_an_engine_with_another_projection_is_rejected(folders: dict[str, Path], tmp_path: Path) -> None:
    wrong = shutil.copytree(folders["bert"], tmp_path / "bert")
    path = wrong / "1_Dense/model.safetensors"
    save_file({"linear.weight": load_file(path)["linear.weight"].flip(1).contiguous()}, path)

    assert not verdict_of(local_model(folders["bert"]), local_model(wrong)).is_faithful


@pytest.mark.parametrize("name", ["modernbert", "xlm_roberta"])
def test_plain_sentence_encoders_with_local_layers_or_shifted_positions_are_faithful(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(folders[name], tmp_path / name)
    for file in ("config_sentence_transformers.json", "modules.json", "sentence_bert_config.json"):
        (folder / file).unlink()
    model = local_model(folder, window_tokens=120)

    verdict = verdict_of(model, model)

    assert verdict.is_faithful, verdict
    assert verdict.tokens.num_cut >= 1
