"""Which images run: exact, with known fixes, and of the variant that the pods need."""

import re
from collections.abc import Iterator

from cluster.validate.documents import Documents, Pod, name_of
from cluster.validate.finding import Finding, Setting

__all__ = ["image_variant", "images_are_pinned", "redis_has_a_password", "redis_is_fixed", "redis_is_too_old"]

_DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")
_VERSION = re.compile(r"redis:(\d+)\.(\d+)(?:\.(\d+))?")
_FIXED = {(6, 2): 20, (7, 2): 11, (7, 4): 6, (8, 0): 4, (8, 2): 2}
"""The first patch release without CVE-2025-21605 (memory for clients without a password) and CVE-2025-49844 (Lua)."""


def images_are_pinned(documents: Documents, _: Setting) -> Iterator[Finding]:
    """Every image is named by its digest: a tag may change between two nodes."""
    for pod in documents.pods:
        for container in pod.containers:
            if not _DIGEST.fullmatch(container.get("image", "")):
                yield Finding(pod.owner, f"the image {container.get('image')} of {container['name']} has no digest")


def image_variant(documents: Documents, _: Setting) -> Iterator[Finding]:
    """Replicas on GPUs run the CUDA image, and a set without GPUs the CPU image, which is 3 GB smaller.

    The end of the tag tells the variant. Nothing is known of an image with another tag.
    """
    uses_gpus = any(_has_gpu(pod) for pod in documents.ray_pods())
    for pod in documents.ray_pods():
        image = pod.main.get("image", "")
        tag = image.partition("@")[0].rpartition(":")[2]
        if _has_gpu(pod) and tag.endswith("-cpu"):
            yield Finding(pod.owner, f"it requests a GPU, but {image} is not the CUDA image")
        if not uses_gpus and tag.endswith("-cuda"):
            yield Finding(pod.owner, f"no pod requests a GPU, but {image} is not the CPU image")


def _has_gpu(pod: Pod) -> bool:
    """Whether a pod requests a GPU, or a part of one (MIG: nvidia.com/mig-1g.12gb)."""
    return any(name.startswith("nvidia.com/") for name in pod.main.get("resources", {}).get("limits", {}))


def redis_is_fixed(documents: Documents, _: Setting) -> Iterator[Finding]:
    """No Redis has a known hole."""
    for pod in documents.pods:
        for container in pod.containers:
            if redis_is_too_old(container.get("image", "")):
                yield Finding(pod.owner, f"{container['image']} has known holes: use the newest patch release")


def redis_has_a_password(documents: Documents, _: Setting) -> Iterator[Finding]:
    """A Redis of these documents asks for a password, and the head knows it: whoever writes to it controls Ray."""
    for pod in documents.pods:
        for container in pod.containers:
            words = str([container.get("command"), container.get("args")])
            if _is_redis(container.get("image", "")) and not re.search("requirepass|aclfile", words):
                yield Finding(pod.owner, f"{container['name']} runs without a password")
    for service in documents.of_kind("RayService"):
        options = service["spec"]["rayClusterConfig"].get("gcsFaultToleranceOptions", {})
        if "redisAddress" in options and "redisPassword" not in options:
            yield Finding(name_of(service), "gcsFaultToleranceOptions has no redisPassword")


def _is_redis(image: str) -> bool:
    return image.partition("@")[0].rpartition("/")[2].startswith("redis:")


def redis_is_too_old(image: str) -> bool:
    """Whether an image is a Redis without the fixes that this file lists. A Redis of unknown version counts as one."""
    if not _is_redis(image):
        return False
    found = _VERSION.search(image)
    if found is None or found[3] is None:
        return True
    line, patch = (int(found[1]), int(found[2])), int(found[3])
    return line < max(_FIXED) and patch < _FIXED.get(line, patch + 1)
