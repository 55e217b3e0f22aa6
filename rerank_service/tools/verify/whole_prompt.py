"""Token ids of a prompt of one part, for the reference: the whole text is tokenised, then the passage is cut."""

import re
from collections.abc import Set
from typing import Any, NamedTuple

__all__ = ["WholeTokens", "whole_tokens"]

_SLOT = re.compile(r"(\{(?:query|passage)\})")


class WholeTokens(NamedTuple):
    """Token ids of a whole prompt."""

    ids: list[int]
    is_cut: bool


def whole_tokens(
    published: Any, of_texts: Any, special_names: Set[str], template: str, texts: dict[str, str], window_tokens: int
) -> WholeTokens:
    """Token ids of `template` with `texts` for `query` and `passage`, cut to the window.

    `published` is the published tokenizer, which parses special tokens in the template; `of_texts` reads texts.
    """
    ids = list(published("")["input_ids"])  # the tokens that the tokenizer itself puts before a text
    slots = [""] * len(ids)
    names = "|".join(map(re.escape, sorted(special_names, key=len, reverse=True)))
    for piece in re.split(f"({names})", template) if names else [template]:
        if piece in special_names:
            ids.append(published.convert_tokens_to_ids(piece))
            slots.append("")
        elif piece:
            text, owners = _owned(piece, texts)
            encoded = of_texts(text, add_special_tokens=False, return_offsets_mapping=True)
            ids += encoded["input_ids"]
            slots += [_owner(owners[first:last]) for first, last in encoded["offset_mapping"]]
    if len(ids) <= window_tokens:
        return WholeTokens(ids, False)
    return WholeTokens(_cut(ids, slots, window_tokens), True)


def _owned(piece: str, texts: dict[str, str]) -> tuple[str, list[str]]:
    """A piece of a template with its texts, and for each character the name of its text; empty: the template's."""
    parts = [(texts[part[1:-1]], part[1:-1]) if _SLOT.fullmatch(part) else (part, "") for part in _SLOT.split(piece)]
    return "".join(text for text, _ in parts), [name for text, name in parts for _ in text]


def _owner(owners: list[str]) -> str:
    return owners[0] if len(set(owners)) == 1 else ""  # a token of two texts belongs to the template


def _cut(ids: list[int], slots: list[str], window_tokens: int) -> list[int]:
    room = window_tokens - slots.count("")
    most = {"query": min(slots.count("query"), room * 3 // 4)}
    most["passage"] = room - most["query"]
    kept = []
    for token, slot in zip(ids, slots, strict=True):
        if slot and not most[slot]:
            continue
        if slot:
            most[slot] -= 1
        kept.append(token)
    return kept
