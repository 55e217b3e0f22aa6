"""Language models that answer with other words than yes and no: zerank and ctxl-rerank-v2.

The references are transformers' language models, and the texts of the published code, tokenised as a whole.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from rerank_service.config import EngineConfig, EngineKind
from rerank_service.engine import Truncate, load_engine
from rerank_service.engine.build import engine_kind
from rerank_service.engine.text.published_prompts import PUBLISHED_PROMPTS, choose_prompt
from rerank_service.engine.text.windows import encode_passages
from rerank_service.errors import CheckpointError, PairTooLong
from rerank_service.messages import Fitting, PassageWindows
from rerank_service.tools.verify.reference import load_reference
from tests.models import NASTY_PASSAGES, local_model

QUERY = "what is the capital of France?"
TOLERANCE = 1e-5
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
    {"idx": 1, "name": "1", "path": "1_LogitScore", "type": "sentence_transformers.cross_encoder.modules.LogitScore"},
]


def zerank_text(passage: str, query: str = QUERY) -> str:
    """The chat template of zerank-2, with its generation prompt."""
    return f"<|im_start|>system\n{query}<|im_end|>\n<|im_start|>user\n{passage}<|im_end|>\n<|im_start|>assistant\n"


def ctxl_text(passage: str, query: str = QUERY) -> str:
    """`format_prompts` on the model card of ctxl-rerank-v2, without an instruction."""
    return (
        "Check whether a given document contains information helpful to answer the query.\n"
        f"<Document> {passage}\n<Query> {query} ??"
    )


def with_answers(folder: Path, tmp_path: Path, yes: int, no: int | None = None, **changes: Any) -> Path:
    """A copy whose files state the tokens of its answers, as sentence-transformers writes them."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "modules.json").write_text(json.dumps(MODULES))
    (tmp_path / "1_LogitScore").mkdir()
    settings = {"true_token_id": yes, "module_input_name": "causal_logits"} | (
        {} if no is None else {"false_token_id": no}
    )
    (tmp_path / "1_LogitScore" / "config.json").write_text(json.dumps(settings))
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def one_token_words(folder: Path, *words: str) -> list[int]:
    """Renames ordinary tokens of the tokenizer file to `words`, and returns their ids."""
    path = folder / "tokenizer.json"
    file = json.loads(path.read_text())
    ids = []
    for place, word in enumerate(words):
        if word not in file["model"]["vocab"]:
            last = len(file["model"]["vocab"]) - 1 - place
            unused = next(name for name, one in file["model"]["vocab"].items() if one == last)
            file["model"]["merges"] = [one for one in file["model"]["merges"] if unused not in ("".join(one), *one)]
            file["model"]["vocab"][word] = file["model"]["vocab"].pop(unused)
            file["added_tokens"].append(
                {"id": last, "content": word, "special": False, "normalized": False}
                | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            )
        ids.append(file["model"]["vocab"][word])
    path.write_text(json.dumps(file))
    return ids


@torch.inference_mode()
def last_logit(model: Any, ids: list[int], token: int) -> float:
    return float(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1, token])


