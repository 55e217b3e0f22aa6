"""Which files of a checkpoint are fetched: safetensors, tokenizer and configuration of its top folder, nothing else.

It must not know where the listing comes from, nor what is in the files.
"""

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

from rerank_service.errors import CheckpointError

__all__ = ["Digest", "RemoteFile", "choose_files"]

_SETTINGS = frozenset(
    {
        "added_tokens.json",
        "config.json",
        "config_sentence_transformers.json",
        "generation_config.json",
        "merges.txt",
        "modules.json",
        "sentence_bert_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
"""Plain names: none can lead out of the folder, none is hidden."""

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


class Digest(NamedTuple):
    """What a file's bytes must come to."""

    algorithm: Literal["sha256", "git-sha1"]
    """`git-sha1` is git's: of the header `blob SIZE\\0`, then the bytes."""

    hexdigest: str


class RemoteFile(NamedTuple):
    """A file where it is fetched from."""

    name: str
    size_bytes: int
    digest: Digest | None = None
    """Null where that place states none."""


def choose_files(listing: Iterable[RemoteFile], source: str) -> tuple[RemoteFile, ...]:
    """Those to fetch, by name. Raises `CheckpointError` if they cannot be a checkpoint, or only a pickled one."""
    present = {file.name: file for file in listing if _NAME.fullmatch(file.name)}
    weights = _weights(present)
    if not weights:
        raise CheckpointError(_no_safetensors(source, present))
    if "config.json" not in present:
        raise CheckpointError(f"{source} has no config.json in its top folder, so it is no checkpoint of a model")
    return tuple(present[name] for name in sorted(weights | (_SETTINGS & present.keys())))


def _weights(present: Iterable[str]) -> set[str]:
    """Of several copies of the weights, the one that would be loaded."""
    safetensors = {name for name in present if name.endswith(".safetensors")}
    if _SINGLE in safetensors:
        return {_SINGLE}
    if _INDEX in present:
        return {name for name in safetensors if _SHARD.fullmatch(name)} | {_INDEX}
    return safetensors


def _no_safetensors(source: str, present: Iterable[str]) -> str:
    pickles = sorted(name for name in present if name.endswith(_PICKLES))
    if not pickles:
        return f"{source} has no *.safetensors file in its top folder; nothing was fetched"
    return (
        f"{source} has only pickled weights ({', '.join(pickles[:3])}), which can run code when opened; nothing was "
        "fetched. Ask for a revision with safetensors (the hub's conversions are at refs/pr/N), or convert them on a "
        "machine you can lose: AutoModel...from_pretrained(folder).save_pretrained(folder)"
    )
