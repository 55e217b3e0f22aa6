"""Kubernetes manifests as they are applied: built by kustomize and validated against schemas."""

from cluster.validate.schemas import problems
from cluster.validate.sets import built, kustomize

__all__ = ["built", "kustomize", "problems"]
