"""Access control: API keys, and per-minute limits of each caller's requests and passages.

Keys are compared as SHA-256 digests, in constant time. Limits use a sliding window, kept in this process's memory or
shared through Redis.
"""

import hashlib
import hmac
import logging
import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from limits import RateLimitItemPerMinute
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import ConfigurationError
from limits.storage import storage_from_string

from rerank_service.config import AuthConfig, RateLimitConfig
from rerank_service.errors import ConfigError, InvalidApiKey, RateLimited
from rerank_service.http.envelope import rate_limit_headers

__all__ = ["ApiKeys", "RateLimits"]

logger = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")


class ApiKeys:
    """The accepted keys. A file of key hashes is read again when it changes; the environment is read once."""

    def __init__(self, config: AuthConfig) -> None:
        """Raises `ConfigError` if a configured file of key hashes is unreadable or malformed."""
        keys = (key.strip() for key in os.environ.get(config.keys_env, "").split(","))
        self._headers = ("authorization", *(name.lower() for name in config.key_headers))
        self._fixed = frozenset({_digest(key) for key in keys if key} | set(map(bytes.fromhex, config.key_hashes)))
        self._file = config.key_hashes_file
        self._file_version: tuple[int, int, int] | None = None
        self._from_file: frozenset[bytes] = frozenset()
        if self._file is not None:
            self._read(self._file)
        self.are_required = bool(self._fixed) or self._file is not None
        """Whether requests need a key. With a configured file, they need one even while the file is empty."""

    def authenticate(self, headers: Mapping[str, str], address: str | None = None) -> str:
        """Returns the identity under which requests are counted: a digest of the accepted key, or the address if no key
        is required. Other values in the headers do not change it.

        Raises `InvalidApiKey` if a key is required and no header has an accepted key.
        """
        if not self.are_required:  # keys are ignored, because some clients send a placeholder
            return f"address {address or 'unknown'}"
        # One value per header: the number of comparisons must not grow with the request.
        offered = [_digest(key) for key in (_key_in(name, headers.get(name, "")) for name in self._headers) if key]
        if not offered:
            raise InvalidApiKey(is_missing=True)
        if self._file is not None:
            self._reload(self._file)
        known_keys = self._fixed | self._from_file
        # `sum` has no early exit: the time must not depend on the key.
        accepted = [one for one in offered if sum(hmac.compare_digest(one, known) for known in known_keys)]
        if not accepted:
            raise InvalidApiKey(is_missing=False)
        return accepted[0].hex()[:32]

    def _reload(self, path: Path) -> None:
        """Reads a changed file again. The previous keys stay valid while the file is missing or malformed."""
        try:
            if _version(path) != self._file_version:
                self._read(path)
                logger.info("read API keys file=%s num_keys=%d", path, len(self._from_file))
        except (ConfigError, OSError) as error:
            logger.warning("cannot reload API keys; the previous keys stay valid: %s", error)

    def _read(self, path: Path) -> None:
        try:
            version, text = _version(path), path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"auth.key_hashes_file {path} cannot be read: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"auth.key_hashes_file {path} cannot be read: it is not UTF-8 text") from None
        lines = [line.partition("#")[0].strip().lower() for line in text.splitlines()]
        bad = [number for number, line in enumerate(lines, 1) if line and not _DIGEST.fullmatch(line)]
        if bad:
            raise ConfigError(
                f"auth.key_hashes_file {path}, line {bad[0]}: not a SHA-256 digest in hex; "
                "make one with: printf %s KEY | sha256sum"
            )
        self._from_file = frozenset(bytes.fromhex(line) for line in lines if line)
        self._file_version = version


def _key_in(header: str, value: str) -> str:
    """The key in a header's value; empty if there is none. `Authorization` has a key only after `Bearer`; the other
    headers usually consist of the key alone."""
    scheme, _, key = value.strip().partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    return "" if header == "authorization" else value.strip()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _version(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


class RateLimits:
    """Counts each caller's requests and passages, with the library `limits`."""

    def __init__(self, config: RateLimitConfig) -> None:
        """Raises `ConfigError` if the storage's package is missing or its address is malformed."""
        per_minute = {"requests": config.requests_per_minute, "passages": config.passages_per_minute}
        self._limits = {
            what: RateLimitItemPerMinute(limit, namespace="rerank")
            for what, limit in per_minute.items()
            if limit is not None
        }
        self._limiter = SlidingWindowCounterRateLimiter(_storage(config))

    async def close(self) -> None:
        """Closes the connection to Redis."""
        bridge = getattr(self._limiter.storage, "bridge", None)
        if bridge is not None:
            await bridge.storage.aclose()

    async def take(
        self, what: Literal["requests", "passages"], caller: str, count: int, remedy: str = ""
    ) -> dict[str, str]:
        """Counts `count` requests or passages of a caller. Returns headers for the answer. Raises `RateLimited`, whose
        message names `remedy`."""
        limit = self._limits.get(what)
        if limit is None:
            return {}
        try:
            is_allowed = await self._limiter.hit(limit, what, caller, cost=count)
            window = await self._limiter.get_window_stats(limit, what, caller)
        except Exception as error:  # a broken storage must not stop the service
            logger.warning("rate limits are not enforced: their storage failed (%s)", type(error).__name__)
            return {}
        seconds = max(1, math.ceil(window.reset_time - time.time()))
        if not is_allowed:
            raise RateLimited(what, limit.amount, seconds, remedy)
        return rate_limit_headers(what, limit.amount, max(0, window.remaining), seconds)


def _storage(config: RateLimitConfig) -> Any:
    address = config.storage
    options = {} if address.startswith("memory:") else {"implementation": "redispy"}
    if options and (password := os.environ.get(config.storage_password_env)):
        options["password"] = password
    try:
        return storage_from_string(f"async+{address}", wrap_exceptions=True, **options)
    except (ConfigurationError, ValueError) as error:
        raise ConfigError(f"rate_limits.storage {address}: {error}; for Redis install rerank-service[redis]") from None
