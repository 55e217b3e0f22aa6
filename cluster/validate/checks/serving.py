"""Whether the service accepts its configuration, and Ray has room for all of its replicas."""

from collections.abc import Iterator
from math import floor

from cluster.validate.documents import Document, Documents, name_of, quantity
from cluster.validate.finding import Finding, Setting
from rerank_service.config import RerankConfig, parse_serve_config
from rerank_service.errors import ConfigError

__all__ = ["replicas_fit", "service_accepts"]

_MANY = 1_000_000


def service_accepts(documents: Documents, _: Setting) -> Iterator[Finding]:
    """The service starts with the configuration: `rerank-service check` would say the same."""
    for service in documents.of_kind("RayService"):
        try:
            _config(service)
        except ConfigError as error:
            yield from (Finding(name_of(service), f"serveConfigV2: {line}") for line in str(error).splitlines())


def replicas_fit(documents: Documents, _: Setting) -> Iterator[Finding]:
    """Ray's resources suffice for the largest number of replicas. Others would wait forever for a worker."""
    for service in documents.of_kind("RayService"):
        try:
            config = _config(service)
        except ConfigError:
            continue
        cluster = service["spec"]["rayClusterConfig"]
        groups = [(_resources(group), _workers(cluster, group)) for group in cluster.get("workerGroupSpecs", [])]
        for message in _misfits(config, groups):
            yield Finding(name_of(service), message)


def _misfits(config: RerankConfig, groups: list[tuple[dict[str, float], int]]) -> Iterator[str]:
    ingress = config.service.ingress
    cpus = ingress.num_cpus * ingress.max_replicas
    for host in [*(model for model in config.models if model.pool is None), *config.pools]:
        replica, most = host.replica, host.autoscaling.max_replicas
        needs = {"CPU": replica.num_cpus, "GPU": replica.num_gpus, **replica.resources}
        room = sum(_replicas(offer, needs) * workers for offer, workers in groups)
        if room < most:
            yield f"{host.deployment_name} may have {most} replicas, and the workers have room for {room}"
        cpus += replica.num_cpus * most
    offered = sum(offer.get("CPU", 0) * workers for offer, workers in groups)
    if offered < cpus:
        yield f"all replicas and ingresses together need {cpus:g} CPUs, and the workers have {offered:g}"


def _replicas(offer: dict[str, float], needs: dict[str, float]) -> int:
    """Number of replicas on one worker."""
    return min((_along(offer.get(name, 0), need) for name, need in needs.items() if need), default=_MANY)


def _along(offered: float, need: float) -> int:
    # A fraction of a GPU is a part of one GPU: two replicas with 0.6 need two.
    return int(offered) * floor(1 / need) if need < 1 and offered >= 1 else floor(offered / need)


def _resources(group: Document) -> dict[str, float]:
    """What Ray counts on a worker: `resources`, or else the limits of its container."""
    own = {name: quantity(amount) for name, amount in group.get("resources", {}).items()}
    resources = group["template"]["spec"]["containers"][0].get("resources", {})
    pod = resources.get("requests", {}) | resources.get("limits", {})
    gpus = sum(quantity(amount) for name, amount in pod.items() if name.startswith("nvidia.com/"))
    return {"CPU": quantity(pod.get("cpu", 0)), "GPU": gpus, **own}


def _workers(cluster: Document, group: Document) -> int:
    """The largest number of workers. Without the autoscaler, it stays as it is."""
    hosts = int(group.get("numOfHosts", 1))
    is_fixed = not cluster.get("enableInTreeAutoscaling")
    return hosts * int(group.get("replicas", group["minReplicas"]) if is_fixed else group["maxReplicas"])


def _config(service: Document) -> RerankConfig:
    return parse_serve_config(service["spec"].get("serveConfigV2", ""), "the Serve configuration")
