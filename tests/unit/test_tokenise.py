from pathlib import Path

import pytest
from tokenizers import Tokenizer

from rerank_service.engine import tokenise
from rerank_service.engine.protocol import Truncate
from rerank_service.errors import CheckpointError, PairTooLong


def test_the_padding_and_truncation_of_a_tokenizer_file_are_dropped(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoints["bert"] / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=128)
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    loaded = tokenise.load_tokenizer(tmp_path)
    short, long = tokenise.encode_texts(loaded, ["a", "a b c d e f g h i j k"], add_special_tokens=True)

    assert len(short.ids) == 3
    assert len(long.ids) > 8


def test_a_folder_without_a_tokenizer_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json.*save_pretrained"):
        tokenise.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "template", ["{query}", "{passage}", "none", "{query} {passage} {other}", "{query} {passage} {"]
)
def test_templates_that_cannot_hold_a_pair_are_refused(template: str) -> None:
    with pytest.raises(CheckpointError, match="prompt template"):
        tokenise.checked_template(template)


def test_cut_to_window() -> None:
    ids, is_cut = tokenise.cut_to_window([1, 2, 3, 4], 3, Truncate.END, 0)
    assert (ids.tolist(), is_cut) == ([1, 2, 3], True)

    ids, is_cut = tokenise.cut_to_window([1, 2, 3], 3, Truncate.NONE, 0)
    assert (ids.tolist(), is_cut) == ([1, 2, 3], False)

    with pytest.raises(PairTooLong, match="Input length 4 exceeds maximum allowed token size 3"):
        tokenise.cut_to_window([1, 2, 3, 4], 3, Truncate.NONE, 7)


@pytest.mark.parametrize("architecture", ["bert", "xlm_roberta", "modernbert"])
@pytest.mark.parametrize("num_dropped", [1, 3, 6, 7, 9])
def test_a_pair_loses_its_passage_before_its_query(
    checkpoints: dict[str, Path], architecture: str, num_dropped: int
) -> None:
    tokenizer = tokenise.load_tokenizer(checkpoints[architecture])
    (encoding,) = tokenise.encode_texts(tokenizer, [("u v w x", "a b c d e f")], add_special_tokens=True)
    sequences = encoding.sequence_ids
    num_passage, num_query = sequences.count(1), sequences.count(0)

    kept = tokenise.truncate_pair_encoding(encoding, len(encoding.ids) - num_dropped)
    kept_sequences = [sequences[position] for position in kept]

    assert kept_sequences.count(None) == sequences.count(None)
    assert kept_sequences.count(1) == max(0, num_passage - num_dropped)
    assert kept_sequences.count(0) == num_query - max(0, num_dropped - num_passage)
    assert [p for p in kept if sequences[p] == 0] == [p for p in range(len(sequences)) if sequences[p] == 0][
        : kept_sequences.count(0)
    ]


def test_window_of_a_checkpoint(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    assert tokenise.model_max_length(tmp_path) is None
    config.write_text('{"model_max_length": 8192}')
    assert tokenise.model_max_length(tmp_path) == 8192
    config.write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert tokenise.model_max_length(tmp_path) is None
