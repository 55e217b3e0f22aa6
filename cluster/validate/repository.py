"""Checks of files that no controller reads: the compose file, the locks of packages, and the instructions."""

import re
from collections.abc import Iterator
from typing import Any

from cluster.validate.checks.images import redis_is_too_old
from cluster.validate.finding import Finding

__all__ = ["compose_faults", "lock_faults"]

_PIN = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(\[[^]]*\])?==(?P<version>[^\s;]+)")
_CUDA_PACKAGES = ("nvidia-cublas", "nvidia-cudnn", "triton")
"""Parts of the names of packages that torch's CUDA build needs, whatever the version of CUDA."""


def compose_faults(compose: dict[str, Any]) -> Iterator[Finding]:
    """Every Redis of a compose file is free of known holes and asks for a password."""
    for name, service in compose["services"].items():
        image = str(service.get("image", ""))
        if not image.partition("@")[0].rpartition("/")[2].startswith("redis:"):
            continue
        if redis_is_too_old(image):
            yield Finding(f"compose service {name}", f"{image} has known holes: use the newest patch release")
        if "@sha256:" not in image:
            yield Finding(f"compose service {name}", f"the image {image} has no digest")
        command = service.get("command", [])
        words = command if isinstance(command, str) else " ".join(command)
        if "--requirepass" not in words and "--aclfile" not in words:
            yield Finding(f"compose service {name}", "it runs without a password")


def lock_faults(name: str, text: str, is_cuda: bool) -> Iterator[Finding]:
    """Every package of a lock has one version and hashes, and the lock of the CUDA build has the CUDA libraries."""
    entries = re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^\s*#.*\n", "", text)).splitlines()
    pinned = {}
    for entry in filter(str.strip, entries):
        if entry.startswith("-"):
            continue
        found = _PIN.match(entry)
        if found is None:
            yield Finding(name, f"it does not pin {entry.split(';')[0].strip()} to one version")
            continue
        pinned[found["name"].lower()] = found["version"]
        if "--hash=sha256:" not in entry:
            yield Finding(name, f"it has no hash of {found['name']}")
    if is_cuda:
        for part in _CUDA_PACKAGES:
            if not any(package.startswith(part) for package in pinned):
                yield Finding(name, f"it is for CUDA, but pins no {part}")
