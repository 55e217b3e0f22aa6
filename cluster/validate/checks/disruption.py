"""Whether the eviction of a pod is allowed, as Kubernetes' disruption controller computes it (disruption.go)."""

from collections.abc import Iterator

from cluster.validate.documents import Document, Documents, Pod, name_of, selects
from cluster.validate.finding import Finding, Setting

__all__ = ["disruption_budgets"]

_WITH_SCALE = {"Deployment", "StatefulSet"}
"""Controllers with a `scale` subresource, from which the expected number of pods is read."""


def disruption_budgets(documents: Documents, _: Setting) -> Iterator[Finding]:
    """Each budget covers pods, and allows at least one eviction when every group is at its minimum."""
    budgets = documents.of_kind("PodDisruptionBudget")
    for budget in budgets:
        pods = [pod for pod in documents.pods if selects(budget["spec"].get("selector"), pod.labels)]
        if not pods:
            yield Finding(name_of(budget), "its selector matches no pod")
        elif (reason := _blocks(budget["spec"], pods)) is not None:
            yield Finding(name_of(budget), f"it allows no eviction, so every drain of a node hangs: {reason}")
    for pod in documents.pods:
        covering = [name_of(budget) for budget in budgets if selects(budget["spec"].get("selector"), pod.labels)]
        if len(covering) > 1:
            yield Finding(pod.owner, f"several budgets cover it ({', '.join(covering)}): evictions are refused")


def _blocks(spec: Document, pods: list[Pod]) -> str | None:
    """Returns why a budget allows no eviction; null if it allows one."""
    fewest = sum(pod.fewest for pod in pods)
    wanted = spec.get("minAvailable", spec.get("maxUnavailable"))
    if "maxUnavailable" in spec or isinstance(wanted, str):
        without = sorted({pod.controller for pod in pods} - _WITH_SCALE)
        if without:
            kind = "maxUnavailable" if "maxUnavailable" in spec else "a percentage"
            return f"{kind} needs a controller with the scale subresource, which {', '.join(without)} has not"
    count = int(wanted) if isinstance(wanted, int) else -(-fewest * int(str(wanted).rstrip("%")) // 100)
    healthy = count if "minAvailable" in spec else fewest - count
    return None if fewest > healthy else f"{fewest} pods run at the minimum, and {healthy} must stay"
