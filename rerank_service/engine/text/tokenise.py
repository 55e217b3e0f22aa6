"""Turns text into token ids: the tokenizer file, the prompt template, truncation, and special tokens spelled in texts.

Uses only the `tokenizers` library and `tokenizer.json`: no tokenizer class, no remote code. The library's calls release
the GIL and run only in the calling thread, so the caller's thread pool limits the work. Engines encode with
`encode_batch_fast`, which omits character offsets: computing the offsets takes a quarter of the time of `encode_batch`.
"""

import json
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from rerank_service.config import SpecialTokens
from rerank_service.engine.loading import read_json
from rerank_service.engine.protocol import TokenIds
from rerank_service.errors import CheckpointError

__all__ = [
    "bos_token_id",
    "checked_template",
    "leaves_no_passage",
    "load_tokenizer",
    "model_max_length",
    "named_token_id",
    "prompt_text",
    "truncate_pair_encoding",
    "truncated_lengths",
    "up_to_passage",
]

_NONCE = secrets.token_hex(16)
"""Prefix of hidden names. No text can contain it, because it is unknown outside this process."""
_PASSAGE = secrets.token_hex(16)
"""Placeholder for a passage; no template contains this text."""

_TAG = re.compile(r"<\S+>|\[\S+\]")
"""Names of added tokens that may be hidden. Some tokenizers also add white space and words, which must stay readable
because ordinary texts contain them."""

_ABSURD_LENGTH = 1_000_000
"""A window of this length or more counts as unknown: transformers writes 1e30 for an unknown window."""


