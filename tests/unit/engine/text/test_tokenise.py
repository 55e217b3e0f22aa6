from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rerank_service.engine.text import tokenise
from rerank_service.errors import CheckpointError


def test_padding_and_truncation_in_a_tokenizer_file_are_ignored(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoints["bert"] / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=128)
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    loaded = tokenise.load_tokenizer(tmp_path)
    short, long = loaded.encode_batch_fast(["a", "a b c d e f g h i j k"], add_special_tokens=True)

    assert len(short.ids) == 3
    assert len(long.ids) > 8


def test_the_error_for_a_missing_tokenizer_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json.*save_pretrained"):
        tokenise.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "template", ["{query}", "{passage}", "none", "{query} {passage} {other}", "{query} {passage} {"]
)
def test_templates_with_wrong_placeholders_are_refused(template: str) -> None:
    with pytest.raises(CheckpointError, match="prompt template"):
        tokenise.checked_template(template)


@given(query_tokens=st.integers(0, 40), passage_tokens=st.integers(0, 40), window=st.integers(16, 60))
@example(query_tokens=9, passage_tokens=9, window=16)  # equal lengths; three special tokens leave an odd room
@example(query_tokens=10, passage_tokens=9, window=16)
@example(query_tokens=40, passage_tokens=3, window=20)
def test_a_pair_is_cut_longest_first_as_in_tokenizers(
    tokenizers_of: dict[str, tuple[Tokenizer, Tokenizer]], query_tokens: int, passage_tokens: int, window: int
) -> None:
    for ours, reference in tokenizers_of.values():
        texts = "a" + " b" * (query_tokens - 1) if query_tokens else "", " c" * passage_tokens
        (encoding,) = ours.encode_batch_fast([texts], add_special_tokens=True)
        if len(encoding.ids) > window:
            reference.enable_truncation(window, strategy="longest_first")
            kept, is_passage_cut = tokenise.truncate_pair_encoding(encoding, window)
            expected = reference.encode(*texts)
            assert [encoding.ids[position] for position in kept] == expected.ids
            assert is_passage_cut == (expected.sequence_ids.count(1) < passage_tokens)
            assert expected.sequence_ids.count(1) or not passage_tokens  # no pair loses its whole passage


@pytest.fixture(scope="module")
def tokenizers_of(checkpoints: dict[str, Path]) -> dict[str, tuple[Tokenizer, Tokenizer]]:
    """Tokenizers of each classifier family: as loaded by the engine, and as loaded from the file."""
    families = ("bert", "xlm_roberta", "modernbert", "deberta_v2")
    return {
        family: (
            tokenise.load_tokenizer(checkpoints[family]),
            Tokenizer.from_file(str(checkpoints[family] / "tokenizer.json")),
        )
        for family in families
    }


def test_window_in_the_tokenizer_config(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    assert tokenise.model_max_length(tmp_path) is None
    config.write_text('{"model_max_length": 8192}')
    assert tokenise.model_max_length(tmp_path) == 8192
    config.write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert tokenise.model_max_length(tmp_path) is None
