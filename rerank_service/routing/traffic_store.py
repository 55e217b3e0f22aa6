"""Keeps the current shares of versions in Ray's control store (GCS), where `rerank-service traffic` changes them.

Serve's `user_config` would be the usual place. Behind HAProxy, however, an ingress that Serve reconfigures leaves the
list of targets for a moment (docs/decisions/0022).
"""

import asyncio
import logging
from collections.abc import Mapping

from pydantic import ValidationError
from ray._raylet import GcsClient  # type: ignore[attr-defined]

from rerank_service.config import VersionConfig
from rerank_service.config.section import Section
from rerank_service.routing.traffic import TrafficSplit

__all__ = ["StoredTraffic", "TrafficStore", "follow"]

logger = logging.getLogger(__name__)

_NAMESPACE = b"rerank_service"
_PREFIX = "traffic:"
_POLL_S = 1.0
_TIMEOUT_S = 5.0


class StoredTraffic(Section):
    """The shares of an application's versions, by model id."""

    configured: dict[str, VersionConfig]
    """The shares in the configuration file. The current shares apply only to ingresses with this configuration."""
    current: dict[str, VersionConfig]


class TrafficStore:
    """The stored shares of all applications of a Ray cluster."""

    def __init__(self, gcs_address: str) -> None:
        self._gcs = GcsClient(address=gcs_address)

    def applications(self) -> list[str]:
        """Names of the applications that have had versions."""
        keys: list[bytes] = self._gcs.internal_kv_keys(_PREFIX.encode(), _NAMESPACE, _TIMEOUT_S)
        return sorted(key.decode().removeprefix(_PREFIX) for key in keys)

    def read(self, application: str) -> StoredTraffic | None:
        """The stored shares of an application; null if there are none, or if another release wrote them in a form that
        this release cannot read."""
        stored: bytes | None = self._gcs.internal_kv_get(_key(application), _NAMESPACE, _TIMEOUT_S)
        if stored is None:
            return None
        try:
            return StoredTraffic.model_validate_json(stored)
        except ValidationError:
            logger.warning("cannot read the stored shares of application=%s", application)
            return None

    def write(self, application: str, traffic: StoredTraffic) -> None:
        """Replaces the stored shares of an application."""
        self._gcs.internal_kv_put(_key(application), traffic.model_dump_json().encode(), True, _NAMESPACE, _TIMEOUT_S)

    def register(self, application: str, configured: Mapping[str, VersionConfig]) -> None:
        """Starts from the shares in the configuration file, unless shares are already stored for the same
        configuration: a deployment that changes none of the file's shares keeps the current shares."""
        stored, shares = self.read(application), dict(configured)
        if stored is None or stored.configured != shares:
            self.write(application, StoredTraffic(configured=shares, current=shares))


async def follow(split: TrafficSplit, store: TrafficStore, application: str) -> None:
    """Keeps the shares of an ingress equal to the stored shares, until cancelled. While the store does not answer, the
    shares stay as they are."""
    configured, is_registered, is_reachable = dict(split.shares), False, True
    while True:
        try:
            if not is_registered:
                await asyncio.to_thread(store.register, application, configured)
                is_registered = True
            stored = await asyncio.to_thread(store.read, application)
        except Exception as error:
            if is_reachable:
                logger.warning("cannot read the shares of versions; they stay as they are: %s", type(error).__name__)
            is_reachable = False
        else:
            is_reachable = True
            if stored is not None and stored.configured == configured:
                split.change(stored.current)
        split.record_shares()
        await asyncio.sleep(_POLL_S)


def _key(application: str) -> bytes:
    return f"{_PREFIX}{application}".encode()
