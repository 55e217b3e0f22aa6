"""From text to token ids: the tokenizer file, the prompt template, truncation, what special tokens in texts are.

Works on `tokenizers` directly, from `tokenizer.json` alone: no tokenizer class, no remote code. Calls here
release the GIL and use the calling thread only, so the caller's thread pool bounds the work.
"""

import json
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from rerank_service.config import SpecialTokens
from rerank_service.engine.loading import read_json
from rerank_service.engine.protocol import TokenIds, TokenSpan, Truncate
from rerank_service.errors import CheckpointError, PairTooLong

__all__ = [
    "DEFAULT_TEMPLATE",
    "bos_token_id",
    "checked_template",
    "cut_to_window",
    "encode_texts",
    "leaves_no_passage",
    "load_tokenizer",
    "model_max_length",
    "prompt_text",
    "token_spans",
    "truncate_pair_encoding",
    "truncated_lengths",
    "up_to_passage",
]

DEFAULT_TEMPLATE = "question:{query} \n \n passage:{passage}"
"""The published prompt of the NVIDIA rerankers."""

_NONCE = secrets.token_hex(16)
"""No text holds it: nobody outside this process can know it."""
_PASSAGE = secrets.token_hex(16)

_TAG = re.compile(r"<\S+>|\[\S+\]")
"""Not white space or a word, which tokenizers may have added too and texts are full of."""

_ABSURD_LENGTH = 1_000_000  # transformers writes 1e30 for "unknown"


