"""The sets of manifests of this repository: how each is rendered, and what it is meant for."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cluster.chart import VALUES, render
from cluster.validate.documents import Document, Documents, quantity
from cluster.validate.finding import NodeShape, Setting

__all__ = ["CLUSTER", "ManifestSet", "built", "image_environment", "kustomize", "manifest_sets"]

CLUSTER = Path(__file__).parents[1]


@dataclass(frozen=True)
class ManifestSet:
    """Documents that are applied to one namespace together."""

    name: str
    kustomization: Path | None
    """Null: the set is rendered with the chart's values of this name, and not kept."""
    setting: Setting

    def documents(self) -> Documents:
        """Renders the set."""
        if self.kustomization is not None:
            return Documents(built(self.kustomization))
        values = yaml.safe_load((VALUES / f"{self.name}.yaml").read_text(encoding="utf-8"))
        return Documents(yaml.safe_load_all(render(values)))


def manifest_sets() -> list[ManifestSet]:
    """All sets, as `sets.yaml` lists them."""
    listed = yaml.safe_load((Path(__file__).parent / "sets.yaml").read_text(encoding="utf-8"))["sets"]
    return [_manifest_set(entry) for entry in listed]


def _manifest_set(entry: dict[str, Any]) -> ManifestSet:
    nodes = tuple(
        NodeShape(**{**shape, "memory": quantity(shape["memory"]), "taints": tuple(shape.get("taints", ()))})
        for shape in entry["nodes"]
    )
    setting = Setting(
        nodes=nodes,
        feature_gates=frozenset(entry.get("feature_gates", ())),
        image_environment=image_environment(),
        external=frozenset(entry.get("external", ())),
    )
    kustomization = CLUSTER / entry["kustomize"] if "kustomize" in entry else None
    return ManifestSet(entry["name"], kustomization, setting)


@cache
def image_environment() -> dict[str, str]:
    """The variables that the Dockerfile sets in the final image."""
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.rpartition("\nFROM ")[2].splitlines() if line.startswith("ENV ")]
    return dict(pair for line in lines for pair in re.findall(r"(\w+)=(\S+)", line))


def kustomize() -> list[str] | None:
    """Returns a command that builds a kustomization; null if this machine has no such program."""
    commands = (["kubectl", "kustomize"], ["kustomize", "build"])
    return next((command for command in commands if shutil.which(command[0])), None)


@cache
def built(folder: Path) -> tuple[Document, ...]:
    """Returns the resources of a base or overlay."""
    command = kustomize()
    if command is None:
        raise FileNotFoundError("kubectl or kustomize is needed to build kustomizations")
    result = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    if result.returncode:
        raise ValueError(result.stderr)
    return tuple(yaml.safe_load_all(result.stdout))
