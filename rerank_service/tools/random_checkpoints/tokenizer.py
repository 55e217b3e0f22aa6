"""Small tokenizers, trained on demand, with the special tokens, template and files of each architecture.

All tokenizers are byte-level BPE, so every text can be encoded without unknown tokens.
"""

import json
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from rerank_service.engine.linear.sample_text import SAMPLE_TEXT
from rerank_service.tools.random_checkpoints.shapes import Architecture

__all__ = ["special_ids", "tokenizer_files", "tokenizer_vocab_size"]

_MAX_VOCAB_SIZE = 1024

# From the published tokenizer.json of Llama 3.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# From Qwen: the same as Llama 3's, except that every digit is a token.
_QWEN_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")

_LLAMA3_TOKENS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
_BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "pad_token": "<pad>",  # in second place, because XLM-RoBERTa's positions start at pad id + 1 = 2
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
}

_QWEN_TOKENS = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "start_token": "<|im_start|>"}

_SPECIAL_TOKENS: dict[Architecture, dict[str, str]] = {
    Architecture.LLAMA_BIDIREC: {**_LLAMA3_TOKENS, "pad_token": "<|end_of_text|>"},
    Architecture.MISTRAL: _LLAMA3_TOKENS,  # no pad token, as in Mistral-7B-v0.1; loaders fall back to eos
    Architecture.BERT: _BERT_TOKENS,
    Architecture.XLM_ROBERTA: _ROBERTA_TOKENS,
    Architecture.GTE: _ROBERTA_TOKENS,  # its tokenizer is XLM-RoBERTa's
    Architecture.MODERNBERT: _BERT_TOKENS,
    Architecture.DEBERTA_V2: _BERT_TOKENS,
    Architecture.QWEN3: _QWEN_TOKENS,
    Architecture.MINICPM: {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
}

_ANSWERS = ["yes", "no"] * 50
"""Training text that repeats each answer often enough to make it a single token, as in Qwen's vocabulary."""

# Templates for one and for two sequences; ":1" is the type id of the second sequence, if the model has type ids.
_LLAMA3_TEMPLATE = ("<|begin_of_text|> $A", "<|begin_of_text|> $A <|begin_of_text|>:1 $B:1")
_TEMPLATES: dict[Architecture, tuple[str, str]] = {
    Architecture.LLAMA_BIDIREC: _LLAMA3_TEMPLATE,
    Architecture.MISTRAL: _LLAMA3_TEMPLATE,
    Architecture.BERT: ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    Architecture.XLM_ROBERTA: ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
    Architecture.GTE: ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
    Architecture.MODERNBERT: ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]"),
    Architecture.DEBERTA_V2: ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    Architecture.MINICPM: ("<s> $A", "<s> $A <s>:1 $B:1"),
    Architecture.QWEN3: ("$A", "$A $B"),  # adds no tokens: prompts contain their special tokens
}


def tokenizer_files(architecture: Architecture, model_max_length: int) -> dict[str, str]:
    """The tokenizer's files: a mapping from file name to content."""
    tokens = _SPECIAL_TOKENS[architecture]
    config: dict[str, Any] = {
        **tokens,
        "clean_up_tokenization_spaces": False,
        "model_input_names": _model_input_names(architecture),
        "model_max_length": model_max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {
        "tokenizer.json": _trained(architecture),
        "tokenizer_config.json": json.dumps(config, indent=2, sort_keys=True) + "\n",
        "special_tokens_map.json": json.dumps(tokens, indent=2, sort_keys=True) + "\n",
    }


def tokenizer_vocab_size(architecture: Architecture) -> int:
    """Size of the tokenizer's vocabulary, special tokens included."""
    return Tokenizer.from_str(_trained(architecture)).get_vocab_size()


def special_ids(architecture: Architecture) -> dict[str, int]:
    """Ids of the special tokens, such as {"bos_token_id": 0, "eos_token_id": 1}."""
    order = _distinct(architecture)
    return {f"{name}_id": order.index(token) for name, token in _SPECIAL_TOKENS[architecture].items()}


def _distinct(architecture: Architecture) -> list[str]:
    """Special tokens in the order of their ids, which start at 0."""
    return list(dict.fromkeys(_SPECIAL_TOKENS[architecture].values()))


def _model_input_names(architecture: Architecture) -> list[str]:
    if architecture in (Architecture.BERT, Architecture.DEBERTA_V2):
        return ["input_ids", "token_type_ids", "attention_mask"]
    return ["input_ids", "attention_mask"]


@cache
def _trained(architecture: Architecture) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer(architecture)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_MAX_VOCAB_SIZE,
        min_frequency=2,
        show_progress=False,
        special_tokens=_distinct(architecture),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    answers = _ANSWERS if architecture is Architecture.QWEN3 else []
    tokenizer.train_from_iterator([*SAMPLE_TEXT.splitlines(keepends=True), *answers], trainer)
    tokenizer.post_processor = _post_processor(architecture)
    return tokenizer.to_str(pretty=True)


def _pre_tokenizer(architecture: Architecture) -> pre_tokenizers.PreTokenizer:
    if architecture.is_encoder:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    pattern = _QWEN_SPLIT if architecture is Architecture.QWEN3 else _LLAMA3_SPLIT
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _post_processor(architecture: Architecture) -> processors.PostProcessor:
    single, pair = _TEMPLATES[architecture]
    ids = [(token, index) for index, token in enumerate(_distinct(architecture)) if token in pair]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
