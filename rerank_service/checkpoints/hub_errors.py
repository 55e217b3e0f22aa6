"""What a hub's refusal means, in a sentence that says what to do. It must not know what was being done with the hub."""

import httpx2
from huggingface_hub import get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RevisionNotFoundError

__all__ = ["hub_error"]

_WITHOUT_NETWORK = (
    "Where there is no network, pull on another machine with --to FOLDER, copy that folder, and give it as source"
)


def hub_error(error: Exception, endpoint: str, hub_id: str, revision: str | None) -> str:
    """One sentence or two for a person."""
    what = hub_id if revision is None else f"{hub_id} at {revision}"
    if isinstance(error, OfflineModeIsEnabled):
        return f"{what} is not on this machine, and HF_HUB_OFFLINE forbids fetching it. {_WITHOUT_NETWORK}"
    if isinstance(error, HfHubHTTPError):
        return _of_status(error, endpoint, hub_id, what)
    if isinstance(error, httpx2.HTTPError):
        reason = str(error) or type(error).__name__
        return f"cannot reach {endpoint} for {what} ({reason}); HF_ENDPOINT names a mirror. {_WITHOUT_NETWORK}"
    return f"{endpoint} does not answer as a model hub does ({error}); check HF_ENDPOINT and proxies"


def _of_status(error: HfHubHTTPError, endpoint: str, hub_id: str, what: str) -> str:
    status = error.response.status_code
    token = "the token given" if get_token() else "no token"
    if isinstance(error, GatedRepoError):
        return (
            f"{hub_id} is gated, and {token} opens it ({status}): accept its terms at {endpoint}/{hub_id}, make a "
            f"token that may read it at {endpoint}/settings/tokens, and set HF_TOKEN to it"
        )
    if isinstance(error, RevisionNotFoundError):
        commits = f"{endpoint}/{hub_id}/commits/main"
        return f"there is no {what}: no branch, tag or commit of that name ({status}); its commits are at {commits}"
    if status == 401:
        return (
            f"the hub shows {hub_id} to nobody with {token} (401): it does not exist, or is private; check the name, "
            "or set HF_TOKEN to a token that may read it"
        )
    if status == 403:
        return f"the hub refuses {what} with {token} (403): set HF_TOKEN to a token that may read it"
    if status == 404:
        return f"{endpoint} has no {what} (404); check the name at {endpoint}/models"
    if status == 429:
        return f"the hub's rate limit is used up (429) for {what}; try again later, or set HF_TOKEN: accounts have more"
    return f"the hub failed on {what} ({status}); try again later, or set HF_ENDPOINT to a mirror"
