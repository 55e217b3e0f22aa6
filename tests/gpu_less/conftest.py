"""Small checkpoints, written once per run."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel

from rerank_service.tools.random_checkpoints.make import Architecture, make_checkpoint
from tests.colbert import CASES, make


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny float32 checkpoint of each model in `engines.MODELS`, by its name."""
    root = tmp_path_factory.mktemp("checkpoints")
    folders = {
        architecture.value: make_checkpoint(root / architecture.value, architecture, "tiny", dtype="float32")
        for architecture in Architecture
    }
    folders["late_interaction"] = _encoder_without_head(folders["bert"], root / "late_interaction")
    folders["colbert"] = make(root / "colbert", CASES["bert-projections"])
    folders["colbert_modernbert"] = make(root / "colbert_modernbert", CASES["modernbert"])
    return folders


def _encoder_without_head(classifier: Path, folder: Path) -> Path:
    config = BertConfig(**json.loads((classifier / "config.json").read_text()))
    BertModel.from_pretrained(classifier, config=config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(classifier / name, folder / name)
    return folder
