"""Ordinary cross-encoders against transformers' own classes, one pair at a time without padding."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from rerank_service.checkpoints.make import Architecture, make_checkpoint
from rerank_service.engine import Truncate, load_engine
from rerank_service.errors import CheckpointError, PairTooLong
from tests.models import NASTY_PASSAGES, local_model

QUERY = "what is the capital of France?"
ENCODERS = ["bert", "xlm_roberta", "modernbert", "deberta_v2"]


@pytest.mark.parametrize("architecture", ENCODERS)
def test_equals_transformers_one_by_one(checkpoints: dict[str, Path], architecture: str) -> None:
    folder = checkpoints[architecture]
    engine = load_engine(local_model(folder))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    pairs = engine.tokenise(QUERY, NASTY_PASSAGES, Truncate.END)
    expected = []
    for passage, pair in zip(NASTY_PASSAGES, pairs, strict=True):
        inputs = tokenizer(
            [QUERY],  # as lists: a single empty passage would count as none at all
            [passage],
            truncation="only_second",
            max_length=engine.window_tokens,
            return_tensors="pt",
            return_token_type_ids=architecture in ("bert", "deberta_v2"),
        )
        assert pair.token_ids.tolist() == inputs["input_ids"][0].tolist()
        with torch.inference_mode():
            expected.append(float(model(**inputs).logits))

    assert engine.score(pairs) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("architecture", ENCODERS)
def test_a_logit_does_not_depend_on_its_batch(checkpoints: dict[str, Path], architecture: str) -> None:
    engine = load_engine(local_model(checkpoints[architecture]))
    pairs = engine.tokenise(QUERY, NASTY_PASSAGES * 3, Truncate.END)

    alone = [engine.score([pair])[0] for pair in pairs]

    assert engine.score(pairs) == pytest.approx(alone, abs=2e-5)


def test_positions_are_a_hard_limit_of_the_window(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"window_tokens 4096 is above the model's \d+ positions"):
        load_engine(local_model(checkpoints["xlm_roberta"], window_tokens=4096))


def test_xlm_roberta_fills_its_whole_window(checkpoints: dict[str, Path]) -> None:
    """Its positions start at pad_token_id + 1, so two of them hold no token."""
    engine = load_engine(local_model(checkpoints["xlm_roberta"]))

    pairs = engine.tokenise(QUERY, ["word " * 3000], Truncate.END)

    assert pairs[0].num_tokens == engine.window_tokens
    assert len(engine.score(pairs)) == 1
    with pytest.raises(PairTooLong):
        engine.tokenise(QUERY, ["word " * 3000], Truncate.NONE)


def test_more_than_one_label_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "bert", Architecture.BERT, "tiny", dtype="float32")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "NO", "1": "YES"}
    config["label2id"] = {"NO": 0, "YES": 1}
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(CheckpointError, match="2 labels"):
        load_engine(local_model(folder))