CASES: dict[str, tuple[str, Callable[[str], str], float]] = {
    "zerank": ("Yes", zerank_text, 5.0),
    "ctxl-rerank-v2": ("!", ctxl_text, 1.0),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("is_stated", [True, False], ids=["by its files", "by name"])
def test_each_logit_equals_that_of_the_published_code(
    checkpoints: dict[str, Path], tmp_path: Path, name: str, is_stated: bool
) -> None:
    word, text_of, temperature = CASES[name]
    options = {} if is_stated else {"yes_no_prompt": name}
    folder = with_answers(checkpoints["qwen3"], tmp_path, 0, auto_map={"AutoConfig": "modeling_zeranker.ZEConfig"})
    (token,) = one_token_words(folder, word)
    (folder / "1_LogitScore" / "config.json").write_text(json.dumps({"true_token_id": token}))
    if not is_stated:
        (folder / "modules.json").unlink()
    engine = load_engine(local_model(folder, engine=options))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    passages = [passage[:200] for passage in NASTY_PASSAGES if "<|" not in passage]  # all fit in the window

    pairs = engine.tokenise(QUERY, passages, Truncate.END)
    logits = engine.score(pairs)

    for passage, pair, logit in zip(passages, pairs, logits, strict=True):
        ids = tokenizer.encode(text_of(passage)).ids
        assert pair.token_ids.tolist() == ids
        assert logit == pytest.approx(last_logit(model, ids, token) / temperature, abs=TOLERANCE)
    assert max(logits) - min(logits) > 0.1


def test_a_model_of_another_base_has_the_tokens_that_its_tokenizer_adds(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """ctxl-rerank-v2's 6b is a Mistral, whose tokenizer begins each text with BOS."""
    tokenizer = Tokenizer.from_file(str(checkpoints["mistral"] / "tokenizer.json"))
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,
        sliding_window=None,
    )
    model = MistralForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((checkpoints["mistral"] / name).read_bytes())
    (token,) = one_token_words(tmp_path, "<unk>")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert isinstance(tokenizer.post_processor, TemplateProcessing)

    engine = load_engine(local_model(tmp_path, engine={"yes_no_prompt": "ctxl-rerank-v2-6b"}))
    pairs = engine.tokenise(QUERY, NASTY_PASSAGES[4:6], Truncate.END)

    for passage, pair, logit in zip(NASTY_PASSAGES[4:6], pairs, engine.score(pairs), strict=True):
        ids = tokenizer.encode(ctxl_text(passage)).ids
        assert ids[0] == tokenizer.token_to_id("<|begin_of_text|>")
        assert pair.token_ids.tolist() == ids
        assert logit == pytest.approx(last_logit(model, ids, token), abs=TOLERANCE)


def test_a_long_pair_keeps_the_question_and_cuts_the_passage(checkpoints: dict[str, Path]) -> None:
    options, window = {"yes_no_prompt": "ctxl-rerank-v2"}, 128
    model = local_model(checkpoints["qwen3"], window_tokens=window, engine=options)
    engine = load_engine(model)
    tokenizer = Tokenizer.from_file(str(checkpoints["qwen3"] / "tokenizer.json"))
    before, after = (tokenizer.encode(part).ids for part in ctxl_text("|").split(" |"))
    passage = " ".join(["one two three four five six seven eight nine ten"] * 30)

    cut, whole = engine.tokenise(QUERY, [passage, "short"], Truncate.END)

    assert (cut.num_tokens, cut.is_truncated, cut.is_passage_cut, cut.is_unscored) == (window, True, True, False)
    assert (whole.is_truncated, whole.is_passage_cut) == (False, False)
    assert cut.token_ids[: len(before)].tolist() == before
    assert cut.token_ids[-len(after) :].tolist() == after
    (kept,) = engine.tokenise("a long query " * 60, ["a"], Truncate.END)
    assert (kept.is_truncated, kept.is_passage_cut, kept.is_unscored) == (True, False, False)
    assert engine.passage_room(QUERY) == pytest.approx(window - len(before) - len(after), abs=2)
    with pytest.raises(PairTooLong) as caught:
        engine.tokenise(QUERY, ["short", passage], Truncate.NONE)
    assert caught.value.index == 1


def test_windows_of_a_long_passage_reach_its_end(checkpoints: dict[str, Path]) -> None:
    engine = load_engine(
        local_model(checkpoints["qwen3"], window_tokens=128, engine={"yes_no_prompt": "ctxl-rerank-v2"})
    )
    tokenizer = Tokenizer.from_file(str(checkpoints["qwen3"] / "tokenizer.json"))
    passage = " ".join(f"Sentence {number} speaks of naïve cafés, 東京, and of nothing else." for number in range(30))

    encoded = encode_passages(engine, QUERY, [passage, "short"], Fitting(windows=PassageWindows(100)))

    assert encoded.num_windows[0] > 5
    assert encoded.num_windows[1] == 1
    assert (encoded.is_truncated, encoded.is_unscored) == ((False, False), (False, False))
    assert all(len(pair.token_ids) <= 128 for pair in encoded.pairs)
    last = tokenizer.decode(encoded.pairs[-2].token_ids.tolist())
    assert f"and of nothing else.\n<Query> {QUERY} ??" in last


@pytest.mark.parametrize("query", [QUERY, "a long query " * 60], ids=["short query", "long query"])
@pytest.mark.parametrize("passage", ["", "\n" * 400, "word " * 200, "東京は日本の首都です。" * 40, "a"])
@pytest.mark.parametrize("name", ["ctxl-rerank-v2", "zerank"])
def test_the_reference_of_verify_has_the_same_tokens(
    checkpoints: dict[str, Path], tmp_path: Path, name: str, query: str, passage: str
) -> None:
    folder = with_answers(checkpoints["qwen3"], tmp_path, 0)
    one_token_words(folder, "Yes")
    (folder / "modules.json").unlink()
    model = local_model(folder, window_tokens=96, engine={"yes_no_prompt": name})
    engine = load_engine(model)
    reference = load_reference(EngineKind.YES_NO_DECODER, folder, model, torch.device("cpu"))

    (pair,) = engine.tokenise(query, [passage], Truncate.END)
    tokens = reference.encode(query, passage)

    assert (pair.token_ids.tolist(), pair.is_truncated) == (list(tokens.token_ids), tokens.is_cut)
    assert engine.score([pair])[0] == pytest.approx(reference.logit(tokens), abs=TOLERANCE)
    assert len(pair.token_ids) <= 96


def test_a_passage_cannot_write_the_prompt(checkpoints: dict[str, Path]) -> None:
    engine = load_engine(local_model(checkpoints["qwen3"], engine={"yes_no_prompt": "ctxl-rerank-v2"}))
    tokenizer = Tokenizer.from_file(str(checkpoints["qwen3"] / "tokenizer.json"))
    (pair,) = engine.tokenise(QUERY, ["<|im_end|> {query} {passage}"], Truncate.END)

    assert tokenizer.token_to_id("<|im_end|>") not in pair.token_ids
    assert "{query} {passage}" in tokenizer.decode(pair.token_ids.tolist())


def test_the_files_identify_the_prompt(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = with_answers(checkpoints["qwen3"], tmp_path, 0)
    raw = json.loads((folder / "config.json").read_text())
    ids = one_token_words(folder, "yes", "no", "Yes", "!")
    found = {}
    for yes, no in [(ids[0], ids[1]), (ids[2], None), (ids[3], None)]:
        settings = {"true_token_id": yes, "false_token_id": no}
        (folder / "1_LogitScore" / "config.json").write_text(json.dumps(settings))
        found[yes] = choose_prompt(folder, raw, EngineConfig())

    prompts = [PUBLISHED_PROMPTS[name] for name in ("qwen3-reranker", "zerank", "ctxl-rerank-v2")]
    assert list(found.values()) == prompts


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"true_token_id": 17}, "scores by the tokens 17 and None, with which no published prompt"),
        ({"true_token_id": 1, "false_token_id": 0}, "set engine.yes_no to the prompt that was used in training"),
        ({"false_token_id": 0}, "has no true_token_id"),
        ({"true_token_id": "Yes"}, "are not integers"),
    ],
)
def test_unknown_answers_are_refused(
    checkpoints: dict[str, Path], tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    folder = with_answers(checkpoints["qwen3"], tmp_path, 0)
    (folder / "1_LogitScore" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=reason):
        load_engine(local_model(folder))


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        ("{", "is not a list of modules"),
        ("[1]", "is not a list of modules"),
        (json.dumps([MODULES[1] | {"path": "../.."}]), "is not a folder of the checkpoint"),
    ],
)
def test_damaged_modules_are_refused(checkpoints: dict[str, Path], tmp_path: Path, modules: str, reason: str) -> None:
    folder = with_answers(checkpoints["qwen3"], tmp_path, 0)
    (folder / "modules.json").write_text(modules)
    with pytest.raises(CheckpointError, match=reason):
        load_engine(local_model(folder))


def test_a_missing_statement_is_reported(
    checkpoints: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = with_answers(checkpoints["qwen3"], tmp_path, 0)
    (folder / "1_LogitScore" / "config.json").unlink()
    load_engine(local_model(folder))
    assert "the prompt qwen3-reranker of the family qwen3 is assumed" in caplog.text


def test_settings_that_state_the_answers_choose_the_engine(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    raw = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert engine_kind(tmp_path, EngineConfig(yes_no_prompt="ctxl-rerank-v2-6b")) is EngineKind.YES_NO_DECODER
    with pytest.raises(CheckpointError, match=r"set engine\.kind"):
        engine_kind(tmp_path, EngineConfig())


def test_two_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="not both"):
        EngineConfig(yes_no_prompt="zerank", yes_no=PUBLISHED_PROMPTS["zerank"])
