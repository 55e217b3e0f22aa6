"""GTE's own encoder, compared with plain torch written from the published code."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rerank_service.config import EngineKind
from rerank_service.engine import Truncate, load_engine
from rerank_service.engine.build import engine_kind
from rerank_service.errors import CheckpointError
from rerank_service.tools.verify.plain_models import PlainGte
from tests.models import NASTY_PASSAGES, local_model

QUERY = "what is the capital of France?"
TOLERANCE = 1e-5


def changed(folder: Path, tmp_path: Path, **changes: Any) -> Path:
    copy = shutil.copytree(folder, tmp_path / "changed")
    raw = json.loads((copy / "config.json").read_text()) | changes
    (copy / "config.json").write_text(json.dumps(raw))
    return copy


def logits_of(folder: Path, **engine: Any) -> tuple[list[float], list[float]]:
    """Logits of the engine, and of plain torch for the same tokens."""
    loaded = load_engine(local_model(folder, engine=engine))
    pairs = loaded.tokenise(QUERY, NASTY_PASSAGES, Truncate.END)
    plain = PlainGte(folder, torch.device("cpu"))
    return loaded.score(pairs), [float(plain(torch.tensor(pair.token_ids)[None].long()).logits) for pair in pairs]


@pytest.mark.parametrize(
    "changes",
    [{}, {"rope_scaling": None, "rope_theta": 160_000}, {"rope_scaling": {"factor": 2.0, "type": "ntk"}}],
    ids=["published", "no scaling", "other factor"],
)
def test_each_logit_equals_the_published_maths(
    checkpoints: dict[str, Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    logits, expected = logits_of(changed(checkpoints["gte"], tmp_path, **changes))

    assert logits == pytest.approx(expected, abs=TOLERANCE)
    assert max(logits) - min(logits) > 0.5


@pytest.mark.parametrize("changes", [{"rope_theta": 10_000}, {"rope_scaling": {"factor": 4.0, "type": "ntk"}}])
def test_positions_change_the_logits(checkpoints: dict[str, Path], tmp_path: Path, changes: dict[str, Any]) -> None:
    """Guards against settings that the class of transformers ignores."""
    published, _ = logits_of(checkpoints["gte"])
    logits, expected = logits_of(changed(checkpoints["gte"], tmp_path, **changes))

    assert logits == pytest.approx(expected, abs=TOLERANCE)
    assert max(abs(a - b) for a, b in zip(logits, published, strict=True)) > 100 * TOLERANCE


def test_bfloat16_stays_close(checkpoints: dict[str, Path]) -> None:
    logits, expected = logits_of(checkpoints["gte"], dtype="bfloat16")
    assert logits == pytest.approx(expected, abs=0.12)


def test_the_files_choose_the_engine_although_they_name_code(checkpoints: dict[str, Path]) -> None:
    raw = json.loads((checkpoints["gte"] / "config.json").read_text())
    assert raw["auto_map"]
    assert engine_kind(checkpoints["gte"], local_model(checkpoints["gte"]).engine) is EngineKind.SEQUENCE_CLASSIFIER


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"position_embedding_type": "absolute"}, "position_embedding_type: 'absolute'"),
        ({"layer_norm_type": "rms_norm"}, "layer_norm_type: 'rms_norm'"),
        ({"logn_attention_scale": True}, "logn_attention_scale: True"),
        ({"rope_scaling": {"factor": 8.0, "type": "ntk", "mixed_b": 0.6}}, "only type ntk without mixed_b can run"),
        ({"rope_scaling": {"factor": 8.0, "type": "dynamic"}}, "only type ntk without mixed_b can run"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 1}, "unexpected"),
        ({"id2label": {"0": "a", "1": "b"}}, "2 labels"),
    ],
)
def test_what_would_rank_wrongly_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        load_engine(local_model(changed(checkpoints["gte"], tmp_path, **changes)))


def test_the_reference_refuses_quantised_weights(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(checkpoints["gte"], tmp_path, quantization_config={"quant_method": "fp8"})
    with pytest.raises(CheckpointError, match="reads float weights only"):
        PlainGte(folder, torch.device("cpu"))


@pytest.mark.parametrize("missing", ["rope_theta", "hidden_act", "layer_norm_eps"])
def test_no_setting_is_assumed(checkpoints: dict[str, Path], tmp_path: Path, missing: str) -> None:
    folder = changed(checkpoints["gte"], tmp_path)
    raw = json.loads((folder / "config.json").read_text())
    del raw[missing]
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=f"does not state {missing}"):
        load_engine(local_model(folder))
