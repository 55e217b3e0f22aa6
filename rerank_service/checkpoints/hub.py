"""Model hubs as a source of checkpoints: commits, listings and files over HTTP, through huggingface_hub.

This module uses plain HTTP instead of Xet, because mirrors and proxies support HTTP and an interrupted transfer can
resume. It must not depend on local folders.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx2
from huggingface_hub import constants, get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RevisionNotFoundError
from huggingface_hub.file_download import hf_hub_url, repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import hf_raise_for_status, http_backoff, http_stream_backoff

from rerank_service import __version__
from rerank_service.checkpoints.origin import CutOff, Digest, RemoteFile, choose_files, is_module_folder
from rerank_service.errors import CheckpointError

__all__ = ["HubCheckpoint", "resolve_revision"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ERRNO = re.compile(r"^\[Errno -?\d+\] ")
_NUM_RETRIES = 4
_CUTS = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
_RETRIED = (httpx2.TimeoutException, httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError)
"""Errors of a connection that was made. Not `ConnectError`: a refused connection or a name without an address, as on a
machine without network, would only fail again, after 15 seconds of pauses."""
_WITHOUT_NETWORK = (
    "Without network access, run pull on another machine with --to FOLDER, copy that folder here, and use it as source"
)

# Its warnings about each retry would fill the terminal; the error after the last retry says what happened.
logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)


def resolve_revision(hub_id: str, revision: str | None) -> str:
    """Returns the commit of a branch or tag; if `revision` is null, the commit of the default branch. Raises
    `CheckpointError`."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    with _readable_errors(hub_id, revision):
        answer = _get(f"{_endpoint()}/api/models/{hub_id}/revision/{quote(revision or 'main', safe='')}").json()
    commit = answer.get("sha") if isinstance(answer, dict) else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise CheckpointError(f"{_endpoint()} returns no commit for {hub_id}; check that HF_ENDPOINT is a model hub")
    return commit


