"""Pod Security Standards, profile "restricted", by Kubernetes' documentation of version 1.37."""

from collections.abc import Iterator

from cluster.validate.documents import Document, Documents, Pod
from cluster.validate.finding import Finding, Setting

__all__ = ["pod_security", "read_only_root"]

_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
}


def pod_security(documents: Documents, _: Setting) -> Iterator[Finding]:
    """A namespace with `pod-security.kubernetes.io/enforce: restricted` admits every pod."""
    for pod in documents.pods:
        for message in _pod_faults(pod):
            yield Finding(pod.owner, f"PodSecurity restricted refuses it: {message}")


def _pod_faults(pod: Pod) -> Iterator[str]:
    spec, context = pod.spec, pod.spec.get("securityContext", {})
    yield from (f"{name} is true" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name))
    for volume in spec.get("volumes", []):
        if not _VOLUMES & volume.keys():
            yield f"the volume {volume['name']} has a type that is not allowed"
    yield from (
        f"the sysctl {sysctl['name']} is not safe"
        for sysctl in context.get("sysctls", [])
        if sysctl["name"] not in _SAFE_SYSCTLS
    )
    yield from _shared_faults("the pod", context)
    for container in pod.containers:
        yield from _container_faults(container, context)


def _container_faults(container: Document, pod: Document) -> Iterator[str]:
    name, own = f"the container {container['name']}", container.get("securityContext", {})
    yield from _shared_faults(name, own)
    if own.get("privileged"):
        yield f"{name} is privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{name} does not set allowPrivilegeEscalation: false"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield f"{name} does not drop ALL capabilities"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"{name} adds capabilities"
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield f"{name} does not set runAsNonRoot: true"
    profile = own.get("seccompProfile", pod.get("seccompProfile", {})).get("type")
    if profile not in ("RuntimeDefault", "Localhost"):
        yield f"{name} sets no seccompProfile"
    if own.get("procMount", "Default") != "Default":
        yield f"{name} sets procMount"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield f"{name} uses a port of the host"


def _shared_faults(name: str, context: Document) -> Iterator[str]:
    """Faults of fields that a pod and its containers both have."""
    if context.get("runAsUser") == 0:
        yield f"{name} runs as user 0"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield f"{name} is a Windows host process"
    labels = context.get("seLinuxOptions", {})
    if labels.get("type", "") not in _SELINUX_TYPES or labels.get("user") or labels.get("role"):
        yield f"{name} sets SELinux options"
    if context.get("appArmorProfile", {}).get("type") == "Unconfined":
        yield f"{name} is not confined by AppArmor"
    if context.get("seccompProfile", {}).get("type") == "Unconfined":
        yield f"{name} is not confined by seccomp"


def read_only_root(documents: Documents, _: Setting) -> Iterator[Finding]:
    """No container can write to its root file system."""
    for pod in documents.pods:
        for container in pod.containers:
            if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
                yield Finding(pod.owner, f"the root file system of the container {container['name']} is writable")
