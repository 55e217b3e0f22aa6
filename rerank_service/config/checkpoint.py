"""Settings that say where a model's files are and how they are verified."""

import re
from typing import Annotated, Self

from pydantic import Field, model_validator

from rerank_service.config.section import Section

__all__ = ["CheckpointConfig"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_STORE_PATH = re.compile(r"[a-z][a-z0-9+.-]*://[^@:\s]+")  # credentials belong in the environment
_CONTENT = re.compile(r"[0-9a-f]{64}")


class CheckpointConfig(Section):
    """Where a model's files are. They are found or fetched when a replica starts, never during a request."""

    source: Annotated[str, Field(min_length=1)]
    """Where the files are. One of: `package:NAME` for weights shipped in a Python package; a folder, starting with `/`,
    `.` or `~`; a hub id `organisation/name`; a folder of an object store such as `s3://bucket/folder`, which needs the
    extra `objectstore`."""

    revision: str | None = None
    """Version of the files. Required for a hub id (the commit, 40 hex digits) and for an object store (the 64 hex
    digits that `rerank-service pull SOURCE` prints): without it, the weights of a running cluster could change. Leave
    it null for a package or a folder."""

    download: bool = True
    """Whether a starting replica may fetch files that are not in its machine's cache. Set it to false on machines
    without network access: the replica then fails to start, and the error message gives the `rerank-service pull`
    command to run."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Expected SHA-256 of `model.safetensors`, in hex. Set it to check the full digest on every load. Null: the digest
    is checked only for `package:` sources, whose digests the service knows."""

    @model_validator(mode="after")
    def _source_is_known_and_pinned(self) -> Self:
        source, revision = self.source, self.revision or ""
        if self.is_store_path:
            if not _STORE_PATH.fullmatch(source):
                scheme = source.partition("://")[0]
                raise ValueError(
                    f"{scheme}:// must be followed by a path without credentials; "
                    "set credentials as environment variables"
                )
            if not _CONTENT.fullmatch(revision):
                raise ValueError(
                    f"checkpoint {source!r} needs revision: the 64 digits that `rerank-service pull {source}` prints"
                )
        elif self.is_hub_id:
            if not _HUB_ID.fullmatch(source):
                raise ValueError(
                    f"source {source!r} is neither 'package:NAME', a folder starting with '/', '.' or '~', "
                    "a hub id 'organisation/name', nor a folder of an object store like 's3://bucket/folder'"
                )
            if not _COMMIT.fullmatch(revision):
                raise ValueError(
                    f"hub checkpoint {source!r} needs revision: its 40-digit commit, which "
                    f"`rerank-service pull {source}` prints"
                )
        return self

    @property
    def is_package(self) -> bool:
        return self.source.startswith("package:")

    @property
    def is_folder(self) -> bool:
        return self.source.startswith(("/", ".", "~"))

    @property
    def is_store_path(self) -> bool:
        return "://" in self.source

    @property
    def is_hub_id(self) -> bool:
        return not (self.is_package or self.is_folder or self.is_store_path)

    @property
    def is_fetched(self) -> bool:
        return self.is_hub_id or self.is_store_path
