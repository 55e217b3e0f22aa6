"""From text to token ids: the tokenizer file, the prompt template, truncation from the right.

Works on `tokenizers` directly, from `tokenizer.json` alone: no tokenizer class, no remote code. Calls here
release the GIL and use the calling thread only, so the caller's thread pool bounds the work.
"""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

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
    "token_spans",
    "truncate_pair_encoding",
    "truncated_lengths",
    "up_to_passage",
]

DEFAULT_TEMPLATE = "question:{query} \n \n passage:{passage}"
"""The published prompt of the NVIDIA rerankers."""

_NONCE = secrets.token_hex(16)
"""No text holds it: nobody outside this process can know it."""

_ABSURD_LENGTH = 1_000_000  # transformers writes 1e30 for "unknown"


def load_tokenizer(folder: Path) -> Tokenizer:
    """The fast tokenizer of a checkpoint, without the truncation and padding its file may carry."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json; save one with "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else: one thread per CPU of the host
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no other
        raise CheckpointError(f"{path} is damaged, or no tokenizer ({error}): fetch the file again") from error
    tokenizer.no_truncation()  # all-MiniLM-L6-v2's file cuts at 128 and pads to 128
    tokenizer.no_padding()
    return tokenizer


def model_max_length(folder: Path) -> int | None:
    """Window in tokens by tokenizer_config.json; null if it says none or an absurd one."""
    length = _tokenizer_config(folder).get("model_max_length")
    return int(length) if length is not None and 0 < length < _ABSURD_LENGTH else None


def bos_token_id(folder: Path, tokenizer: Tokenizer, model_config: dict[str, Any]) -> int:
    """Id of the token that opens every decoder prompt."""
    token = _tokenizer_config(folder).get("bos_token")
    content = token["content"] if isinstance(token, dict) else token
    from_tokenizer = tokenizer.token_to_id(content) if content else None
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
    return template.format(passage=_NONCE, **values).partition(_NONCE)[0]


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