def load_tokenizer(folder: Path, special_tokens: SpecialTokens = "text", prompt: Sequence[str] = ()) -> Tokenizer:
    """The fast tokenizer of a checkpoint, without the truncation and padding that its file may configure.

    If `special_tokens` is `text`, special tokens are renamed so that no text can spell them (see `prompt_text`). Tags
    in `prompt` that the tokenizer does not mark as special, such as Qwen's `<think>`, are renamed too, and tokens that
    are a whole part of `prompt`, such as ColBERT's `[Q] `. All ids stay as in the file.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json; save one with "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # otherwise one thread per CPU of the host
    try:
        if special_tokens == "text":
            tokenizer: Tokenizer = Tokenizer.from_str(json.dumps(_with_hidden_names(read_json(path), prompt)))
        else:
            tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain `Exception`s
        raise CheckpointError(f"{path} is damaged, or not a tokenizer ({error}): fetch the file again") from error
    tokenizer.no_truncation()  # all-MiniLM-L6-v2's file cuts at 128 and pads to 128
    tokenizer.no_padding()
    return tokenizer


def prompt_text(tokenizer: Tokenizer, text: str) -> str:
    """Returns a trusted text, such as a template, with its special tokens renamed to the hidden names of
    `tokenizer`."""
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
    """Renames the special tokens of a tokenizer file, wherever their names occur in the file.

    `Tokenizer.encode_special_tokens` is not enough. It applies to all texts of a tokenizer, prompts included, and it
    leaves the names in the vocabulary: Unigram finds `<pad>` in a text like any other piece (XLM-RoBERTa, DeBERTa v3),
    and BPE finds `</s>` if merges lead to it (`</` + `s>` in conversions of Llama).
    """
    names = {
        token["content"]
        for token in file.get("added_tokens", [])
        if token["special"]
        or token["content"] in prompt
        or (_TAG.fullmatch(token["content"]) and any(token["content"] in text for text in prompt))
    }

    def renamed(name: str) -> str:
        return _NONCE + name if name in names else name

    for token in file.get("added_tokens", []):
        token["content"] = renamed(token["content"])
    model = file["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed(name): token_id for name, token_id in model["vocab"].items()}
    else:  # Unigram
        model["vocab"] = [[renamed(name), score] for name, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = renamed(model["unk_token"])
    if "merges" in model:  # pairs, or strings "left right" in older files
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [pair for pair in pairs if names.isdisjoint([*pair, "".join(pair)])]
    return file


def model_max_length(folder: Path) -> int | None:
    """Window in tokens from tokenizer_config.json; null if the file has no window or an absurdly long one."""
    length = _tokenizer_config(folder).get("model_max_length")
    return int(length) if length is not None and 0 < length < _ABSURD_LENGTH else None


def bos_token_id(folder: Path, tokenizer: Tokenizer, model_config: dict[str, Any]) -> int:
    """Id of the token that starts each prompt of a decoder. Raises `CheckpointError` if no file names it."""
    token = _tokenizer_config(folder).get("bos_token")
    content = token["content"] if isinstance(token, dict) else token
    from_tokenizer = tokenizer.token_to_id(prompt_text(tokenizer, content)) if content else None
    token_id = from_tokenizer if from_tokenizer is not None else model_config.get("bos_token_id")
    if token_id is None:
        raise CheckpointError(f"{folder} names no BOS token in tokenizer_config.json or config.json")
    return int(token_id)


def named_token_id(folder: Path, tokenizer: Tokenizer, names: Sequence[str]) -> int | None:
    """Id of the first of the special tokens, such as `mask_token`, that the tokenizer's settings name; null if they
    name none."""
    path = folder / "special_tokens_map.json"
    settings = (read_json(path) if path.is_file() else {}) | _tokenizer_config(folder)
    for token in filter(None, map(settings.get, names)):
        content = token["content"] if isinstance(token, dict) else str(token)
        token_id: int | None = tokenizer.token_to_id(prompt_text(tokenizer, content))
        if token_id is not None:
            return token_id
    return None


def checked_template(template: str) -> str:
    """Returns the template. Raises `CheckpointError` unless its placeholders are `{query}` and `{passage}` alone."""
    try:
        rendered = template.format(query="QUERY", passage="PASSAGE")
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"prompt template {template!r} may contain only {{query}} and {{passage}}: {error}"
        ) from None
    if "QUERY" not in rendered or "PASSAGE" not in rendered:
        raise CheckpointError(f"prompt template {template!r} needs both {{query}} and {{passage}}")
    return template


def up_to_passage(template: str, **values: str) -> str:
    """The text of a prompt before its passage; `values` fill the template's other placeholders."""
    return template.format(passage=_PASSAGE, **values).partition(_PASSAGE)[0]


def leaves_no_passage(token_ids: Sequence[int] | TokenIds, lead_ids: Sequence[int]) -> bool:
    """Whether truncated token ids end before the passage. `lead_ids` are the ids of the prompt before the passage.

    Compares ids, not only lengths, because the first word of a passage may share a token with the text before it.
    """
    return len(token_ids) <= len(lead_ids) and list(token_ids) == list(lead_ids[: len(token_ids)])


def truncated_lengths(query_tokens: int, passage_tokens: int, room: int) -> tuple[int, int]:
    """Numbers of query and passage tokens to keep if a pair is longer than `room`, cutting the longer text first.

    This is `TruncationStrategy::LongestFirst` of `tokenizers`, which sentence-transformers, TEI and Infinity apply too:
    the longer text is cut to the length of the shorter text; if this is not enough, each text gets half of the room. An
    odd token goes to the longer text, or to the passage if both are equally long.
    """
    shorter = min(query_tokens, passage_tokens)
    if 2 * shorter <= room:
        longer = room - shorter
    else:
        shorter, longer = room // 2, room - room // 2
    return (longer, shorter) if query_tokens > passage_tokens else (shorter, longer)


def truncate_pair_encoding(encoding: Encoding, window_tokens: int) -> tuple[list[int], bool]:
    """Positions to keep in a pair encoding that is too long, and whether any passage token is dropped.

    Special tokens stay. Query and passage are cut at their ends to the lengths given by `truncated_lengths`.
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
