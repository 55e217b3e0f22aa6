"""Where requests from outside enter: the backends of Ingresses and HTTPRoutes."""

from collections.abc import Iterator

from cluster.validate.documents import Document, Documents, name_of
from cluster.validate.finding import Finding, Setting

__all__ = ["routes_lead_to_the_service"]

_INCREMENTAL = "NewClusterWithIncrementalUpgrade"


def routes_lead_to_the_service(documents: Documents, _: Setting) -> Iterator[Finding]:
    """Each backend is a Service that exists, and follows the steps of an incremental upgrade.

    KubeRay makes the Service `NAME-serve-svc` for a RayService. During an incremental upgrade, this Service still leads
    to the old cluster, whose replicas KubeRay removes step by step; the Gateway `NAME-gateway` divides the requests.
    """
    made = {f"{each['metadata']['name']}-serve-svc": each for each in documents.of_kind("RayService")}
    incremental = [name for name, each in made.items() if _upgrade(each) == _INCREMENTAL]
    for route in documents.of_kind("Ingress", "HTTPRoute"):
        for backend in _backends(route):
            if backend in incremental:
                yield Finding(
                    name_of(route),
                    f"during an incremental upgrade, {backend} still leads to the old cluster, which shrinks: use the "
                    "Service of KubeRay's Gateway",
                )
            elif backend not in made and not incremental and documents.named("Service", backend) is None:
                yield Finding(name_of(route), f"it sends requests to the Service {backend}, which nothing makes")


def _upgrade(service: Document) -> str:
    return str(service["spec"].get("upgradeStrategy", {}).get("type", "NewCluster"))


def _backends(route: Document) -> Iterator[str]:
    spec = route["spec"]
    for rule in spec.get("rules", []):
        yield from (each["name"] for each in rule.get("backendRefs", []))
        yield from (path["backend"]["service"]["name"] for path in rule.get("http", {}).get("paths", []))
