"""Bearer keys: who may rank. Keys are compared as SHA-256 digests, in constant time."""

import hashlib
import hmac
import logging
import os
import re
from pathlib import Path

from rerank_service.config import AuthConfig
from rerank_service.errors import ConfigError, InvalidApiKey

__all__ = ["ApiKeys"]

logger = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")


class ApiKeys:
    """The accepted keys. The file of hashes is read again when it changes; the environment is read once."""

    def __init__(self, config: AuthConfig) -> None:
        """Raises `ConfigError` if the file is configured and cannot be read or holds something else."""
        keys = (key.strip() for key in os.environ.get(config.keys_env, "").split(","))
        self._from_environment = frozenset(_digest(key) for key in keys if key)
        self._file = config.key_hashes_file
        self._file_version: tuple[int, int, int] | None = None
        self._from_file: frozenset[bytes] = frozenset()
        if self._file is not None:
            self._read(self._file)

    @property
    def are_required(self) -> bool:
        """Whether a request needs a key: one is in the environment, or a file is configured at all."""
        return bool(self._from_environment) or self._file is not None

    def check(self, authorization: str | None) -> None:
        """Raises `InvalidApiKey` unless the header carries an accepted key or none is required."""
        if not self.are_required:
            return  # clients without a key send junk such as 'Bearer NO_API_KEY_PROVIDED'
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise InvalidApiKey(is_missing=True)
        self._refresh()
        offered = _digest(key.strip())
        matches = [hmac.compare_digest(offered, known) for known in self._from_environment | self._from_file]
        if not any(matches):
            raise InvalidApiKey(is_missing=False)

    def _refresh(self) -> None:
        """Re-reads a changed file; keeps the last good keys while it is missing or wrong."""
        if self._file is None:
            return
        try:
            if _version(self._file) != self._file_version:
                self._read(self._file)
                logger.info("read API keys file=%s num_keys=%d", self._file, len(self._from_file))
        except (ConfigError, OSError) as error:
            logger.warning("kept the last API keys: %s", error)

    def _read(self, path: Path) -> None:
        try:
            version, text = _version(path), path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"auth.key_hashes_file {path} cannot be read: {error}") from None
        lines = [line.partition("#")[0].strip().lower() for line in text.splitlines()]
        bad = [number for number, line in enumerate(lines, 1) if line and not _DIGEST.fullmatch(line)]
        if bad:
            raise ConfigError(
                f"auth.key_hashes_file {path}, line {bad[0]}: not a SHA-256 in hex; "
                "make one with: printf %s KEY | sha256sum"
            )
        self._from_file = frozenset(bytes.fromhex(line) for line in lines if line)
        self._file_version = version


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _version(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino
