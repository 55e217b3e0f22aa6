"""A model hub as a place to fetch from: commits, listings and bytes over HTTP, through huggingface_hub.

Plain HTTP, not Xet: mirrors and proxies speak it, and a cut transfer goes on where it was. It must not know folders.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx2
from huggingface_hub import constants, get_token
from huggingface_hub.file_download import hf_hub_url, repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import hf_raise_for_status, http_backoff, http_stream_backoff

from rerank_service import __version__
from rerank_service.checkpoints.files import Digest, RemoteFile, choose_files
from rerank_service.checkpoints.hub_errors import hub_error
from rerank_service.checkpoints.origin import CutOff
from rerank_service.errors import CheckpointError

__all__ = ["HubCheckpoint", "hub_endpoint", "resolve_revision"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUM_RETRIES = 4
_CUTS = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)


def hub_endpoint() -> str:
    """The hub's address, or its mirror's: HF_ENDPOINT."""
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def resolve_revision(hub_id: str, revision: str | None) -> str:
    """The commit that a branch or tag is at; null is the default branch. Raises `CheckpointError`."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    with _told_readably(hub_id, revision):
        answer = _get_json(f"{hub_endpoint()}/api/models/{hub_id}/revision/{quote(revision or 'main', safe='')}").json()
    commit = answer.get("sha") if isinstance(answer, dict) else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise CheckpointError(f"{hub_endpoint()} names no commit for {hub_id}; is it a model hub (HF_ENDPOINT)?")
    return commit


class HubCheckpoint:
    """The files of one commit. An `Origin`."""

    def __init__(self, hub_id: str, commit: str) -> None:
        """Lists them. Raises `CheckpointError`."""
        self.source = hub_id
        self.revision = commit
        self.fingerprint = hashlib.sha256(f"{hub_id}@{commit}".encode()).hexdigest()
        with _told_readably(hub_id, commit):
            listing = list(self._listing())
        self.files = choose_files(listing, f"{hub_id} at {commit}")

    def read(self, file: RemoteFile, offset: int) -> Iterator[tuple[int, bytes]]:
        """From `offset` on, or from 0 where a mirror knows no ranges."""
        url = hf_hub_url(self.source, file.name, revision=self.revision, endpoint=hub_endpoint())
        headers = _headers() | {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        try:
            with (
                _told_readably(self.source, self.revision, file.name),
                http_stream_backoff(
                    "GET",
                    url,
                    headers=headers,
                    timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                    max_retries=_NUM_RETRIES,
                    retry_on_exceptions=(),
                ) as response,
            ):
                hf_raise_for_status(response)
                position = _first_byte(response)
                for piece in response.iter_bytes():
                    yield position, piece
                    position += len(piece)
        except _CUTS as error:
            raise CutOff(str(error) or type(error).__name__) from error

    def at_hand(self, file: RemoteFile) -> Path | None:
        """In huggingface_hub's own cache, where a blob is called by its digest."""
        if file.digest is None:
            return None
        repository = repo_folder_name(repo_id=self.source, repo_type="model")
        return Path(constants.HF_HUB_CACHE) / repository / "blobs" / file.digest.hexdigest

    def check_unchanged(self) -> None:
        """A commit never changes."""

    def _listing(self) -> Iterator[RemoteFile]:
        url: str | None = f"{hub_endpoint()}/api/models/{self.source}/tree/{self.revision}"
        while url is not None:
            page = _get_json(url)
            for entry in page.json():
                if entry["type"] == "file":
                    yield _remote_file(RepoFile(**entry))
            following = page.links.get("next", {}).get("url")
            url = following if following and following.startswith(hub_endpoint()) else None


def _remote_file(entry: RepoFile) -> RemoteFile:
    if entry.lfs is not None:
        digest, size_bytes = Digest("sha256", str(entry.lfs.sha256)), int(entry.lfs.size)
    else:
        digest, size_bytes = Digest("git-sha1", str(entry.blob_id)), int(entry.size)
    pattern = _SHA256 if digest.algorithm == "sha256" else _COMMIT
    if not pattern.fullmatch(digest.hexdigest) or size_bytes < 0:
        raise ValueError(f"{entry.path} has the digest {digest.hexdigest!r} and {size_bytes} bytes")
    return RemoteFile(entry.path, size_bytes, digest)


def _first_byte(response: httpx2.Response) -> int:
    """Position of the first byte of an answer to a request for a range."""
    if response.status_code != 206:
        return 0
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if match is None:
        raise CheckpointError("the hub answered with a part of a file and does not say which; is it behind a proxy?")
    return int(match[1])


def _get_json(url: str) -> httpx2.Response:
    response = http_backoff(
        "GET", url, headers=_headers(), timeout=constants.HF_HUB_ETAG_TIMEOUT, max_retries=_NUM_RETRIES
    )
    hf_raise_for_status(response)
    return response


def _headers() -> dict[str, str]:
    """With the token of the environment (HF_TOKEN), or of `hf auth login`.

    The library's own would say which packages are installed, and ask the hub how to tell AI agents.
    """
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    authorization = {"Authorization": f"Bearer {token}"} if token else {}
    return {"User-Agent": f"rerank-service/{__version__}"} | authorization


@contextmanager
def _told_readably(hub_id: str, revision: str | None, name: str | None = None) -> Iterator[None]:
    """Lets cuts of a file's transfer pass, as those are mended; all else becomes a `CheckpointError`."""
    try:
        yield
    except (httpx2.HTTPError, OSError, ValueError, LookupError, TypeError) as error:
        if name is not None and isinstance(error, _CUTS):
            raise
        raise CheckpointError(hub_error(error, hub_endpoint(), hub_id, revision)) from error
