"""Compares the yes/no decoders with transformers' own language models, one pair at a time in float32."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

from rerank_service.engine import Truncate, load_engine
from rerank_service.engine.device.forward import hidden_states
from rerank_service.engine.device.pack import pack
from rerank_service.engine.text.yes_no_prompts import YES_NO_PROMPTS, PromptParts
from rerank_service.errors import CheckpointError, PairTooLong
from tests.models import NASTY_PASSAGES, local_model

QUERY = "what is the capital of France?"
TOLERANCE = 1e-5
PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
OWN_PROMPT = {"parts": ["q {query}\n", "p {passage}", "\nyes or no: "], "yes_word": "yes", "no_word": "no"}
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,  # so that attention is far from uniform and logits far from zero
}


def tokenizer_of(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def ids_of(tokenizer: Tokenizer, *texts: str) -> list[int]:
    return [token for text in texts for token in tokenizer.encode(text, add_special_tokens=False).ids]


def qwen3_ids(tokenizer: Tokenizer, passage: str, window: int, instruction: str = INSTRUCTION) -> list[int]:
    """Token ids as on the model card: prefix, then the tokens of the pair (cut to fit), then suffix."""
    prefix, suffix = ids_of(tokenizer, PREFIX), ids_of(tokenizer, SUFFIX)
    pair = ids_of(tokenizer, f"<Instruct>: {instruction}\n<Query>: {QUERY}\n<Document>: {passage}")
    return prefix + pair[: window - len(prefix) - len(suffix)] + suffix


@torch.inference_mode()
def last_logits(model: Any, ids: list[int]) -> torch.Tensor:
    """Logits of the whole vocabulary `[V]` at the last token."""
    logits: torch.Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    return logits


def save_language_model(folder: Path, model: Any, tokenizer_from: Path, **changes: Any) -> Path:
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer_from / name).read_bytes())
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_each_logit_equals_that_of_the_published_code(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["qwen3"]
    engine = load_engine(local_model(folder))
    tokenizer, model = tokenizer_of(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    yes, no = tokenizer.token_to_id("yes"), tokenizer.token_to_id("no")

    pairs = engine.tokenise(QUERY, NASTY_PASSAGES, Truncate.END)
    logits = engine.score(pairs)

    for passage, pair, logit in zip(NASTY_PASSAGES, pairs, logits, strict=True):
        ids = qwen3_ids(tokenizer, passage, engine.window_tokens)
        assert pair.token_ids.tolist() == ids
        both = last_logits(model, ids)[[no, yes]]
        assert logit == pytest.approx(float(both[1] - both[0]), abs=TOLERANCE)
        published = both.log_softmax(0)[1].exp()
        torch.testing.assert_close(torch.tensor(logit).sigmoid(), published, atol=TOLERANCE, rtol=TOLERANCE)
    assert np.std(logits) > 0.1


@pytest.mark.parametrize(
    ("config_class", "model_class", "is_tied"),
    [
        (Qwen3Config, Qwen3ForCausalLM, False),
        (Qwen3Config, Qwen3ForCausalLM, True),
        (Qwen2Config, Qwen2ForCausalLM, True),
        (GemmaConfig, GemmaForCausalLM, True),
        (LlamaConfig, LlamaForCausalLM, False),
        (MistralConfig, MistralForCausalLM, False),
    ],
)
def test_each_family_equals_transformers(
    tmp_path: Path, checkpoints: dict[str, Path], config_class: Any, model_class: Any, is_tied: bool
) -> None:
    torch.manual_seed(0)
    tokenizer = tokenizer_of(checkpoints["qwen3"])
    config = config_class(**SIZES, vocab_size=tokenizer.get_vocab_size(), head_dim=16, tie_word_embeddings=is_tied)
    model = model_class(config).eval()
    folder = save_language_model(tmp_path, model, checkpoints["qwen3"])
    engine = load_engine(local_model(folder, engine={"kind": "yes_no_decoder", "yes_no": OWN_PROMPT}))

    pairs = engine.tokenise(QUERY, NASTY_PASSAGES, Truncate.END)

    expected = []
    for passage, pair in zip(NASTY_PASSAGES, pairs, strict=True):
        ids = ids_of(tokenizer, f"q {QUERY}\n", f"p {passage}", "\nyes or no: ")
        assert pair.token_ids.tolist() == ids
        logits = last_logits(model, ids)
        expected.append(float(logits[tokenizer.token_to_id("yes")] - logits[tokenizer.token_to_id("no")]))
    assert engine.score(pairs) == pytest.approx(expected, abs=TOLERANCE)
    assert np.std(expected) > 0.01


def test_without_a_no_word_the_logit_is_the_logit_of_yes(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    folder, tokenizer = checkpoints["qwen3"], tokenizer_of(checkpoints["qwen3"])
    engine = load_engine(local_model(folder, engine={"yes_no": OWN_PROMPT | {"no_word": None}}))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    (logit,) = engine.score(engine.tokenise(QUERY, ["Paris"], Truncate.END))

    ids = ids_of(tokenizer, f"q {QUERY}\n", "p Paris", "\nyes or no: ")
    assert logit == pytest.approx(float(last_logits(model, ids)[tokenizer.token_to_id("yes")]), abs=TOLERANCE)


def test_a_converted_classifier_has_the_logits_of_the_original(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    """Converted like tomaarsen/Qwen3-Reranker-0.6B-seq-cls: the row of the only label is yes minus no."""
    original, tokenizer = checkpoints["qwen3"], tokenizer_of(checkpoints["qwen3"])
    config = Qwen3Config.from_pretrained(original)
    config.num_labels = 1
    config.pad_token_id = 0
    classifier = Qwen3ForSequenceClassification(config).eval()
    causal = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    classifier.model.load_state_dict(causal.model.state_dict())
    rows = causal.lm_head.weight.detach()
    with torch.no_grad():
        classifier.score.weight.copy_(rows[tokenizer.token_to_id("yes")] - rows[tokenizer.token_to_id("no")])
    folder = save_language_model(tmp_path, classifier, original)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Qwen3ForSequenceClassification"]

    engines = [load_engine(local_model(source)) for source in (folder, original)]

    converted, expected = (engine.score(engine.tokenise(QUERY, NASTY_PASSAGES, Truncate.END)) for engine in engines)
    assert converted == pytest.approx(expected, abs=TOLERANCE)
    own = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = qwen3_ids(tokenizer, NASTY_PASSAGES[2], engines[0].window_tokens)
    with torch.inference_mode():
        assert converted[2] == pytest.approx(float(own(input_ids=torch.tensor([ids])).logits), abs=TOLERANCE)


def test_later_tokens_are_not_seen(checkpoints: dict[str, Path]) -> None:
    """Guards against an attention that ignores causality: later tokens must not change a state."""
    engine: Any = load_engine(local_model(checkpoints["qwen3"]))
    (pair,) = engine.tokenise(QUERY, ["a passage of several words"], Truncate.END)
    with torch.inference_mode():
        whole = hidden_states(engine.backbone, pack([pair.token_ids], engine.device))
        half = hidden_states(engine.backbone, pack([pair.token_ids[:60]], engine.device))
    torch.testing.assert_close(whole[:60], half, atol=1e-5, rtol=1e-5)


def test_a_logit_does_not_depend_on_its_batch(checkpoints: dict[str, Path]) -> None:
    engine = load_engine(local_model(checkpoints["qwen3"]))
    pairs = engine.tokenise(QUERY, NASTY_PASSAGES, Truncate.END)

    alone = [engine.score([pair])[0] for pair in pairs]

    assert engine.score(pairs) == pytest.approx(alone, abs=2e-6)
    assert engine.score(pairs[::-1]) == pytest.approx(alone[::-1], abs=2e-6)


def test_a_long_passage_is_cut_but_the_end_of_the_prompt_is_kept(checkpoints: dict[str, Path]) -> None:
    folder, window = checkpoints["qwen3"], 180
    engine, tokenizer = load_engine(local_model(folder, window_tokens=window)), tokenizer_of(folder)
    passage = "one two three four five six seven eight nine ten " * 20

    (pair,) = engine.tokenise(QUERY, [passage], Truncate.END)

    assert pair.token_ids.tolist() == qwen3_ids(tokenizer, passage, window)
    assert (pair.num_tokens, pair.is_truncated) == (window, True)
    suffix = ids_of(tokenizer, SUFFIX)
    assert pair.token_ids[-len(suffix) :].tolist() == suffix
    with pytest.raises(PairTooLong, match=r"Input length \d+ exceeds maximum allowed token size 180"):
        engine.tokenise(QUERY, ["short", passage], Truncate.NONE)


def test_a_query_in_its_own_part_leaves_the_passage_a_quarter_of_the_room(checkpoints: dict[str, Path]) -> None:
    """Pairs are truncated as by mxbai_rerank_v2.py and FlagEmbedding, but a pair that fits is not truncated."""
    folder = checkpoints["qwen3"]
    engine = load_engine(local_model(folder, window_tokens=64, engine={"yes_no": OWN_PROMPT}))
    tokenizer = tokenizer_of(folder)
    query, passage, end = "one two three four " * 20, "seen to be scored " * 20, ids_of(tokenizer, "\nyes or no: ")
    of_query, of_passage = ids_of(tokenizer, f"q {query}\n"), ids_of(tokenizer, f"p {passage}")
    room = 64 - len(end)
    at_most = room * 3 // 4

    (pair,) = engine.tokenise(query, [passage], Truncate.END)
    (short,) = engine.tokenise(query, ["seen"], Truncate.END)

    assert pair.token_ids.tolist() == [*of_query[:at_most], *of_passage[: room - at_most], *end]
    assert short.token_ids.tolist() == [*of_query[:at_most], *ids_of(tokenizer, "p seen"), *end]
    assert (pair.is_passage_cut, short.is_passage_cut, pair.is_unscored, short.is_unscored) == (True, *[False] * 3)
    assert engine.passage_room(query) == room - at_most - len(ids_of(tokenizer, "p "))
    fits = "one two three four " * 6
    of_fitting = ids_of(tokenizer, f"q {fits}\n", "p seen")
    assert at_most < len(of_fitting) <= room
    assert engine.tokenise(fits, ["seen"], Truncate.NONE)[0].token_ids.tolist() == [*of_fitting, *end]


def test_a_configured_instruction_replaces_the_published_one(checkpoints: dict[str, Path]) -> None:
    folder, instruction = checkpoints["qwen3"], "Find {braces} that match"
    engine = load_engine(local_model(folder, engine={"instruction": instruction}))

    (pair,) = engine.tokenise(QUERY, ["so {passage} {query}"], Truncate.END)

    expected = qwen3_ids(tokenizer_of(folder), "so {passage} {query}", engine.window_tokens, instruction)
    assert pair.token_ids.tolist() == expected


def test_prompts_that_cannot_work_are_refused(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["qwen3"]
    for settings, message in [
        ({"engine": {"yes_no": OWN_PROMPT | {"yes_word": "certainly not"}}}, "'certainly not' must be one token"),
        ({"engine": {"yes_no": OWN_PROMPT, "instruction": "judge"}}, "no place for it"),
        ({"window_tokens": 64}, r"the prompt alone takes \d+ tokens, and the window is 64"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            load_engine(local_model(folder, **settings))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ["{passage}"]}, "must contain {query} once"),
        ({"parts": ["{query} {passage} end", "answer: "]}, "must end with {passage}"),
        ({"parts": ["{query}", "{doc} {passage}"]}, "parts contain {doc}"),
        ({"parts": ["{instruction} {query}", "{passage}"]}, "set instruction to its default text"),
    ],
)
def test_a_prompt_with_missing_or_misplaced_placeholders_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        local_model(tmp_path, engine={"yes_no": OWN_PROMPT | changes})


def test_sliding_attention_within_the_window_is_refused(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    tokenizer = tokenizer_of(checkpoints["qwen3"])
    config = MistralConfig(**SIZES, vocab_size=tokenizer.get_vocab_size(), sliding_window=256)
    folder = save_language_model(tmp_path, MistralForCausalLM(config), checkpoints["qwen3"])
    options = {"kind": "yes_no_decoder", "yes_no": OWN_PROMPT}

    with pytest.raises(CheckpointError, match="set window_tokens to at most 256"):
        load_engine(local_model(folder, engine=options))
    assert load_engine(local_model(folder, window_tokens=256, engine=options)).window_tokens == 256


def test_unexpected_and_missing_tensors_are_refused(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    for path in checkpoints["qwen3"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)

    save_file(tensors | {"model.extra.weight": torch.zeros(2, 2)}, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match="1 unexpected"):
        load_engine(local_model(tmp_path))

    save_file({name: t for name, t in tensors.items() if name != "model.norm.weight"}, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match="1 missing"):
        load_engine(local_model(tmp_path))


def test_untied_embeddings_without_a_head_are_refused(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    for path in checkpoints["qwen3"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(CheckpointError, match=r"neither lm_head\.weight nor score\.weight"):
        load_engine(local_model(tmp_path))


def test_bfloat16_stays_close_to_float32(checkpoints: dict[str, Path]) -> None:
    exact = load_engine(local_model(checkpoints["qwen3"]))
    coarse = load_engine(local_model(checkpoints["qwen3"], engine={"dtype": "bfloat16"}))
    pairs = exact.tokenise(QUERY, NASTY_PASSAGES, Truncate.END)

    assert coarse.score(pairs) == pytest.approx(exact.score(pairs), abs=0.25)


def test_flops_do_not_include_the_vocabulary(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    tokenizer = tokenizer_of(checkpoints["qwen3"])
    config = Qwen3Config(**SIZES, vocab_size=tokenizer.get_vocab_size(), head_dim=16, tie_word_embeddings=False)
    folder = save_language_model(tmp_path, Qwen3ForCausalLM(config), checkpoints["qwen3"])

    engine: Any = load_engine(local_model(folder))

    per_layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 128
    assert engine.flops_per_token == 2.0 * 2 * per_layer


@pytest.mark.parametrize(
    ("family", "before", "after"),
    [
        (
            "qwen2",  # as in MxbaiRerankV2.prepare_inputs and concat_input_ids
            [
                "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
                "<|im_start|>user\n",
                f"query: {QUERY}",
                "\n",
            ],
            [
                "\n",
                "You are a search relevance expert who evaluates how well documents match search queries. For each "
                "query-document pair, carefully analyze the semantic relationship between them, then provide your "
                "binary relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:",
                "<|im_end|>\n<|im_start|>assistant\n",
            ],
        ),
        (
            "gemma",  # as in DatasetForReranker of FlagEmbedding
            ["<bos>", f"A: {QUERY}", "\n"],
            [
                "\n",
                "Given a query A and a passage B, determine whether the passage contains an answer to the query by "
                "providing a prediction of either 'Yes' or 'No'.",
            ],
        ),
    ],
)
def test_other_published_prompts_are_tokenised_part_by_part(
    checkpoints: dict[str, Path], family: str, before: list[str], after: list[str]
) -> None:
    tokenizer, prompt = tokenizer_of(checkpoints["qwen3"]), YES_NO_PROMPTS[family]
    marker = {"qwen2": "document", "gemma": "B"}[family]

    pairs = PromptParts(tokenizer, prompt, None, 2048).encode(QUERY, NASTY_PASSAGES, Truncate.END)

    for passage, pair in zip(NASTY_PASSAGES, pairs, strict=True):
        assert pair.token_ids.tolist() == ids_of(tokenizer, *before, f"{marker}: {passage}", *after)
