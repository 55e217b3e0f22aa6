"""Regenerates what this folder derives from the code. Run it after a change of the generator, catalogue or chart.

    python -m cluster.regenerate

- Serve configurations: a text that begins with `# Written by: rerank-service config ...` and extends to the end of its
  YAML block.
- The chart's files: the catalogue in the words of `rerank-service config`, and Ray's environment.
- The manifests in `kuberay/`: the chart, rendered with the values in `helm/values`.

Tests fail if a file differs.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from cluster import chart

__all__ = ["MANIFESTS", "MARK", "MONITORING", "catalogue", "environment", "manifests", "marked_files", "regenerated"]

FOLDER = Path(__file__).parent
MARK = "# Written by: "
MANIFESTS = {
    "base": "base",
    "dev-cpu": "overlays/dev-cpu",
    "one-gpu": "overlays/one-gpu",
    "many-nodes": "overlays/many-nodes",
    "cloud-storage": "overlays/cloud-storage",
}
"""Folder in `kuberay/` for each file of values whose manifests are kept."""
MONITORING = ("rules.yaml", "grafana-dashboard.json")
"""Files of `monitoring/` that the chart contains, because Helm reads only files in the chart's folder."""
_COMMAND = [sys.executable, "-c", "from rerank_service.tools.cli import main; main()"]
_IMAGE_BIN = "/opt/rerank-service/bin"  # cluster/Dockerfile
_CHOSEN_BY_VALUES = ("replica", "autoscaling")


def marked_files() -> list[Path]:
    """The files of this folder that contain a generated text."""
    return [path for path in sorted(FOLDER.rglob("*.yaml")) if MARK in path.read_text(encoding="utf-8")]


def regenerated(text: str, write: Callable[[list[str]], str]) -> str:
    """A file's text with each generated block replaced by the output of `write`, which takes the command's words."""
    lines = text.splitlines()
    result: list[str] = []
    while lines:
        line = lines.pop(0)
        indent, is_marked, command = line.partition(MARK)
        if not is_marked or indent.strip():
            result.append(line)
            continue
        while lines and (not lines[0].strip() or lines[0].startswith(indent) or not indent):
            lines.pop(0)
        written = write(shlex.split(command)).splitlines()
        result += [f"{indent}{new}" if new else "" for new in written]
    return "\n".join(result) + "\n"


def catalogue(write: Callable[[list[str]], str]) -> str:
    """The settings of each known model that the service can run, as `rerank-service config` writes them."""
    from rerank_service.tools.catalogue import CATALOGUE

    known: dict[str, Any] = {}
    for model in CATALOGUE:
        if model.engine is None:
            continue
        settings = {}
        for variant, options in (("cuda", ["--device", "cuda", "--pin"]), ("cpu", ["--device", "cpu"])):
            words = ["rerank-service", "config", model.name, *options, "--models-dir", "/models", "--json"]
            first = json.loads(write(words))["applications"][0]["args"]
            written = first["models"][0] if variant == "cpu" else first
            settings[variant] = {name: value for name, value in written.items() if name not in _CHOSEN_BY_VALUES}
        pull = f"{model.hub_id}@{model.revision}" if model.hub_id and model.revision else (model.hub_id or "")
        known[model.name] = {"application": model.application, "pull": pull, **settings}
    note = "# Written by cluster/regenerate.py: the settings that `rerank-service config` writes for each model.\n"
    return note + yaml.safe_dump(known, sort_keys=False, default_flow_style=None, width=120)


def environment(write: Callable[[list[str]], str]) -> str:
    """Ray's environment in the image, as the `data` of a ConfigMap."""
    variables = json.loads(write(["rerank-service", "environment", "--haproxy", "--json"]))
    variables["RAY_SERVE_HAPROXY_BINARY_PATH"] = f"{_IMAGE_BIN}/rerank-haproxy"
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in variables.items())


def manifests(name: str) -> str:
    """The manifests for a file of values."""
    values = yaml.safe_load((chart.VALUES / f"{name}.yaml").read_text(encoding="utf-8"))
    note = f"# Rendered by cluster/regenerate.py: the chart in cluster/helm with cluster/helm/values/{name}.yaml.\n"
    return note + chart.render(values)


def _run(words: list[str]) -> str:
    return subprocess.run([*_COMMAND, *words[1:]], check=True, capture_output=True, text=True).stdout


def _run_here(words: list[str]) -> str:
    from typer.testing import CliRunner

    from rerank_service.tools.cli.main import app

    result = CliRunner().invoke(app, words[1:])
    if result.exit_code:
        raise SystemExit(f"{shlex.join(words)}\n{result.output}")
    return result.stdout


def _texts() -> Iterator[tuple[Path, str]]:
    for path in marked_files():
        yield path, regenerated(path.read_text(encoding="utf-8"), _run)
    yield chart.CHART / "files" / "models.yaml", catalogue(_run_here)
    yield chart.CHART / "files" / "environment.yaml", environment(_run_here)
    for name in MONITORING:
        yield chart.CHART / "files" / name, (FOLDER / "monitoring" / name).read_text(encoding="utf-8")
    if not chart.is_available():
        sys.stderr.write("the manifests in kuberay/ are unchanged: install helm-python-sdk (constraints.txt)\n")
        return
    for name, folder in MANIFESTS.items():
        yield FOLDER / "kuberay" / folder / "manifests.yaml", manifests(name)


def main() -> None:
    """Rewrites the files in place."""
    for path, text in _texts():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"{path.relative_to(FOLDER)} rewritten\n")


if __name__ == "__main__":
    main()
