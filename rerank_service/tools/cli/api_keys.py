"""Reads API keys from a file and the environment for `rerank-service serve`, and warns of a service without keys.

Only the keys' digests leave this module. A key is never an argument, because other users of the machine can see the
arguments of a process.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rerank_service.tools.cli.console import fail, stderr
from rerank_service.tools.cli.ports import is_loopback

if TYPE_CHECKING:
    from rerank_service.config import AuthConfig

__all__ = ["KEY_VARIABLE", "key_hashes", "needs_key", "warn_of_open_access"]

KEY_VARIABLE = "RERANK_SERVICE_API_KEY"


def key_hashes(path: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """SHA-256 digests in hex of the keys in a file, one per line, and in the environment variable.

    Ends the program if the file cannot be read or contains no usable key. Messages never quote a key.
    """
    keys = _keys_in(path) if path is not None else []
    if key := environment.get(KEY_VARIABLE, "").strip():
        keys.append(key)
    return tuple(dict.fromkeys(hashlib.sha256(key.encode()).hexdigest() for key in keys))


def needs_key(auth: "AuthConfig") -> bool:
    """Whether requests need a key, with the environment of this process."""
    return bool(auth.key_hashes or auth.key_hashes_file is not None or os.environ.get(auth.keys_env))


def warn_of_open_access(host: str, auth: "AuthConfig") -> None:
    """Prints a warning if other machines can reach `host` and requests need no key."""
    if not needs_key(auth) and not is_loopback(host):
        stderr.print(
            f"warning: {host} admits other machines, and requests need no key: set --api-key-file FILE or "
            f"{KEY_VARIABLE}, or auth.key_hashes_file in a configuration file",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _keys_in(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise fail(f"--api-key-file {path} is not UTF-8 text; it must have one key per line") from None
    except OSError as error:
        raise fail(f"--api-key-file {path}: {error.strerror}") from None
    keys = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if any(map(str.isspace, line)):
            raise fail(f"--api-key-file {path}, line {number}: a key must not contain spaces")
        if line:
            keys.append(line)
    if not keys:
        raise fail(f"--api-key-file {path} has no key; write one key per line")
    return keys
