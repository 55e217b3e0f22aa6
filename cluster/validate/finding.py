"""What a check finds, and what it may know besides the documents."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cluster.validate.documents import Documents

__all__ = ["Check", "Finding", "NodeShape", "Setting"]


@dataclass(frozen=True)
class Finding:
    """A fault in a set of documents."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


@dataclass(frozen=True)
class NodeShape:
    """A kind of node, by the resources that are left for pods after the system's reservations and daemons."""

    name: str
    cpu: float
    memory: float
    """In bytes."""
    gpus: int = 0
    taints: tuple[str, ...] = ()
    """`key:effect` of each taint."""
    count: int | None = None
    """Null: as many as are needed."""


@dataclass(frozen=True)
class Setting:
    """What a set of documents is meant for."""

    nodes: tuple[NodeShape, ...] = ()
    """The smallest cluster that the set is made for. Empty: not checked."""
    feature_gates: frozenset[str] = frozenset()
    """Gates of the KubeRay operator that this set's instructions turn on."""
    image_environment: dict[str, str] = field(default_factory=dict)
    """The variables that the service's image sets for its containers."""
    external: frozenset[str] | None = None
    """`Kind/name` of the objects that exist besides the documents, such as secrets. Null: all that a pod names."""


Check = Callable[[Documents, Setting], Iterable[Finding]]