class HubCheckpoint:
    """The files of one commit; implements `Origin`."""

    def __init__(self, hub_id: str, commit: str) -> None:
        """Lists the files. Raises `CheckpointError`."""
        self.source = hub_id
        self.revision = commit
        self.fingerprint = hashlib.sha256(f"{hub_id}@{commit}".encode()).hexdigest()
        with _readable_errors(hub_id, commit):
            listing = list(self._listing())
        self.files = choose_files(listing, f"{hub_id} at {commit}")

    def read(self, file: RemoteFile, offset: int) -> Iterator[tuple[int, bytes]]:
        """Yields pieces of a file from `offset` on, or from 0 if a mirror does not support ranges."""
        url = hf_hub_url(self.source, file.name, revision=self.revision, endpoint=_endpoint())
        headers = _headers() | {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        try:
            with (
                _readable_errors(self.source, self.revision, keeps_cuts=True),
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
        """Path in the cache of huggingface_hub, which names files by their digest."""
        if file.digest is None:
            return None
        repository = repo_folder_name(repo_id=self.source, repo_type="model")
        return Path(constants.HF_HUB_CACHE) / repository / "blobs" / file.digest.hexdigest

    def check_unchanged(self) -> None:
        """Does nothing: a commit never changes."""

    def _listing(self, folder: str = "") -> Iterator[RemoteFile]:
        url: str | None = f"{_endpoint()}/api/models/{self.source}/tree/{self.revision}{folder}"
        while url is not None:
            page = _get(url)
            for entry in page.json():
                if entry["type"] == "file":
                    yield _remote_file(RepoFile(**entry))
                elif not folder and entry["type"] == "directory" and is_module_folder(entry["path"]):
                    yield from self._listing(f"/{entry['path']}")
            following = page.links.get("next", {}).get("url")
            url = following if following and following.startswith(_endpoint()) else None


def _endpoint() -> str:
    """Address of the hub or of a mirror."""
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _get(url: str) -> httpx2.Response:
    response = http_backoff(
        "GET",
        url,
        headers=_headers(),
        timeout=constants.HF_HUB_ETAG_TIMEOUT,
        max_retries=_NUM_RETRIES,
        retry_on_exceptions=_RETRIED,
    )
    hf_raise_for_status(response)
    return response


def _headers() -> dict[str, str]:
    """Returns headers with the token from HF_TOKEN or `hf auth login`.

    The library's own `build_hf_headers` is not used: its User-Agent names Python, torch and the AI agent that runs the
    process, and to recognise agents the library fetches a list of them from the hub.
    """
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    authorization = {"Authorization": f"Bearer {token}"} if token else {}
    return {"User-Agent": f"rerank-service/{__version__}"} | authorization


def _remote_file(entry: RepoFile) -> RemoteFile:
    if entry.lfs is not None:
        digest, size_bytes = Digest("sha256", str(entry.lfs.sha256)), int(entry.lfs.size)
    else:
        digest, size_bytes = Digest("git-sha1", str(entry.blob_id)), int(entry.size)
    pattern = _SHA256 if digest.algorithm == "sha256" else _COMMIT
    if not pattern.fullmatch(digest.hexdigest) or size_bytes < 0:
        raise ValueError(f"invalid digest {digest.hexdigest!r} or size of {size_bytes} bytes for {entry.path}")
    return RemoteFile(entry.path, size_bytes, digest)


def _first_byte(response: httpx2.Response) -> int:
    """Position of the first byte in the answer to a range request."""
    if response.status_code != 206:
        return 0
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if match is None:
        raise CheckpointError("the hub returned part of a file without saying which part; check for a faulty proxy")
    return int(match[1])


@contextmanager
def _readable_errors(hub_id: str, revision: str | None, *, keeps_cuts: bool = False) -> Iterator[None]:
    """Turns errors into a `CheckpointError` that says what to do. With `keeps_cuts`, errors of interrupted transfers
    are raised unchanged."""
    try:
        yield
    except (httpx2.HTTPError, OSError, ValueError, LookupError, TypeError) as error:
        if keeps_cuts and isinstance(error, _CUTS):
            raise
        raise CheckpointError(_explanation(error, hub_id, revision)) from error


def _explanation(error: Exception, hub_id: str, revision: str | None) -> str:
    what = hub_id if revision is None else f"{hub_id} at {revision}"
    if isinstance(error, OfflineModeIsEnabled):
        return f"{what} is not on this machine, and HF_HUB_OFFLINE forbids fetching it. {_WITHOUT_NETWORK}"
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, hub_id, what)
    if isinstance(error, httpx2.HTTPError):
        reason = _ERRNO.sub("", str(error)) or type(error).__name__
        return f"cannot reach {_endpoint()} for {what} ({reason}); HF_ENDPOINT can name a mirror. {_WITHOUT_NETWORK}"
    return f"{_endpoint()} does not answer like a model hub ({error}); check HF_ENDPOINT and proxies"


def _refusal(error: HfHubHTTPError, hub_id: str, what: str) -> str:
    endpoint, status = _endpoint(), error.response.status_code
    token = "the given token" if get_token() else "no token"
    if isinstance(error, GatedRepoError):
        access = "the given token has no access" if get_token() else "no token is set"
        return (
            f"{hub_id} is gated, and {access} ({status}): accept its terms at {endpoint}/{hub_id}, "
            f"create a token with read access at {endpoint}/settings/tokens, and set HF_TOKEN to it"
        )
    if isinstance(error, RevisionNotFoundError):
        return (
            f"{what} does not exist: no branch, tag or commit has that name ({status}); see "
            f"{endpoint}/{hub_id}/commits/main"
        )
    if status == 401:
        return (
            f"{hub_id} is not found or private (401, with {token}): check the name, or set HF_TOKEN to a token with "
            "read access"
        )
    if status == 403:
        return f"the hub refuses {what} with {token} (403): set HF_TOKEN to a token with read access"
    if status == 404:
        return f"{endpoint} has no {what} (404): check the name at {endpoint}/models"
    if status == 429:
        return (
            f"the hub's rate limit is exhausted (429) for {what}: try again later, or set HF_TOKEN, since accounts "
            "have a higher limit"
        )
    return f"the hub failed on {what} ({status}): try again later, or set HF_ENDPOINT to a mirror"