def load_tokenizer(folder: Path, special_tokens: SpecialTokens = "text", prompt: Sequence[str] = ()) -> Tokenizer:
    """The fast tokenizer of a checkpoint, without the truncation and padding its file may carry.

    With `text`, special tokens have names that no text can spell (see `prompt_text`), and so have those tags of
    `prompt` that its tokenizer does not call special, such as Qwen's `<think>`. Their ids are the file's.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json; save one with "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else: one thread per CPU of the host
    try:
        if special_tokens == "text":
            tokenizer: Tokenizer = Tokenizer.from_str(json.dumps(_with_hidden_names(read_json(path), prompt)))
        else:
            tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no other
        raise CheckpointError(f"{path} is damaged, or no tokenizer ({error}): fetch the file again") from error
    tokenizer.no_truncation()  # all-MiniLM-L6-v2's file cuts at 128 and pads to 128
    tokenizer.no_padding()
    return tokenizer


def prompt_text(tokenizer: Tokenizer, text: str) -> str:
    """A trusted text, such as a template, with its special tokens spelled as `tokenizer` knows them."""
    hidden = [
        token.content.removeprefix(_NONCE)
        for token in tokenizer.get_added_tokens_decoder().values()
        if token.content.startswith(_NONCE)
    ]
    if not hidden:
        return text
    longest_first = "|".join(map(re.escape, sorted(hidden, key=len, reverse=True)))
    return re.sub(longest_first, lambda match: _NONCE + match[0], text)


def _with_hidden_names(file: dict[str, Any], prompt: Sequence[str]) -> dict[str, Any]:
    """A tokenizer file whose special tokens are called otherwise, wherever their names stand for them.

    `Tokenizer.encode_special_tokens` would not do. It applies to all texts of a tokenizer, prompts included. And it
    keeps the names in the vocabulary: Unigram finds `<pad>` in a text as it finds any piece (XLM-RoBERTa, DeBERTa v3),
    and so does BPE if merges lead to it (`</` + `s>` in conversions of Llama).
    """
    names = {
        token["content"]
        for token in file.get("added_tokens", [])
        if token["special"] or (_TAG.fullmatch(token["content"]) and any(token["content"] in text for text in prompt))
    }

    def renamed(name: str) -> str:
        return _NONCE + name if name in names else name

    for token in file.get("added_tokens", []):
        token["content"] = renamed(token["content"])
    model = file["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed(name): token_id for name, token_id in model["vocab"].items()}
    else:  # Unigram's
        model["vocab"] = [[renamed(name), score] for name, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = renamed(model["unk_token"])
    if "merges" in model:  # of pairs, or of "left right" in older files
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [pair for pair in pairs if names.isdisjoint([*pair, "".join(pair)])]
    return file


def model_max_length(folder: Path) -> int | None:
    """Window in tokens by tokenizer_config.json; null if it says none or an absurd one."""
    length = _tokenizer_config(folder).get("model_max_length")
    return int(length) if length is not None and 0 < length < _ABSURD_LENGTH else None


def bos_token_id(folder: Path, tokenizer: Tokenizer, model_config: dict[str, Any]) -> int:
    """Id of the token that opens every decoder prompt."""
    token = _tokenizer_config(folder).get("bos_token")
    content = token["content"] if isinstance(token, dict) else token
    from_tokenizer = tokenizer.token_to_id(prompt_text(tokenizer, content)) if content else None
    token_id = from_tokenizer if from_tokenizer is not None else model_config.get("bos_token_id")
    if token_id is None:
        raise CheckpointError(f"{folder} names no BOS token in tokenizer_config.json or config.json")
    return int(token_id)


def checked_template(template: str) -> str:
    """The template itself, once it is known to take a query and a passage and nothing else."""
    try:
        rendered = template.format(query="QUERY", passage="PASSAGE")
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"prompt template {template!r} takes {{query}} and {{passage}} only: {error}") from None
    if "QUERY" not in rendered or "PASSAGE" not in rendered:
        raise CheckpointError(f"prompt template {template!r} needs both {{query}} and {{passage}}")
    return template


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str] | Sequence[tuple[str, str]], *, add_special_tokens: bool
) -> list[Encoding]:
    """Encodings without offsets, which cost a quarter of the time and nobody reads."""
    encodings: list[Encoding] = tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
    return encodings


def token_spans(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[TokenSpan]]:
    """Where each token of each text stands, special tokens apart."""
    return [encoding.offsets for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def cut_to_window(
    token_ids: Sequence[int], window_tokens: int, truncate: Truncate, passage_index: int
) -> tuple[TokenIds, bool]:
    """Token ids `[L]` without what is beyond the window, and whether anything was.

    Raises `PairTooLong` instead of cutting under `Truncate.NONE`.
    """
    is_too_long = len(token_ids) > window_tokens
    if is_too_long and truncate is Truncate.NONE:
        raise PairTooLong(passage_index, len(token_ids), window_tokens)
    return np.asarray(token_ids[:window_tokens], dtype=np.int32), is_too_long


def up_to_passage(template: str, **values: str) -> str:
    """What a prompt template makes of its other values before its passage begins."""
    return template.format(passage=_PASSAGE, **values).partition(_PASSAGE)[0]


def leaves_no_passage(token_ids: Sequence[int] | TokenIds, lead_ids: Sequence[int]) -> bool:
    """Whether tokens that were cut at the window are part of `lead_ids`, those of the prompt up to its passage.

    Compared by value: the first word of a passage may share a token with the text before it.
    """
    return len(token_ids) <= len(lead_ids) and list(token_ids) == list(lead_ids[: len(token_ids)])


def truncated_lengths(query_tokens: int, passage_tokens: int, room: int) -> tuple[int, int]:
    """How many tokens of each are left of a pair that is longer than `room`, cut longest first.

    The rule of `tokenizers` (`TruncationStrategy::LongestFirst`), which sentence-transformers, TEI and Infinity
    apply: the longer one is cut down to the other; if that is not enough, they share, and an odd token goes to the
    longer, or to the passage where both are equally long.
    """
    shorter = min(query_tokens, passage_tokens)
    if 2 * shorter <= room:
        longer = room - shorter
    else:
        shorter, longer = room // 2, room - room // 2
    return (longer, shorter) if query_tokens > passage_tokens else (shorter, longer)


def truncate_pair_encoding(encoding: Encoding, window_tokens: int) -> tuple[list[int], bool]:
    """Positions to keep of a pair encoding that is too long, and whether any of its passage's were dropped.

    Special tokens stay; query and passage lose tokens at their ends, by `truncated_lengths`.
    """
    sequence_ids = encoding.sequence_ids  # None for special tokens, 0 for the query, 1 for the passage
    query = [position for position, sequence in enumerate(sequence_ids) if sequence == 0]
    passage = [position for position, sequence in enumerate(sequence_ids) if sequence == 1]
    room = window_tokens - sequence_ids.count(None)
    query_tokens, passage_tokens = truncated_lengths(len(query), len(passage), room)
    dropped = {*query[query_tokens:], *passage[passage_tokens:]}
    kept = [position for position in range(len(sequence_ids)) if position not in dropped]
    return kept, passage_tokens < len(passage)


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}
