"""Compares ordinary cross-encoders with transformers' own classes, one pair at a time without padding."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from rerank_service.engine import Truncate, load_engine
from rerank_service.engine.text.windows import encode_passages
from rerank_service.errors import CheckpointError, PairTooLong
from rerank_service.messages import Fitting, PassageWindows
from rerank_service.tools.random_checkpoints.make import Architecture, make_checkpoint
from tests.models import NASTY_PASSAGES, local_model

QUERY = "what is the capital of France?"
ENCODERS = ["bert", "xlm_roberta", "modernbert", "deberta_v2"]


@pytest.mark.parametrize("special_tokens", ["text", "parse"])
@pytest.mark.parametrize("architecture", ENCODERS)
def test_each_logit_equals_that_of_transformers(
    checkpoints: dict[str, Path], architecture: str, special_tokens: str
) -> None:
    folder = checkpoints[architecture]
    engine = load_engine(local_model(folder, engine={"special_tokens": special_tokens}))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, split_special_tokens=special_tokens == "text")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    pairs = engine.tokenise(QUERY, NASTY_PASSAGES, Truncate.END)
    expected = []
    for passage, pair in zip(NASTY_PASSAGES, pairs, strict=True):
        inputs = tokenizer(
            [QUERY],  # as lists, because a single empty passage would count as missing
            [passage],
            truncation="longest_first",
            max_length=engine.window_tokens,
            return_tensors="pt",
            return_token_type_ids=architecture in ("bert", "deberta_v2"),
        )
        assert pair.token_ids.tolist() == inputs["input_ids"][0].tolist()
        with torch.inference_mode():
            expected.append(float(model(**inputs).logits))

    assert engine.score(pairs) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("architecture", ENCODERS)
def test_passages_keep_different_logits_if_the_query_is_longer_than_the_window(
    checkpoints: dict[str, Path], architecture: str
) -> None:
    """In an earlier version the query took the whole window, and every passage had the same logit."""
    folder, query = checkpoints[architecture], "query word " * 800
    passages = ["Paris is a city.", "bees make honey", "the last train left at nine"]
    engine = load_engine(local_model(folder))
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    if architecture in ("bert", "deberta_v2"):
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]

    encoded = encode_passages(engine, query, passages, Fitting())
    logits = engine.score(encoded.pairs)

    expected = []
    for passage in passages:
        inputs = tokenizer(query, passage, truncation=True, max_length=engine.window_tokens, return_tensors="pt")
        with torch.inference_mode():
            expected.append(float(model(**inputs).logits))
    assert logits == pytest.approx(expected, abs=2e-5)
    assert min(abs(a - b) for a, b in pairwise(sorted(logits))) > 5e-4
    assert (encoded.is_truncated, encoded.is_unscored) == ((True,) * 3, (False,) * 3)
    with pytest.raises(PairTooLong):
        encode_passages(engine, query, passages, Fitting(Truncate.NONE))


@pytest.mark.parametrize("architecture", ENCODERS)
def test_windows_take_half_of_the_room_if_the_query_is_long(checkpoints: dict[str, Path], architecture: str) -> None:
    engine = load_engine(local_model(checkpoints[architecture], window_tokens=128))
    query, long = "query word " * 100, " ".join(f"sentence {number}." for number in range(100))
    fitting = Fitting(windows=PassageWindows(100))

    encoded = encode_passages(engine, query, ["short", long], fitting)

    assert encoded.num_windows[0] == 1
    assert encoded.num_windows[1] > 2
    assert encoded.is_truncated == (True, True)  # part of the query is in no pair
    last = engine.tokenise(query, [long[-20:]], Truncate.END)[0].token_ids[-6:]
    assert encoded.pairs[-1].token_ids[-6:].tolist() == last.tolist()  # the last window contains the passage's end
    with pytest.raises(PairTooLong) as caught:
        encode_passages(engine, query, ["short", long], Fitting(Truncate.NONE, windows=fitting.windows))
    assert caught.value.num_tokens > caught.value.max_tokens == 128


@pytest.mark.parametrize("architecture", ENCODERS)
def test_a_passage_that_fits_with_a_cut_query_has_one_window(checkpoints: dict[str, Path], architecture: str) -> None:
    engine = load_engine(local_model(checkpoints[architecture], window_tokens=128))
    query = "query word " * 100
    room = engine.passage_room(query)
    passages = ["a" * number for number in range(1, 200)]
    by_length = {len(spans): text for text, spans in zip(passages, engine.token_spans(passages), strict=True)}
    fitting, full = by_length[room - 1], by_length[room]

    windowed = encode_passages(engine, query, [fitting, full], Fitting(windows=PassageWindows(100)))

    assert list(windowed.num_windows) == [1, 1]
    assert not any(pair.is_passage_cut for pair in windowed.pairs)


@pytest.mark.parametrize("architecture", ENCODERS)
def test_a_logit_does_not_depend_on_its_batch(checkpoints: dict[str, Path], architecture: str) -> None:
    engine = load_engine(local_model(checkpoints[architecture]))
    pairs = engine.tokenise(QUERY, NASTY_PASSAGES * 3, Truncate.END)

    alone = [engine.score([pair])[0] for pair in pairs]

    assert engine.score(pairs) == pytest.approx(alone, abs=2e-5)


def test_the_window_cannot_exceed_the_models_positions(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"window_tokens 4096 is above the model's \d+ positions"):
        load_engine(local_model(checkpoints["xlm_roberta"], window_tokens=4096))


def test_xlm_roberta_fills_its_whole_window(checkpoints: dict[str, Path]) -> None:
    """Positions of XLM-RoBERTa start at pad_token_id + 1, so two positions hold no token."""
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
