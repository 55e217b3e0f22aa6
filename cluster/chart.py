"""Renders the Helm chart in `helm/rerank-service` with Helm's own library, without a cluster.

python cluster/chart.py cluster/helm/values/one-gpu.yaml        what `helm template rerank ... --values FILE` prints
"""

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

__all__ = ["CHART", "RELEASE", "VALUES", "is_available", "lint", "render"]

FOLDER = Path(__file__).parent / "helm"
CHART = FOLDER / "rerank-service"
VALUES = FOLDER / "values"
RELEASE = "rerank"


def is_available() -> bool:
    """Whether Helm's library is installed (`helm-python-sdk` in the extra `dev`)."""
    try:
        import helm_python  # noqa: F401
    except ImportError:
        return False
    return True


def render(values: Mapping[str, Any], name: str = RELEASE, namespace: str = RELEASE) -> str:
    """The manifests for these values, as one YAML text. Raises if the values do not satisfy values.schema.json."""
    chart = _chart()
    chart.validate_schema(dict(values))
    texts = chart.render(dict(values), name=name, namespace=namespace)
    named = {path.removeprefix(f"{CHART.name}/templates/"): text for path, text in texts.items()}
    documents = [text.strip() for path, text in sorted(named.items()) if path.endswith(".yaml") and text.strip()]
    return "\n---\n".join(text.removeprefix("---\n") for text in documents) + "\n"


def lint(values: Mapping[str, Any]) -> list[str]:
    """Helm's findings, warnings included."""
    import helm_python

    report = helm_python.lint(CHART, dict(values), strict=True)
    return [message["error"] for message in report["messages"] if message["severity"] > 1] + report["errors"]


@cache
def _chart() -> Any:
    import helm_python

    return helm_python.Chart.load(CHART)


def main() -> None:
    """Prints the manifests for a file of values."""
    (path,) = sys.argv[1:]
    sys.stdout.write(render(yaml.safe_load(Path(path).read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
