"""The layer-wise MiniCPM reranker, compared with plain torch written from the published code."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from rerank_service.config import EngineKind
from rerank_service.engine import Truncate, load_engine
from rerank_service.engine.build import engine_kind
from rerank_service.errors import CheckpointError
from rerank_service.tools.verify.plain_models import PlainMiniCpm
from tests.models import NASTY_PASSAGES, local_model

QUERY = "what is the capital of France?"
TOLERANCE = 1e-5
QUESTION = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)


def changed(folder: Path, tmp_path: Path, **changes: Any) -> Path:
    copy = shutil.copytree(folder, tmp_path / "changed")
    raw = json.loads((copy / "config.json").read_text()) | changes
    (copy / "config.json").write_text(json.dumps(raw))
    return copy


def logits_of(folder: Path, **engine: Any) -> tuple[list[float], list[float]]:
    """Logits of the engine, and of plain torch for the same tokens."""
    loaded = load_engine(local_model(folder, engine=engine))
    pairs = loaded.tokenise(QUERY, NASTY_PASSAGES, Truncate.END)
    plain = PlainMiniCpm(folder, torch.device("cpu"), engine.get("num_layers"))
    return loaded.score(pairs), [float(plain(torch.tensor(pair.token_ids)[None].long()).logits) for pair in pairs]


@pytest.mark.parametrize("num_layers", [None, 2, 1])
def test_each_logit_equals_the_published_maths(checkpoints: dict[str, Path], num_layers: int | None) -> None:
    logits, expected = logits_of(checkpoints["minicpm"], num_layers=num_layers)
    assert logits == pytest.approx(expected, abs=TOLERANCE)
    assert max(logits) - min(logits) > 0.5


def test_each_layer_has_its_own_head(checkpoints: dict[str, Path]) -> None:
    (whole, _), (cut, _) = logits_of(checkpoints["minicpm"]), logits_of(checkpoints["minicpm"], num_layers=1)
    assert min(abs(a - b) for a, b in zip(whole, cut, strict=True)) > 100 * TOLERANCE


@pytest.mark.parametrize("changes", [{"scale_emb": 3}, {"scale_depth": 0.7}, {"rope_theta": 500.0}])
def test_the_constants_of_the_configuration_are_applied(
    checkpoints: dict[str, Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    published, _ = logits_of(checkpoints["minicpm"])
    logits, expected = logits_of(changed(checkpoints["minicpm"], tmp_path, **changes))
    assert logits == pytest.approx(expected, abs=TOLERANCE)
    assert max(abs(a - b) for a, b in zip(logits, published, strict=True)) > 100 * TOLERANCE


def test_grouped_keys(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(checkpoints["minicpm"], tmp_path, num_key_value_heads=2)
    weights = folder / "model.safetensors"
    tensors = {
        name: tensor[:32].clone() if name.endswith(("k_proj.weight", "v_proj.weight")) else tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights, {"format": "pt"})
    logits, expected = logits_of(folder)
    assert logits == pytest.approx(expected, abs=TOLERANCE)


def test_the_prompt_is_tokenised_part_by_part(checkpoints: dict[str, Path]) -> None:
    engine = load_engine(local_model(checkpoints["minicpm"]))
    tokenizer = Tokenizer.from_file(str(checkpoints["minicpm"] / "tokenizer.json"))
    passages = [passage[:100] for passage in NASTY_PASSAGES if "<" not in passage]

    for passage, pair in zip(passages, engine.tokenise(QUERY, passages, Truncate.END), strict=True):
        parts = [f"A: {QUERY}", "\n", f"B: {passage}", "\n", QUESTION]
        ids = [token for part in parts for token in tokenizer.encode(part, add_special_tokens=False).ids]
        assert pair.token_ids.tolist() == [tokenizer.token_to_id("<s>"), *ids]


def test_bfloat16_stays_close(checkpoints: dict[str, Path]) -> None:
    logits, expected = logits_of(checkpoints["minicpm"], dtype="bfloat16")
    assert logits == pytest.approx(expected, abs=0.3)


def test_the_files_choose_the_engine_although_they_name_code(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["minicpm"]
    assert json.loads((folder / "config.json").read_text())["auto_map"]
    assert engine_kind(folder, local_model(folder).engine) is EngineKind.YES_NO_DECODER


def test_a_cut_model_is_counted_without_the_layers_that_do_not_run(checkpoints: dict[str, Path]) -> None:
    whole, cut = (
        load_engine(local_model(checkpoints["minicpm"], engine={"num_layers": number})) for number in (None, 1)
    )
    assert cut.flops_per_token == whole.flops_per_token / 2  # type: ignore[attr-defined]
    assert len(cut.backbone.layers) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"head_type": "raw"}, {}, "head_type: 'raw'"),
        ({"head_multi": False}, {}, "head_multi: False"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, {}, "only None can run"),
        ({}, {"num_layers": 3}, "has heads only after the layers 1 to 2"),
        ({"start_layer": 2}, {"num_layers": 1}, "has heads only after the layers 2 to 2"),
        ({"num_hidden_layers": 3, "start_layer": 3}, {}, "missing"),
        ({"num_hidden_layers": 1}, {}, "unexpected"),
    ],
)
def test_what_would_rank_wrongly_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        load_engine(local_model(changed(checkpoints["minicpm"], tmp_path, **changes), engine=options))


def test_other_models_have_one_head(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="has one head, after its last layer"):
        load_engine(local_model(checkpoints["qwen3"], engine={"num_layers": 1}))
