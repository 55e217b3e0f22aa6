"""Divides the requests for a model between the model and its versions.

One version answers a whole request. If the version refuses the request or fails, the model itself answers all of it.
This module does not import Ray.
"""

import logging
import random
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from rerank_service.config import RerankConfig, VersionConfig
from rerank_service.errors import EngineFailed, RateLimited, ReplicaUnavailable, RequestTimedOut, RerankError
from rerank_service.messages import Deadline
from rerank_service.telemetry.metrics import VERSION_FALLBACKS, VERSION_TRAFFIC, MetricSink

__all__ = ["TrafficSplit"]

logger = logging.getLogger(__name__)

_REST_S = 5.0
"""A version that failed receives no request for this long, so that only a few requests pay for a failure."""
_SHARE_OF_TIME = 0.5
"""Share of a request's time limit that a version may use. The rest is left for the model itself."""
_FAILURES = (EngineFailed, ReplicaUnavailable, RequestTimedOut)
_HASHES = 2**32

_Answer = TypeVar("_Answer")


class TrafficSplit:
    """The current shares of all versions, and the choice of a version for each request."""

    def __init__(
        self,
        config: RerankConfig,
        is_running: Callable[[str], bool],
        metrics: MetricSink,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_running` tells whether the replicas of a version answer."""
        self.shares: dict[str, VersionConfig] = dict(config.versions)
        """The current shares, by the version's model id."""
        self._is_running = is_running
        self._metrics = metrics
        self._draw = draw
        self._clock = clock
        self._rests_until_s: dict[str, float] = {}

    def change(self, shares: Mapping[str, VersionConfig]) -> None:
        """Replaces the shares of known versions."""
        known = {version: share for version, share in shares.items() if version in self.shares}
        for version, share in known.items():
            if share != self.shares[version]:
                logger.info(
                    "changed version=%s of=%s traffic_percent=%g shadow_percent=%g",
                    version,
                    share.of,
                    share.traffic_percent,
                    share.shadow_percent,
                )
        self.shares |= known

    def record_shares(self) -> None:
        """Records the current shares as metrics. Ray's exporter drops a gauge that is not renewed."""
        for version, share in self.shares.items():
            self._metrics.record(VERSION_TRAFFIC, share.traffic_percent / 100, version, "canary")
            self._metrics.record(VERSION_TRAFFIC, share.shadow_percent / 100, version, "shadow")

    def choose(self, model_id: str, client_id: str | None = None) -> str:
        """Id of the version that should answer a request for a model, or the model's own id.

        `client_id` is the id that the client gave the request: a retry with the same id reaches the same version.
        """
        if client_id is None:
            point = self._draw()
        else:
            point = zlib.crc32(f"{model_id} {client_id}".encode("utf-8", "replace")) / _HASHES
        percent = 100 * point
        for version, share in self.shares.items():
            if share.of == model_id:
                if percent < share.traffic_percent:
                    return version if self.is_usable(version) else model_id
                percent -= share.traffic_percent
        return model_id

    def sampled_shadows(self, model_id: str) -> list[str]:
        """Ids of the shadows that should score a request that the model itself has answered."""
        return [
            version
            for version, share in self.shares.items()
            if share.of == model_id and 100 * self._draw() < share.shadow_percent and self.is_usable(version)
        ]

    def is_usable(self, version: str) -> bool:
        """Whether a version's replicas answer, and the version has not just failed."""
        return self._is_running(version) and self._clock() >= self._rests_until_s.get(version, 0.0)

    async def answer(
        self,
        model_id: str,
        client_id: str | None,
        deadline: Deadline,
        score: Callable[[str, Deadline], Awaitable[_Answer]],
    ) -> tuple[str, _Answer]:
        """Has one version score a request, and returns the id of that version with the answer.

        `score` scores the whole request with the given model. Raises the errors of `score` with the model itself.
        """
        version = self.choose(model_id, client_id)
        if version != model_id:
            time_for_version = Deadline.after(_SHARE_OF_TIME * deadline.remaining_s())
            try:
                return version, await score(version, time_for_version)
            except RateLimited:  # the caller's quota, which the model itself would use too
                raise
            except Exception as error:
                self._note_failure(version, error)
        return model_id, await score(model_id, deadline)

    def _note_failure(self, version: str, error: Exception) -> None:
        code = error.code if isinstance(error, RerankError) else RerankError.code
        self._metrics.record(VERSION_FALLBACKS, 1, version, code)
        if isinstance(error, _FAILURES) or not isinstance(error, RerankError):
            self._rests_until_s[version] = self._clock() + _REST_S
        logger.warning("the model answers instead of version=%s code=%s type=%s", version, code, type(error).__name__)
