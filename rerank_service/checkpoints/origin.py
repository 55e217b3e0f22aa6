"""The interface of a source of checkpoints, and the selection of files to fetch.

Only safetensors, tokenizer and configuration files in the top folder are fetched, and those of the Dense modules that
pylate and sentence-transformers store in folders of their own. This module must not depend on any particular source, or
on the destination and content of files.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from rerank_service.errors import CheckpointError

__all__ = [
    "SAFETENSORS_INDEX",
    "CutOff",
    "Digest",
    "Origin",
    "RemoteFile",
    "choose_files",
    "is_module_folder",
    "other_formats",
]

SAFETENSORS_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_SETTINGS = frozenset(
    {
        "added_tokens.json",
        "artifact.metadata",
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
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
"""Plain file names, which cannot lead out of the folder and are not hidden."""
_MODULE_FOLDER = re.compile(r"\d{1,2}_Dense", re.ASCII)
_MODULE_FILE = re.compile(r"\d{1,2}_Dense/(config\.json|model\.safetensors)", re.ASCII)
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


class Digest(NamedTuple):
    """Expected digest of a file."""

    algorithm: Literal["sha256", "git-sha1"]
    """`git-sha1` is git's digest: SHA-1 of the header `blob SIZE\\0` followed by the content."""

    hexdigest: str


class RemoteFile(NamedTuple):
    """A file at the source."""

    name: str
    size_bytes: int
    digest: Digest | None = None
    """Null if the source reports no digest."""


class CutOff(Exception):
    """Reading stopped before the end of the file. The rest can be requested again."""


class Origin(Protocol):
    """One checkpoint at its source, as listed at one moment."""

    @property
    def source(self) -> str:
        """The source's name, as in a configuration."""

    @property
    def revision(self) -> str | None:
        """Version of the files. Null if it can only be computed from the fetched files
        (`verification.content_revision`)."""

    @property
    def fingerprint(self) -> str:
        """Digest of the listing. It is also used as a file name."""

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        """The files to fetch."""

    def read(self, file: RemoteFile, offset: int) -> Iterator[tuple[int, bytes]]:
        """Yields pieces of a file with their positions, from `offset` on, or from 0 if the source does not support
        offsets.

        Raises `CutOff` if a retry may help, else `CheckpointError`.
        """

    def at_hand(self, file: RemoteFile) -> Path | None:
        """Path on this machine at which another program may have stored the same file."""

    def check_unchanged(self) -> None:
        """Raises `CheckpointError` if the listing has changed."""


def is_module_folder(name: str) -> bool:
    """Whether a folder of the top folder has files to fetch."""
    return bool(_MODULE_FOLDER.fullmatch(name))


def choose_files(listing: Iterable[RemoteFile], source: str) -> tuple[RemoteFile, ...]:
    """Selects the files to fetch, sorted by name. Raises `CheckpointError` if `listing` has no safetensors weights
    or no config.json."""
    listed = {file.name: file for file in listing}
    present = {name: file for name, file in listed.items() if _NAME.fullmatch(name)}
    weights = {name for name in present if name.endswith(".safetensors")}
    if _SINGLE in weights:  # of several copies of the weights, the copy that would be loaded
        weights = {_SINGLE}
    elif SAFETENSORS_INDEX in present:
        weights = {name for name in weights if _SHARD.fullmatch(name)} | {SAFETENSORS_INDEX}
    if not weights:
        raise CheckpointError(_no_safetensors(source, present))
    if "config.json" not in present:
        raise CheckpointError(f"{source} has no config.json in its top folder, so it is not a model checkpoint")
    modules = {name for name in listed if _MODULE_FILE.fullmatch(name)}
    return tuple(listed[name] for name in sorted(weights | modules | (_SETTINGS & present.keys())))


def _no_safetensors(source: str, present: Iterable[str]) -> str:
    pickles = sorted(name for name in present if name.endswith(_PICKLES))
    if not pickles:
        return f"{source} has no *.safetensors file in its top folder{other_formats(present)}; nothing was fetched"
    return (
        f"{source} has only pickled weights ({', '.join(pickles[:3])}), which can run code when opened; nothing was "
        "fetched. Choose a revision with safetensors (the hub offers conversions at refs/pr/N), or convert the weights "
        "on an isolated machine: AutoModel...from_pretrained(folder).save_pretrained(folder)"
    )


def other_formats(names: Iterable[str]) -> str:
    """The end of a message that names weights in a format for another runtime, and the way out; empty if there are
    none."""
    found = sorted(name for name in names if name.endswith((".gguf", ".onnx", ".h5", ".msgpack")))
    if not found:
        return ""
    return (
        f", only {', '.join(found[:3])}, which no engine reads: use the repository from which these files were "
        "converted, with its *.safetensors"
    )
