"""Whether volumes can be attached where they are mounted, and are filled with the models that are served."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath

from cluster.validate.documents import Document, Documents, Pod, name_of
from cluster.validate.finding import Finding, Setting

__all__ = ["claims", "models_are_pulled"]


def claims(documents: Documents, setting: Setting) -> Iterator[Finding]:
    """Each claim is defined once, exists, and is attached to one node only if it allows only one."""
    yield from _contradictions(documents)
    users: dict[str, list[Pod]] = defaultdict(list)
    for pod in documents.pods:
        for claim in pod.claims():
            users[claim].append(pod)
    for name, pods in users.items():
        defined = documents.named("PersistentVolumeClaim", name)
        if defined is None:
            if setting.external is not None and f"PersistentVolumeClaim/{name}" not in setting.external:
                yield Finding(pods[0].owner, f"the claim {name} exists nowhere")
        elif not {"ReadWriteMany", "ReadOnlyMany"} & set(defined["spec"]["accessModes"]):
            yield from _single_node(documents, name_of(defined), pods)


def _contradictions(documents: Documents) -> Iterator[Finding]:
    """Two specifications of one claim: a specification is immutable, so the second is refused."""
    specs: dict[str, Document] = {}
    for claim in documents.of_kind("PersistentVolumeClaim"):
        name = name_of(claim)
        if specs.setdefault(name, claim["spec"]) != claim["spec"]:
            yield Finding(name, "two files define it differently: Kubernetes refuses the second")


def _single_node(documents: Documents, claim: str, pods: list[Pod]) -> Iterator[Finding]:
    if len(pods) > 1:
        owners = " and ".join(pod.owner for pod in pods)
        yield Finding(claim, f"it is ReadWriteOnce, but {owners} mount it and may run on different nodes")
    for pod in pods:
        if pod.most > 1:
            yield Finding(claim, f"it is ReadWriteOnce, but up to {pod.most} pods of {pod.owner} mount it")
        service = documents.named("RayService", pod.owner.removeprefix("RayService/").split()[0])
        upgrade = service["spec"].get("upgradeStrategy", {}).get("type", "NewCluster") if service else "None"
        # YAML reads `type: None` as text; an upgrade starts a second cluster next to the first.
        if upgrade not in ("None", None):
            yield Finding(claim, f"it is ReadWriteOnce, so the new cluster of an upgrade of {pod.owner} never starts")


def models_are_pulled(documents: Documents, _: Setting) -> Iterator[Finding]:
    """Every model that is read from a folder of a volume is downloaded to this folder by a job or an init container.

    Somebody else may have filled a volume whose claim is not among the documents.
    """
    claims_of_workers = {claim for pod in documents.ray_pods() for claim in pod.claims()}
    if any(documents.named("PersistentVolumeClaim", claim) is None for claim in claims_of_workers):
        return
    targets = {target for pod in documents.pods for target in _pull_targets(pod)}
    for model in documents.models():
        source = str(model["checkpoint"]["source"])
        if source.startswith("/") and PurePosixPath(source) not in targets:
            yield Finding(str(model["id"]), f"nothing downloads it to {source}")


def _pull_targets(pod: Pod) -> Iterator[PurePosixPath]:
    for container in pod.containers:
        words = [*container.get("command", []), *container.get("args", [])]
        words = [word for part in words for word in part.split()]
        for before, word, after in zip(words, words[1:], [*words[2:], ""], strict=False):
            if word == "--to" and "pull" in words and after:
                yield PurePosixPath(after)
            if word.startswith("--to=") and before:
                yield PurePosixPath(word.removeprefix("--to="))
